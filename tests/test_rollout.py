"""The transitions of a rollout, on their own and in any order on a ledger."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock.errors import LedgerError, RecipeError, RolloutRunning
from penstock.ledger import Ledger
from penstock.ledger.rollout_records import OPEN, Action, Look, Rollout, State
from penstock.rollout import DEFAULT_STEPS, Finding, Terms, next_turn, shares
from penstock.rollout_control import _Conducted, promote_now, stop
from penstock.rollout_section import RolloutSection
from rollout_world import ALIAS, MODEL, World

GOOD = Finding("GOOD", enough=True)
HARM = Finding("HARM", "errors", 31.0)
UNDECIDED = Finding(missing=("errors",), enough=True)


def rollout(**fields):
    values = {"steps": (0.1, 0.5), "policy": {}, "deadline_s": 100.0, **fields}
    return Rollout("ro-1", MODEL, ALIAS, 1, 2, **values)


def terms(on_undecided="rollback", step_deadline_s=50.0):
    section = RolloutSection(on_undecided=on_undecided, step_deadline_s=step_deadline_s)
    return section.terms()


def turn(finding, serving=1, now_s=10.0, on_undecided="rollback", caught_up=True, **fields):
    look = Look(rollout(**fields), serving, now_s)
    return next_turn(look, finding, terms(on_undecided), caught_up)


def test_good_goes_to_the_next_step_with_a_new_deadline():
    due = turn(GOOD)
    assert due.action is Action.STEP
    assert (due.after.step, due.after.share) == (1, 0.5)
    assert (due.after.step_started_s, due.after.deadline_s) == (10.0, 60.0)


def test_good_in_the_last_step_promotes():
    due = turn(GOOD, step=1)
    assert due.action is Action.PROMOTE
    assert due.after.state is State.PROMOTING
    assert due.after.share == 0.5  # until the pointer has moved


@pytest.mark.parametrize("state", sorted(OPEN))
def test_harm_takes_it_back_in_every_open_state(state):
    due = turn(HARM, state=state)
    assert due.action is Action.ROLLBACK
    assert (due.after.state, due.after.share, due.after.is_open) == (State.ROLLED_BACK, 0.0, False)
    assert "worse in errors (evidence 31)" in due.after.reason


def test_before_the_deadline_nothing_happens():
    assert turn(UNDECIDED) is None


@pytest.mark.parametrize(
    ("on_undecided", "action"),
    [("rollback", Action.ROLLBACK), ("continue", Action.STEP), ("hold", Action.HOLD)],
)
def test_at_the_deadline_the_policy_decides(on_undecided, action):
    assert turn(UNDECIDED, now_s=100.0, on_undecided=on_undecided).action is action
    many = Finding(missing=("errors",), enough=True, exhausted=True)
    assert turn(many, on_undecided=on_undecided).action is action


def test_a_step_that_is_held_stays_until_it_is_decided():
    held = turn(UNDECIDED, now_s=100.0, on_undecided="hold").after
    look = Look(held, 1, 1e9)
    assert next_turn(look, UNDECIDED, terms("hold")) is None
    assert next_turn(look, GOOD, terms("hold")).action is Action.STEP
    assert next_turn(look, HARM, terms("hold")).action is Action.ROLLBACK


@pytest.mark.parametrize(
    "finding", [Finding(enough=False), Finding(enough=True, drawn=False)], ids=["few", "drawn"]
)
def test_a_trial_that_did_not_take_place_never_continues(finding):
    due = turn(finding, now_s=100.0, on_undecided="continue")
    assert due.action is Action.ROLLBACK


def test_no_step_is_undecided_while_observations_are_unread():
    assert turn(UNDECIDED, now_s=100.0, caught_up=False) is None
    assert turn(GOOD, now_s=100.0, caught_up=False).action is Action.STEP


def test_a_pointer_at_the_challenger_closes_as_promoted():
    due = turn(UNDECIDED, serving=2, state=State.PROMOTING, reason="good")
    assert (due.action, due.after.state) == (Action.PROMOTED, State.PROMOTED)
    assert due.after.reason == "good"
    by_somebody = turn(HARM, serving=2)
    assert "somebody promoted version 2" in by_somebody.after.reason


@pytest.mark.parametrize("serving", [3, None])
def test_a_pointer_that_somebody_moved_stops_it(serving):
    due = turn(GOOD, serving=serving)
    assert (due.action, due.after.state) == (Action.STOP, State.STOPPED)
    assert "somebody moved the pointer" in due.after.reason


@pytest.mark.parametrize("state", sorted(set(State) - OPEN))
def test_a_closed_rollout_moves_no_more(state):
    for serving in (1, 2, 3):
        assert turn(HARM, serving=serving, state=state, now_s=1e9) is None


def test_the_step_of_everything_is_the_promotion():
    assert shares(DEFAULT_STEPS) == (0.01, 0.05, 0.25)
    assert shares([50]) == (0.5,)


@pytest.mark.parametrize("percents", [[], [100], [5, 5], [5, 1], [0, 5], [5, 101], [-1, 5]])
def test_steps_that_do_not_rise_are_refused(percents):
    with pytest.raises(RecipeError, match="must rise"):
        shares(percents)
    with pytest.raises(ValueError, match="must rise"):
        RolloutSection(steps=percents)


def test_terms_survive_a_way_through_json():
    section = RolloutSection(margins={"latency": None, "format": 0.1}, on_undecided="hold")
    assert Terms.from_dict(section.terms().to_dict()) == section.terms()


def test_a_margin_below_what_is_tolerated_is_refused():
    with pytest.raises(ValueError, match=r"margins\.errors 0\.01 is below harm_above 0\.05"):
        RolloutSection(harm_above={"errors": 0.05})


# -- any order of events -----------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """People, controllers and gateways do what they like, one after the other."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=_memory())
        self.ledger = Ledger(f"sqlite:///{self.folder.name}/ledger.db")
        self.world = World(self.ledger, self.folder.name)
        self.controllers = {}
        self.closed = {}

    def teardown(self):
        self.ledger.close()
        self.folder.cleanup()

    @property
    def open(self):
        return self.world.rollouts.open(MODEL, ALIAS)

    @rule(challenger=st.sampled_from([1, 2, 3]), policy=st.sampled_from(["rollback", "continue"]))
    def start(self, challenger, policy):
        was_open, serving = self.open, self.world.serving
        try:
            self.world.start(challenger, steps=(20, 50), on_undecided=policy)
        except RolloutRunning:
            assert was_open is not None
        except LedgerError:
            assert challenger == serving
        else:
            assert was_open is None

    @precondition(lambda self: self.open is not None)
    @rule(failing=st.sampled_from([0.0, 0.0, 1.0]), seed=st.integers(0, 99))
    def observe(self, failing, seed):
        self.world.feed(self.open, self.open.step, 60, failing, seed=seed)

    @precondition(lambda self: self.open is not None)
    @rule(who=st.sampled_from("abc"), ticks=st.integers(1, 3))
    def decide(self, who, ticks):
        """Several controllers, of which some believe for long that they have the claim."""
        key = (who, self.open.id)
        if key not in self.controllers:
            world = self.world
            self.controllers[key] = _Conducted(
                world.rollouts, self.open, world.promoters, lambda rollout, action: None
            )
        for _ in range(ticks):
            self.controllers[key].tick()

    @precondition(lambda self: self.open is not None)
    @rule()
    def person_stops(self):
        stop(self.world.rollouts, self.open, "enough")

    @precondition(lambda self: self.open is not None)
    @rule()
    def person_promotes_the_challenger(self):
        on, serving = self.open, self.world.serving
        if serving in (on.champion, on.challenger):
            with contextlib.suppress(LedgerError):  # somebody has done so before
                promote_now(self.world.rollouts, on, self.world.production, "now")
            assert self.world.serving == on.challenger

    @rule(version=st.sampled_from([1, 2, 3]))
    def somebody_moves_the_pointer(self, version):
        if version != self.world.serving:
            self.world.production.promote(version, "by hand")

    @invariant()
    def there_is_one_champion_and_at_most_one_trial(self):
        moves = self.ledger.history(MODEL, ALIAS)
        assert [move.epoch for move in moves] == list(range(1, len(moves) + 1))
        assert self.world.serving == moves[-1].to_version
        rollouts = self.world.rollouts.of(MODEL, ALIAS)
        assert len([one for one in rollouts if one.is_open]) <= 1

    @invariant()
    def the_log_tells_how_each_trial_came_to_be_where_it_is(self):
        moves = self.ledger.history(MODEL, ALIAS)
        for one in self.world.rollouts.of(MODEL, ALIAS):
            events = self.world.rollouts.events(one.id)
            assert [event.epoch for event in events] == list(range(1, one.epoch + 1))
            assert (events[-1].state, events[-1].step) == (one.state, one.step)
            # A trial moves the pointer once at most, and never after it was taken back.
            mine = [move for move in moves if one.id in move.reason]
            assert len(mine) <= 1
            assert not (mine and one.state is State.ROLLED_BACK)
            if one.is_open:
                continue
            assert self.closed.setdefault(one.id, one) == one


def _memory():
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


AnyOrder.TestCase.settings = settings(
    max_examples=10,
    stateful_step_count=12,
    # Shrinking writes to disks for minutes.
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.pytestmark = [pytest.mark.slow]
