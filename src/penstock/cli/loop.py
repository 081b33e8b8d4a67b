"""Running the loop: run, plan, step, and what runs came to."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.options import DEFAULT, Json, RecipePath, Set, open_recipe

app = typer.Typer()


@app.command()
def run(
    recipe: RecipePath = DEFAULT,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Take all before this stage from the ledger.")
    ] = None,
    force: Annotated[list[str] | None, typer.Option(help="Run this stage again.")] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Run the loop once: only what is missing runs."""
    from penstock import printing

    pipeline = open_recipe(recipe, set_, quiet=json_)
    report = pipeline.run(until=until, start=start, force=tuple(force or ()))
    printing.as_json(report) if json_ else printing.report_table(report)
    raise typer.Exit(report.exit_code)


@app.command()
def plan(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Say for every stage whether it would run, and why."""
    from penstock import printing

    planned = open_recipe(recipe, set_, quiet=True).plan()
    printing.as_json(planned) if json_ else printing.plan_table(planned)


@app.command()
def step(
    stage: Annotated[str, typer.Argument(help="Which stage.")],
    run_id: Annotated[
        str, typer.Option("--run", help="The run; 'new' opens one and prints its id.")
    ],
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Run one stage of a run, as an orchestrator's task does."""
    from penstock import printing

    pipeline = open_recipe(recipe, set_, quiet=json_)
    if run_id == "new":
        run_id = pipeline.start().id
    report = pipeline.step(stage, run_id)
    printing.as_json(report) if json_ else printing.report_table(report)
    raise typer.Exit(report.exit_code if stage in ("gate", "deploy") else 0)


@app.command()
def runs(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """List runs, newest first."""
    from penstock import printing

    pipeline = open_recipe(recipe, set_, quiet=True)
    found = pipeline.ledger.runs(pipeline.recipe.name)
    if json_:
        printing.as_json(found)
        return
    rows = [
        (r.id, r.status, f"{r.ended_s - r.started_s:.1f} s" if r.ended_s else "", r.message)
        for r in found
    ]
    printing.table(("run", "status", "time", "message"), rows)


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(help="A run's id, or the start of it.")],
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Show what each stage of a run came to."""
    from penstock import printing

    pipeline = open_recipe(recipe, set_, quiet=True)
    report = pipeline.report(run_id)
    printing.as_json(report) if json_ else printing.report_table(report)
