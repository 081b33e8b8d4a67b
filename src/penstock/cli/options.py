"""What commands share: their common options, and opening the recipe they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import RecipeError

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline

RecipePath = Annotated[
    Path, typer.Option("--recipe", "-r", help="The recipe.", envvar="PENSTOCK_RECIPE")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value, as in train.max_steps=10. Repeatable."),
]
DEFAULT = Path("recipe.yaml")


def open_recipe(recipe: Path, set_: list[str] | None, quiet: bool) -> Pipeline:
    """The pipeline of a recipe with ``--set`` applied; ``quiet`` shows no bars."""
    from penstock import printing
    from penstock.pipeline import open_pipeline

    progress: Any = None if quiet else printing.Bars()
    return open_pipeline(recipe, _overrides(set_), progress)


def _overrides(set_: list[str] | None) -> dict[str, Any]:
    import yaml

    out = {}
    for item in set_ or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise RecipeError(f"--set {item!r} has no '='.", "Write --set train.max_steps=10")
        out[key] = yaml.safe_load(value)
    return out
