"""Asking an orchestrator for a run, or telling it what may start one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli.options import DEFAULT, Json, RecipePath, Set, overrides_of

app = typer.Typer()

Reason = Annotated[str, typer.Option(help="Why, for people to read.")]


@app.command()
def trigger(
    orchestrator: Annotated[str, typer.Argument(help="Such as airflow.")],
    key: Annotated[str, typer.Option(help="Your name for the run: it is started once.")],
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    reason: Reason = "",
    json_: Json = False,
) -> None:
    """Ask an orchestrator to start a run; the same key starts it once, however often."""
    from penstock import printing, registry

    start = registry.resolve("orchestrators", orchestrator, Path(recipe).absolute().parent)
    conf: dict[str, Any] = {"set": overrides_of(set_)} if set_ else {}
    run_id = start(recipe, key, conf | ({"reason": reason} if reason else {}))
    printing.as_json({"run_id": run_id}) if json_ else printing.note(run_id)


@app.command("report-event")
def report_event(
    event: Annotated[str, typer.Argument(help="new-data or drift.")],
    recipe: RecipePath = DEFAULT,
    reason: Reason = "",
    json_: Json = False,
) -> None:
    """Report an event to Airflow, which starts the recipe's DAG if nothing is waiting already."""
    from penstock import printing
    from penstock.orchestrators.airflow_api import report_event

    number = report_event(recipe, event, {"reason": reason} if reason else {})
    printing.as_json({"event": number}) if json_ else printing.note(f"event {number}")
