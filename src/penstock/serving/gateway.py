"""What the endpoints of one gateway share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import PenstockError
from penstock.features.base import FeatureStore
from penstock.ledger.accounts import Accounts
from penstock.ledger.api_keys import ApiKey, ApiKeys
from penstock.monitoring.metrics import ServingMetrics
from penstock.monitoring.traces import Tracer
from penstock.serve_section import ModelTask, Serve
from penstock.serving.access import Access
from penstock.serving.facts import Facts, Observer, Worker
from penstock.serving.features import OnlineFeatures
from penstock.serving.keys import visible_models
from penstock.serving.loading import Loader
from penstock.serving.models import ServedModel
from penstock.serving.prices import PriceList
from penstock.serving.routes import Pointers
from penstock.serving.routing import Router

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from penstock.serving.alerts import AlertDesk
    from penstock.serving.feedback import FeedbackDesk

logger = logging.getLogger(__name__)

# For what is left of traces when the gateway ends.
_FLUSH_S = 5.0


@dataclass(frozen=True)
class Surroundings:
    """What a gateway works with, beside what the recipe says.

    Attributes:
        pointers: Which versions to serve; followed while it runs.
        cache_dir: Where backends keep what they derive from models; None is
            ``~/.cache/penstock``.
        folder: The recipe's.
        features: For models whose prompts hold features.
        observers: Told about every answered request.
        metrics: Of this gateway, where others write to them as well; None makes them.
        keys: Who may ask; None lets everybody in.
        accounts: Where use is reported, and budgets are kept.
        feedback: Takes feedback on responses; None: nobody does.
        console: Answers what is below ``/console``, and asks for a key of its own.
        alerts: Takes Alertmanager's alerts; None: nobody does.
    """

    pointers: Pointers
    cache_dir: Path | None = None
    folder: Path | None = None
    features: FeatureStore | None = None
    observers: Sequence[Observer] = ()
    metrics: ServingMetrics | None = None
    keys: ApiKeys | None = None
    accounts: Accounts | None = None
    feedback: FeedbackDesk | None = None
    console: ASGIApp | None = None
    alerts: AlertDesk | None = None


class Gateway:
    """Models, routes, limits and metrics of one gateway.

    Args:
        config: The recipe's ``serve`` section, completed.
        around: What it works with.
        on_fatal: Called with what makes serving on pointless.

    Attributes:
        models: By the names clients ask for.
        router: Chooses among them.
        feedback: Takes feedback; None: nobody does.
        console: Answers what is below ``/console``; None: nobody does.
        alerts: Takes alerts; None: nobody does.
        wants_content: Whether an observer wants to know what is asked and answered.
    """

    def __init__(
        self,
        config: Serve,
        around: Surroundings,
        on_fatal: Callable[[PenstockError], None] | None = None,
    ) -> None:
        self.config = config
        self.started_at_s = time.time()
        self.metrics = around.metrics or ServingMetrics()
        self.tracer = Tracer(config.traces, self.metrics.registry)
        self.features = OnlineFeatures(around.features, self.metrics)
        self._observers = around.observers
        self._tasks: set[asyncio.Task[None]] = set()
        self.access = Access(around.keys, around.accounts, PriceList.of(config.models))
        self.feedback = around.feedback
        self.console = around.console
        self.alerts = around.alerts
        self.wants_content = any(getattr(one, "wants_content", False) for one in around.observers)
        cache = around.cache_dir or Path.home() / ".cache" / "penstock"
        self.models = {
            name: ServedModel(
                Loader(name, model, config, cache, around.folder),
                around.pointers,
                self.metrics,
                on_fatal or (lambda error: None),
            )
            for name, model in config.models.items()
        }
        self.router = Router(self.models, config.routes, self.metrics)

    @property
    def ready(self) -> bool:
        """Whether every model can answer."""
        return all(model.ready for model in self.models.values())

    def readiness(self) -> dict[str, object]:
        """What ``/readyz`` says."""
        return {
            "status": "ready" if self.ready else "not_ready",
            "models": {name: model.readiness() for name, model in self.models.items()},
        }

    def default(self, task: ModelTask, key: ApiKey | None = None) -> str | None:
        """The model for a task when a request names none: the first that its key may ask."""
        seen = visible_models(key, self.models)
        names = (name for name in seen if self.models[name].config.task == task)
        return next(names, None)

    def keeps_answers(self, model: str) -> bool:
        """Whether somebody wants to know what a model answers."""
        return self.wants_content or self.models[model].config.format is not None

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task that nobody waits for; what runs on at the end is cancelled."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def observed(self, facts: Facts) -> None:
        """Tell everybody who wants to know that a request has ended."""
        for observer in self._observers:
            try:
                observer.observe(facts)
            except Exception:
                logger.exception("%s failed", type(observer).__name__)

    async def start(self) -> None:
        """Read the keys, and begin to load the models.

        Raises:
            LedgerError: The keys cannot be read.
        """
        await self.access.start()
        self.tracer.start()
        for worker in self._workers:
            worker.start(self.metrics)
        for model in self.models.values():
            await model.start()

    async def stop(self) -> None:
        """Stop following the pointers, free the models and write down what waits."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model in self.models.values():
            await model.stop()
        await self.access.stop()
        await asyncio.to_thread(self.tracer.close, _FLUSH_S)
        for worker in self._workers:
            await asyncio.to_thread(worker.stop)

    @property
    def _workers(self) -> list[Worker]:
        desk = [self.feedback.book] if self.feedback is not None else []
        return [one for one in (*self._observers, *desk) if isinstance(one, Worker)]
