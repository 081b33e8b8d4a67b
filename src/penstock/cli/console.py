"""A web page that reads the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.options import DEFAULT, RecipePath, Set, open_recipe

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from penstock.pipeline import Pipeline

app = typer.Typer()


@app.command()
def console(
    recipe: RecipePath = DEFAULT,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 picks a free one.")
    ] = 8010,
    set_: Set = None,
) -> None:
    """Show the project in a browser of this machine, until stopped."""
    from penstock import printing

    _require_libraries()
    from penstock.console import serve_console

    pipeline = open_recipe(recipe, set_, quiet=True)
    serve_console(pipeline, port, lambda url: printing.note(f"Console on {url} Stop with Ctrl-C."))


def console_of(pipeline: Pipeline) -> ASGIApp | None:
    """What the gateway answers below ``/console``; None unless the recipe wants it to."""
    if not pipeline.recipe.serve.console:
        return None
    _require_libraries()
    from penstock.console import gateway_console

    return gateway_console(pipeline)


def _require_libraries() -> None:
    from penstock.registry import require

    for library in ("jinja2", "starlette"):
        require(library, "console")
