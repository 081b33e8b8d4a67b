"""``penstock news``: asked by tools that start runs."""

from __future__ import annotations

import typer

from penstock.cli.options import DEFAULT, RecipePath, Set, open_recipe

app = typer.Typer()


@app.command()
def news(recipe: RecipePath = DEFAULT, set_: Set = None) -> None:
    """Say what would start a run now: key of the run and why, as one line of JSON."""
    from penstock import printing
    from penstock.orchestrators.news import news_of

    printing.line(news_of(open_recipe(recipe, set_, quiet=True)))
