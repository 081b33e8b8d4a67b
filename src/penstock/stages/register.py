"""Register: a model that passed the gate becomes a version with a number.

Being registered means that it may serve, so before that it is loaded in the
serving backend and answers one prompt: a model that only lm-eval can read is no
model to promote.
"""

from __future__ import annotations

from typing import Any

from penstock.ledger import ModelVersion
from penstock.recipe import Recipe
from penstock.stages.base import Job, Pinned, Stage
from penstock.stages.smoke import try_serving
from penstock.tracking import Tracker
from penstock.version_files import MODEL, check_model


def data_version(data: dict[str, int]) -> str:
    """The data a model was trained on, as people and headers name it: ``docs@3``."""
    return ",".join(f"{source}@{version}" for source, version in sorted(data.items()))


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    return {"model": recipe.model_name}


def _run(job: Job) -> dict[str, Any]:
    trained = job.inputs["train"]
    digest, path = trained.summary["model_digest"], f"{trained.path}/{MODEL}"
    folder = check_model(job.store.fetch(path, digest), digest)
    name = job.recipe.model_name
    if job.recipe.serve.try_before_promotion:
        try_serving(job.recipe, job.store, folder, digest)
    version = Tracker(job.recipe, job.store).register(
        name,
        digest,
        folder,
        job.store.url(path),
        trained.summary["mlflow_run"],
        {"penstock.run": trained.run_id, "penstock.train": trained.fingerprint},
    )
    model = job.ledger.add_model(
        ModelVersion(
            name=name,
            version=version,
            train_fingerprint=trained.fingerprint,
            digest=digest,
            path=path,
            run_id=trained.run_id,
            data_version=data_version(dict(trained.summary["data"])),
        )
    )
    return {"model": name, "version": model.version}


STAGE = Stage("register", 1, ("train", "gate"), _settings, _run)
