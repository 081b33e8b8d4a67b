"""Objectives as Prometheus rules: how fast each error budget burns, and when that is too fast.

Multi-window, multi-burn-rate alerts as in Google's Site Reliability Workbook, chapter 5
(https://sre.google/workbook/alerting-on-slos/): a long window says that enough was lost to
matter, a short one that it goes on. A burn rate of 1 spends exactly the budget of the whole
period, so the thresholds are the same for every objective.

What Prometheus reads again and again is two series for each objective and model; the windows
are sums over them. A sum over a rate is weighted by traffic, and survives a gateway that starts
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from penstock.recipe import Recipe

Rule = dict[str, Any]

INTERVAL_S = 30
_SLOW_INTERVAL_S = 120
_HOURS_PER_DAY = 24
# Alerts that are told to come again must not burn a budget, and so make more alerts.
_OF_USERS = 'endpoint!="/v1/alerts"'


class BurnAlert(NamedTuple):
    """Two windows of one alert.

    Attributes:
        name: Of the alert.
        severity: ``page`` wakes somebody, ``ticket`` waits for the morning.
        spent: Share of the whole period's budget that is lost when it fires.
        hours: The long window.
        long: As Prometheus writes it.
        short: The window that ends the alert soon after the trouble.
    """

    name: str
    severity: str
    spent: float
    hours: int
    long: str
    short: str

    def factor(self, window_days: int) -> float:
        """The burn rate above which the alert fires."""
        return round(self.spent * window_days * _HOURS_PER_DAY / self.hours, 3)


BURN_ALERTS = (
    BurnAlert("SloBurnsFast", "page", 0.02, 1, "1h", "5m"),
    BurnAlert("SloBurnsFast", "page", 0.05, 6, "6h", "30m"),
    BurnAlert("SloBurnsSlowly", "ticket", 0.1, 24, "1d", "2h"),
    BurnAlert("SloBurnsSlowly", "ticket", 0.1, 72, "3d", "6h"),
)
_FAST_WINDOWS = ("30m", "1h", "2h", "6h")
_SLOW_WINDOWS = ("1d", "3d")


class Objective(NamedTuple):
    """One objective of all models.

    Attributes:
        slo: Its label.
        share: Of the requests that must be good.
        requests: PromQL: all requests a second, by model.
        bad: PromQL: those that were not good.
    """

    slo: str
    share: float
    requests: str
    bad: str


def this(recipe: Recipe) -> str:
    """The matcher that every series of a recipe's gateways carries."""
    return f'recipe="{recipe.name}"'


def objectives(recipe: Recipe) -> list[Objective]:
    """What the recipe promises."""
    slo, only = recipe.observe.slo, f"{this(recipe)}, {_OF_USERS}"
    all_requests = _by_model(f"llm_requests_total{{{only}}}")
    # Where nothing has ever failed there is no series of failures, and that is 0, not unknown.
    failed = _by_model(f'llm_requests_total{{{only}, status=~"5.."}}') + f"\nor 0 * {all_requests}"
    out = [Objective("availability", slo.availability, all_requests, failed)]
    if slo.latency is not None:
        out.append(
            _in_time(
                only,
                "latency",
                "llm_request_duration_seconds",
                slo.latency.within_s,
                slo.latency.share,
            )
        )
    if slo.first_token is not None:
        out.append(
            _in_time(
                this(recipe),
                "first_token",
                "llm_time_to_first_token_seconds",
                slo.first_token.within_s,
                slo.first_token.share,
            )
        )
    return out


def _in_time(only: str, slo: str, histogram: str, within_s: float, share: float) -> Objective:
    total = _by_model(f"{histogram}_count{{{only}}}")
    in_time = _by_model(f'{histogram}_bucket{{{only}, le="{float(within_s)}"}}')
    return Objective(slo, share, total, f"clamp_min({total}\n- {in_time}, 0)")


def _by_model(series: str) -> str:
    return f"sum by (recipe, model) (rate({series}[5m]))"


def slo_groups(recipe: Recipe) -> list[dict[str, Any]]:
    """The rule groups of all objectives."""
    only = this(recipe)
    fast = [rule for one in objectives(recipe) for rule in _of_objective(recipe, one)]
    fast += [_burn_now(only), *(_burn(only, window) for window in _FAST_WINDOWS)]
    slow = [*(_burn(only, window) for window in _SLOW_WINDOWS), *_budget(recipe)]
    alerts = [_burn_rule(recipe, alert) for alert in BURN_ALERTS]
    name = f"penstock-{recipe.name}"
    return [
        {"name": f"{name}-slo", "interval": f"{INTERVAL_S}s", "rules": fast},
        {"name": f"{name}-slo-long", "interval": f"{_SLOW_INTERVAL_S}s", "rules": slow},
        {"name": f"{name}-slo-alerts", "interval": f"{INTERVAL_S}s", "rules": alerts},
    ]


def _of_objective(recipe: Recipe, one: Objective) -> Iterator[Rule]:
    labels = {"slo": one.slo}
    yield {
        "record": "penstock_slo:objective:ratio",
        "expr": f"vector({one.share})",
        "labels": {"recipe": recipe.name, **labels},
    }
    yield {"record": "penstock_slo:requests:rate5m", "expr": one.requests, "labels": labels}
    yield {"record": "penstock_slo:bad_requests:rate5m", "expr": one.bad, "labels": labels}


def _burn_now(only: str) -> Rule:
    return {
        "record": "penstock_slo:burn_rate:5m",
        "expr": f"penstock_slo:bad_requests:rate5m{{{only}}}\n"
        f"/ penstock_slo:requests:rate5m{{{only}}}\n" + _over_budget(only),
    }


def _burn(only: str, window: str) -> Rule:
    return {"record": f"penstock_slo:burn_rate:{window}", "expr": _burn_rate(only, window)}


def _burn_rate(only: str, window: str) -> str:
    return (
        f"sum_over_time(penstock_slo:bad_requests:rate5m{{{only}}}[{window}])\n"
        f"/ sum_over_time(penstock_slo:requests:rate5m{{{only}}}[{window}])\n"
    ) + _over_budget(only)


def _over_budget(only: str) -> str:
    return f"/ on (recipe, slo) group_left ()\n(1 - penstock_slo:objective:ratio{{{only}}})"


def _budget(recipe: Recipe) -> Iterator[Rule]:
    only = this(recipe)
    window = f"{recipe.observe.slo.window_days}d"
    yield {
        "record": "penstock_slo:error_budget_left:ratio",
        "expr": f"1 - {_burn_rate(only, window)}",
    }
    yield {
        "alert": "ErrorBudgetSpent",
        "expr": f"penstock_slo:error_budget_left:ratio{{{only}}} < 0\n"
        f"and {_enough_requests(recipe, window)}",
        "labels": {"severity": "ticket"},
        "annotations": {
            "summary": "{{ $labels.model }} has spent its whole {{ $labels.slo }} budget of "
            f"{window}",
            "description": "Left: {{ $value | humanizePercentage }}. What puts it at risk should "
            "wait until some has come back.",
        },
    }


def _enough_requests(recipe: Recipe, window: str) -> str:
    return (
        f"sum_over_time(penstock_slo:requests:rate5m{{{this(recipe)}}}[{window}]) * {INTERVAL_S}"
        f" >= {recipe.observe.slo.min_requests}"
    )


def _burn_rule(recipe: Recipe, alert: BurnAlert) -> Rule:
    only = this(recipe)
    factor = alert.factor(recipe.observe.slo.window_days)
    return {
        "alert": alert.name,
        "expr": f"penstock_slo:burn_rate:{alert.long}{{{only}}} > {factor:g}\n"
        f"and penstock_slo:burn_rate:{alert.short}{{{only}}} > {factor:g}\n"
        f"and {_enough_requests(recipe, alert.long)}",
        "labels": {"severity": alert.severity, "window": alert.long},
        "annotations": {
            "summary": "{{ $labels.model }} burns its {{ $labels.slo }} budget "
            '{{ $value | printf "%.1f" }} times too fast',
            "description": f"{alert.spent:.0%} of the budget of "
            f"{recipe.observe.slo.window_days} days went within {alert.long}, and it goes on.",
        },
    }
