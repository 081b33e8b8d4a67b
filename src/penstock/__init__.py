"""Penstock: the gated pipe that feeds a production LLM.

Importing this package loads nothing heavy; the public names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.errors import PenstockError
    from penstock.ledger import Ledger
    from penstock.pipeline import Pipeline, open_pipeline
    from penstock.recipe import Recipe
    from penstock.recipe_file import load_recipe

__version__ = "0.1.0"

_HOMES = {
    "Ledger": "penstock.ledger",
    "PenstockError": "penstock.errors",
    "Pipeline": "penstock.pipeline",
    "Recipe": "penstock.recipe",
    "load_recipe": "penstock.recipe_file",
    "open_pipeline": "penstock.pipeline",
}

__all__ = ["Ledger", "PenstockError", "Pipeline", "Recipe", "load_recipe", "open_pipeline"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
