"""The gateway on a project's ledger: serves what the production pointer names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.conversions import conversions
from penstock.features.base import FeatureStore
from penstock.ledger import Ledger
from penstock.recipe import Recipe
from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.routes import ServedVersion, Targets
from penstock.store import Store
from penstock.version_files import fetched, folder_of

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline
    from penstock.serving.server import Listening


class LedgerPointers:
    """The ledger's pointers, as the gateway reads them.

    Args:
        recipe: Whose models are served.
        serve: Its ``serve`` section, completed.
        store: Holds the models.
        ledger: Holds the pointers.
    """

    def __init__(self, recipe: Recipe, serve: Serve, store: Store, ledger: Ledger) -> None:
        self._recipe = recipe
        self._models = serve.models
        self._store = store
        self._ledger = ledger

    def targets(self, name: str) -> Targets:
        """What should serve behind a model's name."""
        model = self._models[name]
        registered = model.registered or self._recipe.model_name
        if isinstance(model.version, int):
            return Targets(self._served(name, registered, model.version, 0))
        alias = model.version or self._recipe.deploy.alias
        pointer = self._ledger.pointer(registered, alias)
        if pointer is None:
            return Targets()
        return Targets(self._served(name, registered, pointer.version, pointer.epoch))

    def _served(self, name: str, registered: str, version: int, epoch: int) -> ServedVersion:
        model = self._ledger.model(registered, version)
        return ServedVersion(
            model=name,
            version=model.version,
            epoch=epoch,
            folder=folder_of(model, self._store),
            digest=model.digest,
            run_id=model.run_id,
            data_version=model.data_version,
            fetch=lambda: fetched(model, self._recipe, self._store, self._ledger),
        )


def served(recipe: Recipe, store: Store, ledger: Ledger) -> tuple[Serve, Surroundings]:
    """What a gateway of this project serves, and what it works with."""
    serve = recipe.served
    features: FeatureStore | None = None
    if recipe.features is not None:
        feature_store, options = recipe.plugin("features", recipe.features)
        features = feature_store(options, recipe.folder)
    return serve, Surroundings(
        LedgerPointers(recipe, serve, store, ledger), conversions(store), recipe.folder, features
    )


def serve_production(pipeline: Pipeline) -> None:
    """Serve until told to stop; see ``server.serve``."""
    from penstock.serving.server import serve

    serve(*served(pipeline.recipe, pipeline.store, pipeline.ledger), _announce)


def _announce(listening: Listening) -> None:
    from penstock.printing import OUT

    OUT.print(f"Serving on {listening.url} (OpenAI's API). Stop with Ctrl-C.")
    if listening.metrics_url is not None:
        OUT.print(f"Metrics on {listening.metrics_url}")
