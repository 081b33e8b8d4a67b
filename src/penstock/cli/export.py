"""The pipeline in other tools' own words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.gate import pairs
from penstock.cli.options import DEFAULT, RecipePath

if TYPE_CHECKING:
    from pydantic import BaseModel

app = typer.Typer()
export_app = typer.Typer(help="Write files for other tools.", no_args_is_help=True)
app.add_typer(export_app, name="export")

Output = Annotated[Path | None, typer.Option(help="Null is a name made of the recipe's.")]
Folder = Annotated[Path, typer.Option("--output", help="The folder to write to.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite changes made by hand.")]
Check = Annotated[bool, typer.Option("--check", help="Write nothing; fail on drift.")]


@export_app.command("github")
def export_github(
    context: typer.Context,
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
    force: Force = False,
    check: Check = False,
) -> None:
    """Write a GitHub Actions workflow: evaluate a version, gate it, promote it if it passed."""
    from penstock.orchestrators import github

    given = given_options(context, github.WorkflowOptions)
    lists = {name: tuple(given[name].split(",")) for name in ("tasks", "labels") if name in given}
    floors = {"min": pairs("--min", min_)} if min_ else {}
    options = github.WorkflowOptions.checked(**given | lists | floors)
    _export("github", output or github.PATH, github.workflow(options), force, check)


def given_options(context: typer.Context, model: type[BaseModel]) -> dict[str, Any]:
    """What was typed of a command's flags, of those that are an export's options."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in context.params.items()
        if name in model.model_fields and value not in (None, [], ())
    }


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
    from penstock.exported import check_file, write_file

    if check:
        check_file(path, text, f"penstock export {tool}")
    is_written = not check and write_file(path, text, force)
    printing.note(f"{path} {'is written' if is_written else 'is up to date'}")


def put_files(output: Path, files: Mapping[str, str], force: bool, check: bool = False) -> None:
    """Write a folder's files, or only check them, and tell which were written."""
    from penstock import printing
    from penstock.exported import check_files, write_files

    if check:
        check_files(output, files)
    written = [] if check else write_files(output, files, force)
    for path in written:
        printing.note(f"{path} is written")
    if not written:
        printing.note(f"{output} is up to date")
