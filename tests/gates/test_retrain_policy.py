import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gates.retrain_policy import (
    FAILURES,
    MONTH_S,
    WEEK_S,
    Move,
    RetrainPolicy,
    Situation,
    Start,
    Waiting,
    decide,
    failures_in_a_row,
    spent_usd,
)

NOW_S = 10_000_000.0
POLICY = RetrainPolicy(
    on={"drift": "warning", "feedback": "info"}, debounce_s=60, cooldown_s=600, max_runs_per_week=3
)


def alarm(number=1, ago_s=100.0, kind="drift", severity="warning"):
    return Waiting(number, kind, severity, NOW_S - ago_s)


def ended(ago_s, outcome="PROMOTED", took_s=3600.0):
    return Start(f"run {ago_s}", NOW_S - ago_s - took_s, outcome, NOW_S - ago_s, took_s)


def decided(*alarms, policy=POLICY, **situation):
    return decide(Situation(NOW_S, tuple(alarms), **situation), policy)


def change(**values):
    return dataclasses.replace(POLICY, **values)


def test_an_alarm_that_is_due_starts_a_run_named_after_it():
    decision = decided(alarm(7))
    assert (decision.move, decision.alarms) == (Move.START, (7,))
    assert decision.key == f"alarm-7-{NOW_S - 100:.0f}"


def test_without_an_alarm_that_counts_nothing_happens():
    assert decided().move is Move.IDLE
    assert decided(alarm(kind="alert")).move is Move.IDLE
    assert decided(alarm(severity="info")).move is Move.IDLE
    assert decided(alarm(kind="feedback", severity="info")).move is Move.START
    assert decided(alarm(severity="critical")).move is Move.START


def test_all_alarms_until_the_start_are_one_event():
    flood = [alarm(i, ago_s=61 - i / 1000) for i in range(1, 1001)]
    decision = decided(*flood)
    assert decision.move is Move.START
    assert decision.alarms == tuple(range(1, 1001))


def test_a_start_waits_for_others_to_join_from_the_first_alarm_on():
    decision = decided(alarm(1, ago_s=59), alarm(2, ago_s=1))
    assert (decision.move, decision.why) == (Move.WAIT, "debounce")
    assert decision.until_s == NOW_S + 1
    assert decided(alarm(1, ago_s=60), alarm(2, ago_s=1)).move is Move.START


def test_a_person_has_time_to_forbid_a_start():
    decision = decided(alarm(ago_s=100), policy=change(veto_s=50))
    assert (decision.move, decision.why, decision.until_s) == (Move.WAIT, "veto", NOW_S + 10)
    assert decided(alarm(ago_s=110), policy=change(veto_s=50)).move is Move.START


def test_where_a_person_has_to_agree_nothing_starts_before_that():
    policy = change(needs_approval=True)
    assert decided(alarm(5), policy=policy, approved_up_to=4).why == "approval"
    assert decided(alarm(5), policy=policy, approved_up_to=5).move is Move.START


@pytest.mark.parametrize("kind", ["drift", "quality", "alert"])
def test_while_a_run_is_on_what_tells_of_the_same_joins_it(kind):
    policy = change(on={kind: "warning"})
    on = Start("run", NOW_S - 200)
    decision = decided(alarm(3, kind=kind), policy=policy, starts=(on,))
    assert (decision.move, decision.key, decision.alarms) == (Move.JOIN, "run", (3,))


def test_what_tells_of_new_data_waits_for_its_own_run():
    on = Start("run", NOW_S - 200)
    decision = decided(alarm(3, kind="feedback"), starts=(on,))
    assert (decision.move, decision.why) == (Move.WAIT, "running")


def test_nothing_starts_beside_a_trial():
    assert decided(alarm(), trial="ro-1").why == "trial"


def test_between_two_runs_is_a_cooldown():
    decision = decided(alarm(), starts=(ended(500),))
    assert (decision.move, decision.why, decision.until_s) == (
        Move.REFUSE,
        "cooldown",
        NOW_S + 100,
    )
    assert decided(alarm(), starts=(ended(600),)).move is Move.START


def test_a_week_has_so_many_runs():
    runs = tuple(ended(ago_s) for ago_s in (300_000, 200_000, 100_000))
    decision = decided(alarm(), starts=runs)
    assert (decision.why, decision.until_s) == ("runs", runs[0].at_s + WEEK_S)
    assert decided(alarm(), starts=runs[1:]).move is Move.START
    old = ended(WEEK_S)
    assert decided(alarm(), starts=(old, *runs[1:])).move is Move.START


def test_a_month_has_a_budget():
    policy = change(usd_per_run=10, max_usd_per_month=25, max_runs_per_week=99)
    runs = (ended(20 * 86_400.0), ended(100_000))
    assert decided(alarm(), policy=policy, starts=runs[1:]).move is Move.START
    decision = decided(alarm(), policy=policy, starts=runs)
    assert (decision.why, decision.until_s) == ("budget", runs[0].at_s + MONTH_S)
    assert "20.00 USD" in decision.reason


def test_a_run_that_has_ended_costs_what_it_took():
    policy = change(usd_per_run=10, usd_per_hour=4)
    starts = (ended(1000, took_s=1800.0), Start("on", NOW_S - 5))
    assert spent_usd(Situation(NOW_S, starts=starts), policy) == 2 + 10


def test_a_run_that_is_dearer_than_the_budget_never_starts():
    decision = decided(alarm(), policy=change(usd_per_run=10, max_usd_per_month=9))
    assert (decision.move, decision.why, decision.until_s) == (Move.REFUSE, "budget", None)


@pytest.mark.parametrize("outcome", sorted(FAILURES))
def test_after_too_many_failures_the_loop_stops_until_a_person_resumes_it(outcome):
    policy = change(max_failures=2, max_runs_per_week=9)
    runs = (ended(90_000), ended(80_000, outcome), ended(70_000, outcome))
    decision = decided(alarm(), policy=policy, starts=runs)
    assert (decision.move, decision.why) == (Move.REFUSE, "stopped")
    assert decided(alarm(), policy=policy, starts=runs, resumed_s=NOW_S - 10).move is Move.START


def test_a_run_that_had_nothing_to_do_is_no_failure_and_no_success():
    runs = (ended(90_000, "FAILED"), ended(80_000, "SKIPPED"), ended(70_000, "BLOCKED"))
    assert failures_in_a_row(Situation(NOW_S, starts=runs)) == 2
    assert failures_in_a_row(Situation(NOW_S, starts=(*runs, ended(100)))) == 0


def test_a_pause_holds_even_for_a_person():
    decision = decided(alarm(kind="person"), paused="a move of the data centre")
    assert (decision.move, decision.why) == (Move.REFUSE, "paused")


def test_a_person_s_start_waits_for_nothing_but_the_limits():
    asked = alarm(kind="person", severity="info", ago_s=0)
    policy = change(veto_s=99, needs_approval=True)
    assert decided(asked, policy=policy, starts=(ended(1),)).move is Move.START
    runs = tuple(ended(ago_s) for ago_s in (30_000, 20_000, 10_000))
    assert decided(asked, policy=policy, starts=runs).why == "runs"


alarms = st.builds(
    alarm,
    number=st.integers(1, 99),
    ago_s=st.floats(0, 500),
    kind=st.sampled_from(["drift", "feedback", "person", "alert"]),
    severity=st.sampled_from(["info", "warning", "critical"]),
)
starts = st.builds(
    ended, ago_s=st.floats(0, 2e6), outcome=st.sampled_from(["PROMOTED", *sorted(FAILURES)])
)
policies = st.builds(
    RetrainPolicy,
    on=st.dictionaries(st.sampled_from(["drift", "feedback"]), st.just("info")),
    debounce_s=st.floats(0, 300),
    max_runs_per_week=st.integers(1, 3),
    usd_per_run=st.floats(0, 5),
    max_usd_per_month=st.none() | st.floats(0, 20),
    needs_approval=st.booleans(),
)


@pytest.mark.slow
@given(st.lists(alarms, max_size=4), st.lists(starts, max_size=4), policies)
def test_a_decision_is_the_same_from_what_was_written_down(open_, past, policy):
    situation = Situation(NOW_S, tuple(open_), tuple(past))
    decision = decide(situation, policy)
    written = json.loads(json.dumps(situation.to_dict()))
    known = json.loads(json.dumps(dataclasses.asdict(policy)))
    assert decide(Situation.from_dict(written), RetrainPolicy(**known)) == decision
    if decision.move is Move.START:
        recent = [one for one in past if one.at_s > NOW_S - WEEK_S]
        assert len(recent) < policy.max_runs_per_week
        limit = policy.max_usd_per_month
        assert limit is None or spent_usd(situation, policy) + policy.usd_per_run <= limit
