"""Where a registered version's files are, and bringing them there.

A version that a recipe trained lies in the store, where its training left it. One that came
without a recipe, by ``penstock promote`` or as a base that only MLflow knows, is
fetched from there once, held to its digest and kept under ``admitted/``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from penstock.artifacts import (
    MANIFEST,
    damaged_files,
    digest_of,
    file_digest,
    store_errors,
    write_manifest,
)
from penstock.errors import RegistryError, StoreError
from penstock.ledger import Ledger, ModelVersion
from penstock.model_files import digest_in_registry, download
from penstock.model_registry import URI_SCHEME, version_uri
from penstock.recipe import Recipe
from penstock.store import Store
from penstock.tracking import Tracker

# The folder of a training's result that holds the model.
MODEL = "model"
_LOOK_S = 0.25


def folder_of(model: ModelVersion, store: Store) -> Path:
    """Where a version's files are, or will be once they are fetched."""
    if not model.path.startswith(URI_SCHEME):
        return store.root / model.path
    return store.root / "admitted" / model.digest / MODEL


def find(name: str, version: int, recipe: Recipe, store: Store, ledger: Ledger) -> ModelVersion:
    """A version that the ledger or only MLflow knows; the ledger learns of none, so none may serve.

    Raises:
        RegistryError: Neither knows it, or MLflow cannot be asked.
    """
    known = {model.version: model for model in ledger.models(name)}.get(version)
    if known is not None:
        return known
    registry = Tracker(recipe, store).registry
    found = registry.version(name, version)
    key = f"digest/{digest_of([registry.identity, name, version])[:40]}"
    # Where nobody noted a digest, the files are read once, and held to that ever after.
    digest = (
        found.digest or ledger.pinned(key) or ledger.pin(key, digest_in_registry(registry, found))
    )
    return ModelVersion(
        name, version, "", digest, version_uri(name, version), found.run_id, data_version=""
    )


def fetched(model: ModelVersion, recipe: Recipe, store: Store, ledger: Ledger) -> Path:
    """A version's folder, its files fetched if they were in MLflow or an object store.

    Raises:
        RegistryError: MLflow cannot be asked, or does not have it.
        StoreError: The files are not what was recorded, or the disk is full.
    """
    if not model.path.startswith(URI_SCHEME):
        return store.fetch(model.path, model.digest)
    folder = folder_of(model, store)
    while not folder.is_dir():
        # The key is what marks the staged folder as somebody's; see ``Store.sweep``.
        claim = ledger.try_claim(model.digest)
        if claim is None:
            time.sleep(_LOOK_S)
            continue
        with claim:
            if not folder.is_dir():
                _fetch(model, recipe, store, folder)
    return folder


def checked(model: ModelVersion, recipe: Recipe, store: Store, ledger: Ledger) -> Path:
    """A version's folder, once every file in it is found to be what was registered.

    Raises:
        RegistryError: MLflow cannot be asked, or does not have it.
        StoreError: A file is missing, or is not what it was.
    """
    if model.path.startswith(URI_SCHEME):
        return check_model(fetched(model, recipe, store, ledger), model.digest)
    check_stored(store, model)
    return fetched(model, recipe, store, ledger)


def _fetch(model: ModelVersion, recipe: Recipe, store: Store, folder: Path) -> None:
    staged = store.stage_folder("fetch", model.digest) / MODEL
    try:
        came = download(Tracker(recipe, store).registry, model.name, model.version, staged)
    except RegistryError as error:
        error.hint = error.hint or (
            f"{model.name} version {model.version} came without a recipe: set `tracking` in the "
            "recipe to the MLflow server that has it."
        )
        raise
    if came.digest != model.digest:
        raise StoreError(
            f"MLflow's files of {model.name} version {model.version} have the digest "
            f"{came.digest[:12]}, and {model.digest[:12]} was recorded.",
            "Somebody changed them since; register the model again, as a new version.",
        )
    with store_errors(folder):
        write_manifest(staged)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, folder)
        staged.parent.rmdir()


def check_model(folder: Path, digest: str | None = None) -> Path:
    """The same folder, once every file in it is found to be what was trained.

    Args:
        folder: A model's files, with their manifest.
        digest: Of the manifest, so that a manifest rewritten with the files is found too.

    Raises:
        StoreError: A file is missing, or is not what it was.
    """
    damaged = damaged_files(folder)
    if not damaged and digest is not None and file_digest(folder / MANIFEST) != digest:
        damaged = [MANIFEST]
    _refuse_damaged(str(folder), damaged)
    return folder


def check_stored(store: Store, model: ModelVersion) -> None:
    """Read all of a registered version where it is kept, to know that it is what was tested.

    Raises:
        StoreError: A file is missing, or is not what it was.
    """
    _refuse_damaged(store.url(model.path), store.damaged(model.path, model.digest))


def _refuse_damaged(place: str, damaged: Sequence[str]) -> None:
    if damaged:
        raise StoreError(
            f"{place} is damaged: {', '.join(damaged)}.",
            "Train it again: penstock run --force train. If it serves and comes out otherwise, "
            "go back to another version: penstock model rollback",
        )
