"""A backend without a model, whose answers say what the test needs to see.

The text of the prompt is the order: ``"say TEXT"`` answers TEXT, ``"count N"``
streams N tokens, ``"hang"`` gives one token and then waits until it is closed,
``"hang NAME"`` does so in the model of that folder only, ``"break"`` fails, and
``"flood"`` never ends. Anything else is answered with the folder's name.
"""

import asyncio
import time
from collections import Counter

import numpy as np

from penstock.errors import ServingError
from penstock.serving.backends.base import Backend, Chunk

EVENTS = Counter()
LOAD_DELAY_S = {}


class ByteTokenizer:
    """One token is one byte."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, token_ids, **_):
        return bytes(token_ids).decode()


class FakeBackend(Backend):
    capabilities = frozenset({"generate", "embed", "rerank", "classify"})

    def __init__(self, files):
        self._files = files
        self._name = files.path.name
        self.closed = False
        self.broken = False

    def load(self):
        EVENTS[f"load {self._name}"] += 1
        time.sleep(LOAD_DELAY_S.get(self._name, 0))
        if (self._files.path / "broken").exists():
            raise ServingError(f"{self._name} is broken.")
        assert self._files.text.vocab_size > 0
        EVENTS["open"] += 1

    async def generate(self, request):
        EVENTS["started"] += 1
        order, _, rest = self._files.text.decode(request.prompt_ids).strip().partition(" ")
        try:
            if order == "break" or self.broken:
                raise RuntimeError("secret detail")
            if order == "hang" and rest in ("", self._name):
                yield Chunk("first", (5,))
                await asyncio.sleep(3600)
            if order == "flood":
                while True:
                    await asyncio.sleep(0)
                    yield Chunk("x" * 10_000, (5,))
            if order == "count":
                for number in range(int(rest)):
                    await asyncio.sleep(0.005)
                    assert not self.closed
                    yield Chunk(f"{self._name} {number}\n", (5,))
                yield Chunk("", (), "stop")
                return
            yield Chunk(rest if order == "say" else self._name, (5,) * 3, "stop")
        except (asyncio.CancelledError, GeneratorExit):
            EVENTS["cancelled"] += 1
            raise
        finally:
            EVENTS["ended"] += 1

    async def embed(self, texts):
        if texts == ["hang"]:
            await asyncio.sleep(3600)
        vectors = np.array([[len(text), 1.5, -2.0] for text in texts], dtype=np.float32)
        return vectors, sum(map(len, texts))

    async def rerank(self, query, documents):
        shared = [len(set(query) & set(one)) / len(set(query)) for one in documents]
        return np.array(shared, dtype=np.float32), len(query) + sum(map(len, documents))

    @property
    def labels(self):
        return self._files.labels

    async def classify(self, texts):
        scores = [[0.9 if label in text else 0.1 for label in self.labels] for text in texts]
        return np.array(scores, dtype=np.float32), sum(map(len, texts))

    def close(self):
        EVENTS["open"] -= 1
        self.closed = True
