"""Registered versions of a recipe's model in use: what serves, and downloads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import LedgerError
from penstock.ledger import ModelVersion
from penstock.model_files import arrive
from penstock.promotion import Production
from penstock.stages.deploy import production_of

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline


def production(pipeline: Pipeline, name: str | None = None, alias: str | None = None) -> Production:
    """The alias that a recipe's deploy stage moves, or another one of the same project."""
    return production_of(pipeline.recipe, pipeline.store, pipeline.ledger, name, alias)


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
