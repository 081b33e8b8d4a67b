"""Requests to a backend that reads text, and what it answers."""

import asyncio

from penstock.serving.backends.base import Generation


def chat(text, max_tokens=20, **more):
    return Generation((), max_tokens, turns=({"role": "user", "content": text},), **more)


def plain(text, max_tokens=20, **more):
    return Generation((), max_tokens, text=text, **more)


async def collect(backend, request):
    chunks = [chunk async for chunk in backend.generate(request)]
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    return "".join(chunk.text for chunk in chunks), chunks[-1]


def answered(backend, *requests):
    """Texts and last chunks, one request after the other; the last alone if there is one."""

    async def main():
        return [await collect(backend, request) for request in requests]

    answers = asyncio.run(main())
    return answers[0] if len(answers) == 1 else answers
