"""``penstock rollout``, without a recipe: a ledger and an MLflow that always answers."""

import dataclasses
import json
import time

import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import LedgerError, RecipeError, RolloutRunning
from penstock.ledger import Ledger
from penstock.ledger.rollout_records import State
from penstock.rollout_control import conduct
from rollout_world import MODEL, World


@pytest.fixture
def world(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield World(ledger, tmp_path)
    ledger.close()


@pytest.fixture
def penstock(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("penstock.model_registry.ModelRegistry", lambda uri: world.registry)

    def call(command, *arguments, code=0):
        options = ("--model-name", MODEL, "--store", ".", "--tracking", "sqlite:///none.db")
        words = ["rollout", command, *map(str, arguments), *options]
        done = CliRunner().invoke(app, words)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    return call


class Never:
    def wait(self, timeout_s):
        return False


def decided(world):
    begun = world.rollouts.of(MODEL, "production")[0]
    conduct(world.ledger, begun, world.promoters, Never(), poll_s=0)
    return world.rollouts.find(begun.id)


def test_a_trial_is_started_shown_decided_and_computed_again(penstock, world):
    options = ("--steps", "20,50,100", "--alpha", 0.1, "--min-requests", 5)
    said = penstock("start", 2, *options, "--step-deadline-s", 600, "--on-undecided", "continue")
    begun = world.rollouts.open(MODEL, "production")
    assert begun.id in said
    assert begun.steps == (0.2, 0.5)
    assert begun.policy["comparison"]["alpha"] == 0.1
    assert (begun.policy["step_deadline_s"], begun.policy["on_undecided"]) == (600, "continue")
    world.feed(begun, count=300, failing=0.5)
    shown = " ".join(penstock("status").split())
    assert "step 1 of 2, 20.0% of the requests" in shown
    assert "0.00%" in shown
    as_json = json.loads(penstock("status", "--json"))
    assert as_json["evidence"]["arms"]["challenger"]["errors"] > 0
    assert decided(world).state is State.ROLLED_BACK
    assert "rolled_back: worse in errors" in " ".join(penstock("status", begun.id).split())
    replayed = json.loads(penstock("replay", begun.id, "--json"))
    assert [one["same"] for one in replayed] == [True, True]
    assert "rolled_back" in penstock("history")
    assert "rollback" in penstock("history", begun.id)


def test_a_page_tells_of_a_trial_that_is_on_and_of_one_that_has_ended(penstock, world, tmp_path):
    penstock("start", 2, "--steps", "20,100", "--min-requests", 5, "--reason", "<b>new</b>")
    world.feed(world.rollouts.open(MODEL, "production"), count=300, failing=0.5)
    penstock("status", "--report", "rollout.html")
    page = (tmp_path / "rollout.html").read_text()
    assert "step 1 of 1, 20.0% of the requests" in page
    assert "&lt;b&gt;new&lt;/b&gt;" in page
    assert "taken back (20)" in page
    ended = decided(world)
    penstock("status", ended.id, "--report", "rollout.html")
    page = (tmp_path / "rollout.html").read_text()
    assert '<body class="BLOCK">' in page
    assert "ROLLED BACK" in page
    assert "worse in errors" in page


def test_what_was_observed_in_old_rollouts_is_pruned_and_what_was_decided_stays(
    penstock, world, monkeypatch
):
    penstock("start", 2, "--steps", "20,100", "--min-requests", 5)
    first = world.rollouts.open(MODEL, "production")
    world.feed(first, count=300, failing=0.5)
    decided(world)
    penstock("start", 2, "--steps", "20,100", "--min-requests", 5)
    second = world.rollouts.open(MODEL, "production")
    world.feed(second, count=20)
    assert "of 0 rollouts" in penstock("prune", "--older-than-days", 1)
    later_s = time.time() + 2 * 86_400
    monkeypatch.setattr("time.time", lambda: later_s)
    assert "of 1 rollouts" in penstock("prune", "--older-than-days", 1)
    assert world.rollouts.batches(first.id) == []
    assert world.rollouts.batches(second.id) != []
    assert "rollback" in penstock("history", first.id)
    assert "worse in errors" in penstock("status", first.id)
    with pytest.raises(LedgerError, match="were removed by `penstock rollout prune`"):
        penstock("replay", first.id)


def test_a_replay_that_differs_ends_with_1(penstock, world):
    penstock("start", 2, "--steps", "20,100", "--min-requests", 5)
    begun = world.rollouts.open(MODEL, "production")
    world.feed(begun, count=300, failing=0.5)
    decided(world)
    with world.ledger.database.write() as connection:
        connection.exec_driver_sql("UPDATE rollout_events SET reason = 'no reason' WHERE epoch = 2")
    assert "DIFFERS" in penstock("replay", begun.id, code=1)


@pytest.mark.slow
def test_a_person_promotes_or_stops(penstock, world):
    penstock("start", 2)
    assert "is stopped: a bad feeling" in penstock("stop", "--reason", "a bad feeling")
    penstock("start", 3)
    with pytest.raises(RolloutRunning, match="version 3 is on trial"):
        penstock("start", 2)
    assert "is promoted: by hand" in penstock("promote")
    assert world.serving == 3
    with pytest.raises(LedgerError, match="No version of penny@production is on trial"):
        penstock("stop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "5,1"), "must rise"),
        (("--steps", "a"), "no list of numbers"),
        (("--alpha", "2"), "alpha: "),
        (("--on-undecided", "guess"), "on_undecided: "),
    ],
)
def test_what_makes_no_sense_is_refused(penstock, options, message):
    with pytest.raises(RecipeError, match=message):
        penstock("start", 2, *options)


@pytest.mark.parametrize("command", ["status", "stop", "promote", "replay", "history"])
def test_the_trial_of_another_model_is_refused(penstock, world, command):
    penstock("start", 2)
    other = dataclasses.replace(world.rollouts.open(MODEL, "production"), model="other", id="ro-x")
    world.rollouts.start(other, 60.0)
    with pytest.raises(LedgerError, match=f"is of other@production, not of {MODEL}@production"):
        penstock(command, "ro-x")
    assert world.rollouts.find("ro-x").is_open


def test_a_version_that_is_not_there_is_refused(penstock):
    with pytest.raises(LedgerError, match="no version 9"):
        penstock("start", 9)


def test_before_the_first_trial_there_is_nothing_to_show(penstock):
    with pytest.raises(LedgerError, match="no rollout of penny@production yet"):
        penstock("status")
