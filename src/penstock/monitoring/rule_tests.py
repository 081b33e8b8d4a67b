"""Unit tests of a recipe's alerts, for ``promtool test rules``.

Users change thresholds and edit rules; these tests tell them, without a server, which alerts
still fire on what. A share of bad requests that never changes gives the same burn rate in every
window, so what has to fire follows from the thresholds alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from penstock.monitoring.alert_rules import DAY_S, queue_limits, quoted
from penstock.monitoring.slo_rules import BURN_ALERTS, INTERVAL_S, Objective, objectives
from penstock.recipe import Recipe

_MODEL = "m"
_PER_MINUTE = 60 // INTERVAL_S
# Enough for exact shares, and for the floor under the number of requests.
_PER_SAMPLE = 100_000
_MINUTES = 20
_CLEAN_MINUTES = 45
# No threshold is exactly one of these, whatever the days: equal floats would be a toss.
_BURNS = (0.47, 2.03)
_ALMOST_ALL = 0.97


Series = list[tuple[str, str]]
Asked = dict[str, Any]


class _Part(NamedTuple):
    """What one alert or objective adds to a test.

    Attributes:
        series: Each with its values.
        asked: What is to be found at which time.
    """

    series: Series
    asked: list[Asked]


def rule_tests(recipe: Recipe, rules_file: str) -> dict[str, Any]:
    """The tests, as promtool reads them.

    Args:
        recipe: Whose alerts.
        rules_file: Where its rules are, relative to the tests.
    """
    promised = objectives(recipe)
    tests = [
        _test(
            f"budgets burn at a rate of about {burn:g}",
            [_steady(recipe, one, burn * (1 - one.share)) for one in promised],
        )
        for burn in _BURNS
    ]
    tests += [
        _test("almost nothing is good", [_steady(recipe, one, _ALMOST_ALL) for one in promised]),
        _test(
            f"bad for {_MINUTES} minutes, then well for {_CLEAN_MINUTES}: nobody is woken any more",
            [_ended(recipe, one) for one in promised],
        ),
        _test("all bad, but too few to say", [_quiet(recipe, one) for one in promised]),
        _test("every other alert fires", [_other(one, one.on, True) for one in _others(recipe)]),
        _test("no other alert fires", [_other(one, one.off, False) for one in _others(recipe)]),
    ]
    return {
        "rule_files": [rules_file],
        "evaluation_interval": f"{INTERVAL_S}s",
        "tests": tests,
    }


def _steady(recipe: Recipe, one: Objective, share: float) -> _Part:
    bad = round(share * _PER_SAMPLE)
    num = _MINUTES * _PER_MINUTE
    series = _series(recipe, one, f"0+{_PER_SAMPLE - bad}x{num}", f"0+{bad}x{num}")
    expected = _expected(recipe, one, bad / _PER_SAMPLE)
    return _Part(series, [_ask(_burning(one.slo), f"{_MINUTES}m", expected)])


def _expected(recipe: Recipe, one: Objective, share: float) -> list[dict[str, Any]]:
    burn = share / (1 - one.share)
    days = recipe.observe.slo.window_days
    spent = [_sample('{alertname="ErrorBudgetSpent"}')] if burn > 1 else []
    return spent + [
        _sample(f'{{alertname="{alert.name}", window="{alert.long}"}}')
        for alert in BURN_ALERTS
        if burn > alert.factor(days)
    ]


def _ended(recipe: Recipe, one: Objective) -> _Part:
    before, after = _MINUTES * _PER_MINUTE, _CLEAN_MINUTES * _PER_MINUTE
    top = _PER_SAMPLE * before
    good = f"0x{before} {_PER_SAMPLE}+{_PER_SAMPLE}x{after}"
    series = _series(recipe, one, good, f"0+{_PER_SAMPLE}x{before} {top}x{after}")
    pages = f'ALERTS{{alertstate="firing", severity="page", slo="{one.slo}"}}'
    return _Part(series, [_ask(pages, f"{_MINUTES + _CLEAN_MINUTES}m", [])])


def _quiet(recipe: Recipe, one: Objective) -> _Part:
    few = recipe.observe.slo.min_requests // 2
    num = _MINUTES * _PER_MINUTE
    series = _series(recipe, one, f"0x{num}", f"0x10 {few}x{num}")
    return _Part(series, [_ask(_burning(one.slo), f"{_MINUTES}m", [])])


def _series(recipe: Recipe, one: Objective, good: str, bad: str) -> Series:
    """What the gateway would show of good and bad requests."""
    labels = f'recipe="{recipe.name}", model="{_MODEL}"'
    if one.slo == "availability":
        status = 'endpoint="/v1/chat/completions", status='
        return [
            (f'llm_requests_total{{{labels}, {status}"200"}}', good),
            (f'llm_requests_total{{{labels}, {status}"503"}}', bad),
        ]
    histogram, within = (
        ("llm_request_duration_seconds", recipe.observe.slo.latency)
        if one.slo == "latency"
        else ("llm_time_to_first_token_seconds", recipe.observe.slo.first_token)
    )
    assert within is not None
    # Two gateways, of which one is always in time and one never: their sum has both.
    slow = 'instance="slow"'
    le = f'le="{float(within.within_s)}"'
    return [
        (f"{histogram}_count{{{labels}}}", good),
        (f"{histogram}_bucket{{{labels}, {le}}}", good),
        (f"{histogram}_count{{{labels}, {slow}}}", bad),
        (f"{histogram}_bucket{{{labels}, {le}, {slow}}}", _flat(bad)),
    ]


def _flat(values: str) -> str:
    """As many samples, all zero."""
    return " ".join(f"0x{part.rpartition('x')[2]}" for part in values.split())


def _burning(slo: str) -> str:
    return (
        f'count by (alertname, window) (ALERTS{{alertname!="", alertstate="firing", slo="{slo}"}})'
    )


class _Other(NamedTuple):
    """An alert on one series.

    Attributes:
        alert: Its name.
        series: The series.
        on: Values at which it fires.
        off: Values at which it does not.
        at: When to look.
    """

    alert: str
    series: str
    on: str
    off: str
    at: str


def _others(recipe: Recipe) -> Iterator[_Other]:
    only, slo = f'recipe="{recipe.name}"', recipe.observe.slo
    of_model = f'{only}, model="{_MODEL}"'
    late_minutes = 5 + slo.down_s // 60 + 2
    late, num = f"{late_minutes}m", (late_minutes + 1) * _PER_MINUTE
    up = f'up{{{only}, job="penstock", instance="gateway:9090"}}'
    yield _Other("GatewayDown", up, f"1x10 0x{num}", f"1x{num}", late)
    available = f"penstock_backend_available{{{of_model}}}"
    yield _Other("BackendDown", available, f"1x10 0x{num}", f"1x{num}", late)
    for name, counter in (
        ("ModelDoesNotLoad", f"penstock_load_failures_total{{{of_model}}}"),
        ("RequestLogLosesRows", f'penstock_logged_requests_total{{{only}, outcome="dropped"}}'),
        ("RolloutRolledBack", f'penstock_rollouts_ended_total{{{of_model}, state="rolled_back"}}'),
        ("RolloutEvidenceLost", f"penstock_rollout_observations_lost_total{{{only}}}"),
    ):
        yield _Other(name, counter, "0x20 1x100", "1x120", "15m")
    raised = f'penstock_alarms_raised_total{{{only}, kind="drift"}}'
    yield _Other("AlarmRaised", raised, "0x20 1x100", "1x120", "15m")
    if recipe.observe.drift is not None:
        looked = f"penstock_drift_looked_until_timestamp_seconds{{{only}}}"
        late_s = f"{3 * recipe.observe.drift.window_s:g}"
        yield _Other("DriftNotLookedAt", looked, f"-{late_s}x20", "0x20", "5m")
    failures = f"penstock_pointer_poll_failures_total{{{only}}}"
    yield _Other("LedgerUnreadable", failures, "0+1x100", "0x10 1x100", "20m")
    for name, limit in queue_limits(recipe).items():
        queued = f"llm_queued_requests{{{only}, model={quoted(name)}}}"
        low = f"{slo.queue_share * limit / 2:g}"
        yield _Other("QueueNearlyFull", queued, f"{limit}x40", f"{low}x40", "10m")
    budget = f'penstock_budget_spent_ratio{{{only}, tenant="t", key="k"}}'
    low = f"{slo.budget_share * 0.9:g}"
    yield _Other("BudgetNearlySpent", budget, f"{slo.budget_share}x20", f"{low}x20", "5m")
    if slo.max_days_without_training is not None:
        trained = f"penstock_last_training_timestamp_seconds{{{only}}}"
        late_s = f"{slo.max_days_without_training * DAY_S:g}"
        yield _Other("NoTraining", trained, f"-{late_s}x20", "0x20", "5m")


def _other(one: _Other, values: str, fires: bool) -> _Part:
    alert = f'ALERTS{{alertname="{one.alert}", alertstate="firing"}}'
    fired = [_sample(f'{{alertname="{one.alert}"}}')] if fires else []
    asked = _ask(f"group by (alertname) ({alert})", one.at, fired)
    return _Part([(one.series, values)], [asked])


def _ask(expr: str, at: str, expected: list[dict[str, Any]]) -> Asked:
    return {"expr": expr, "eval_time": at, "exp_samples": expected}


def _sample(labels: str) -> dict[str, Any]:
    return {"labels": labels, "value": 1}


def _test(name: str, parts: list[_Part]) -> dict[str, Any]:
    return {
        "name": name,
        "interval": f"{INTERVAL_S}s",
        "input_series": [
            {"series": series, "values": values} for part in parts for series, values in part.series
        ],
        "promql_expr_test": [asked for part in parts for asked in part.asked],
    }
