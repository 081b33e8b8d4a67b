"""Scores: what was said of responses, attached to their traces."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.options import DEFAULT, Json, RecipePath, Set

if TYPE_CHECKING:
    from penstock.monitoring.score_export import ScoresSent
    from penstock.project import Project

app = typer.Typer()


@app.command("scores")
def scores(
    every_s: Annotated[
        float | None, typer.Option(min=1, help="Go on, and send again so often, in seconds.")
    ] = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Attach what people and judges said of answers to their traces."""
    from penstock import printing
    from penstock.cli.options import overrides_of
    from penstock.monitoring.score_export import ScoreSender
    from penstock.project import open_project

    project = open_project(recipe, overrides_of(set_))
    if every_s is not None:
        _follow(project, every_s, json_)
        return
    _print(ScoreSender(*project).send(progress=printing.Bars()), json_)


def _print(report: ScoresSent, json_: bool) -> None:
    from penstock import printing
    from penstock.monitoring.score_export import headline, summary

    if json_:
        printing.as_json(summary(report))
    else:
        printing.note(headline(report))


def _follow(project: Project, every_s: float, json_: bool) -> None:
    """Send again and again; an outage is waited out, and a wrong key ends it."""
    from penstock import printing
    from penstock.errors import LedgerError, PenstockError, StoreError
    from penstock.monitoring.score_export import ScoreSender

    sender, said = ScoreSender(*project), ""
    while True:
        try:
            report = sender.send()
            if report.num_sent or report.given_up or said:
                _print(report, json_)
            said = ""
        except PenstockError as error:
            if not (error.transient or isinstance(error, (LedgerError, StoreError))):
                raise
            if error.message != said:
                printing.note(f"Not sent: {error.message}")
            said = error.message
        time.sleep(every_s)
