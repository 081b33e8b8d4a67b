"""Drift: look at windows of the traffic, and go on looking."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.options import (
    DEFAULT,
    Json,
    MetricsHost,
    MetricsPort,
    Page,
    RecipePath,
    Set,
    showing,
    write_page,
)

if TYPE_CHECKING:
    from penstock.monitoring.drift import DriftWatch, Status
    from penstock.project import Project

app = typer.Typer()


@app.command("drift")
def drift(
    report: Page = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="The window that the page tells of. Null: the last alarm's, or the last."
        ),
    ] = None,
    every_s: Annotated[
        float | None, typer.Option(min=1, help="Go on, and look again so often, in seconds.")
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Look whether requests and answers have changed; a change raises one alarm."""
    from penstock.cli.options import overrides_of
    from penstock.errors import RecipeError
    from penstock.project import open_project

    if metrics_port is not None and every_s is None:
        raise RecipeError("--metrics-port is for a check that goes on.", "Add --every-s 60.")
    if report is not None and every_s is not None:
        raise RecipeError("--report is for a check that ends.", "Leave out --every-s.")
    if window is not None and report is None:
        raise RecipeError("--window chooses what a page tells.", "Add --report drift.html.")
    project = open_project(recipe, overrides_of(set_))
    if every_s is not None:
        _follow(project, every_s, metrics_host, metrics_port)
        return
    from penstock.monitoring.drift import DriftWatch
    from penstock.printing import Bars

    watch = DriftWatch(*project)
    status = watch.check(progress=Bars())
    if report is not None:
        _write(report, watch, status, window)
    _print(status, json_)


def _print(status: Status, json_: bool) -> None:
    from penstock import printing
    from penstock.monitoring.drift_report import HEADERS, headline, rows, summary

    if json_:
        printing.as_json(summary(status))
        return
    if status.windows:
        printing.table(HEADERS, rows(status))
    for note in status.notes:
        printing.note(note)
    printing.note(headline(status))


def _write(path: Path, watch: DriftWatch, status: Status, window: str | None) -> None:
    from penstock.monitoring.drift_page import to_html
    from penstock.monitoring.drift_report import chosen_window, topics_of

    one = chosen_window(status, window)
    topics = [] if one is None else topics_of(watch, one)
    write_page(path, to_html(status, one, topics))


def _follow(project: Project, every_s: float, host: str, port: int | None) -> None:
    """Look again and again; a promotion is noticed, and an outage is waited out."""
    from penstock import printing
    from penstock.errors import LedgerError, StoreError
    from penstock.monitoring.drift import DriftWatch
    from penstock.monitoring.drift_metrics import DriftMetrics
    from penstock.monitoring.drift_report import headline

    metrics, said, embedding = DriftMetrics(), "", None
    with showing(metrics, host, port):
        while True:
            try:
                watch = DriftWatch(*project, embedding=embedding)
                embedding = watch.embedding
                status = watch.check(progress=printing.Bars())
                metrics.show(status, time.time())
                line = headline(status)
            except (LedgerError, StoreError) as error:
                line = f"Not looked: {error.message}"
            if line != said:
                printing.note(line)
            said = line
            time.sleep(every_s)
