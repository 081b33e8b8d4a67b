"""Registered versions in use: promote, roll back, download."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.artifacts import MANIFEST, damaged_files, store_errors
from penstock.errors import LedgerError, RecipeError, StoreError
from penstock.ledger import ModelVersion, Pointer
from penstock.tracking import Tracker

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline


def promote(pipeline: Pipeline, name: str | None, version: int, reason: str) -> Pointer:
    """Point production at a registered version; being registered means it passed the gate.

    Raises:
        LedgerError: There is no such version, or it serves already.
        StalePromotion: Somebody else moved the pointer at the same moment.
    """
    name = name or pipeline.recipe.model_name
    alias = pipeline.recipe.deploy.alias
    pipeline.ledger.model(name, version)
    pointer = pipeline.ledger.pointer(name, alias)
    if pointer is not None and pointer.version == version:
        raise LedgerError(f"{name}@{alias} is version {version} already.")
    return _move(pipeline, name, version, pointer, "promote", reason)


def rollback(pipeline: Pipeline, name: str | None, reason: str) -> Pointer:
    """Point production back at what it pointed at before its last promotion.

    Rolling back twice goes two promotions back, not forward again.

    Raises:
        LedgerError: There is nothing to go back to.
    """
    name = name or pipeline.recipe.model_name
    alias = pipeline.recipe.deploy.alias
    pointer = pipeline.ledger.pointer(name, alias)
    served: list[int] = []
    for move in pipeline.ledger.history(name, alias):
        if move.action == "rollback":
            served.pop()
        else:
            served.append(move.to_version)
    if pointer is None or len(served) < 2:
        serving = "nothing" if pointer is None else f"version {pointer.version}"
        raise LedgerError(
            f"{name}@{alias} is {serving}, and nothing served before it.",
            "See: penstock model history",
        )
    return _move(pipeline, name, served[-2], pointer, "rollback", reason)


def download(
    pipeline: Pipeline, name: str | None, version: int | None, output_dir: Path
) -> ModelVersion:
    """Copy a version's files to a new folder, whole or not at all.

    Raises:
        RecipeError: The folder is there and not empty.
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
    if output_dir.exists() and any(output_dir.iterdir()):
        raise RecipeError(f"{output_dir} is not empty.", "Name a new folder.")
    staged = output_dir.parent / f".{output_dir.name}.{os.getpid()}"
    with store_errors(output_dir):
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copytree(pipeline.store.root / model.path, staged)
            damaged = damaged_files(staged)
            if damaged:
                raise StoreError(f"Version {version} is damaged in the store: {damaged}.")
            (staged / MANIFEST).unlink()
            if output_dir.exists():
                output_dir.rmdir()
            os.replace(staged, output_dir)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return model


def _move(
    pipeline: Pipeline,
    name: str,
    version: int,
    pointer: Pointer | None,
    action: str,
    reason: str,
) -> Pointer:
    alias = pipeline.recipe.deploy.alias
    moved = pipeline.ledger.move_pointer(name, alias, version, pointer, action, reason)
    Tracker(pipeline.recipe, pipeline.store).set_alias(name, alias, version)
    return moved
