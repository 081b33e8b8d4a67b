"""What runs inside Ray Serve: one copy of one model version, in another backend."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from penstock.errors import ServingError
from penstock.registry import resolve
from penstock.serving.backends.base import Backend, Chunk, Floats, Generation, ModelFiles


@dataclass(frozen=True)
class Order:
    """What every copy of a model is made from.

    Attributes:
        backend: Name of the backend inside.
        files: The model, and the options of that backend.
    """

    backend: str
    files: ModelFiles

    def made(self) -> Backend:
        """The backend, not loaded yet.

        Raises:
            ServingError: The model's files are not on this host.
        """
        folder = self.files.folder
        if folder is not None and not folder.is_dir():
            raise ServingError(
                f"{folder} is not there on {socket.gethostname()}.",
                "Keep the store on a file system that all hosts of the Ray cluster mount.",
            )
        backend: Backend = resolve("backends", self.backend, self.files.recipe_folder)(self.files)
        return backend


class Replica:
    """One copy; Ray Serve makes it, asks it, looks after it and ends it."""

    def __init__(self, order: Order) -> None:
        self._backend = order.made()
        self._backend.load()

    async def labels(self) -> tuple[str, ...]:
        """What a classifier tells apart."""
        return self._backend.labels

    async def generate(self, request: Generation) -> AsyncGenerator[Chunk, None]:
        """Stream one answer; a caller that goes away ends it here too."""
        async with contextlib.aclosing(self._backend.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, texts: list[str]) -> tuple[Floats, int]:
        """See ``Backend``."""
        return await self._backend.embed(texts)

    async def rerank(self, query: str, documents: list[str]) -> tuple[Floats, int]:
        """See ``Backend``."""
        return await self._backend.rerank(query, documents)

    async def classify(self, texts: list[str]) -> tuple[Floats, int]:
        """See ``Backend``."""
        return await self._backend.classify(texts)

    async def check_health(self) -> None:
        """Asked by Ray Serve every few seconds; a copy that is not well is replaced.

        Raises:
            ServingError: It is not.
        """
        if not await self._backend.healthy():
            raise ServingError("The backend in this replica is not well.")

    def __del__(self) -> None:
        """Free the model; Ray Serve calls this when the last answer has ended."""
        if hasattr(self, "_backend"):
            self._backend.close()
