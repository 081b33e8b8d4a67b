"""Deploy: the production pointer moves to a version that passed, atomically.

The move is a compare-and-set against the version the gate compared with; if
another promotion came in between, the verdict is stale and nothing moves. With
``deploy.rollout`` the stage starts a trial instead, and the trial's controller moves
the pointer. The version that serves stays the baseline until then.
"""

from __future__ import annotations

from typing import Any

from penstock.artifacts import Artifact
from penstock.errors import LedgerError, StalePromotion
from penstock.ledger import Ledger
from penstock.ledger.rollout_records import State
from penstock.ledger.rollouts import Rollouts
from penstock.promotion import Production
from penstock.recipe import Recipe
from penstock.rollout import Opening
from penstock.rollout_control import start
from penstock.stages.base import Job, Pinned, Stage
from penstock.store import Store
from penstock.tracking import Tracker
from penstock.version_files import checked


def production_of(
    recipe: Recipe, store: Store, ledger: Ledger, name: str | None = None, alias: str | None = None
) -> Production:
    """The alias that a recipe's deploy stage moves, or another one of the same project.

    Being in the ledger means having passed the gate, so no other version may be promoted.
    """
    return Production(
        ledger,
        Tracker(recipe, store).registry,
        name or recipe.model_name,
        alias or recipe.deploy.alias,
        check_files=lambda model: checked(model, recipe, store, ledger),
    )


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    return {"model": recipe.model_name, "alias": recipe.deploy.alias}


def _run(job: Job) -> dict[str, Any]:
    production = production_of(job.recipe, job.store, job.ledger)
    name, alias = production.name, production.alias
    version = job.inputs["register"].summary["version"]
    verdict = job.inputs["gate"].summary
    pointer = job.ledger.pointer(name, alias)
    if pointer is None or pointer.version != version:
        _check_judged(job, version)
        reason = f"gate {verdict['verdict']}: {verdict['reason']}"
        compared_with = verdict["baseline_version"]
        if job.recipe.deploy.rollout is not None and pointer is not None:
            return _roll_out(job, production, version, compared_with, reason)
        production.promote(version, reason, compared_with, run_id=job.run_id)
    return {"version": version, "message": f"{name} version {version} promoted to {alias}"}


def _roll_out(
    job: Job, production: Production, version: int, compared_with: int | None, reason: str
) -> dict[str, Any]:
    """Put the version on trial, once for this result, however often the stage is begun.

    Raises:
        RolloutRunning: Another version is on trial.
        StalePromotion: Something else serves than it was compared with.
    """
    section = job.recipe.deploy.rollout
    if section is None or compared_with is None:
        raise StalePromotion(
            f"Version {version} was compared with nothing, but something serves now.",
            "It has to be compared with what serves now.",
        )
    rollouts = Rollouts(job.ledger.database)
    begun = rollouts.started_by(job.fingerprint)
    if begun is None:
        opening = Opening(
            production.name,
            production.alias,
            compared_with,
            version,
            section.terms(),
            section.steps,
            reason,
            job.run_id,
            job.fingerprint,
        )
        begun = start(rollouts, opening, production)
    message = f"{production.name} version {version} is on trial against version {compared_with}"
    return {"version": version, "rollout": begun.id, "message": f"{message} (rollout {begun.id})"}


def trial(ledger: Ledger, deployed: Artifact) -> str:
    """What has come of the trial that a deploy stage has started."""
    rollout = Rollouts(ledger.database).find(deployed.summary["rollout"])
    said = {
        State.RUNNING: f"is on trial against version {rollout.champion}",
        State.PROMOTING: "was found good and takes over",
        State.PROMOTED: f"is in {rollout.alias}",
        State.ROLLED_BACK: f"was taken back ({rollout.reason})",
        State.STOPPED: f"is no longer on trial ({rollout.reason})",
    }[rollout.state]
    return f"{rollout.model} version {rollout.challenger} {said}; rollout {rollout.id}"


def _check_judged(job: Job, version: int) -> None:
    """The version about to serve is the model that was evaluated; its bytes are read after this.

    Raises:
        LedgerError: The version is another model than the one the verdict is about.
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


def _reconcile(job: Job) -> None:
    """Let MLflow's alias say what the pointer says, also after a rollback."""
    production_of(job.recipe, job.store, job.ledger).reconcile()


STAGE = Stage("deploy", 1, ("register", "gate"), _settings, _run, _reconcile)
