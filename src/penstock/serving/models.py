"""One model that clients may ask for: its versions, its queue, its health."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from penstock.errors import PenstockError, ServingError
from penstock.monitoring.metrics import ServingMetrics
from penstock.serve_section import ModelConfig
from penstock.serving.admission import Admission
from penstock.serving.loading import Loader
from penstock.serving.routes import Pointers, Route, RouteTable
from penstock.serving.watcher import LoadFailure, PointerWatcher

logger = logging.getLogger(__name__)

# Two looks in a second: a dead server is noticed within one.
_PROBE_INTERVAL_S = 0.4
_PROBE_TIMEOUT_S = 0.5


class ServedModel:
    """A configured model, loaded and watched.

    Args:
        loader: Loads it.
        pointers: Which version, for a registered model.
        metrics: Told about it.
        on_fatal: Called with what makes serving on pointless: a model that is named by
            its source cannot be loaded, and no pointer will ever move it.

    Attributes:
        name: What clients call it.
        config: What the recipe says about it.
        table: Who answers.
        admission: Its queue.
    """

    def __init__(
        self,
        loader: Loader,
        pointers: Pointers,
        metrics: ServingMetrics,
        on_fatal: Callable[[PenstockError], None],
    ) -> None:
        serve, config = loader.serve, loader.model
        self.name = loader.name
        self.config: ModelConfig = config
        self.table = RouteTable()
        self.admission = Admission(
            self.name,
            config.max_concurrency or serve.max_concurrency,
            serve.max_queue if config.max_queue is None else config.max_queue,
            metrics,
        )
        self._loader = loader
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._tasks: list[asyncio.Task[None]] = []
        self._watcher: PointerWatcher | None = None
        if config.source is None:
            self._watcher = PointerWatcher(
                lambda: pointers.targets(self.name),
                loader.version,
                self.table,
                metrics,
                serve.poll_interval_s,
                self.name,
            )

    @property
    def ready(self) -> bool:
        """Whether it can answer."""
        return self.table.current is not None

    def readiness(self) -> dict[str, object]:
        """What ``/readyz`` says of it: what serves, and what keeps the wanted version from it."""
        route, trial = self.table.current, self.table.challenger
        watcher = self._watcher
        wanted = watcher.wanted.champion if watcher else None
        return {
            "task": self.config.task,
            "ready": self.ready,
            "answers": route is not None and not route.breaker.open,
            "version": route.served.version if route else None,
            "epoch": route.served.epoch if route else None,
            "wanted_version": wanted.version if wanted else None,
            "load_failure": _shown(watcher.failure) if watcher else None,
            "challenger": trial
            and {
                "version": trial.served.version,
                "share": self.table.share,
                "rollout": self.table.rollout,
            },
            "challenger_load_failure": _shown(watcher.trial_failure) if watcher else None,
        }

    async def start(self) -> None:
        """Begin to load; returns at once."""
        if self._watcher is not None:
            self._watcher.start()
        else:
            self._tasks.append(asyncio.create_task(self._load_source()))
        self._tasks.append(asyncio.create_task(self._probe()))

    async def stop(self) -> None:
        """Stop following the pointer and free the model."""
        if self._watcher is not None:
            await self._watcher.stop()
        else:
            await self._tasks[0]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.table.close()

    async def _load_source(self) -> None:
        try:
            route = await asyncio.to_thread(self._loader.source)
        except PenstockError as error:
            logger.error("%s cannot be loaded: %s %s", self.name, error.message, error.hint)
            self._on_fatal(error)
        except Exception as error:
            logger.exception("%s cannot be loaded", self.name)
            kind = type(error).__name__
            self._on_fatal(ServingError(f"{self.name} cannot be loaded: {kind}: {error}"))
        else:
            self.table.swap(route)
            self._metrics.show_served(self.name, "champion", route.served)

    async def _probe(self) -> None:
        """Ask every route whether it is well, for as long as the gateway runs."""
        available = self._metrics.available.labels(self.name)
        while True:
            routes = [self.table.current, self.table.challenger]
            await asyncio.gather(*(_look_at(route) for route in routes if route is not None))
            current = self.table.current
            available.set(current is not None and not current.breaker.open)
            await asyncio.sleep(_PROBE_INTERVAL_S)


async def _look_at(route: Route) -> None:
    healthy = False
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            healthy = await route.backend.healthy()
    route.breaker.probed(healthy)


def _shown(failure: LoadFailure | None) -> dict[str, object] | None:
    if failure is None:
        return None
    return {
        "version": failure.version,
        "epoch": failure.epoch,
        "attempts": failure.attempts,
        "error": failure.error,
    }
