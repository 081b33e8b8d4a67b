"""The judge: let it look at answers, compare versions in pairs, and see what it is worth."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.options import (
    DEFAULT,
    Json,
    MetricsHost,
    MetricsPort,
    RecipePath,
    Set,
    overrides_of,
    showing,
)

if TYPE_CHECKING:
    from penstock.monitoring.judge import Judge
    from penstock.monitoring.judge_work import Outcome

app = typer.Typer()
judge_app = typer.Typer(help="A model that judges logged answers.", no_args_is_help=True)
app.add_typer(judge_app, name="judge")


@judge_app.command("run")
def judge_run(
    every_s: Annotated[
        float | None, typer.Option(min=1, help="Go on, and look again so often, in seconds.")
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Judge what was sampled since the last time; scores count once people agree with them."""
    from penstock import printing
    from penstock.errors import RecipeError

    if every_s is not None and json_:
        raise RecipeError("--json is for a run that ends.", "Leave out --every-s.")
    if metrics_port is not None and every_s is None:
        raise RecipeError("--metrics-port is for a judge that goes on.", "Add --every-s 600.")
    judge = _opened(recipe, set_)
    if every_s is not None:
        _follow(judge, every_s, metrics_host, metrics_port)
        return
    outcome = _run(judge)
    if json_:
        printing.as_json(outcome)
        return
    _say(outcome)


@judge_app.command("pairs")
def judge_pairs(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Compare answers with those of a shadow, in both orders; where they disagree, it is a tie."""
    from penstock import printing
    from penstock.monitoring.judge_report import PAIR_HEADERS, pair_rows
    from penstock.monitoring.judge_standing import preferences

    judge = _opened(recipe, set_)
    outcome = judge.run(in_pairs=True, progress=printing.Bars())
    found = preferences(judge)
    if json_:
        sides = [{"seen": a, "shadow": b, **vars(one)} for (a, b), one in found.items()]
        printing.as_json({"run": outcome, "pairs": sides})
        return
    if found:
        printing.table(PAIR_HEADERS, pair_rows(found))
    else:
        printing.note("There are no pairs: no sampled answer has one of a shadow beside it.")
    _say(outcome)


@judge_app.command("status")
def judge_status(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Show what was judged, whether the judge and the raters agree, and each version's quality."""
    from penstock import printing
    from penstock.monitoring.judge_report import (
        HEADERS,
        sentences,
        status_of,
        summary,
        version_rows,
    )

    judge = _opened(recipe, set_)
    status = status_of(judge)
    if json_:
        printing.as_json(summary(judge, status))
        return
    if status.quality:
        printing.table(HEADERS, version_rows(status))
    for sentence in sentences(judge, status):
        printing.note(sentence)


def _opened(recipe: Any, set_: list[str] | None) -> Judge:
    from penstock.monitoring.judge import Judge
    from penstock.project import open_project

    return Judge(*open_project(recipe, overrides_of(set_)))


def _run(judge: Judge) -> Outcome:
    from penstock import printing
    from penstock.monitoring.judge_standing import run_and_settle

    return run_and_settle(judge, printing.Bars())


def _say(outcome: Outcome) -> None:
    from penstock import printing
    from penstock.monitoring.judge_report import outcome_words

    printing.note(outcome_words(outcome))


def _follow(judge: Judge, every_s: float, host: str, port: int | None) -> None:
    """Look again and again; an outage of the judge, store or ledger is waited out."""
    from penstock import printing
    from penstock.errors import EvaluationError, LedgerError, StoreError
    from penstock.monitoring.judge_metrics import JudgeMetrics
    from penstock.monitoring.judge_report import outcome_words, status_of

    metrics, said = JudgeMetrics(), ""
    with showing(metrics, host, port):
        while True:
            try:
                line = outcome_words(_run(judge))
                if port is not None:
                    metrics.show(status_of(judge), time.time())
            except (EvaluationError, LedgerError, StoreError) as error:
                line = f"Not judged: {error.message}"
            if line != said:
                printing.note(line)
            said = line
            time.sleep(every_s)
