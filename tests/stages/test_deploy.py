"""The deploy stage with ``deploy.rollout``: a trial begins, and the pointer stays."""

import dataclasses

import pytest

import tiny_project
from penstock.artifacts import Artifact
from penstock.errors import RolloutRunning, StalePromotion
from penstock.ledger import Ledger
from penstock.recipe import Recipe
from penstock.recipe_file import load_recipe
from penstock.rollout_control import promote_now, stop
from penstock.serving.production import LedgerPointers
from penstock.stages import deploy
from penstock.stages.base import Job, Pinned, Silent
from penstock.store import Store
from rollout_world import ALIAS, MODEL, World


@pytest.fixture
def world(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield World(ledger, tmp_path)
    ledger.close()


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    path = tiny_project.write_project(tmp_path / "project")
    rollout = {"steps": [5, 50, 100], "alpha": 0.01, "step_deadline_s": 60}
    return load_recipe(path, {"register.model": MODEL, "deploy.rollout": rollout})


@pytest.fixture
def run(world, recipe, tmp_path, monkeypatch):
    """Runs deploy for a version that passed the gate against another one."""
    monkeypatch.setattr(deploy, "production_of", lambda *_, **__: world.production)

    def deployed(version, baseline=1, fingerprint=None, recipe=recipe):
        evaluated = _artifact("evaluate", f"{version:064x}", model_digest=f"{version:02x}" * 32)
        with world.ledger.try_claim(evaluated.fingerprint) as claim:
            world.ledger.record(evaluated, "tiny", claim)
        verdict = {"verdict": "PASS", "reason": "better", "baseline_version": baseline}
        gate = dataclasses.replace(
            _artifact("gate", "a" * 64, **verdict), inputs={"evaluate": evaluated.fingerprint}
        )
        job = Job(
            recipe=recipe,
            store=Store(tmp_path / "store"),
            ledger=world.ledger,
            run_id="run-2",
            stage="deploy",
            fingerprint=fingerprint or f"{version:064d}",
            settings={},
            inputs={"register": _artifact("register", "b" * 64, version=version), "gate": gate},
            pinned=Pinned(),
            folder=tmp_path,
            progress=Silent(),
        )
        summary = deploy.STAGE.run(job)
        return _artifact("deploy", job.fingerprint, **summary)

    return deployed


def _artifact(stage, fingerprint, **summary):
    return Artifact(fingerprint, stage, f"artifacts/{stage}", "d" * 64, summary)


def test_a_version_that_passed_is_put_on_trial_and_the_pointer_stays(world, run):
    deployed = run(2)
    begun = world.rollouts.open(MODEL, ALIAS)
    assert deployed.summary["rollout"] == begun.id
    assert "on trial against version 1" in deployed.summary["message"]
    assert (begun.champion, begun.challenger, begun.run_id) == (1, 2, "run-2")
    assert begun.steps == (0.05, 0.5)
    assert begun.policy["comparison"]["alpha"] == 0.01
    assert "gate PASS: better" in begun.reason
    assert world.serving == 1


def test_a_stage_that_is_begun_again_after_a_crash_starts_no_second_trial(world, run):
    first = run(2)
    assert run(2).summary == first.summary
    stop(world.rollouts, world.rollouts.open(MODEL, ALIAS), "enough")
    assert run(2).summary["rollout"] == first.summary["rollout"]
    assert world.rollouts.open(MODEL, ALIAS) is None


def test_another_version_waits_while_one_is_on_trial(world, run):
    run(2)
    with pytest.raises(RolloutRunning, match=r"Version 3 of penny waits: version 2") as refused:
        run(3)
    assert refused.value.transient
    assert "run again" in refused.value.hint


def test_the_version_that_waited_is_compared_anew_after_a_promotion(world, run):
    run(2)
    promote_now(world.rollouts, world.rollouts.open(MODEL, ALIAS), world.production, "now")
    with pytest.raises(StalePromotion, match="compared with version 1, but version 2 serves"):
        run(3)
    assert run(3, baseline=2, fingerprint="f" * 64).summary["rollout"]


def test_the_first_version_is_promoted_at_once(run, world):
    with world.ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM pointers")
        connection.exec_driver_sql("DELETE FROM audit")
        connection.exec_driver_sql("DELETE FROM watermarks")
    world.registry.path.unlink()
    assert "rollout" not in run(2, baseline=None).summary
    assert world.serving == 2


def test_what_has_come_of_the_trial_is_told_by_later_runs(world, run):
    deployed = run(2)
    assert "version 2 is on trial against version 1" in deploy.trial(world.ledger, deployed)
    begun = world.rollouts.open(MODEL, ALIAS)
    stop(world.rollouts, begun, "a bad feeling")
    said = deploy.trial(world.ledger, deployed)
    assert "no longer on trial (a bad feeling)" in said
    assert begun.id in said


def test_without_the_section_the_pointer_moves_at_once(world, run, recipe):
    plain = recipe.model_copy(update={"deploy": recipe.deploy.model_copy(update={"rollout": None})})
    assert "rollout" not in run(2, recipe=plain).summary
    assert world.serving == 2


def test_how_a_version_takes_over_enters_no_fingerprint(recipe):
    from penstock.recipe import canonical

    assert canonical(recipe.deploy) == {"alias": "production"}
    assert deploy.STAGE.settings(recipe, Pinned()) == {"model": MODEL, "alias": "production"}


def test_the_gateway_reads_the_trial_from_the_ledger(world, recipe, tmp_path):
    pointers = LedgerPointers(
        recipe, recipe.serve.completed(MODEL), Store(tmp_path / "store"), world.ledger
    )
    assert pointers.targets(MODEL).challenger is None
    begun = world.start(2, steps=(5, 50, 100))
    targets = pointers.targets(MODEL)
    assert (targets.champion.version, targets.challenger.version) == (1, 2)
    assert (targets.share, targets.rollout, targets.step) == (0.05, begun.id, 0)
    world.production.promote(3, "by hand")
    targets = pointers.targets(MODEL)  # the trial's champion serves no more
    assert (targets.champion.version, targets.challenger, targets.share) == (3, None, 0.0)
    stop(world.rollouts, begun, "enough")
    assert pointers.targets(MODEL).rollout == ""
