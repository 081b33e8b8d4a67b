"""All Prometheus rules of a recipe: its objectives, and what else somebody should know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from penstock.errors import RecipeError
from penstock.monitoring.slo_rules import INTERVAL_S, Rule, slo_groups, this
from penstock.recipe import Recipe

DAY_S = 86_400
# The label of an alert about an alarm that the ledger has already.
ECHO = "alarm"


def rules(recipe: Recipe) -> dict[str, Any]:
    """The rules as Prometheus and its operator take them: ``{"groups": [...]}``.

    Every rule is about series with the label ``recipe``, which the exported scrape
    configuration adds.

    Raises:
        RecipeError: The recipe's metrics are off.
    """
    if recipe.serve.metrics_port is None:
        raise RecipeError(
            "serve.metrics_port is null, so there is nothing to alert on.",
            "Set serve.metrics_port, as in 9090.",
        )
    parts = (_serving, _queues, _rollouts, _project, _alarms)
    group = {
        "name": f"penstock-{recipe.name}-alerts",
        "interval": f"{INTERVAL_S}s",
        "rules": [rule for part in parts for rule in part(recipe)],
    }
    return {"groups": [*slo_groups(recipe), group]}


def alert(
    name: str, expr: str, severity: str, summary: str, description: str, for_s: int = 0
) -> Rule:
    """One alerting rule.

    Args:
        name: Of the alert.
        expr: PromQL; what it finds is an alert each.
        severity: ``page`` wakes somebody, ``ticket`` waits for the morning.
        summary: One line; Prometheus fills in ``{{ $labels... }}``.
        description: What to do.
        for_s: How long it must be so.
    """
    out: Rule = {"alert": name, "expr": expr}
    if for_s:
        out["for"] = f"{for_s}s"
    out["labels"] = {"severity": severity}
    out["annotations"] = {"summary": summary, "description": description}
    return out


def quoted(text: str) -> str:
    """A text as PromQL writes it: as Go does, and JSON is a part of that."""
    return json.dumps(text, ensure_ascii=False)


def _serving(recipe: Recipe) -> Iterator[Rule]:
    only, slo = this(recipe), recipe.observe.slo
    yield alert(
        "GatewayDown",
        f"up{{{only}}} == 0\nor absent(up{{{only}}})",
        "page",
        "No metrics come from a gateway of {{ $labels.recipe }}",
        "Is the process up? Its log says why it ended. Start it with: penstock serve",
        slo.down_s,
    )
    yield alert(
        "BackendDown",
        f"min by (recipe, model) (penstock_backend_available{{{only}}}) == 0",
        "page",
        "{{ $labels.model }} fails so often that no requests are sent to it",
        "Look at the gateway's log and at the server behind the model; fallbacks answer, if any.",
        slo.down_s,
    )
    yield alert(
        "ModelDoesNotLoad",
        f"sum by (recipe, model) (increase(penstock_load_failures_total{{{only}}}[15m])) > 0",
        "ticket",
        "A version of {{ $labels.model }} cannot be loaded",
        "The version before serves on. The gateway's log says what is wrong with the new one.",
    )
    yield alert(
        "LedgerUnreadable",
        f"sum by (recipe) (increase(penstock_pointer_poll_failures_total{{{only}}}[5m])) > 0",
        "page",
        "Gateways of {{ $labels.recipe }} cannot read the ledger",
        "They serve what they serve, and follow no promotion or rollback. Is the database up?",
        300,
    )
    yield alert(
        "RequestLogLosesRows",
        "sum by (recipe) (increase(penstock_logged_requests_total"
        f'{{{only}, outcome="dropped"}}[15m])) > 0',
        "ticket",
        "The request log of {{ $labels.recipe }} loses rows",
        "The store has been away for too long. Is the disk full, or the object store down?",
    )


def _queues(recipe: Recipe) -> Iterator[Rule]:
    share, limits = recipe.observe.slo.queue_share, queue_limits(recipe)
    full = [
        f"max by (recipe, model) (llm_queued_requests{{{this(recipe)}, model={quoted(name)}}})"
        f" >= {share * limit:g}"
        for name, limit in limits.items()
    ]
    if full:
        yield alert(
            "QueueNearlyFull",
            "\nor ".join(full),
            "page",
            "{{ $value }} requests wait for {{ $labels.model }}",
            "When the queue is full the next ones get HTTP 429. More replicas, or a higher "
            "max_concurrency.",
            300,
        )


def queue_limits(recipe: Recipe) -> dict[str, int]:
    """How many requests may wait for each model, where any may."""
    limits = {
        name: recipe.serve.max_queue if model.max_queue is None else model.max_queue
        for name, model in recipe.served.models.items()
    }
    return {name: limit for name, limit in limits.items() if limit}


def _rollouts(recipe: Recipe) -> Iterator[Rule]:
    only = this(recipe)
    yield alert(
        "RolloutRolledBack",
        "max by (recipe, model) (increase("
        f'penstock_rollouts_ended_total{{{only}, state="rolled_back"}}[1h])) > 0',
        "ticket",
        "A version of {{ $labels.model }} on trial was taken back",
        "The evidence is in: penstock rollout history",
    )
    yield alert(
        "RolloutEvidenceLost",
        f"sum by (recipe) (increase(penstock_rollout_observations_lost_total{{{only}}}[15m])) > 0",
        "ticket",
        "Observations of a trial in {{ $labels.recipe }} are lost",
        "The ledger does not take them in time; the trial decides on what is left.",
    )


def _alarms(recipe: Recipe) -> Iterator[Rule]:
    """What tells people of alarms; such an alert is none itself when it comes back."""
    only, drift = this(recipe), recipe.observe.drift
    told = alert(
        "AlarmRaised",
        "max by (recipe, kind) (increase(penstock_alarms_raised_total"
        f'{{{only}, kind!="alert"}}[15m])) > 0',
        "ticket",
        "An alarm of kind {{ $labels.kind }} was raised in {{ $labels.recipe }}",
        "It may start a run. What it rests on is in the ledger.",
    )
    told["labels"][ECHO] = "{{ $labels.kind }}"
    yield told
    if drift is not None:
        yield alert(
            "DriftNotLookedAt",
            "time() - max by (recipe) "
            f"(penstock_drift_looked_until_timestamp_seconds{{{only}}}) > {3 * drift.window_s:g}",
            "ticket",
            "Nobody has looked for drift in {{ $labels.recipe }} for "
            "{{ $value | humanizeDuration }}",
            "Does penstock drift --every-s run? Where it fails, its log says why.",
        )


def _project(recipe: Recipe) -> Iterator[Rule]:
    only, slo = this(recipe), recipe.observe.slo
    # Every process of a gateway shows the same books.
    yield {
        "record": "penstock:spent_usd:max",
        "expr": f"max by (recipe, model, tenant) (penstock_spent_usd_total{{{only}}})",
    }
    yield alert(
        "BudgetNearlySpent",
        f"max by (recipe, tenant, key) (penstock_budget_spent_ratio{{{only}}})"
        f" >= {slo.budget_share:g}",
        "ticket",
        "{{ $value | humanizePercentage }} of the budget of {{ $labels.key }} is spent",
        "At 100 % its requests get HTTP 429 until the next period: penstock keys list",
    )
    if slo.max_days_without_training is not None:
        yield alert(
            "NoTraining",
            f"time() - max by (recipe) (penstock_last_training_timestamp_seconds{{{only}}})"
            f" > {slo.max_days_without_training * DAY_S:g}",
            "ticket",
            "{{ $labels.recipe }} has not trained for {{ $value | humanizeDuration }}",
            "Has new data come? Does the scheduler run? What became of it: penstock runs",
        )
