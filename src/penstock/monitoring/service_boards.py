"""Dashboards of what users notice: the service, and the versions behind it."""

from __future__ import annotations

from penstock.monitoring.panels import (
    MODEL,
    RATE,
    RECIPE,
    Ask,
    Board,
    Panel,
    Row,
    lines,
    now,
    percentiles,
)


def _service_now() -> Row:
    requests = f"sum(rate(llm_requests_total{{{MODEL}}}{RATE}))"
    failed = f'sum(rate(llm_requests_total{{{MODEL}, status=~"5.."}}{RATE}))'
    return Row(
        "Now",
        (
            now("Requests", requests, "reqps", "Of all endpoints."),
            now(
                "Server errors",
                f"({failed} or vector(0)) / {requests}",
                "percentunit",
                "Share of the requests that got a 5xx.",
                0.01,
            ),
            now(
                "95 % answered within",
                f"histogram_quantile(0.95, sum by (le) "
                f"(rate(llm_request_duration_seconds_bucket{{{MODEL}}}{RATE})))",
                "s",
                "Whole answers.",
            ),
            now(
                "95 % begun within",
                f"histogram_quantile(0.95, sum by (le) "
                f"(rate(llm_time_to_first_token_seconds_bucket{{{MODEL}}}{RATE})))",
                "s",
                "First tokens.",
            ),
            now("In flight", f"sum(llm_active_requests{{{MODEL}}})", "short", "Being answered."),
            now("Waiting", f"sum(llm_queued_requests{{{MODEL}}})", "short", "For a free slot.", 50),
        ),
    )


def _service_promised() -> Row:
    return Row(
        "Objectives",
        (
            lines(
                "Burn rate, one hour",
                f"penstock_slo:burn_rate:1h{{{MODEL}}}",
                "{{model}} {{slo}}",
                "1 spends exactly the budget of the whole period. Above 14.4 for 30 days, and "
                "somebody is woken.",
            ),
            lines(
                "Error budget left",
                f"penstock_slo:error_budget_left:ratio{{{MODEL}}}",
                "{{model}} {{slo}}",
                "Of the whole period. Below 0 the objective is missed.",
                "percentunit",
            ),
        ),
    )


def _service_traffic() -> Row:
    return Row(
        "Traffic",
        (
            lines(
                "Requests by status",
                f"sum by (status) (rate(llm_requests_total{{{MODEL}}}{RATE}))",
                "{{status}}",
                "499 is a client that left.",
                "reqps",
                stacked=True,
            ),
            lines(
                "Requests by model",
                f"sum by (model, endpoint) (rate(llm_requests_total{{{MODEL}}}{RATE}))",
                "{{model}} {{endpoint}}",
                "A request that names no model that is served is of `unknown`.",
                "reqps",
            ),
            percentiles("Whole answers", "llm_request_duration_seconds", "First byte to last."),
            percentiles(
                "First tokens",
                "llm_time_to_first_token_seconds",
                "First byte of the request to the first token of the answer.",
            ),
            percentiles(
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


def _service_load() -> Row:
    return Row(
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
            percentiles("Time in the queue", "llm_queue_wait_seconds", "For a free slot."),
            lines(
                "Models that are asked",
                f"min by (model) (penstock_backend_available{{{MODEL}}})",
                "{{model}}",
                "0 while a model fails so often that nobody asks it.",
            ),
            lines(
                "Further tries",
                f"sum by (model, kind) (rate(penstock_retries_total{{{MODEL}}}{RATE}))",
                "{{model}} {{kind}}",
                "Of requests that a model failed.",
                "reqps",
            ),
        ),
    )


def service() -> Board:
    """Do users get answers?"""
    return Board(
        "penstock-service",
        "Penstock: service",
        "Do users get answers, and in time?",
        (_service_now(), _service_promised(), _service_traffic(), _service_load()),
    )


def _models_serving() -> Row:
    return Row(
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
            lines(
                "Epoch of the pointer",
                f"max by (model) (penstock_route_epoch{{{MODEL}}})",
                "{{model}}",
                "One more with every promotion or rollback.",
            ),
            lines(
                "Versions that do not load",
                f"sum by (model) (increase(penstock_load_failures_total{{{MODEL}}}{RATE}))",
                "{{model}}",
                "Attempts; the version before serves on.",
            ),
        ),
    )


def _models_trial() -> Row:
    return Row(
        "Trials",
        (
            lines(
                "Share of the version on trial",
                f"max by (model) (penstock_rollout_share{{{MODEL}}})",
                "{{model}}",
                "Of the requests.",
                "percentunit",
            ),
            lines(
                "Step",
                f"max by (model) (penstock_rollout_step{{{MODEL}}})",
                "{{model}}",
                "From 1; 0 without a trial.",
            ),
            lines(
                "Ended trials",
                f"max by (model, state) (penstock_rollouts_ended_total{{{RECIPE}}})",
                "{{model}} {{state}}",
                "Since the ledger began.",
            ),
            lines(
                "Decisions",
                f"sum by (model, decision) (penstock_rollout_decisions_total{{{MODEL}}})",
                "{{model}} {{decision}}",
                "Made by the gateways that run now.",
            ),
            lines(
                "Observations lost",
                f"sum(increase(penstock_rollout_observations_lost_total{{{RECIPE}}}{RATE}))",
                "lost",
                "That the ledger did not take in time.",
            ),
        ),
    )


def _models_routes() -> Row:
    return Row(
        "Routes",
        (
            lines(
                "Who answers, and why",
                "sum by (route, model, why) "
                f"(rate(penstock_routed_requests_total{{{MODEL}}}{RATE}))",
                "{{route}} to {{model}}: {{why}}",
                "By the name that was asked for.",
                "reqps",
                stacked=True,
            ),
            lines(
                "Copies that nobody waits for",
                f"sum by (model, status) (rate(penstock_shadow_requests_total{{{MODEL}}}{RATE}))",
                "{{model}} {{status}}",
                "Requests to a model in the shadow.",
                "reqps",
            ),
        ),
    )


def models() -> Board:
    """Which version answers?"""
    return Board(
        "penstock-models",
        "Penstock: models and rollout",
        "Which version answers, which is on trial, and who decided?",
        (_models_serving(), _models_trial(), _models_routes()),
    )
