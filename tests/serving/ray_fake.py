"""A backend without a model that computes in replicas; what it does is seen on the disk.

The text of the prompt is the order: ``"work S"`` takes S seconds, ``"count N"`` streams
N tokens, ``"hang"`` gives one token and then waits until it is closed, ``"refuse"`` is the
request's own fault, ``"break"`` the model's, and ``"die"`` ends the process. All answers begin
with the folder's name and the process id.
"""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from penstock.errors import InvalidRequest, ServingError
from penstock.section import Section
from penstock.serving.backends.base import Backend, Chunk


class RayFakeOptions(Section):
    load_s: float = 0.0


class RayFake(Backend):
    Options = RayFakeOptions
    capabilities = frozenset({"generate", "embed", "rerank", "classify"})

    def __init__(self, files):
        self._files = files
        self._options = RayFakeOptions.model_validate(files.options)
        self._name = files.path.name

    def load(self):
        if (self._files.path / "broken").exists():
            raise ServingError(f"{self._name} is broken on purpose.", "Mend it.")
        # transformers would take seconds to import in every replica.
        self._tokenizer = Tokenizer.from_file(str(self._files.path / "tokenizer.json"))
        self._note("loaded")

    async def generate(self, request):
        order, _, rest = self._tokenizer.decode(request.prompt_ids).strip().partition(" ")
        try:
            yield Chunk(f"{self._name} {os.getpid()}", (5,))
            if order == "refuse":
                raise InvalidRequest("No.", "Ask otherwise.", "prompt")
            if order == "break":
                raise RuntimeError("secret detail")
            if order == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if order == "hang":
                await asyncio.sleep(3600)
            if order == "work":
                await asyncio.sleep(float(rest))
            if order == "count":
                for number in range(int(rest)):
                    await asyncio.sleep(0.01)
                    yield Chunk(f" {number}", (5,))
            yield Chunk("", (), "stop")
        except (asyncio.CancelledError, GeneratorExit):
            self._note("cancelled")
            raise

    async def embed(self, texts):
        await asyncio.sleep(0.05)
        vectors = np.array([[len(text), 1.5] for text in texts], dtype=np.float32)
        return vectors, sum(map(len, texts))

    async def rerank(self, query, documents):
        return np.array([0.5] * len(documents), dtype=np.float32), 1

    @property
    def labels(self):
        return ("yes", "no")

    async def classify(self, texts):
        return np.array([[0.9, 0.1]] * len(texts), dtype=np.float32), 1

    def close(self):
        self._note("closed")

    def _note(self, event):
        (self._files.path / f"{event}-{os.getpid()}").touch()


def noted(folder: Path, event: str) -> set[int]:
    """Ids of the processes to which something happened."""
    return {int(path.name.rpartition("-")[2]) for path in folder.glob(f"{event}-*")}
