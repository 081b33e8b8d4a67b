"""The gateway on a project's ledger: serves what the production pointer names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.conversions import conversions
from penstock.features.base import FeatureStore
from penstock.ledger import Ledger
from penstock.ledger.accounts import Accounts
from penstock.ledger.api_keys import ApiKeys
from penstock.ledger.rollouts import Rollouts
from penstock.monitoring.feedback import FeedbackBook
from penstock.monitoring.metrics import ServingMetrics
from penstock.monitoring.project_metrics import ProjectMetrics
from penstock.monitoring.request_log import RequestLog
from penstock.recipe import Recipe
from penstock.serve_section import LogConfig, Serve
from penstock.serving.alerts import AlertDesk
from penstock.serving.feedback import FeedbackDesk
from penstock.serving.gateway import Surroundings
from penstock.serving.keys import require_keys
from penstock.serving.rollouts import rolling_out
from penstock.serving.routes import ServedVersion, Targets
from penstock.store import Store
from penstock.traffic import Traffic
from penstock.version_files import fetched, folder_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from penstock.pipeline import Pipeline
    from penstock.serving.server import Listening


class LedgerPointers:
    """The ledger's pointers, as the gateway reads them.

    Args:
        recipe: Whose models are served.
        serve: Its ``serve`` section, completed.
        store: Holds the models.
        ledger: Holds the pointers.
    """

    def __init__(self, recipe: Recipe, serve: Serve, store: Store, ledger: Ledger) -> None:
        self._recipe = recipe
        self._models = serve.models
        self._store = store
        self._ledger = ledger
        self._rollouts = Rollouts(ledger.database)

    def targets(self, name: str) -> Targets:
        """What should serve behind a model's name."""
        model = self._models[name]
        registered = model.registered or self._recipe.model_name
        if isinstance(model.version, int):
            return Targets(self._served(name, registered, model.version, 0))
        alias = model.version or self._recipe.deploy.alias
        pointer, rollout = self._rollouts.serving(registered, alias)
        if pointer is None:
            return Targets()
        champion = self._served(name, registered, pointer.version, pointer.epoch)
        if rollout is None or rollout.champion != pointer.version:
            return Targets(champion)
        challenger = self._served(name, registered, rollout.challenger, pointer.epoch)
        return Targets(champion, challenger, rollout.share, rollout.id, rollout.step)

    def _served(self, name: str, registered: str, version: int, epoch: int) -> ServedVersion:
        model = self._ledger.model(registered, version)
        return ServedVersion(
            model=name,
            version=model.version,
            epoch=epoch,
            folder=folder_of(model, self._store),
            digest=model.digest,
            run_id=model.run_id,
            data_version=model.data_version,
            fetch=lambda: fetched(model, self._recipe, self._store, self._ledger),
        )


def served(recipe: Recipe, store: Store, ledger: Ledger) -> tuple[Serve, Surroundings]:
    """What a gateway of this project serves, and what it works with."""
    serve = recipe.served
    features: FeatureStore | None = None
    if recipe.features is not None:
        feature_store, options = recipe.plugin("features", recipe.features)
        features = feature_store(options, recipe.folder)
    require_keys(serve.host, serve.keys)
    traffic, log = Traffic.of(store), serve.log
    metrics = ServingMetrics()
    metrics.registry.register(
        ProjectMetrics(recipe.name, recipe.model_name, ledger, recipe.deploy.alias)
    )
    return serve, Surroundings(
        LedgerPointers(recipe, serve, store, ledger),
        conversions(store),
        recipe.folder,
        features,
        metrics=metrics,
        keys=ApiKeys(ledger.database) if serve.keys else None,
        accounts=Accounts(ledger.database),
        observers=() if log is None else (RequestLog(traffic.log, log),),
        feedback=_desk(traffic, log, ledger),
        alerts=AlertDesk.of(recipe, ledger),
    )


def _desk(traffic: Traffic, log: LogConfig | None, ledger: Ledger) -> FeedbackDesk:
    """Feedback is kept as the log is; without one it is redacted, and kept for good."""

    def model_of(digest_prefix: str) -> str | None:
        models = ledger.models_by_digest(digest_prefix)
        return models[-1].name if models else None

    redact = log is None or log.redact
    retention_days = None if log is None else log.retention_days
    book = FeedbackBook(traffic.feedback, redact, retention_days)
    return FeedbackDesk(book, model_of, Rollouts(ledger.database).score)


def serve_production(
    pipeline: Pipeline, command: Sequence[str], console: ASGIApp | None = None
) -> None:
    """Serve until told to stop; see ``server.serve``.

    Args:
        pipeline: Whose models.
        command: Starts a worker, where there are several.
        console: Answers what is below ``/console``.
    """
    from penstock.serving.server import serve
    from penstock.serving.workers import Workers

    config, around = served(pipeline.recipe, pipeline.store, pipeline.ledger)
    if config.workers > 1:
        Workers(config, command).run(_announce)
        return
    around = replace(around, console=console)
    with rolling_out(pipeline.recipe, pipeline.store, pipeline.ledger, config, around) as around:
        serve(config, around, _announce)


def serve_as_worker(pipeline: Pipeline, fd: int, console: ASGIApp | None = None) -> None:
    """Serve on a port that another process has opened.

    Args:
        pipeline: Whose models.
        fd: The port's file descriptor.
        console: Answers what is below ``/console``.
    """
    from penstock.serving.server import serve
    from penstock.serving.workers import inherited

    config, around = served(pipeline.recipe, pipeline.store, pipeline.ledger)
    metrics_port = None if config.metrics_port is None else 0
    # The parent alone shows metrics to others.
    changed = {"workers": 1, "host": "127.0.0.1", "metrics_port": metrics_port}
    own = config.model_copy(update=changed)
    around = replace(around, console=console)
    with rolling_out(pipeline.recipe, pipeline.store, pipeline.ledger, own, around) as around:
        serve(own, around, lambda at: print(json.dumps(at._asdict()), flush=True), inherited(fd))


def _announce(listening: Listening) -> None:
    from penstock.printing import OUT

    OUT.print(f"Serving on {listening.url} (OpenAI's API). Stop with Ctrl-C.")
    if listening.metrics_url is not None:
        OUT.print(f"Metrics on {listening.metrics_url}")
