"""Running the loop: run, plan, step, and what runs came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.child_process import die_with_parent
from penstock.cli.options import DEFAULT, Json, Page, RecipePath, Set, open_recipe, write_page
from penstock.errors import RecipeError

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline

app = typer.Typer()


@app.command()
def run(
    recipe: RecipePath = DEFAULT,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Take all before this stage from the ledger.")
    ] = None,
    force: Annotated[list[str] | None, typer.Option(help="Run this stage again.")] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Your name for the run: there is one of it, to be gone on with."),
    ] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Run the loop once: only what is missing runs."""
    from penstock import printing
    from penstock.orchestrators.base import checked_key

    if key is not None and (until or start or force):
        raise RecipeError("--key is about a whole run.", "Leave out --until, --from and --force.")
    pipeline = open_recipe(recipe, set_, quiet=json_)
    if key is None:
        report = pipeline.run(until=until, start=start, force=tuple(force or ()))
    else:
        report = pipeline.run_named(checked_key(key))
    printing.as_json(report) if json_ else printing.report_table(report)
    raise typer.Exit(report.exit_code)


@app.command()
def plan(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Say for every stage whether it would run, and why."""
    from penstock import printing

    planned = open_recipe(recipe, set_, quiet=True).plan()
    printing.as_json(planned) if json_ else printing.plan_table(planned)


RunId = Annotated[
    str | None, typer.Option("--run", help="The run; 'new' opens one and prints its id.")
]
Key = Annotated[
    str | None,
    typer.Option(help="Instead of --run: your name for the run. The first who gives it opens it."),
]


@app.command()
def step(
    stage: Annotated[str, typer.Argument(help="Which stage.")],
    run_id: RunId = None,
    key: Key = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
    task: Annotated[
        bool,
        typer.Option("--task", help="One line of JSON; code 0 wherever the next task is due."),
    ] = False,
) -> None:
    """Run one stage of a run, as an orchestrator's task does."""
    from penstock import printing
    from penstock.orchestrators.results import step_as_task

    if task:
        die_with_parent()
    pipeline, opened = _opened(recipe, set_, json_, run_id, key)
    if task:
        printing.line(step_as_task(pipeline, stage, opened))
        return
    report = pipeline.step(stage, opened)
    printing.as_json(report) if json_ else printing.report_table(report)
    raise typer.Exit(report.exit_code if stage in ("gate", "deploy") else 0)


@app.command()
def due(
    run_id: RunId = None, key: Key = None, recipe: RecipePath = DEFAULT, set_: Set = None
) -> None:
    """Say whether the stages after validate are due; close a run in which they are not."""
    from penstock import printing
    from penstock.orchestrators.results import due_as_task

    printing.line(due_as_task(*_opened(recipe, set_, True, run_id, key)))


def _opened(
    recipe: Path, set_: list[str] | None, quiet: bool, run_id: str | None, key: str | None
) -> tuple[Pipeline, str]:
    """The pipeline, and the id of the run that is meant, which may have to be opened.

    With a key, what was set when the run was opened holds for all its stages.

    Raises:
        RecipeError: No run is named, or two are; or other values are set than it was opened with.
    """
    from penstock.orchestrators.base import checked_key
    from penstock.typed_secrets import masked_values

    if (run_id is None) == (key is None):
        raise RecipeError("Which run?", "Give --run or --key, and not both.")
    pipeline = open_recipe(recipe, set_, quiet)
    if key is None:
        return pipeline, pipeline.start().id if run_id == "new" else str(run_id)
    run = pipeline.start(key=checked_key(key))
    if run.overrides == pipeline.overrides:
        return pipeline, run.id
    if set_:
        raise RecipeError(
            f"Run {run.id} was opened with other values: {masked_values(run.overrides)}.",
            "Leave out --set: what was set when the run was opened holds for all its stages.",
        )
    return open_recipe(
        recipe, [f"{k}={json.dumps(v)}" for k, v in run.overrides.items()], quiet
    ), run.id


@app.command()
def runs(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """List runs, newest first."""
    from penstock import printing
    from penstock.typed_secrets import without_secrets

    pipeline = open_recipe(recipe, set_, quiet=True)
    found = pipeline.ledger.runs(pipeline.recipe.name)
    if json_:
        printing.as_json(list(map(without_secrets, found)))
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
    page: Page = None,
) -> None:
    """Show what each stage of a run came to."""
    from penstock import printing

    pipeline = open_recipe(recipe, set_, quiet=True)
    report = pipeline.report(run_id)
    if page is not None:
        from penstock.run_page import page_of

        write_page(page, page_of(pipeline, report.run_id))
    printing.as_json(report) if json_ else printing.report_table(report)
