"""The gateway on a project's ledger: serves what the production pointer names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.answer_format import AnswerFormat
from penstock.conversions import conversions
from penstock.features.base import FeatureStore
from penstock.ledger import Ledger
from penstock.ledger.rollout_records import Action, Rollout
from penstock.ledger.rollouts import Rollouts
from penstock.monitoring.metrics import ServingMetrics
from penstock.promotion import Production
from penstock.recipe import Recipe
from penstock.rollout_control import Controller
from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.routes import ServedVersion, Targets
from penstock.serving.trials import Trials
from penstock.stages.deploy import production_of
from penstock.store import Store
from penstock.version_files import fetched, folder_of

if TYPE_CHECKING:
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
    serve = recipe.serve.completed(recipe.model_name)
    features: FeatureStore | None = None
    if recipe.features is not None:
        feature_store, options = recipe.plugin("features", recipe.features)
        features = feature_store(options, recipe.folder)
    return serve, Surroundings(
        LedgerPointers(recipe, serve, store, ledger), conversions(store), recipe.folder, features
    )


def serve_production(pipeline: Pipeline) -> None:
    """Serve until told to stop; see ``server.serve``."""
    from penstock.serving.server import serve

    config, around = served(pipeline.recipe, pipeline.store, pipeline.ledger)
    with rolling_out(pipeline.recipe, pipeline.store, pipeline.ledger, config, around) as around:
        serve(config, around, _announce)


@contextmanager
def rolling_out(
    recipe: Recipe, store: Store, ledger: Ledger, config: Serve, around: Surroundings
) -> Iterator[Surroundings]:
    """A gateway's surroundings while it observes trials, and tries to decide about them.

    Every gateway tries; the ledger gives each trial to one of them.
    """
    metrics = around.metrics or ServingMetrics()
    followed = {
        (model.registered or recipe.model_name, model.version or recipe.deploy.alias): name
        for name, model in config.models.items()
        if model.source is None and not isinstance(model.version, int)
    }
    formats = {
        name: AnswerFormat(model.format)
        for name, model in config.models.items()
        if model.format is not None
    }

    def told(rollout: Rollout, action: Action) -> None:
        name = followed[rollout.model, rollout.alias]
        metrics.rollout_decisions.labels(name, action.value).inc()

    def production(name: str, alias: str) -> Production:
        return production_of(recipe, store, ledger, name, alias)

    trials = Trials(Rollouts(ledger.database), formats, metrics)
    controller = Controller(ledger, production, followed.keys(), told)
    with controller, trials:
        yield replace(around, observers=(*around.observers, trials), metrics=metrics)


def _announce(listening: Listening) -> None:
    from penstock.printing import OUT

    OUT.print(f"Serving on {listening.url} (OpenAI's API). Stop with Ctrl-C.")
    if listening.metrics_url is not None:
        OUT.print(f"Metrics on {listening.metrics_url}")
