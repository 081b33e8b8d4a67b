"""Serving, and where an answer came from."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from penstock.cli.console import console_of
from penstock.cli.options import DEFAULT, Json, RecipePath, Set, open_recipe, overrides_of

app = typer.Typer()


@app.command()
def serve(
    recipe: RecipePath = DEFAULT,
    host: Annotated[str | None, typer.Option(help="Bind here instead.")] = None,
    port: Annotated[int | None, typer.Option(help="Listen here instead.")] = None,
    workers: Annotated[int | None, typer.Option(help="So many processes instead.")] = None,
    set_: Set = None,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    socket: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve what the production pointer names, and follow it."""
    overrides = list(set_ or [])
    overrides += [f"serve.host={host}"] if host is not None else []
    overrides += [f"serve.port={port}"] if port is not None else []
    overrides += [f"serve.workers={workers}"] if workers is not None else []
    from penstock.serving.production import serve_as_worker, serve_production

    pipeline = open_recipe(recipe, overrides, quiet=True)
    console = console_of(pipeline)
    if worker is not None and socket is not None:
        serve_as_worker(pipeline, socket, console)
        return
    command = [sys.executable, "-m", "penstock.cli", "serve", "--recipe", str(recipe)]
    serve_production(pipeline, [*command, *(f"--set={one}" for one in overrides)], console)


@app.command()
def lineage(
    response_id: Annotated[str, typer.Argument(help="A response's id.")],
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Walk a response back to its source rows."""
    from penstock import printing
    from penstock.lineage import trace
    from penstock.project import open_project

    # Without the stages, which take a while to load.
    project = open_project(recipe, overrides_of(set_))
    found = trace(response_id, project.ledger, project.store)
    printing.as_json(found) if json_ else printing.lineage(found)
