"""Penstock's Grafana dashboards: service, models and rollout, data and drift, cost."""

from __future__ import annotations

from typing import Any

from penstock.errors import MissingExtra
from penstock.monitoring.prometheus_files import as_yaml

try:
    from penstock.monitoring.panels import MODEL, RATE, RECIPE, Ask, Board, Panel, Row, as_json
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("grafana_foundation_sdk"):
        raise
    raise MissingExtra("grafana-foundation-sdk", "grafana") from None

_FOLDER = "Penstock"
_HEAD = "# Written by `penstock export grafana`.\n"


def grafana_files(prometheus_url: str, folder: str) -> dict[str, str]:
    """Dashboards, and what makes Grafana read them when it starts.

    Args:
        prometheus_url: Where Grafana finds Prometheus.
        folder: Where Grafana will find the dashboards.
    """
    files = {f"dashboards/{board.uid}.json": as_json(board) for board in boards()}
    return files | {
        "provisioning/dashboards/penstock.yml": _HEAD + as_yaml(_provider(folder)),
        "provisioning/datasources/penstock.yml": _HEAD + as_yaml(_source(prometheus_url)),
    }


def _provider(folder: str) -> dict[str, Any]:
    provider = {
        "name": "penstock",
        "folder": _FOLDER,
        "type": "file",
        "allowUiUpdates": False,
        "options": {"path": folder},
    }
    return {"apiVersion": 1, "providers": [provider]}


def _source(url: str) -> dict[str, Any]:
    source = {
        "name": "Prometheus",
        "uid": "penstock-prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": url,
        "isDefault": True,
        "jsonData": {"timeInterval": "15s"},
    }
    return {"apiVersion": 1, "datasources": [source]}


def boards() -> tuple[Board, ...]:
    """All of them."""
    return _service(), _models(), _data(), _cost()


def _quantile(quantile: float, histogram: str, by: str = "model") -> str:
    buckets = f"sum by (le, {by}) (rate({histogram}_bucket{{{MODEL}}}{RATE}))"
    return f"histogram_quantile({quantile}, {buckets})"


def _percentiles(title: str, histogram: str, about: str) -> Panel:
    asks = tuple(
        Ask(_quantile(quantile, histogram), f"{{{{model}}}} {name}")
        for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )
    return Panel(title, asks, "s", about=about)


def _now(title: str, expr: str, unit: str, about: str, red_above: float | None = None) -> Panel:
    return Panel(title, (Ask(expr),), unit, "stat", 4, about, red_above)


def _lines(
    title: str, expr: str, legend: str, about: str, unit: str = "short", stacked: bool = False
) -> Panel:
    return Panel(title, (Ask(expr, legend),), unit, about=about, stacked=stacked)


def _service() -> Board:
    requests = f"sum(rate(llm_requests_total{{{MODEL}}}{RATE}))"
    failed = f'sum(rate(llm_requests_total{{{MODEL}, status=~"5.."}}{RATE}))'
    now = Row(
        "Now",
        (
            _now("Requests", requests, "reqps", "Of all endpoints."),
            _now(
                "Server errors",
                f"({failed} or vector(0)) / {requests}",
                "percentunit",
                "Share of the requests that got a 5xx.",
                0.01,
            ),
            _now(
                "95 % answered within",
                f"histogram_quantile(0.95, sum by (le) "
                f"(rate(llm_request_duration_seconds_bucket{{{MODEL}}}{RATE})))",
                "s",
                "Whole answers.",
            ),
            _now(
                "95 % begun within",
                f"histogram_quantile(0.95, sum by (le) "
                f"(rate(llm_time_to_first_token_seconds_bucket{{{MODEL}}}{RATE})))",
                "s",
                "First tokens.",
            ),
            _now("In flight", f"sum(llm_active_requests{{{MODEL}}})", "short", "Being answered."),
            _now(
                "Waiting", f"sum(llm_queued_requests{{{MODEL}}})", "short", "For a free slot.", 50
            ),
        ),
    )
    promised = Row(
        "Objectives",
        (
            _lines(
                "Burn rate, one hour",
                f"penstock_slo:burn_rate:1h{{{MODEL}}}",
                "{{model}} {{slo}}",
                "1 spends exactly the budget of the whole period. Above 14.4 for 30 days, and "
                "somebody is woken.",
            ),
            _lines(
                "Error budget left",
                f"penstock_slo:error_budget_left:ratio{{{MODEL}}}",
                "{{model}} {{slo}}",
                "Of the whole period. Below 0 the objective is missed.",
                "percentunit",
            ),
        ),
    )
    traffic = Row(
        "Traffic",
        (
            _lines(
                "Requests by status",
                f"sum by (status) (rate(llm_requests_total{{{MODEL}}}{RATE}))",
                "{{status}}",
                "499 is a client that left.",
                "reqps",
                stacked=True,
            ),
            _lines(
                "Requests by model",
                f"sum by (model, endpoint) (rate(llm_requests_total{{{MODEL}}}{RATE}))",
                "{{model}} {{endpoint}}",
                "A request that names no model that is served is of `unknown`.",
                "reqps",
            ),
            _percentiles("Whole answers", "llm_request_duration_seconds", "First byte to last."),
            _percentiles(
                "First tokens",
                "llm_time_to_first_token_seconds",
                "First byte of the request to the first token of the answer.",
            ),
            _percentiles(
                "Time between tokens",
                "llm_time_per_output_token_seconds",
                "Mean over the tokens of an answer after the first.",
            ),
            Panel(
                "Tokens",
                (
                    Ask(
                        f"sum by (model) (rate(llm_tokens_generated_total{{{MODEL}}}{RATE}))",
                        "{{model}} written",
                    ),
                    Ask(
                        f"sum by (model) (rate(llm_prompt_tokens_total{{{MODEL}}}{RATE}))",
                        "{{model}} read",
                    ),
                ),
                "short",
                about="A second.",
            ),
        ),
    )
    load = Row(
        "Load",
        (
            Panel(
                "In flight and waiting",
                (
                    Ask(f"sum by (model) (llm_active_requests{{{MODEL}}})", "{{model}} in flight"),
                    Ask(f"sum by (model) (llm_queued_requests{{{MODEL}}})", "{{model}} waiting"),
                ),
                about="When a queue is full the next request gets HTTP 429.",
            ),
            _percentiles("Time in the queue", "llm_queue_wait_seconds", "For a free slot."),
            _lines(
                "Models that are asked",
                f"min by (model) (penstock_backend_available{{{MODEL}}})",
                "{{model}}",
                "0 while a model fails so often that nobody asks it.",
            ),
            _lines(
                "Further tries",
                f"sum by (model, kind) (rate(penstock_retries_total{{{MODEL}}}{RATE}))",
                "{{model}} {{kind}}",
                "Of requests that a model failed.",
                "reqps",
            ),
        ),
    )
    return Board(
        "penstock-service",
        "Penstock: service",
        "Do users get answers, and in time?",
        (now, promised, traffic, load),
    )


def _models() -> Board:
    serving = Row(
        "What serves",
        (
            Panel(
                "Versions",
                (
                    Ask(
                        "max by (model, arm, version, digest, run, data_version) "
                        f"(penstock_served_version_info{{{MODEL}}})"
                    ),
                ),
                kind="table",
                width=24,
                about="The champion serves; a challenger is on trial.",
            ),
            _lines(
                "Epoch of the pointer",
                f"max by (model) (penstock_route_epoch{{{MODEL}}})",
                "{{model}}",
                "One more with every promotion or rollback.",
            ),
            _lines(
                "Versions that do not load",
                f"sum by (model) (increase(penstock_load_failures_total{{{MODEL}}}{RATE}))",
                "{{model}}",
                "Attempts; the version before serves on.",
            ),
        ),
    )
    trial = Row(
        "Trials",
        (
            _lines(
                "Share of the version on trial",
                f"max by (model) (penstock_rollout_share{{{MODEL}}})",
                "{{model}}",
                "Of the requests.",
                "percentunit",
            ),
            _lines(
                "Step",
                f"max by (model) (penstock_rollout_step{{{MODEL}}})",
                "{{model}}",
                "From 1; 0 without a trial.",
            ),
            _lines(
                "Ended trials",
                f"max by (model, state) (penstock_rollouts_ended_total{{{RECIPE}}})",
                "{{model}} {{state}}",
                "Since the ledger began.",
            ),
            _lines(
                "Decisions",
                f"sum by (model, decision) (penstock_rollout_decisions_total{{{MODEL}}})",
                "{{model}} {{decision}}",
                "Made by the gateways that run now.",
            ),
            _lines(
                "Observations lost",
                f"sum(increase(penstock_rollout_observations_lost_total{{{RECIPE}}}{RATE}))",
                "lost",
                "That the ledger did not take in time.",
            ),
        ),
    )
    routes = Row(
        "Routes",
        (
            _lines(
                "Who answers, and why",
                "sum by (route, model, why) "
                f"(rate(penstock_routed_requests_total{{{MODEL}}}{RATE}))",
                "{{route}} to {{model}}: {{why}}",
                "By the name that was asked for.",
                "reqps",
                stacked=True,
            ),
            _lines(
                "Copies that nobody waits for",
                f"sum by (model, status) (rate(penstock_shadow_requests_total{{{MODEL}}}{RATE}))",
                "{{model}} {{status}}",
                "Requests to a model in the shadow.",
                "reqps",
            ),
        ),
    )
    return Board(
        "penstock-models",
        "Penstock: models and rollout",
        "Which version answers, which is on trial, and who decided?",
        (serving, trial, routes),
    )


def _data() -> Board:
    learning = Row(
        "Learning",
        (
            _now(
                "Since the last training",
                f"time() - max(penstock_last_training_timestamp_seconds{{{RECIPE}}})",
                "s",
                "When a version was last registered.",
            ),
            _now(
                "Open alarms",
                f"sum(max by (kind) (penstock_open_alarms{{{RECIPE}}}))",
                "short",
                "They may start a run.",
                0.5,
            ),
            _now(
                "Ledger",
                f"min(penstock_ledger_up{{{RECIPE}}})",
                "short",
                "1 while it can be read.",
            ),
            Panel(
                "Open alarms by kind",
                (Ask(f"max by (kind) (penstock_open_alarms{{{RECIPE}}})", "{{kind}}"),),
                about="Drift, quality, feedback, alerts, the calendar, people.",
            ),
            _lines(
                "Alarms raised",
                f"max by (kind) (penstock_alarms_raised_total{{{RECIPE}}})",
                "{{kind}}",
                "Since the ledger began.",
            ),
            _lines(
                "Alerts taken",
                f"sum by (outcome) (penstock_alerts_taken_total{{{RECIPE}}})",
                "{{outcome}}",
                "From Alertmanager, by the gateways that run now.",
            ),
        ),
    )
    said = Row(
        "What traffic says",
        (
            _lines(
                "Feedback",
                f"sum by (model, kind, thumb) (increase(penstock_feedback_total{{{MODEL}}}[1h]))",
                "{{model}} {{kind}} {{thumb}}",
                "In an hour.",
            ),
            _lines(
                "Rows of the request log",
                f"sum by (outcome) (rate(penstock_logged_requests_total{{{RECIPE}}}{RATE}))",
                "{{outcome}}",
                "A second. Dropped rows are lost.",
            ),
            _lines(
                "Tokens of an answer",
                f"sum by (model) (rate(llm_tokens_generated_total{{{MODEL}}}{RATE}))"
                "\n/ sum by (model) "
                f"(rate(llm_time_to_first_token_seconds_count{{{MODEL}}}{RATE}))",
                "{{model}}",
                "The mean. Answers that grow or shrink are often the first sign of drift.",
            ),
            _lines(
                "Lookups of features",
                f"sum by (outcome) (rate(penstock_feature_lookups_total{{{RECIPE}}}{RATE}))",
                "{{outcome}}",
                "Found, missing, unnamed or failed.",
            ),
        ),
    )
    drift = Row(
        "Drift",
        (
            Panel(
                "Evidence of drift",
                (
                    Ask(f"max(penstock_drift_statistic{{{RECIPE}}})", "evidence"),
                    Ask(f"max(penstock_drift_threshold{{{RECIPE}}})", "an alarm"),
                ),
                about="Where the lines meet an alarm is raised, and the evidence begins anew. "
                "From `penstock drift --every-s --metrics-port`, if Prometheus scrapes it.",
            ),
            _lines(
                "Evidence by signal",
                f"max by (signal) (penstock_drift_signal_statistic{{{RECIPE}}})",
                "{{signal}}",
                "What has changed most.",
            ),
            _lines(
                "P-values of the last window",
                f"min by (column, against, test) (penstock_drift_window_p{{{RECIPE}}})",
                "{{column}} against {{against}}, {{test}}",
                "Of one window by itself; small ones come by chance, too, and raise no alarm.",
            ),
            Panel(
                "Windows and alarms",
                (
                    Ask(f"max(penstock_drift_windows{{{RECIPE}}})", "windows"),
                    Ask(f"max(penstock_drift_alarms{{{RECIPE}}})", "alarms"),
                ),
                about="Since the version serves.",
            ),
        ),
    )
    sources = Row(
        "Sources",
        (
            _lines(
                "Rows",
                f"max by (source) (penstock_ingest_rows{{{RECIPE}}})",
                "{{source}}",
                "From `penstock ingest --follow --metrics-port`, if Prometheus scrapes it.",
            ),
            _lines(
                "Lag",
                f"max by (source, stream) (penstock_ingest_lag{{{RECIPE}}})",
                "{{source}} {{stream}}",
                "Offsets that are not ingested yet.",
            ),
            _lines(
                "Dead letters",
                f"max(penstock_ingest_dead_letters{{{RECIPE}}})",
                "all sources",
                "What could not become rows: penstock dead-letters",
            ),
            _lines(
                "Failures",
                f"sum by (source) (increase(penstock_ingest_failures_total{{{RECIPE}}}{RATE}))",
                "{{source}}",
                "Times a source could not be asked or read.",
            ),
        ),
    )
    return Board(
        "penstock-data",
        "Penstock: data and drift",
        "Is there something new to learn, and has anything changed?",
        (learning, drift, said, sources),
    )


def _cost() -> Board:
    spent = f"penstock:spent_usd:max{{{MODEL}}}"
    now = Row(
        "Now",
        (
            _now(
                "Last day", f"sum(increase({spent}[1d]))", "currencyUSD", "At the recipe's prices."
            ),
            _now(
                "Last 30 days", f"sum(increase({spent}[30d]))", "currencyUSD", "As far as it goes."
            ),
            _now(
                "Fullest budget",
                f"max(penstock_budget_spent_ratio{{{RECIPE}}})",
                "percentunit",
                "Of all keys, in their periods.",
                0.9,
            ),
        ),
    )
    who = Row(
        "Who spends",
        (
            _lines(
                "By model, an hour",
                f"sum by (model) (increase({spent}[1h]))",
                "{{model}}",
                "A model without a price costs nothing.",
                "currencyUSD",
                stacked=True,
            ),
            _lines(
                "By tenant, an hour",
                f"sum by (tenant) (increase({spent}[1h]))",
                "{{tenant}}",
                "Requests without a key are of nobody.",
                "currencyUSD",
                stacked=True,
            ),
            _lines(
                "Budgets",
                f"max by (tenant, key) (penstock_budget_spent_ratio{{{RECIPE}}})",
                "{{tenant}} {{key}}",
                "Spent of each key's budget; at 100 % it gets HTTP 429.",
                "percentunit",
            ),
            _lines(
                "A thousand written tokens",
                f"1000 * sum by (model) (increase({spent}[1h]))"
                f"\n/ sum by (model) (increase(llm_tokens_generated_total{{{MODEL}}}[1h]))",
                "{{model}}",
                "With what was read for them.",
                "currencyUSD",
            ),
        ),
    )
    return Board(
        "penstock-cost",
        "Penstock: cost",
        "What do answers cost, by model and by tenant, and whose budget ends?",
        (now, who),
    )
