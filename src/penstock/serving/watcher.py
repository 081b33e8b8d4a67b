"""Follows the production pointer: loads what it names, then moves the route.

Polling and loading happen in one thread, so neither a slow database nor a
large model blocks the event loop. Whatever fails, the last good route serves on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from penstock.errors import PenstockError
from penstock.monitoring.metrics import ServingMetrics
from penstock.serving.routes import Pointers, Route, RouteTable, ServedVersion

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_SWAP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class LoadFailure:
    """Why the version that the pointer names is not the one that serves.

    Attributes:
        version: The version that was tried.
        epoch: The pointer's epoch.
        attempts: How often.
        error: What happened.
        retry_at_s: When to try again, on the monotonic clock.
    """

    version: int
    epoch: int
    attempts: int
    error: str
    retry_at_s: float


class PointerWatcher:
    """Keeps a route table in step with a production pointer.

    Args:
        pointers: What to follow.
        load: Turns a version into a route; blocking.
        table: What to keep in step; touched on the event loop only.
        metrics: Told about moves and failures.
        poll_interval_s: Time between two looks at the pointer.
    """

    def __init__(
        self,
        pointers: Pointers,
        load: Callable[[ServedVersion], Route],
        table: RouteTable,
        metrics: ServingMetrics,
        poll_interval_s: float,
    ) -> None:
        self._pointers = pointers
        self._load = load
        self._table = table
        self._metrics = metrics
        self._poll_interval_s = poll_interval_s
        self._stopped = threading.Event()
        self._serving: ServedVersion | None = None
        self._poll_broken = False
        self.failure: LoadFailure | None = None
        self.wanted: ServedVersion | None = None

    def start(self) -> None:
        """Begin to follow the pointer; call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="pointer-watcher", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop following; a load in progress is waited for, a hanging poll only briefly."""
        self._stopped.set()
        await asyncio.to_thread(self._thread.join, _SWAP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._follow(self._poll())
            except Exception:
                logger.exception("Following the production pointer failed; trying on")
            self._stopped.wait(self._poll_interval_s)

    def _poll(self) -> ServedVersion | None:
        """The pointer; while it cannot be read, what it said last."""
        try:
            self.wanted = self._pointers.production()
        except Exception as error:
            self._metrics.poll_failures.inc()
            if not self._poll_broken:
                logger.warning("The production pointer cannot be read, serving on: %s", error)
            self._poll_broken = True
        else:
            if self._poll_broken:
                logger.info("The production pointer can be read again")
            self._poll_broken = False
        return self.wanted

    def _follow(self, wanted: ServedVersion | None) -> None:
        if wanted == self._serving:
            self.failure = None
        elif wanted is None:
            self._swap(None, None)
        elif self._serving is not None and wanted.same_model(self._serving):
            self._relabel(wanted)
        elif self._may_try(wanted):
            self._replace(wanted)

    def _may_try(self, wanted: ServedVersion) -> bool:
        failure = self.failure
        if failure is None or failure.epoch != wanted.epoch:
            return True
        return time.monotonic() >= failure.retry_at_s

    def _replace(self, wanted: ServedVersion) -> None:
        started_s = time.monotonic()
        try:
            route = self._load(wanted)
        except Exception as error:
            self._note_failure(wanted, error)
            return
        if self._stopped.is_set() or self._poll() != wanted:
            # The pointer moved on meanwhile: perhaps away from a bad version.
            route.backend.close()
            return
        self._swap(route, wanted)
        logger.info(
            "Serving %s version %d (epoch %d), loaded in %.1f s",
            wanted.model,
            wanted.version,
            wanted.epoch,
            time.monotonic() - started_s,
        )

    def _note_failure(self, wanted: ServedVersion, error: Exception) -> None:
        before = self.failure
        attempts = before.attempts + 1 if before and before.epoch == wanted.epoch else 1
        delay_s = min(_FIRST_RETRY_S * 2 ** (attempts - 1), _LAST_RETRY_S)
        self._metrics.load_failures.labels(wanted.model).inc()
        self.failure = LoadFailure(
            wanted.version, wanted.epoch, attempts, str(error), time.monotonic() + delay_s
        )
        logger.error(
            "Version %d cannot be loaded, the last one serves on; next try in %.0f s: %s",
            wanted.version,
            delay_s,
            error,
            exc_info=None if isinstance(error, PenstockError) else error,
        )

    def _swap(self, route: Route | None, served: ServedVersion | None) -> None:
        self._move(lambda: self._table.swap(route), served)

    def _relabel(self, wanted: ServedVersion) -> None:
        """The pointer came back to the model that serves: nothing needs loading."""

        def relabel() -> None:
            if self._table.current is not None:
                self._table.current.served = wanted

        self._move(relabel, wanted)

    def _move(self, move: Callable[[], None], served: ServedVersion | None) -> None:
        """Change the route, and what is said about it, in one step of the event loop."""

        async def run() -> None:
            move()
            self.failure = None
            self._metrics.show_served(served)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(_SWAP_TIMEOUT_S)
        self._serving = served
