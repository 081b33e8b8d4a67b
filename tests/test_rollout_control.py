"""Controllers on a ledger with observations that are made up."""

import dataclasses
import threading

import pytest

from penstock.errors import LedgerError, RegistryError, StalePromotion, StoreError
from penstock.ledger.rollout_records import Action, Observed, State
from penstock.rollout_control import Controller, conduct, promote_now, start, stop
from penstock.rollout_replay import replay
from penstock.rollout_report import counts, headline, signal_rows, status
from rollout_world import MODEL, World, requests, version


@pytest.fixture
def world(ledger, tmp_path):
    return World(ledger, tmp_path)


class After:
    """Lets a controller look so often, and then stop."""

    def __init__(self, ticks):
        self.ticks = ticks

    def wait(self, timeout_s):
        self.ticks -= 1
        return self.ticks <= 0


def decide(world, rollout, ticks=20, told=lambda rollout, action: None):
    """A controller until the rollout is closed, or for so many looks; returns the rollout."""
    assert conduct(world.ledger, rollout, world.promoters, After(ticks), told, poll_s=0)
    return world.rollouts.find(rollout.id)


def same(world, rollout):
    return all(one.same for one in replay(world.rollouts, rollout))


def test_a_good_challenger_goes_through_the_steps_and_becomes_champion(world):
    begun = world.start(steps=(10, 50, 100))
    world.feed_good(begun)
    told = []
    ended = decide(world, begun, told=lambda rollout, action: told.append(action.value))
    assert ended.state is State.PROMOTED
    assert world.serving == 2
    assert world.registry.alias(MODEL, "production") == 2
    assert world.actions(begun) == ["start", "step", "promote", "promoted"]
    assert told == ["step", "promote", "promoted"]
    last = world.ledger.history(MODEL)[-1]
    assert last.action == "promote"
    assert begun.id in last.reason
    assert same(world, begun)


def test_a_challenger_that_fails_is_taken_back_and_the_pointer_never_moves(world):
    begun = world.start()
    world.feed(begun, count=400, failing=0.5)
    ended = decide(world, begun)
    assert (ended.state, ended.share) == (State.ROLLED_BACK, 0.0)
    assert "worse in errors" in ended.reason
    assert world.serving == 1
    assert len(world.ledger.history(MODEL)) == 1
    event = world.rollouts.events(begun.id)[-1]
    assert event.evidence["harm"] >= 20
    assert event.evidence["arms"]["challenger"]["errors"] > 0
    assert same(world, begun)


def test_harm_in_a_later_step_takes_it_back_too(world):
    begun = world.start()
    world.feed(begun, 0)
    world.feed(begun, 1, failing=0.6)
    assert decide(world, begun).state is State.ROLLED_BACK
    assert world.actions(begun) == ["start", "step", "rollback"]
    assert same(world, begun)


def test_a_rollout_without_requests_is_undecided_at_the_deadline(world):
    begun = world.start(step_deadline_s=1e-6)
    ended = decide(world, begun)
    assert ended.state is State.ROLLED_BACK
    assert "too few requests" in ended.reason
    assert same(world, begun)


def test_unread_observations_count_before_the_deadline_does(world):
    begun = world.start(step_deadline_s=1e-6, steps=(50, 100))
    world.feed(begun)
    assert decide(world, begun).state is State.PROMOTED


def test_the_first_draw_of_a_conversation_counts_and_no_later_one(world):
    begun = world.start()
    one = dataclasses.replace(requests(0.1, 0, 1)[0], conversation="00ff")
    for arm in ("champion", "challenger"):
        failing = dataclasses.replace(one, arm=arm, error=True)
        world.observe(begun, [one] * 3 + [failing] * 50)
    now = status(world.rollouts, begun)
    assert now.evidence["requests"] == {"champion": 1, "challenger": 0}
    score = Observed("champion", 0.1, 0, score=0.5, conversation="00ff")
    world.rollouts.add_scores(begun.id, [score, score])
    assert status(world.rollouts, begun).evidence["arms"]["champion"]["scored"] == 1


def test_bad_scores_take_it_back(world):
    begun = world.start()
    world.feed(begun, count=100)
    world.rollouts.add_scores(
        begun.id,
        [
            Observed(arm, 0.1, 0, score=0.0 if arm == "challenger" else 1.0)
            for arm in (seen.arm for seen in requests(0.1, 0, 600, seed=9))
        ],
    )
    assert "worse in score" in decide(world, begun).reason


@pytest.mark.slow
def test_who_takes_over_comes_to_the_same_decisions(world):
    """Each controller looks once and is gone; the conversations are in no checkpoint."""
    begun = world.start(steps=(10, 50, 100))
    for step in (0, 1):
        seen = requests(begun.steps[step], step, 200, seed=step)
        named = [
            dataclasses.replace(one, conversation=f"{i % 150:04x}") for i, one in enumerate(seen)
        ]
        for first in range(0, 200, 20):
            world.observe(begun, named[first : first + 20])
            conduct(world.ledger, begun, world.promoters, After(1), poll_s=0)
    ended = decide(world, begun)
    assert same(world, ended)
    assert world.actions(begun)[:2] == ["start", "step"]


def test_one_controller_decides_and_the_others_wait(world):
    begun = world.start()
    with world.ledger.try_claim(f"rollout/{begun.id}"):
        assert not conduct(world.ledger, begun, world.promoters, After(1), poll_s=0)


def test_a_controller_that_lost_its_claim_gives_way(world):
    begun = world.start()

    class Overslept(After):
        def wait(self, timeout_s):
            world.ledger._bury_dead_claims()
            with world.ledger.database.write() as connection:
                connection.exec_driver_sql("UPDATE claims SET holder = 'somebody:1:1/x'")
            assert not super().wait(timeout_s), "it went on without its claim"
            return False

    assert conduct(world.ledger, begun, world.promoters, Overslept(5), poll_s=0)


def test_a_pointer_that_somebody_moves_stops_the_trial(world):
    begun = world.start()
    world.production.promote(3, "by hand")
    ended = decide(world, begun)
    assert (ended.state, world.serving) == (State.STOPPED, 3)
    assert "version 3 serves, and not version 1" in ended.reason
    assert same(world, begun)


def test_a_promotion_waits_for_mlflow_and_says_so(world):
    begun = world.start(steps=(50, 100))
    world.feed(begun)
    world.registry.error = RegistryError("MLflow is away.", transient=True)
    waiting = decide(world, begun, ticks=3)
    assert (waiting.state, world.serving) == (State.PROMOTING, 1)
    assert "MLflow is away" in waiting.trouble
    assert "MLflow is away" in counts(status(world.rollouts, waiting))
    world.registry.error = None
    ended = decide(world, begun)
    assert (ended.state, ended.trouble, world.serving) == (State.PROMOTED, "", 2)


def test_a_mirror_that_is_late_is_no_failure(world, monkeypatch):
    begun = world.start(steps=(50, 100))
    world.feed(begun)

    def away(*_):
        raise RegistryError("MLflow is away.", transient=True)

    monkeypatch.setattr(world.registry, "set_alias", away)
    assert decide(world, begun).state is State.PROMOTED
    assert world.serving == 2


def test_files_that_are_not_what_was_registered_end_the_trial(world):
    begun = world.start(steps=(50, 100))
    world.feed(begun)

    def damaged(model):
        raise StoreError(f"{model.name} version {model.version} is damaged.")

    def promoters(name, alias):
        return dataclasses.replace(world.production, check_files=damaged)

    conduct(world.ledger, begun, promoters, After(9), poll_s=0)
    ended = world.rollouts.find(begun.id)
    assert (ended.state, world.serving) == (State.STOPPED, 1)
    assert "is damaged" in ended.reason


def test_a_trial_that_is_stopped_while_its_files_are_checked_moves_nothing(world):
    begun = world.start(steps=(50, 100))
    world.feed(begun)

    def stopped_meanwhile(model):
        stop(world.rollouts, world.rollouts.find(begun.id), "changed my mind")

    def promoters(name, alias):
        return dataclasses.replace(world.production, check_files=stopped_meanwhile)

    conduct(world.ledger, begun, promoters, After(9), poll_s=0)
    assert world.rollouts.find(begun.id).state is State.STOPPED
    assert world.serving == 1


def test_a_person_promotes_without_waiting(world):
    begun = world.start()
    ended = promote_now(world.rollouts, begun, world.production, "it is urgent")
    assert (ended.state, ended.reason, world.serving) == (State.PROMOTED, "it is urgent", 2)
    assert same(world, begun)
    with pytest.raises(LedgerError, match="has ended: promoted"):
        stop(world.rollouts, ended, "too late")


def test_who_promotes_what_is_being_promoted_already_is_written_down_with_the_reason(world):
    begun = world.start()
    world.registry.error = RegistryError("MLflow is away.")  # so that the pointer does not move
    with pytest.raises(RegistryError):
        promote_now(world.rollouts, begun, world.production, "it is urgent")
    promoting = world.rollouts.find(begun.id)
    assert promoting.state is State.PROMOTING
    world.registry.error = None
    ended = promote_now(world.rollouts, promoting, world.production, "I said so, twice")
    assert (ended.state, world.serving) == (State.PROMOTED, 2)
    reasons = [one.reason for one in world.rollouts.events(begun.id)]
    assert reasons[1:3] == ["it is urgent", "I said so, twice"]
    assert "I said so, twice" in world.ledger.history(MODEL)[-1].reason
    assert same(world, begun)


def test_who_is_told_to_end_as_the_pointer_moves_leaves_no_open_rollout(world):
    begun = world.start()
    world.registry.error = RegistryError("MLflow is away.")  # so that the pointer does not move
    with pytest.raises(RegistryError):
        promote_now(world.rollouts, begun, world.production, "it is urgent")
    world.registry.error = None
    conduct(world.ledger, begun, world.promoters, After(1), poll_s=0)
    assert (world.rollouts.find(begun.id).state, world.serving) == (State.PROMOTED, 2)


def test_a_trial_is_not_promoted_as_another_model(world):
    begun, other = world.start(2), dataclasses.replace(world.production, name="other")
    for number in (1, 2):
        world.ledger.add_model(
            dataclasses.replace(version(number), name="other", digest=f"o{number}")
        )
    other.promote(1, "first")
    with pytest.raises(LedgerError, match="is of penny@production, not of other@production"):
        promote_now(world.rollouts, begun, other, "it is urgent")
    assert world.ledger.pointer("other").version == 1
    assert world.rollouts.find(begun.id) == begun


def test_a_person_stops_it(world):
    begun = world.start()
    assert stop(world.rollouts, begun, "a bad feeling").state is State.STOPPED
    assert world.start(3).challenger == 3


def test_what_serves_already_and_what_was_compared_with_another_is_not_started(world):
    with pytest.raises(LedgerError, match="serves already"):
        world.start(1)
    with pytest.raises(StalePromotion, match="compared with version 3, but version 1 serves"):
        start(world.rollouts, world.opening(2, champion=3), world.production)


def test_a_decision_that_does_not_follow_is_found(world):
    """Somebody edits the observations, the log, or a controller has a bug."""
    begun = world.start(steps=(50, 100))
    world.feed(begun)
    decide(world, begun)
    with world.ledger.database.write() as connection:
        connection.exec_driver_sql(
            "UPDATE rollout_observations SET observed = replace(observed, "
            "'\"error\":false', '\"error\":true') WHERE batch = 1"
        )
    found = replay(world.rollouts, world.rollouts.find(begun.id))
    assert [one.event.action for one in found if not one.same] == [Action.PROMOTE]


def test_a_rollback_that_was_not_due_is_found(world):
    begun = world.start()
    world.feed(begun, count=20)
    from penstock.rollout import ended

    after = ended(begun, State.ROLLED_BACK, "worse in errors (evidence 20)", 1.0)
    saved = world.rollouts.checkpoint(begun.id)
    saved = dataclasses.replace(saved, batch=1)
    world.rollouts.move(begun, after, Action.ROLLBACK, {"made": "up"}, saved)
    *_, last = replay(world.rollouts, begun)
    assert (last.same, last.recomputed) == (False, None)


def test_the_status_shows_counts_differences_and_evidence(world):
    begun = world.start()
    world.feed(begun, count=100, failing=0.2)
    now = status(world.rollouts, begun)
    assert "step 1 of 2, 10.0% of the requests" in headline(now)
    assert "5 needed" in counts(now)
    rows = {row[0]: row[1:] for row in signal_rows(now)}
    assert rows["errors"][0] == "0.00%"
    assert rows["latency"][2].startswith("x1.0")
    assert rows["format"][:2] == ("", "")


@pytest.mark.slow
def test_a_controller_in_a_thread_finds_new_rollouts_by_itself(world):
    told, done = [], threading.Event()

    def tell(rollout, action):
        told.append(action.value)
        if action is Action.PROMOTED:
            done.set()

    with Controller(world.ledger, world.promoters, None, tell):
        begun = world.start(steps=(50, 100))
        world.feed(begun)
        assert done.wait(20)
    assert world.serving == 2
    assert world.ledger.live_claims() == []


def test_a_score_finds_the_draw_of_its_answer_and_counts_once(world):
    begun = world.start()
    drawn = [
        Observed("challenger", 0.1, 0, error=False, answer_s=0.5, response="a" * 32),
        Observed("challenger", 0.1, 0, error=True, response="b" * 32),
    ]
    world.rollouts.observe(begun.id, "gateway", 1, drawn)
    assert world.rollouts.score("a" * 32, 1.0)
    assert world.rollouts.score("a" * 32, 0.0)
    # The champion answered for the challenger, and a stranger's answer is nobody's.
    assert not world.rollouts.score("b" * 32, 0.0)
    assert not world.rollouts.score("c" * 32, 0.0)
    assert not world.rollouts.score('%"', 0.0)
    arms = status(world.rollouts, begun).evidence["arms"]
    assert (arms["challenger"]["scored"], arms["champion"]["scored"]) == (1, 0)
