import dataclasses
import threading

import pytest

from penstock.errors import LedgerError, RolloutRunning
from penstock.ledger import Ledger, Pointer
from penstock.ledger.rollout_records import Action, Checkpoint, Observed, State
from penstock.ledger.rollouts import score_of
from penstock.rollout import ended
from rollout_world import ALIAS, MODEL, World, requests


@pytest.fixture
def world(ledger, tmp_path):
    return World(ledger, tmp_path)


def close(world, rollout):
    after = ended(rollout, State.STOPPED, "test", 1.0)
    return world.rollouts.move(rollout, after, Action.STOP, {})


def test_a_rollout_is_read_as_it_was_written(world):
    begun = world.start(steps=(1, 5, 25, 100), step_deadline_s=60)
    assert world.rollouts.find(begun.id) == begun
    assert begun.steps == (0.01, 0.05, 0.25)
    assert begun.share == 0.01
    assert begun.deadline_s == begun.started_s + 60
    assert world.rollouts.open(MODEL, ALIAS) == begun
    assert world.actions(begun) == ["start"]


def test_there_is_one_open_rollout_for_each_alias(world):
    first = world.start(2)
    with pytest.raises(RolloutRunning, match=r"Version 3 .* waits: version 2 is on trial"):
        world.start(3)
    close(world, first)
    assert world.start(3).challenger == 3
    assert [one.challenger for one in world.rollouts.of(MODEL, ALIAS)] == [3, 2]


def test_of_two_moves_from_the_same_place_one_happens(world):
    begun = world.start()
    first = dataclasses.replace(begun, step=1, reason="first")
    second = dataclasses.replace(begun, step=1, reason="second")
    assert world.rollouts.move(begun, first, Action.STEP, {}) is not None
    assert world.rollouts.move(begun, second, Action.STEP, {}) is None
    assert world.rollouts.find(begun.id).reason == "first"
    assert world.actions(begun) == ["start", "step"]


def test_what_serves_and_what_is_on_trial_are_read_in_one_moment(world):
    assert world.rollouts.serving(MODEL, ALIAS) == (Pointer(1, 1), None)
    begun = world.start()
    assert world.rollouts.serving(MODEL, ALIAS) == (Pointer(1, 1), begun)
    assert world.rollouts.look(begun.id).serving == 1
    close(world, begun)
    assert world.rollouts.serving(MODEL, ALIAS) == (Pointer(1, 1), None)
    assert world.rollouts.serving("other", ALIAS) == (None, None)


@pytest.mark.slow
def test_batches_are_numbered_without_gaps_whoever_writes_them(world, ledger_url):
    begun = world.start()
    seen = requests(0.1, 0, 3)

    def write(worker):
        own = Ledger(ledger_url)
        from penstock.ledger.rollouts import Rollouts

        for sequence in range(15):
            Rollouts(own.database).observe(begun.id, worker, sequence, seen)
        own.close()

    threads = [threading.Thread(target=write, args=(f"worker {i}",)) for i in range(4)]
    read = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        read += world.rollouts.batches(begun.id, after=len(read))
    read += world.rollouts.batches(begun.id, after=len(read))
    assert [batch.number for batch in read] == list(range(1, 61))
    assert read[0].observed == tuple(seen)


def test_a_batch_that_is_written_again_is_there_once(world):
    begun = world.start()
    seen = requests(0.1, 0, 3)
    for _ in range(3):
        assert world.rollouts.observe(begun.id, "worker", 7, seen)
    assert world.rollouts.observe(begun.id, "worker", 8, seen)
    assert [batch.number for batch in world.rollouts.batches(begun.id)] == [1, 2]


def test_nothing_is_observed_of_a_rollout_that_has_ended(world):
    begun = world.start()
    close(world, begun)
    assert not world.observe(begun, requests(0.1, 0, 3))
    assert not world.rollouts.add_scores(begun.id, [score_of("champion", 1, 0.1, 0)])
    assert world.rollouts.batches(begun.id) == []


def test_scores_come_into_the_same_order(world):
    begun = world.start()
    world.observe(begun, requests(0.1, 0, 1))
    assert world.rollouts.add_scores(begun.id, [score_of("challenger", 0.5, 0.1, 0)])
    assert world.rollouts.add_scores(begun.id, [score_of("challenger", 0.25, 0.1, 0)])
    scores = [batch.observed[0].score for batch in world.rollouts.batches(begun.id)]
    assert scores == [None, 0.5, 0.25]


def test_evidence_is_saved_for_whoever_takes_over_but_never_an_older_one(world):
    begun = world.start()
    world.rollouts.save(begun, Checkpoint(5, {"five": 5}))
    world.rollouts.save(begun, Checkpoint(3, {"three": 3}))
    assert world.rollouts.checkpoint(begun.id) == Checkpoint(5, {"five": 5})
    moved = world.rollouts.move(begun, begun, Action.HOLD, {}, Checkpoint(6, {}))
    assert world.rollouts.checkpoint(begun.id) == Checkpoint(6, {})
    world.rollouts.save(begun, Checkpoint(9, {}))  # by one that does not know of the move
    assert world.rollouts.find(moved.id).checkpoint_at == 6


def test_an_observation_is_read_as_it_was_written(world):
    begun = world.start()
    seen = Observed("challenger", 0.1, 2, False, True, 0.5, 1.5, None, "00ff")
    world.observe(begun, [seen])
    assert world.rollouts.batches(begun.id)[0].observed == (seen,)


def test_an_id_may_be_shortened_but_not_guessed(world):
    begun = world.start()
    assert world.rollouts.find(begun.id[:-1]) == begun
    for wrong in ("", "ro-1"):
        with pytest.raises(LedgerError, match="rollout"):
            world.rollouts.find(wrong)
