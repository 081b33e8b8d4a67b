"""Registered versions: list, download, promote, roll back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.options import DEFAULT, Json, RecipePath, Set, open_recipe

app = typer.Typer()
model_app = typer.Typer(help="Registered model versions.", no_args_is_help=True)
app.add_typer(model_app, name="model")


@model_app.command("list")
def model_list(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """List registered versions."""
    from penstock import printing

    pipeline = open_recipe(recipe, set_, quiet=True)
    models = pipeline.ledger.models()
    if json_:
        printing.as_json(models)
        return
    alias = pipeline.recipe.deploy.alias
    rows = []
    for model in models:
        pointer = pipeline.ledger.pointer(model.name, alias)
        here = alias if pointer is not None and pointer.version == model.version else ""
        rows.append(
            (model.name, model.version, here, model.data_version, model.run_id, model.digest[:12])
        )
    printing.table(("model", "version", "alias", "data", "run", "digest"), rows)


@model_app.command("download")
def model_download(
    output_dir: Annotated[Path, typer.Option(help="A new folder.")],
    version: Annotated[int | None, typer.Option(help="Null takes what serves.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Null takes the recipe's.")] = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
) -> None:
    """Copy a version's files, checked against their digests."""
    from penstock import models, printing

    pipeline = open_recipe(recipe, set_, quiet=True)
    model = models.download(pipeline, model_name, version, output_dir)
    printing.OUT.print(f"{model.name} version {model.version} is in {output_dir}")


@model_app.command("promote")
def model_promote(
    version: Annotated[int, typer.Option(help="Which version.")],
    model_name: Annotated[str | None, typer.Option(help="Null takes the recipe's.")] = None,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "by hand",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
) -> None:
    """Point production at a version that has passed the gate."""
    from penstock import models, printing

    pipeline = open_recipe(recipe, set_, quiet=True)
    move = models.promote(pipeline, model_name, version, reason)
    printing.OUT.print(f"production is version {move.version} now (epoch {move.epoch})")


@model_app.command("rollback")
def model_rollback(
    model_name: Annotated[str | None, typer.Option(help="Null takes the recipe's.")] = None,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "by hand",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
) -> None:
    """Point production back at what it pointed at before, in one step."""
    from penstock import models, printing

    pipeline = open_recipe(recipe, set_, quiet=True)
    move = models.rollback(pipeline, model_name, reason)
    printing.OUT.print(f"production is version {move.version} now (epoch {move.epoch})")


@model_app.command("history")
def model_history(
    model_name: Annotated[str | None, typer.Option(help="Null takes the recipe's.")] = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """List every move of the production pointer."""
    from penstock import printing

    pipeline = open_recipe(recipe, set_, quiet=True)
    name = model_name or pipeline.recipe.model_name
    moves = pipeline.ledger.history(name, pipeline.recipe.deploy.alias)
    if json_:
        printing.as_json(moves)
        return
    rows = [
        (m.epoch, printing.clock(m.at_s), m.action, m.from_version or "", m.to_version, m.actor,
         m.reason)
        for m in moves
    ]  # fmt: skip
    printing.table(("epoch", "at", "action", "from", "to", "by", "reason"), rows)
