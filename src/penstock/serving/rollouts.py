"""A gateway's part in rollouts: it observes its own requests, and may be who decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from penstock.answer_format import AnswerFormat
from penstock.ledger import Ledger
from penstock.ledger.rollout_records import Action, Rollout
from penstock.ledger.rollouts import Rollouts
from penstock.monitoring.metrics import ServingMetrics
from penstock.promotion import Production
from penstock.recipe import Recipe
from penstock.rollout_control import Controller
from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.trials import Trials
from penstock.stages.deploy import production_of
from penstock.store import Store


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
