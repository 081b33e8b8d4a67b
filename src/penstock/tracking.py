"""MLflow as the stages see it: training runs, registered versions, aliases.

The ledger decides; MLflow mirrors it, for people and for tools that read it.
Everything here can be called again after a crash: what is already there is
found by its fingerprint tag, not made twice.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.artifacts import store_errors
from penstock.model_registry import DIGEST_TAG, ModelRegistry, mlflow_errors

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from penstock.launchers.base import Trained
    from penstock.recipe import Recipe
    from penstock.store import Store

_TAG = "penstock.fingerprint"
_DATABASE = "mlflow.db"  # in a store whose recipe names no server
# Servers that let nobody register a folder of the client's: the files must be uploaded.
_REMOTE = ("http://", "https://", "databricks")


class Tracker:
    """A connection to MLflow.

    Raises:
        MissingExtra: mlflow is not installed.
    """

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self._recipe = recipe
        if recipe.tracking:
            self._artifacts = None
            self.uri = recipe.database(recipe.tracking)
            self.registry = ModelRegistry(self.uri)
        else:
            self._artifacts = (store.root / "mlflow").as_uri()
            self.uri = recipe.database(f"sqlite:///{store.root / _DATABASE}")
            self.registry = ModelRegistry(self.uri, lambda: _make_database(store.root))

    @property
    def _client(self) -> MlflowClient:
        return self.registry.client

    def log_run(
        self,
        fingerprint: str,
        params: dict[str, Any],
        history: list[dict[str, float]],
        metrics: dict[str, float],
    ) -> str:
        """Log a training; one that a crash cut short is replaced.

        Returns:
            MLflow's run id.
        """
        with mlflow_errors(self.uri):
            experiment = self._experiment()
            for run in self._client.search_runs([experiment], f"tags.`{_TAG}` = '{fingerprint}'"):
                self._client.delete_run(run.info.run_id)
            run = self._client.create_run(experiment, tags={_TAG: fingerprint})
            run_id = str(run.info.run_id)
            self._log(run_id, params, history, metrics)
            self._client.set_terminated(run_id)
        return run_id

    def register(
        self, name: str, digest: str, source: Path, url: str, run_id: str, tags: dict[str, str]
    ) -> int:
        """Register a model's files as a version, once for each digest.

        Args:
            name: The model's.
            digest: Of the files.
            source: A folder with them.
            url: Where they are kept.
            run_id: MLflow's run that logged the training.
            tags: For the version.

        Returns:
            The version's number.
        """
        from mlflow.exceptions import MlflowException

        with mlflow_errors(self.uri):
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            for version in self._client.search_model_versions(f"name = '{name}'"):
                if version.tags.get(DIGEST_TAG) == digest:
                    return int(version.version)
            where = self._uploaded(source, url, digest, run_id)
            made = self._client.create_model_version(
                name, where, run_id, tags={**tags, DIGEST_TAG: digest}
            )
            return int(made.version)

    def _uploaded(self, source: Path, url: str, digest: str, run_id: str) -> str:
        """Where the registry will find the files: a server is sent them first."""
        if not self.uri.startswith(_REMOTE):
            return url
        place = f"model-{digest[:12]}"
        self._client.log_artifacts(run_id, str(source), place)
        return f"{self._client.get_run(run_id).info.artifact_uri}/{place}"

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._recipe.name
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name, artifact_location=self._artifacts))
        except MlflowException:  # another process was first
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _log(
        self,
        run_id: str,
        params: dict[str, Any],
        history: list[dict[str, float]],
        metrics: dict[str, float],
    ) -> None:
        from mlflow.entities import Metric, Param

        now_ms = int(time.time() * 1000)
        points = [
            Metric(name, value, now_ms, int(entry["step"]))
            for entry in history
            for name, value in entry.items()
            if name != "step"
        ]
        points += [Metric(name, value, now_ms, 0) for name, value in metrics.items()]
        listed = [Param(name, str(value)[:500]) for name, value in params.items()]
        # MLflow takes at most 1,000 metrics and 100 params in one call.
        self._client.log_batch(run_id, params=listed[:100])
        for start in range(0, len(points), 1000):
            self._client.log_batch(run_id, metrics=points[start : start + 1000])


def _make_database(root: Path) -> None:
    """Make MLflow's database in the store; it appears as a whole, or not at all.

    MLflow makes its tables by some hundred migrations, each a transaction of its
    own, and refuses a database in which it was killed between two of them.
    """
    path = root / _DATABASE
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = root / f"{_DATABASE}.new"
    with store_errors(path), (root / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when this process ends, however it ends
        if not path.exists():
            for left in root.glob(f"{new.name}*"):
                left.unlink()
            SqlAlchemyStore(f"sqlite:///{new}", (root / "mlflow").as_uri()).engine.dispose()
            os.replace(new, path)


def log_training(
    recipe: Recipe,
    store: Store,
    fingerprint: str,
    settings: dict[str, Any],
    trained: Trained,
) -> str:
    """Log a finished training to MLflow; returns the run id."""
    metrics = {"num_steps": trained.num_steps, "train_loss": trained.train_loss}
    if trained.validation_loss is not None:
        metrics["validation_loss"] = trained.validation_loss
    tracker = Tracker(recipe, store)
    return tracker.log_run(fingerprint, settings, trained.history, metrics)
