"""The gateway on a project's ledger: serves what the production pointer names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.conversions import conversions
from penstock.ledger import Ledger
from penstock.recipe import Recipe
from penstock.serving.config import ServeConfig
from penstock.serving.routes import ServedVersion
from penstock.store import Store
from penstock.version_files import fetched, folder_of

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline
    from penstock.serving.server import Listening


class LedgerPointers:
    """The ledger's production pointer, as the gateway reads it."""

    def __init__(self, recipe: Recipe, store: Store, ledger: Ledger) -> None:
        self._recipe = recipe
        self._store = store
        self._ledger = ledger

    def production(self) -> ServedVersion | None:
        """The version in production, or None while there is none."""
        name = self._recipe.model_name
        pointer = self._ledger.pointer(name, self._recipe.deploy.alias)
        if pointer is None:
            return None
        model = self._ledger.model(name, pointer.version)
        return ServedVersion(
            model=name,
            version=model.version,
            epoch=pointer.epoch,
            folder=folder_of(model, self._store),
            digest=model.digest,
            run_id=model.run_id,
            data_version=model.data_version,
            fetch=lambda: fetched(model, self._recipe, self._store, self._ledger),
        )


def serve_config(recipe: Recipe, store: Store) -> ServeConfig:
    """The recipe's serve section for one model, with conversions kept in the store."""
    settings = recipe.serve.model_dump(exclude={"try_before_promotion"})
    embedding = recipe.serve.embedding
    if embedding is not None and embedding.folder is not None:
        settings["embedding"]["folder"] = recipe.folder / embedding.folder
    if recipe.features is not None:
        feature_store, options = recipe.plugin("features", recipe.features)
        settings["features"] = feature_store(options, recipe.folder)
    return ServeConfig(model=recipe.model_name, cache_dir=conversions(store), **settings)


def serve_production(pipeline: Pipeline) -> None:
    """Serve until told to stop; see ``server.serve``."""
    from penstock.serving.server import serve

    recipe, store = pipeline.recipe, pipeline.store
    config = serve_config(recipe, store)
    serve(config, LedgerPointers(recipe, store, pipeline.ledger), _announce)


def _announce(listening: Listening) -> None:
    from penstock.printing import OUT

    OUT.print(f"Serving on {listening.url} (OpenAI's API). Stop with Ctrl-C.")
    if listening.metrics_url is not None:
        OUT.print(f"Metrics on {listening.metrics_url}")
