"""What vLLM says beyond OpenAI's API: token ids. With a model behind it, or as a program.

``python fake_vllm.py ... serve FOLDER --served-model-name NAME --port PORT`` is a ``vllm
serve`` that loads nothing and answers with the prompt, backwards. A file in the folder
named ``broken`` lets it end with its text; one named ``slow`` lets it never come up.
"""

import asyncio
import os
import sys
import time
from contextlib import aclosing
from pathlib import Path

from fake_upstream import FakeUpstream, model

END = 1  # tiny_llama's


def event(name, ids, reason=None, stop_reason=None):
    choice = {"index": 0, "text": "?" * len(ids), "token_ids": ids, "finish_reason": reason}
    choice["stop_reason"] = stop_reason
    return {"id": "cmpl-1", "object": "text_completion", "model": name, "choices": [choice]}


def computed_by(backend, name):
    """Answers with what a backend computes, in vLLM's form."""
    from penstock.serving.backends.base import Generation

    async def answer(request, reply):
        body = request.body
        assert request.path == "/v1/completions"
        assert body["model"] == name
        assert body["return_token_ids"]
        asked = Generation(
            tuple(body["prompt"]),
            body["max_tokens"],
            body["temperature"],
            body["top_p"],
            tuple(body.get("stop", ())),
            body.get("seed"),
        )
        await reply.start()
        async with aclosing(backend.generate(asked)) as chunks:
            async for chunk in chunks:
                ids, reason = list(chunk.token_ids), chunk.finish_reason
                if reason == "stop" and not asked.stop:
                    ids.append(END)
                await reply.event(event(name, ids, reason))
        await reply.event("[DONE]")
        await reply.end()

    return answer


class FakeVllm(FakeUpstream):
    """Serves one model under one name, perhaps to those with a key only."""

    def __init__(self, name, answer, port=0, key=None):
        super().__init__(answer, port)
        self.name, self.key = name, key

    async def _one(self, request, reply):
        if request.path == "/health":
            await reply.json({}, self.health)
        elif self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            await reply.json({"error": "Unauthorized"}, 401)
        elif request.path == "/v1/models":
            await reply.json({"object": "list", "data": [model(self.name)]})
        else:
            await self.answer(request, reply)


def backwards(name):
    async def answer(request, reply):
        ids = request.body["prompt"][::-1][: request.body["max_tokens"]]
        await reply.start()
        for token_id in ids:
            await reply.event(event(name, [token_id]))
            await asyncio.sleep(0)
        await reply.event(event(name, [END], "stop"))
        await reply.event("[DONE]")
        await reply.end()

    return answer


def main(words):
    folder = Path(words[words.index("serve") + 1])
    name, port = (words[words.index(flag) + 1] for flag in ("--served-model-name", "--port"))
    print(*words, flush=True)
    if (folder / "broken").exists():
        sys.exit((folder / "broken").read_text())
    if (folder / "slow").exists():
        time.sleep(600)
    with FakeVllm(name, backwards(name), int(port), os.environ["VLLM_API_KEY"]):
        time.sleep(600)


def as_python(path):
    """A program at ``path`` that can be named where a Python with vLLM is asked for."""
    here = Path(__file__).parent
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(here)!r})\n"
        "import fake_vllm\nfake_vllm.main(sys.argv)\n"
    )
    path.chmod(0o755)
    return path
