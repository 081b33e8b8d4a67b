"""What keeps a project from working, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.options import DEFAULT, Json, RecipePath, Set, overrides_of

app = typer.Typer()


@app.command()
def doctor(
    recipe: RecipePath = DEFAULT,
    constraints: Annotated[
        Path | None, typer.Option(help="Versions that were tested together, as pip takes them.")
    ] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Look at environment, services, credentials and state; exit 1 if something fails."""
    from penstock import printing
    from penstock.doctor import diagnose

    found = diagnose(recipe, overrides_of(set_), constraints)
    if json_:
        printing.as_json(found)
    else:
        for one in found:
            todo = f"\n      To do: {one.todo}" if one.todo else ""
            printing.note(f"{one.state:<4}  {one.check}: {one.found}{todo}")
    raise typer.Exit(1 if any(one.state == "fail" for one in found) else 0)
