"""Dashboards of what the next run is for: data and drift, and cost."""

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
)


def _data_learning() -> Row:
    return Row(
        "Learning",
        (
            now(
                "Since the last training",
                f"time() - max(penstock_last_training_timestamp_seconds{{{RECIPE}}})",
                "s",
                "When a version was last registered.",
            ),
            now(
                "Open alarms",
                f"sum(max by (kind) (penstock_open_alarms{{{RECIPE}}}))",
                "short",
                "They may start a run.",
                0.5,
            ),
            now(
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
            lines(
                "Alarms raised",
                f"max by (kind) (penstock_alarms_raised_total{{{RECIPE}}})",
                "{{kind}}",
                "Since the ledger began.",
            ),
            lines(
                "Alerts taken",
                f"sum by (outcome) (penstock_alerts_taken_total{{{RECIPE}}})",
                "{{outcome}}",
                "From Alertmanager, by the gateways that run now.",
            ),
        ),
    )


def _data_said() -> Row:
    return Row(
        "What traffic says",
        (
            lines(
                "Feedback",
                f"sum by (model, kind, thumb) (increase(penstock_feedback_total{{{MODEL}}}[1h]))",
                "{{model}} {{kind}} {{thumb}}",
                "In an hour.",
            ),
            lines(
                "Rows of the request log",
                f"sum by (outcome) (rate(penstock_logged_requests_total{{{RECIPE}}}{RATE}))",
                "{{outcome}}",
                "A second. Dropped rows are lost.",
            ),
            lines(
                "Tokens of an answer",
                f"sum by (model) (rate(llm_tokens_generated_total{{{MODEL}}}{RATE}))"
                "\n/ sum by (model) "
                f"(rate(llm_time_to_first_token_seconds_count{{{MODEL}}}{RATE}))",
                "{{model}}",
                "The mean. Answers that grow or shrink are often the first sign of drift.",
            ),
            lines(
                "Lookups of features",
                f"sum by (outcome) (rate(penstock_feature_lookups_total{{{RECIPE}}}{RATE}))",
                "{{outcome}}",
                "Found, missing, unnamed or failed.",
            ),
        ),
    )


def _data_drift() -> Row:
    return Row(
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
            lines(
                "Evidence by signal",
                f"max by (signal) (penstock_drift_signal_statistic{{{RECIPE}}})",
                "{{signal}}",
                "What has changed most.",
            ),
            lines(
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


def _data_judge() -> Row:
    return Row(
        "Quality, by the judge",
        (
            Panel(
                "Good answers",
                (
                    Ask(f"max by (version) (penstock_judge_good_ratio{{{RECIPE}}})", "{{version}}"),
                    Ask(
                        f"max by (version) (penstock_judge_good_ratio_low{{{RECIPE}}})",
                        "{{version}}, at least",
                    ),
                    Ask(
                        f"max by (version) (penstock_judge_good_ratio_high{{{RECIPE}}})",
                        "{{version}}, at most",
                    ),
                ),
                "percentunit",
                about="By version, with 95 % intervals. From `penstock judge run --every-s "
                "--metrics-port`, if Prometheus scrapes it.",
            ),
            lines(
                "Judged answers",
                f"max by (version) (penstock_judge_answers{{{RECIPE}}})",
                "{{version}}",
                "What the shares are of.",
            ),
            Panel(
                "Does the judge agree with people?",
                (
                    Ask(f"max(penstock_judge_kappa{{{RECIPE}}})", "kappa"),
                    Ask(f"max(penstock_judge_kappa_low{{{RECIPE}}})", "at least"),
                    Ask(f"max(penstock_judge_kappa_high{{{RECIPE}}})", "at most"),
                    Ask(f"max(penstock_judge_raters_alpha{{{RECIPE}}})", "people, alpha"),
                    Ask(f"max(penstock_judge_counts{{{RECIPE}}})", "1: the judge counts"),
                ),
                about="Its scores count only while the lower end is high enough.",
            ),
            Panel(
                "Questions to the judge",
                (
                    Ask(f"max(penstock_judge_questions_today{{{RECIPE}}})", "today"),
                    Ask(
                        f"max(penstock_judge_answers_without_verdict{{{RECIPE}}})",
                        "answers without a verdict",
                    ),
                ),
                about="Since midnight UTC, up to the day's budget.",
            ),
        ),
    )


def _data_sources() -> Row:
    return Row(
        "Sources",
        (
            lines(
                "Rows",
                f"max by (source) (penstock_ingest_rows{{{RECIPE}}})",
                "{{source}}",
                "From `penstock ingest --follow --metrics-port`, if Prometheus scrapes it.",
            ),
            lines(
                "Lag",
                f"max by (source, stream) (penstock_ingest_lag{{{RECIPE}}})",
                "{{source}} {{stream}}",
                "Offsets that are not ingested yet.",
            ),
            lines(
                "Dead letters",
                f"max(penstock_ingest_dead_letters{{{RECIPE}}})",
                "all sources",
                "What could not become rows: penstock dead-letters",
            ),
            lines(
                "Failures",
                f"sum by (source) (increase(penstock_ingest_failures_total{{{RECIPE}}}{RATE}))",
                "{{source}}",
                "Times a source could not be asked or read.",
            ),
        ),
    )


def data() -> Board:
    """What is there to learn?"""
    return Board(
        "penstock-data",
        "Penstock: data and drift",
        "Is there something new to learn, and has anything changed?",
        (_data_learning(), _data_drift(), _data_judge(), _data_said(), _data_sources()),
    )


def _cost_now() -> Row:
    spent = f"penstock:spent_usd:max{{{MODEL}}}"
    return Row(
        "Now",
        (
            now(
                "Last day", f"sum(increase({spent}[1d]))", "currencyUSD", "At the recipe's prices."
            ),
            now(
                "Last 30 days", f"sum(increase({spent}[30d]))", "currencyUSD", "As far as it goes."
            ),
            now(
                "Fullest budget",
                f"max(penstock_budget_spent_ratio{{{RECIPE}}})",
                "percentunit",
                "Of all keys, in their periods.",
                0.9,
            ),
        ),
    )


def _cost_who() -> Row:
    spent = f"penstock:spent_usd:max{{{MODEL}}}"
    return Row(
        "Who spends",
        (
            lines(
                "By model, an hour",
                f"sum by (model) (increase({spent}[1h]))",
                "{{model}}",
                "A model without a price costs nothing.",
                "currencyUSD",
                stacked=True,
            ),
            lines(
                "By tenant, an hour",
                f"sum by (tenant) (increase({spent}[1h]))",
                "{{tenant}}",
                "Requests without a key are of nobody.",
                "currencyUSD",
                stacked=True,
            ),
            lines(
                "Budgets",
                f"max by (tenant, key) (penstock_budget_spent_ratio{{{RECIPE}}})",
                "{{tenant}} {{key}}",
                "Spent of each key's budget; at 100 % it gets HTTP 429.",
                "percentunit",
            ),
            lines(
                "A thousand written tokens",
                f"1000 * sum by (model) (increase({spent}[1h]))"
                f"\n/ sum by (model) (increase(llm_tokens_generated_total{{{MODEL}}}[1h]))",
                "{{model}}",
                "With what was read for them.",
                "currencyUSD",
            ),
        ),
    )


def cost() -> Board:
    """What do answers cost?"""
    return Board(
        "penstock-cost",
        "Penstock: cost",
        "What do answers cost, by model and by tenant, and whose budget ends?",
        (_cost_now(), _cost_who()),
    )
