"""A server elsewhere that speaks OpenAI's API, and can break every rule of it.

The text of the prompt is the order, as in ``fake_backend``: ``say TEXT`` answers TEXT, a
word for each event; ``count N`` writes N numbers; ``hang`` gives one token and then nothing.
"""

import asyncio
import base64
import json
import threading
from collections import namedtuple
from contextlib import suppress

import numpy as np

NAMED = "big-model"
LABELS = ("calm", "angry")
Request = namedtuple("Request", "method path headers body")


class Reply:
    """Writes an answer: well, or as a test wants it."""

    def __init__(self, writer):
        self._writer = writer

    async def raw(self, data):
        self._writer.write(data)
        await self._writer.drain()

    async def json(self, content, status=200, **headers):
        await self.whole(json.dumps(content).encode(), "application/json", status, **headers)

    async def whole(self, body, kind, status=200, **headers):
        lines = {"content-type": kind, "content-length": str(len(body)), **headers}
        await self.raw(_head(status, lines) + body)

    async def start(self, kind="text/event-stream; charset=utf-8"):
        await self.raw(_head(200, {"content-type": kind, "transfer-encoding": "chunked"}))

    async def piece(self, data):
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, content):
        text = content if isinstance(content, str) else json.dumps(content)
        await self.piece(b"data: " + text.encode() + b"\n\n")

    async def end(self):
        await self.raw(b"0\r\n\r\n")

    def hang_up(self):
        """Close without a word; what was not sent yet is lost."""
        self._writer.transport.abort()


def _head(status, headers):
    lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).replace("_", "-").encode()


class FakeUpstream:
    """Runs in a thread.

    Attributes:
        answer: ``async (request, reply)``: answers one request.
        health: Status of ``/health``; 404 if it has none.
        seen: Requests so far.
        num_left: Answers that nobody waited for.
        num_connections: So far.
    """

    def __init__(self, answer=None, port=0):
        self.answer = answer or honest
        self.health = 200
        self.seen, self.num_left, self.num_connections = [], 0, 0
        self.port = port
        self._writers = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def num_open(self):
        """Connections."""
        return len(self._writers)

    def asked(self, path):
        return [one for one in self.seen if one.path == path]

    def __enter__(self):
        self._thread.start()
        self.rise()
        return self

    def __exit__(self, *_):
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def rise(self):
        """Listen, on the same port as before."""
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self.port = self._server.sockets[0].getsockname()[1]

    def die(self):
        """As kill -9 would have it."""

        async def die():
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for writer in self._writers:
                writer.transport.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._run(die())

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self, reader, writer):
        self._writers.add(writer)
        self.num_connections += 1
        try:
            while request := await _read(reader):
                self.seen.append(request)
                if not await self._answered(request, reader, Reply(writer)):
                    return
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answered(self, request, reader, reply):
        """Answer; false if the client left before that was done."""
        answering = asyncio.ensure_future(self._one(request, reply))
        leaving = asyncio.ensure_future(_leaving(reader))
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        left = not answering.done()
        self.num_left += left
        for task in (answering, leaving):
            task.cancel()
        with suppress(ConnectionError):
            await asyncio.gather(answering, leaving, return_exceptions=True)
        if not left and answering.exception():
            reply.hang_up()
            return False
        return not left

    async def _one(self, request, reply):
        if request.path == "/health":
            await reply.json({}, self.health)
        elif request.path == "/v1/models":
            await reply.json({"object": "list", "data": [model(NAMED)]})
        else:
            await self.answer(request, reply)


async def _read(reader):
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = head[0].split()
    headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, json.loads(body) if body else None)


async def _leaving(reader):
    # The client has nothing to say before it has its answer.
    while not reader.at_eof():
        await asyncio.sleep(0.005)


def model(name):
    return {"id": name, "object": "model", "created": 1, "owned_by": "somebody"}


async def honest(request, reply):
    """As OpenAI, Jina and vLLM have it."""
    answers = {
        "/v1/chat/completions": _generated,
        "/v1/completions": _generated,
        "/v1/embeddings": _embedded,
        "/v1/rerank": _ranked,
        "/classify": _classified,
    }
    if request.path not in answers:
        await reply.json({"error": {"message": "Not Found"}}, 404)
    elif request.body["model"] != NAMED:
        await reply.json({"error": {"message": "no such model", "code": "model_not_found"}}, 404)
    else:
        await answers[request.path](request, reply)


def prompt_of(body):
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def words_of(body):
    """What is answered, as tokens; None where it hangs."""
    order, _, rest = prompt_of(body).partition(" ")
    words = [f"{n} " for n in range(int(rest))] if order == "count" else None
    if order == "hang":
        return ["first", None]
    if words is None:
        first, *others = rest.split(" ")
        words = [first, *(f" {word}" for word in others)]
    return words


def usage_of(body, num_words):
    read = len(prompt_of(body).split())
    return {
        "prompt_tokens": read,
        "completion_tokens": num_words,
        "total_tokens": read + num_words,
    }


def frame(body, choices, **more):
    chat = "messages" in body
    kind = "chat.completion.chunk" if chat else "text_completion"
    return {
        "id": "x-1",
        "object": kind,
        "created": 1,
        "model": NAMED,
        "choices": choices,
        **more,
    }


def choice(body, text, reason=None):
    part = {"delta": {"content": text}} if "messages" in body else {"text": text}
    return {"index": 0, **part, "finish_reason": reason, "logprobs": None}


def asked_usage(body):
    return (body.get("stream_options") or {}).get("include_usage")


async def _generated(request, reply):
    body = request.body
    most = body.get("max_tokens") or body.get("max_completion_tokens") or 1_000
    words = words_of(body)
    text = "".join(word for word in words if word)
    for stop in body.get("stop", []):
        if stop in text:
            words = [text.split(stop)[0]]
            most = 1_000
    reason = "length" if len(words) > most else "stop"
    await reply.start()
    for word in words[:most]:
        if word is None:
            await asyncio.sleep(3600)
        await reply.event(frame(body, [choice(body, word)]))
        await asyncio.sleep(0)
    await reply.event(frame(body, [choice(body, "", reason)]))
    if asked_usage(body):
        await reply.event(frame(body, [], usage=usage_of(body, len(words[:most]))))
    await reply.event("[DONE]")
    await reply.end()


async def _embedded(request, reply):
    body = request.body
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    rows = []
    for index, text in enumerate(texts):
        vector = np.array([len(text), 1.5, -2.0], "<f4")
        given = vector.tolist()
        if body.get("encoding_format") == "base64":
            given = base64.b64encode(vector.tobytes()).decode()
        rows.append({"object": "embedding", "index": index, "embedding": given})
    read = sum(len(text.split()) for text in texts)
    counts = {"prompt_tokens": read, "total_tokens": read}
    # The order is said by the index alone.
    await reply.json({"object": "list", "model": NAMED, "data": rows[::-1], "usage": counts})


async def _ranked(request, reply):
    body = request.body
    query = set(body["query"])
    scores = [len(query & set(one)) / len(query) for one in body["documents"]]
    rows = [{"index": i, "relevance_score": one} for i, one in enumerate(scores)]
    rows.sort(key=lambda row: -row["relevance_score"])
    await reply.json({"id": "r", "model": NAMED, "results": rows, "usage": {"total_tokens": 9}})


async def _classified(request, reply):
    rows = []
    for index, text in enumerate(request.body["input"]):
        angry = 0.9 if "!" in text else 0.1
        best = LABELS[int(angry > 0.5)]
        probs = [1 - angry, angry]
        rows.append({"index": index, "label": best, "probs": probs, "num_classes": 2})
    counts = {"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0}
    await reply.json({"object": "list", "model": NAMED, "data": rows, "usage": counts})
