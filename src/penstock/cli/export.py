"""The pipeline in other tools' own words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.gate import pairs
from penstock.cli.options import DEFAULT, RecipePath

app = typer.Typer()
export_app = typer.Typer(help="Write files for other tools.", no_args_is_help=True)
app.add_typer(export_app, name="export")


@export_app.command("github")
def export_github(
    output: Annotated[Path | None, typer.Option(help="Null is where GitHub looks for it.")] = None,
    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks, with commas between.")] = None,
    min_: Annotated[list[str] | None, typer.Option("--min", help="TASK=FLOOR. Repeatable.")] = None,
    max_regression: Annotated[
        float | None, typer.Option(help="What may be lost against what serves.")
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="Stands in the form already.")] = None,
    stage: Annotated[str | None, typer.Option(help="The alias that is moved.")] = None,
    backend: Annotated[str | None, typer.Option(help="lm-eval's --model.")] = None,
    model_args: Annotated[str | None, typer.Option(help="lm-eval's --model_args.")] = None,
    task_dir: Annotated[str | None, typer.Option(help="Task YAMLs in the repository.")] = None,
    labels: Annotated[str | None, typer.Option(help="The runner's, with commas between.")] = None,
    python: Annotated[str | None, typer.Option(help="Python's version, such as 3.12.")] = None,
    penstock: Annotated[str | None, typer.Option(help="What pip installs for penstock.")] = None,
    lm_eval: Annotated[str | None, typer.Option(help="What pip installs to evaluate.")] = None,
    timeout_minutes: Annotated[int | None, typer.Option(help="Of the whole job.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite changes made by hand.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail on drift.")] = False,
) -> None:
    """Write a GitHub Actions workflow: evaluate a version, gate it, promote it if it passed."""
    from penstock import printing
    from penstock.orchestrators import github

    given = {
        "tasks": None if tasks is None else tuple(tasks.split(",")),
        "min": pairs("--min", min_) if min_ else None,
        "max_regression": max_regression,
        "model_name": model_name,
        "stage": stage,
        "backend": backend,
        "model_args": model_args,
        "task_dir": task_dir,
        "labels": None if labels is None else tuple(labels.split(",")),
        "python": python,
        "penstock": penstock,
        "lm_eval": lm_eval,
        "timeout_minutes": timeout_minutes,
    }
    options = github.WorkflowOptions.checked(
        **{name: value for name, value in given.items() if value is not None}
    )
    path = output or github.PATH
    if check:
        github.check(options, path)
        printing.note(f"{path} is up to date")
        return
    written = github.write(options, path, force)
    printing.note(f"{path} {'is written' if written else 'is up to date'}")


Output = Annotated[Path | None, typer.Option(help="Null is a name made of the recipe's.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite changes made by hand.")]
Check = Annotated[bool, typer.Option("--check", help="Write nothing; fail on drift.")]


@export_app.command("airflow")
def export_airflow(
    recipe: RecipePath = DEFAULT,
    output: Annotated[Path | None, typer.Option(help="Null is dags/NAME.py.")] = None,
    force: Force = False,
    check: Check = False,
) -> None:
    """Write an Airflow DAG file of the recipe, which needs nothing of Penstock to be read."""
    from penstock.orchestrators import airflow_file
    from penstock.orchestrators.base import read_flow

    flow = read_flow(recipe)
    path, text = output or airflow_file.path_of(flow), airflow_file.dag_file(flow)
    _export("airflow", path, text, force, check)


@export_app.command("dagster")
def export_dagster(
    recipe: RecipePath = DEFAULT,
    output: Output = None,
    force: Force = False,
    check: Check = False,
) -> None:
    """Write a file for `dagster dev -f`, which makes assets of the recipe's stages."""
    _short_file("dagster", recipe, output, force, check)


@export_app.command("prefect")
def export_prefect(
    recipe: RecipePath = DEFAULT,
    output: Output = None,
    force: Force = False,
    check: Check = False,
) -> None:
    """Write a file that serves the recipe as Prefect's flow, by its schedule and when asked."""
    _short_file("prefect", recipe, output, force, check)


def _short_file(tool: str, recipe: Path, output: Path | None, force: bool, check: bool) -> None:
    from penstock.orchestrators import short_files
    from penstock.orchestrators.in_place import in_place_flow

    flow = in_place_flow(recipe, tool.capitalize())
    path, text = output or short_files.path_of(flow, tool), short_files.text_of(flow, tool)
    _export(tool, path, text, force, check)


def _export(tool: str, path: Path, text: str, force: bool, check: bool) -> None:
    from penstock import printing
    from penstock.orchestrators import exported

    if check:
        exported.check(text, path, f"penstock export {tool}")
        printing.note(f"{path} is up to date")
        return
    written = exported.write(text, path, force)
    printing.note(f"{path} {'is written' if written else 'is up to date'}")
