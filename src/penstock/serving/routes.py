"""Which model version answers, and how that changes without dropping an answer.

A promotion moves one reference. Answers in flight keep the route they started
on; a route that was replaced closes its model when its last answer has ended.
Everything here happens on the gateway's event loop, so there are no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from penstock.errors import NotReady
from penstock.serving.backends.base import Backend, ModelFiles
from penstock.serving.model_text import ModelText

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedVersion:
    """What the production pointer names.

    Attributes:
        model: The model's name.
        version: Its version number.
        epoch: Goes up with every move of the pointer, also with a move back.
        folder: A transformers model folder.
        digest: SHA-256 of the model artifact, 64 hex digits.
        run_id: The training run that made it.
        data_version: The data it was trained on.
        fetch: Brings the files to ``folder`` where they may be elsewhere; blocking.
    """

    model: str
    version: int
    epoch: int
    folder: Path
    digest: str
    run_id: str
    data_version: str
    fetch: Callable[[], object] | None = field(default=None, compare=False)

    @property
    def headers(self) -> dict[str, str]:
        """What every answer of this version says about its origin."""
        return {
            "x-penstock-model": self.model,
            "x-penstock-model-version": str(self.version),
            "x-penstock-run": self.run_id,
            "x-penstock-data-version": self.data_version,
        }

    @property
    def fingerprint(self) -> str:
        """OpenAI's ``system_fingerprint``: answers can only be repeated while it is the same."""
        return f"v{self.version}-{self.digest[:16]}"

    def same_model(self, other: ServedVersion) -> bool:
        """Whether both are the same weights under the same name and number."""
        return (self.version, self.digest, self.folder) == (
            other.version,
            other.digest,
            other.folder,
        )


class Pointers(Protocol):
    """Where the gateway reads which version to serve; the ledger implements it."""

    def production(self) -> ServedVersion | None:
        """The version in production, or None while there is none. May block, may raise."""
        ...


class Route:
    """One loaded model version, and the answers that still need it."""

    def __init__(self, served: ServedVersion, files: ModelFiles, backend: Backend) -> None:
        self.served = served
        self.backend = backend
        self._files = files
        self._num_in_flight = 0
        self._retired = False
        self._closed = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    @property
    def text(self) -> ModelText:
        """The version's tokenizer and limits."""
        return self._files.text

    @contextlib.contextmanager
    def lease(self) -> Iterator[Route]:
        """Keep the model loaded for as long as one answer takes."""
        self._num_in_flight += 1
        try:
            yield self
        finally:
            self._num_in_flight -= 1
            self._close_if_idle()

    def retire(self) -> None:
        """Close the model as soon as nobody needs it."""
        self._retired = True
        self._close_if_idle()

    async def closed(self) -> None:
        """Wait until a retired route has closed its model."""
        await self._closed.wait()

    def _close_if_idle(self) -> None:
        if self._retired and self._num_in_flight == 0 and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        try:
            await asyncio.to_thread(self.backend.close)
        except Exception:
            logger.exception("Version %s did not close cleanly", self.served.version)
        finally:
            self._closed.set()


class RouteTable:
    """The one reference that a promotion moves."""

    def __init__(self) -> None:
        self._current: Route | None = None
        self._retired: set[Route] = set()

    @property
    def current(self) -> Route | None:
        """The route that new requests take."""
        return self._current

    def route(self) -> Route:
        """The route that new requests take.

        Raises:
            NotReady: No version is loaded.
        """
        if self._current is None:
            raise NotReady(
                "No model version is ready yet.",
                "Wait until /readyz answers 200; it says what is missing.",
            )
        return self._current

    def swap(self, new: Route | None) -> None:
        """Send new requests to ``new``; the old route ends with its last answer."""
        old, self._current = self._current, new
        if old is not None:
            self._retired = {route for route in self._retired if not route._closed.is_set()}
            self._retired.add(old)
            old.retire()

    async def close(self) -> None:
        """Retire the current route and wait until all models are closed."""
        self.swap(None)
        await asyncio.gather(*(route.closed() for route in self._retired))
