"""Registered versions of a recipe's model in use: promote, roll back, download."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import LedgerError
from penstock.ledger import ModelVersion, Pointer
from penstock.model_files import arrive
from penstock.promotion import Production
from penstock.stages.train import check_stored
from penstock.tracking import Tracker

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline


def production(pipeline: Pipeline, name: str | None = None, alias: str | None = None) -> Production:
    """The alias that a recipe's deploy stage moves, or another one of the same project.

    Being in the ledger means having passed the gate, so no other version may be promoted.
    """
    return Production(
        pipeline.ledger,
        Tracker(pipeline.recipe, pipeline.store).registry,
        name or pipeline.recipe.model_name,
        alias or pipeline.recipe.deploy.alias,
    )


def promote(pipeline: Pipeline, name: str | None, version: int, reason: str) -> Pointer:
    """Point production at a registered version; see ``Production.promote``.

    Raises:
        StoreError: The version's files are not what was tested.
    """
    model = pipeline.ledger.model(name or pipeline.recipe.model_name, version)
    if pipeline.store.has(model.path):  # one that came without a recipe is elsewhere
        check_stored(pipeline.store, model)
    return production(pipeline, name).promote(version, reason)


def rollback(pipeline: Pipeline, name: str | None, reason: str) -> Pointer:
    """Point production back at what served before; see ``Production.rollback``."""
    return production(pipeline, name).rollback(reason)


def download(
    pipeline: Pipeline, name: str | None, version: int | None, output_dir: Path
) -> ModelVersion:
    """Copy a version's files from the store to a new folder, whole or not at all.

    Raises:
        RecipeError: The folder is there, with other content.
        LedgerError: There is no such version, or nothing serves.
        StoreError: A file's content is not what was registered.
    """
    name = name or pipeline.recipe.model_name
    if version is None:
        pointer = pipeline.ledger.pointer(name, pipeline.recipe.deploy.alias)
        if pointer is None:
            raise LedgerError(f"Nothing serves as {name}.", "Name one with --version.")
        version = pointer.version
    model = pipeline.ledger.model(name, version)
    if not pipeline.store.has(model.path):
        raise LedgerError(
            f"The files of {name} version {version} are not in this store.",
            "It was promoted without a recipe: download it with --tracking URI.",
        )
    source = pipeline.store.fetch(model.path, model.digest)

    def copy(to: Path) -> None:
        shutil.copytree(source, to, dirs_exist_ok=True)

    arrive(output_dir, copy, model.digest)
    return model
