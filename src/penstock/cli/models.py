"""Registered versions: list, download, promote, roll back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from penstock.cli.options import (
    DEFAULT,
    Json,
    LedgerUrl,
    ModelName,
    RecipePath,
    Set,
    StageName,
    StoreFolder,
    Tracking,
    Where,
    open_recipe,
)
from penstock.errors import LedgerError, RecipeError

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
    context: typer.Context,
    output_dir: Annotated[Path, typer.Option(help="A new folder.")],
    version: Annotated[int | None, typer.Option(help="Null takes what serves.")] = None,
    model_name: ModelName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    tracking: Tracking = None,
    json_: Json = False,
) -> None:
    """Copy a version's files, checked against their digests.

    From MLflow if --tracking is given, or if there is no recipe; else from the recipe's store.
    """
    from penstock import models, printing

    where = Where(context, recipe, set_, None, None, tracking)
    if tracking is None and where.uses_recipe:
        model = models.download(open_recipe(recipe, set_, True), model_name, version, output_dir)
        name, number, digest = model.name, model.version, model.digest
    else:
        came = where.download(model_name, version, output_dir)
        name, number, digest = came.name, came.version, came.digest
    if json_:
        printing.as_json({"model": name, "version": number, "digest": digest})
        return
    printing.note(f"{name} version {number} is in {output_dir} (digest {digest[:12]})")


@app.command("promote")
@model_app.command("promote")
def model_promote(
    context: typer.Context,
    version: Annotated[int, typer.Option(help="Which version.")],
    model_name: ModelName = None,
    stage: StageName = None,
    expect: Annotated[
        str | None, typer.Option(help="What must serve now: a version, or none.")
    ] = None,
    tested: Annotated[
        Path | None, typer.Option(help="The folder that was evaluated: it must be this version.")
    ] = None,
    decision: Annotated[
        Path | None, typer.Option(help="penstock gate --decision wrote it: it must say PASS.")
    ] = None,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "by hand",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
) -> None:
    """Point production at a version that has passed the gate."""
    from penstock import printing

    if decision is not None:
        reason = _passed(decision, reason)
    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    move = at.promote(version, reason, _expected(expect), tested)
    printing.note(f"{at.alias} is version {move.version} now (epoch {move.epoch})")


@model_app.command("rollback")
def model_rollback(
    context: typer.Context,
    model_name: ModelName = None,
    stage: StageName = None,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "by hand",
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Ask MLflow nothing and read no files first.")
    ] = False,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
) -> None:
    """Point production back at what it pointed at before, in one step."""
    from penstock import printing

    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    move = at.rollback(reason, unchecked)
    printing.note(f"{at.alias} is version {move.version} now (epoch {move.epoch})")


@model_app.command("serving")
def model_serving(
    context: typer.Context,
    model_name: ModelName = None,
    stage: StageName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
) -> None:
    """Print the version that serves; an empty line while none does."""
    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    serving = at.serving()
    print("" if serving is None else serving)


@model_app.command("settle")
def model_settle(
    context: typer.Context,
    take: Annotated[str, typer.Option(help="Which is right: ledger or alias.")],
    model_name: ModelName = None,
    stage: StageName = None,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "moved by hand in MLflow",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
) -> None:
    """Decide who is right after somebody moved MLflow's alias by hand."""
    from penstock import printing
    from penstock.registry import did_you_mean

    if take not in ("ledger", "alias"):
        raise RecipeError(f"--take {take!r}.{did_you_mean(take, ('ledger', 'alias'))}")
    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    pointer = at.settle("ledger" if take == "ledger" else "alias", reason)
    printing.note(f"{at.alias} is version {pointer.version} in both (epoch {pointer.epoch})")


@model_app.command("history")
def model_history(
    context: typer.Context,
    model_name: ModelName = None,
    stage: StageName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
    json_: Json = False,
) -> None:
    """List every move of the production pointer."""
    from penstock import printing

    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    moves = at.ledger.history(at.name, at.alias)
    if json_:
        printing.as_json(moves)
        return
    rows = [
        (m.epoch, printing.clock(m.at_s), m.action, m.from_version or "", m.to_version, m.actor,
         m.reason)
        for m in moves
    ]  # fmt: skip
    printing.table(("epoch", "at", "action", "from", "to", "by", "reason"), rows)


def _expected(text: str | None) -> int | Literal["anything"] | None:
    """``--expect``: a version, ``none`` or an empty word for nothing, absent for anything."""
    if text is None:
        return "anything"
    if text.lower() in ("", "none"):
        return None
    if not text.isdecimal():
        raise RecipeError(f"--expect {text!r} is neither a version's number nor none.")
    return int(text)


def _passed(path: Path, reason: str) -> str:
    """The gate's reasons, for the audit log."""
    from penstock.gates import Decision, Verdict

    try:
        found = Decision.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"--decision {path} cannot be read: {type(error).__name__}.",
            "Write it with: penstock gate ... --decision FILE",
        ) from None
    if found.verdict is not Verdict.PASS:
        raise LedgerError(
            f"The gate said {found.verdict.value}: {' '.join(found.reasons)}",
            "Nothing was promoted.",
        )
    said = f"gate PASS: {' '.join(found.reasons)}"
    return said if reason == "by hand" else f"{reason}; {said}"
