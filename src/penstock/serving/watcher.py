"""Follows what should serve: loads what is named, then moves the route.

Polling and loading happen in one thread, so neither a slow database nor a
large model blocks the event loop. Whatever fails, the last good route serves on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from penstock.errors import PenstockError
from penstock.monitoring.metrics import ServingMetrics
from penstock.serving.routes import ARMS, Arm, Route, RouteTable, ServedVersion, Targets

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_SWAP_TIMEOUT_S = 10.0
# A bad version on trial is taken back within a second, counted from its failure.
_TRIAL_POLL_S = 0.2


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
    """Keeps a route table in step with what should serve.

    Args:
        poll: Says what should; may block, may raise.
        load: Turns a version into a route; blocking.
        table: What to keep in step; touched on the event loop only.
        metrics: Told about moves and failures.
        poll_interval_s: Time between two looks.
        model: The name clients ask for, a label of metrics.

    Attributes:
        wanted: What should serve, as it was last read.
    """

    def __init__(
        self,
        poll: Callable[[], Targets],
        load: Callable[[ServedVersion], Route],
        table: RouteTable,
        metrics: ServingMetrics,
        poll_interval_s: float,
        model: str,
    ) -> None:
        self._ask = poll
        self._load = load
        self._table = table
        self._metrics = metrics
        self._poll_interval_s = poll_interval_s
        self._model = model
        self._stopped = threading.Event()
        self._serving: dict[Arm, ServedVersion | None] = dict.fromkeys(ARMS)
        self._failures: dict[Arm, LoadFailure | None] = dict.fromkeys(ARMS)
        self._poll_broken = False
        self.wanted = Targets()

    @property
    def failure(self) -> LoadFailure | None:
        """Why the champion is not what it should be, if so."""
        return self._failures["champion"]

    @property
    def trial_failure(self) -> LoadFailure | None:
        """Why the challenger cannot be tried, if so."""
        return self._failures["challenger"]

    def start(self) -> None:
        """Begin to follow; call it on the event loop."""
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
                logger.exception("Following the pointer of %s failed; trying on", self._model)
            self._stopped.wait(self._pause_s)

    @property
    def _pause_s(self) -> float:
        on_trial = self.wanted.challenger is not None
        return min(self._poll_interval_s, _TRIAL_POLL_S if on_trial else math.inf)

    def _poll(self) -> Targets:
        """What should serve; while that cannot be read, what was read last."""
        try:
            self.wanted = _distinct(self._ask())
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

    def _follow(self, targets: Targets) -> None:
        self._share(targets)
        for arm in ARMS:
            self._follow_one(arm, targets.of(arm))
        self._share(targets)

    def _share(self, targets: Targets) -> None:
        """Give the challenger its share, once it is there: the one before it gets none of it."""
        on_trial = targets.challenger is not None and self._on_trial(targets.challenger)
        share = targets.share if on_trial else 0.0
        table = self._table
        wanted = (share, targets.rollout, targets.step)
        if wanted != (table.share, table.rollout, table.step):

            def move() -> None:
                table.share, table.rollout, table.step = wanted
                self._metrics.show_rollout(self._model, share, targets.rollout, targets.step)

            self._on_loop(move)

    def _follow_one(self, arm: Arm, wanted: ServedVersion | None) -> None:
        serving = self._serving[arm]
        if wanted == serving:
            self._failures[arm] = None
        elif wanted is None:
            self._swap(arm, None, None)
        elif serving is not None and wanted.same_model(serving):
            self._relabel(arm, wanted)
        elif arm == "champion" and self._on_trial(wanted):
            self._promote(wanted)
        elif self._may_try(arm, wanted):
            self._replace(arm, wanted)

    def _on_trial(self, wanted: ServedVersion) -> bool:
        challenger = self._serving["challenger"]
        return challenger is not None and wanted.same_model(challenger)

    def _may_try(self, arm: Arm, wanted: ServedVersion) -> bool:
        failure = self._failures[arm]
        if failure is None or (failure.epoch, failure.version) != (wanted.epoch, wanted.version):
            return True
        return time.monotonic() >= failure.retry_at_s

    def _replace(self, arm: Arm, wanted: ServedVersion) -> None:
        started_s = time.monotonic()
        try:
            route = self._load(wanted)
        except Exception as error:
            self._note_failure(arm, wanted, error)
            return
        if self._stopped.is_set() or self._poll().of(arm) != wanted:
            # The pointer moved on meanwhile: perhaps away from a bad version.
            route.backend.close()
            return
        self._swap(arm, route, wanted)
        logger.info(
            "Serving %s version %d as %s (epoch %d), loaded in %.1f s",
            wanted.model,
            wanted.version,
            arm,
            wanted.epoch,
            time.monotonic() - started_s,
        )

    def _note_failure(self, arm: Arm, wanted: ServedVersion, error: Exception) -> None:
        before = self._failures[arm]
        again = before is not None and before.epoch == wanted.epoch
        attempts = before.attempts + 1 if before is not None and again else 1
        delay_s = min(_FIRST_RETRY_S * 2 ** (attempts - 1), _LAST_RETRY_S)
        self._metrics.load_failures.labels(self._model).inc()
        self._failures[arm] = LoadFailure(
            wanted.version, wanted.epoch, attempts, str(error), time.monotonic() + delay_s
        )
        logger.error(
            "Version %d of %s cannot be loaded, the last one serves on; next try in %.0f s: %s",
            wanted.version,
            self._model,
            delay_s,
            error,
            exc_info=None if isinstance(error, PenstockError) else error,
        )

    def _swap(self, arm: Arm, route: Route | None, served: ServedVersion | None) -> None:
        self._move(arm, lambda: self._table.swap(route, arm), served)

    def _promote(self, wanted: ServedVersion) -> None:
        """The version on trial is loaded already: it only changes its place."""
        self._move("champion", lambda: self._table.promote(wanted), wanted)
        self._serving["challenger"] = None
        self._on_loop(lambda: self._metrics.show_served(self._model, "challenger", None))
        logger.info("Version %d of %s is champion now", wanted.version, self._model)

    def _relabel(self, arm: Arm, wanted: ServedVersion) -> None:
        """The pointer came back to the model that serves: nothing needs loading."""

        def relabel() -> None:
            route = self._table.current if arm == "champion" else self._table.challenger
            if route is not None:
                route.served = wanted

        self._move(arm, relabel, wanted)

    def _move(self, arm: Arm, move: Callable[[], None], served: ServedVersion | None) -> None:
        """Change the route, and what is said about it, in one step of the event loop."""

        def both() -> None:
            move()
            self._failures[arm] = None
            self._metrics.show_served(self._model, arm, served)

        self._on_loop(both)
        self._serving[arm] = served

    def _on_loop(self, step: Callable[[], None]) -> None:
        async def run() -> None:
            step()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(_SWAP_TIMEOUT_S)


def _distinct(targets: Targets) -> Targets:
    """A challenger that has become champion is on trial no more."""
    champion, challenger = targets.champion, targets.challenger
    if champion is not None and challenger is not None and champion.same_model(challenger):
        return Targets(champion)
    return targets
