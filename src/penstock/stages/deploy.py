"""Deploy: the production pointer moves to a version that passed, atomically.

The move is a compare-and-set against the version the gate compared with; if
another promotion came in between, the verdict is stale and nothing moves.
"""

from __future__ import annotations

from typing import Any

from penstock.errors import LedgerError, StalePromotion
from penstock.promotion import Production
from penstock.recipe import Recipe
from penstock.stages.base import Job, Pinned, Stage
from penstock.stages.train import check_stored
from penstock.tracking import Tracker


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    return {"model": recipe.model_name, "alias": recipe.deploy.alias}


def _run(job: Job) -> dict[str, Any]:
    name, alias = job.recipe.model_name, job.recipe.deploy.alias
    version = job.inputs["register"].summary["version"]
    verdict = job.inputs["gate"].summary
    pointer = job.ledger.pointer(name, alias)
    if pointer is None or pointer.version != version:
        serving = None if pointer is None else pointer.version
        if serving != verdict["baseline_version"]:
            raise StalePromotion(
                f"Version {version} was compared with version {verdict['baseline_version']}, "
                f"but {serving} serves now.",
                "The comparison is repeated.",
            )
        _check_tested(job, version)
        reason = f"gate {verdict['verdict']}: {verdict['reason']}"
        job.ledger.move_pointer(name, alias, version, pointer, "promote", reason, job.run_id)
    return {"version": version, "message": f"{name} version {version} promoted to {alias}"}


def _check_tested(job: Job, version: int) -> None:
    """The files about to serve are byte for byte those that were evaluated.

    Raises:
        LedgerError: The version is another model than the one the verdict is about.
        StoreError: Its files have changed since.
    """
    model = job.ledger.model(job.recipe.model_name, version)
    tested = job.ledger.find(job.inputs["gate"].inputs["evaluate"])
    if tested is None or tested.summary["model_digest"] != model.digest:
        found = "nothing" if tested is None else tested.summary["model_digest"][:16]
        raise LedgerError(
            f"{model.name} version {version} has the digest {model.digest[:16]}, but the gate "
            f"judged {found}.",
            "Run again: the gate judges what is there now.",
        )
    check_stored(job.store, model)


def _reconcile(job: Job) -> None:
    """Let MLflow's alias say what the pointer says, also after a rollback."""
    registry = Tracker(job.recipe, job.store).registry
    name, alias = job.recipe.model_name, job.recipe.deploy.alias
    Production(job.ledger, registry, name, alias).reconcile()


STAGE = Stage("deploy", 1, ("register", "gate"), _settings, _run, _reconcile)
