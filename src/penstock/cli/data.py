"""Rows: bringing them in, and what validation held back."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.options import DEFAULT, Json, RecipePath, Set, open_recipe

app = typer.Typer()
quarantine_app = typer.Typer(help="Rows that validation held back.", no_args_is_help=True)
app.add_typer(quarantine_app, name="quarantine")


@app.command("ingest")
def ingest_command(
    recipe: RecipePath = DEFAULT,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until a signal comes, as a service.")
    ] = False,
    every_rows: Annotated[
        int, typer.Option(min=1, help="Following: commit when so many rows wait.")
    ] = 100_000,
    every_s: Annotated[
        float, typer.Option(min=0.1, help="Following: commit after so many seconds.")
    ] = 10.0,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Following: lag for Prometheus, on 127.0.0.1.")
    ] = 9091,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Ingest what the sources have now; with --follow, what arrives as well."""
    from penstock import printing

    pipeline = open_recipe(recipe, set_, quiet=json_)
    if follow:
        from penstock.follow import follow as follow_sources

        follow_sources(pipeline, every_rows, every_s, metrics_port)
        return
    report = pipeline.run(until="ingest")
    printing.as_json(report) if json_ else printing.report_table(report)


@quarantine_app.command("list")
def quarantine_list(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Count held rows by source and rule."""
    from penstock import printing, quarantine

    found = quarantine.held(open_recipe(recipe, set_, quiet=True))
    if json_:
        printing.as_json(found)
        return
    rows = [(one.source, one.rule, f"{one.num_rows:,}", one.example[:12]) for one in found]
    printing.table(("source", "rule", "rows", "such as"), rows)


@quarantine_app.command("show")
def quarantine_show(
    row_id: Annotated[str, typer.Argument(help="The start of a row's id.")] = "",
    source: Annotated[str, typer.Option(help="Rows of this source only.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Show held rows: where they came from, the rule they broke, and their columns."""
    from penstock import printing, quarantine

    found = quarantine.rows(open_recipe(recipe, set_, quiet=True), row_id, source, limit)
    if json_:
        printing.as_json(found)
        return
    for one in found:
        heading = f"{one.row_id[:12]}  {one.source}  {one.origin}"
        row = {f"row.{column}": value for column, value in one.row.items()}
        printing.fields(heading, {"rule": one.rule, "value": one.value, **row})
