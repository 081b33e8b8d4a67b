"""A recipe with its store and its ledger: what needs no stage to be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from penstock.ledger import Ledger
from penstock.object_store import ObjectStore, Track
from penstock.recipe import Recipe
from penstock.recipe_file import load_recipe
from penstock.store import Store

# What is made on this host, where the store is an object store.
WORKING_FOLDER = ".penstock"


class Project(NamedTuple):
    """What a recipe names.

    Attributes:
        recipe: The recipe.
        store: Open.
        ledger: Open; close it.
    """

    recipe: Recipe
    store: Store
    ledger: Ledger


def open_project(
    path: Path | str, overrides: Mapping[str, Any] | None = None, track: Track | None = None
) -> Project:
    """Load a recipe and open its store and ledger.

    Args:
        path: The recipe.
        overrides: Dotted keys and values that replace the recipe's.
        track: Shows how far files have come that an object store sends.

    Raises:
        RecipeError: The recipe is wrong.
        StoreError: The store cannot be written.
        LedgerError: The ledger cannot be opened.
    """
    recipe = load_recipe(path, overrides)
    store = _store(recipe, track).open()
    ledger = Ledger(recipe.database(recipe.ledger or f"sqlite:///{store.root / 'ledger.db'}"))
    return Project(recipe, store, ledger)


def _store(recipe: Recipe, track: Track | None) -> Store:
    """What the recipe's ``store`` names: a folder, or a URL of an object store."""
    if "://" not in recipe.store:
        return Store((recipe.folder / recipe.store).resolve())
    return ObjectStore((recipe.folder / WORKING_FOLDER).resolve(), recipe.store, track)
