"""Watchers on a ledger, with runs that cost nothing."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from penstock.errors import SourceUnavailable
from penstock.gates.retrain_policy import Move
from penstock.ledger import Ledger, schema
from penstock.ledger.alarms import AlarmState
from penstock.ledger.retrain_log import Entry, Line
from penstock.retrain import Watch, recomputed
from retrain_world import POLICY, RECIPE, Orchestrator, Runs, Tasks, World


@pytest.fixture
def world(ledger):
    return World(ledger)


def all_same(world):
    return [line.epoch for line in world.loop.log.lines() if recomputed(line) is False] == []


def shift(world, column, by_s):
    """Let something have happened earlier."""
    with world.ledger.database.write() as connection:
        connection.execute(sa.update(column.table).values({column: column + by_s}))


def test_an_alarm_starts_one_run_and_is_answered_by_it(world):
    record = world.alarm()
    assert world.ticks().move is Move.IDLE
    assert len(world.runs) == 1
    answered = world.loop.alarms.find(record.number)
    assert answered.state is AlarmState.ANSWERED
    assert world.loop.run_of(answered.start_key).id == world.runs[0].id
    assert world.said == ["start", "ended"]
    assert world.outcomes == ["BLOCKED"]
    assert all_same(world)


def test_the_same_event_told_again_starts_nothing(world):
    for _ in range(3):
        world.alarm("1")
        world.ticks()
    assert len(world.runs) == 1


@pytest.mark.slow
def test_a_thousand_alarms_make_one_run(world, ledger_url):
    world.set(debounce_s=60)
    many = 1000 if ledger_url.startswith("sqlite") else 100
    for i in range(many):
        world.alarm(str(i), kind="alert", severity="critical")
    world.ticks()
    shift(world, schema.alarms.c.received_s, -61.0)
    world.ticks()
    assert len(world.runs) == 1
    assert world.loop.alarms.open(RECIPE.name) == []
    key = world.loop.story().starts[0].key
    assert len(world.loop.alarms.answered_by(RECIPE.name, key)) == many
    assert all_same(world)


def test_a_second_event_inside_the_debounce_joins_the_first(world):
    world.set(debounce_s=60)
    first, second = world.alarm("1"), world.alarm("2", kind="feedback")
    assert world.ticks().why == "debounce"
    assert world.said == ["wait"]
    shift(world, schema.alarms.c.received_s, -61.0)
    world.ticks()
    assert len(world.runs) == 1
    keys = {world.loop.alarms.find(one.number).start_key for one in (first, second)}
    assert keys == {f"alarm-1-{world.loop.alarms.find(1).received_s:.0f}"}


def test_what_is_seen_again_while_the_run_is_on_joins_it(world):
    world.starter.looks = 3
    world.alarm("1")
    world.watch.tick()
    world.alarm("2")
    later = world.alarm("3", kind="feedback")
    world.watch.tick()
    assert world.said == ["start", "join"]
    assert world.ticks(2).move is Move.START  # for the feedback, which is about new data
    world.ticks()
    assert world.outcomes == ["BLOCKED", "BLOCKED"]
    assert world.loop.alarms.find(later.number).start_key == world.loop.story().starts[1].key
    assert all_same(world)


@pytest.mark.slow
def test_two_watchers_at_the_same_moment_start_one_run(ledger_url, ledger):
    world = World(ledger)
    for round_ in range(5):
        world.alarm(str(round_))
        barrier = threading.Barrier(4)

        def look(barrier=barrier):
            own = Ledger(ledger_url)
            mine = World(own)
            barrier.wait()
            mine.ticks()
            own.close()

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(look) for _ in range(4)]:
                done.result()
        assert len(world.runs) == round_ + 1
    assert world.said == ["start", "ended"] * 5


def test_while_one_watches_another_waits(world):
    world.alarm()
    with world.ledger.try_claim(f"watch/{RECIPE.name}"):
        assert world.watch.once(lambda: True) is None
        world.watch.run(lambda wait_s: True)
    assert world.runs == []
    world.watch.run(lambda wait_s: True)
    assert len(world.runs) == 1


def test_a_watcher_goes_on_when_the_ledger_is_back(world, monkeypatch):
    from penstock.errors import LedgerError

    looks = []

    def tick(self):
        looks.append(len(looks))
        if len(looks) == 1:
            raise LedgerError("The ledger cannot be read.")

    monkeypatch.setattr(Watch, "tick", tick)
    world.watch.run(lambda wait_s: len(looks) > 2)
    assert len(looks) == 3


def test_a_sensor_that_fails_is_said_once_and_stops_nothing(ledger, caplog):
    class Broken:
        def look(self):
            raise SourceUnavailable("The log is away.")

    world = World(ledger)
    world.watch = Watch(world.loop, world.starter, [Broken()], world.limits)
    world.alarm()
    world.ticks()
    assert len(world.runs) == 1
    assert caplog.text.count("The log is away.") == 1


def test_after_failures_in_a_row_the_loop_stops_and_says_so(world, caplog):
    world.set(max_failures=2)
    for i in range(4):
        world.alarm(str(i))
        world.ticks()
    assert world.outcomes == ["BLOCKED", "BLOCKED"]
    assert "2 runs in a row have failed" in caplog.text
    assert world.said[-1] == "refuse"
    world.loop.log.add(Entry(Line.RESUME, "the rows were mended", by="ann"))
    world.ticks()
    assert world.outcomes == ["BLOCKED"] * 3
    assert all_same(world)


def test_a_pause_and_a_veto_are_a_person_s(world):
    world.loop.log.add(Entry(Line.PAUSE, "moving", by="ann"))
    number = world.alarm().number
    assert world.ticks().why == "paused"
    world.loop.alarms.decide(number, AlarmState.VETOED, "a campaign", "ann")
    world.loop.log.add(Entry(Line.RESUME, "moved", by="ann"))
    world.ticks()
    assert world.runs == []
    assert world.said == ["pause", "refuse", "resume"]


def test_a_veto_that_comes_between_the_look_and_the_start_holds(world):
    record = world.alarm()
    story = world.loop.story()
    situation = world.loop.situation(story)
    from penstock.gates.retrain_policy import decide

    decision = decide(situation, POLICY)
    assert decision.move is Move.START
    world.loop.alarms.decide(record.number, AlarmState.VETOED, "no", "ann")
    assert not world.loop.record(decision, situation, story)
    assert world.said == []
    assert world.ticks().move is Move.IDLE


def test_approval_is_for_the_alarms_that_were_there(world):
    world.set(needs_approval=True)
    first = world.alarm("1")
    assert world.ticks().why == "approval"
    world.loop.log.add(Entry(Line.APPROVE, "yes", {"up_to": first.number}, by="ann"))
    world.ticks()
    world.alarm("2")
    assert world.ticks().why == "approval"
    assert len(world.runs) == 1


def test_the_same_decision_is_written_down_once(world):
    world.set(debounce_s=100)
    world.alarm()
    world.ticks(10)
    assert world.said == ["wait"]


@pytest.mark.slow
@pytest.mark.parametrize("through", ["here", "orchestrator"])
def test_a_watcher_that_is_killed_at_any_write_still_starts_one_run(
    ledger, ledger_url, killer, through
):
    starter = Runs(ledger) if through == "here" else Tasks(ledger)
    world = World(ledger, starter=starter)
    for kill in range(1, 99):
        world.alarm(str(kill))
        killed = killer(ledger=ledger_url, kill=kill, through=through)
        world.ticks()
        keys = [line.start_key for line in world.loop.log.lines() if line.action is Line.START]
        assert len(keys) == len(set(keys)) == kill
        assert len(world.runs) == kill, f"killed in write {kill}"
        assert world.loop.alarms.open(RECIPE.name) == []
        assert world.outcomes == ["BLOCKED"] * kill
        if not killed:
            break
    assert kill > 4
    assert all_same(world)


@pytest.fixture(scope="module")
def killer():
    """Runs a watcher that dies at its n-th write; says whether it did."""
    runner = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("watcher_kills.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def kill(**order):
        print(json.dumps(order), file=runner.stdin, flush=True)
        answer = json.loads(runner.stdout.readline())
        assert answer["killed"] or answer["status"] == 0, answer
        return answer["killed"]

    yield kill
    runner.communicate()


class Dying(Runs):
    """Its process ends without coming to its end."""

    def carry_on(self, key, conf):
        self.asked.append(key)
        self.ledger.start_run(RECIPE.name, "", "", {}, attended=False, key=key)
        return "its process ended with code 137: Killed"


def test_a_process_that_ends_again_and_again_is_a_failure(ledger):
    world = World(ledger, starter=Dying(ledger))
    world.alarm()
    world.ticks(6)
    assert world.said == ["start", "trouble", "trouble", "ended"]
    assert world.outcomes == ["FAILED"]
    assert len(world.runs) == 1


def test_an_orchestrator_that_is_down_loses_nothing_and_is_told_once_when_it_is_up(ledger):
    there = Orchestrator()
    world = World(ledger, starter=there)
    there.away = True
    world.alarm()
    world.ticks(5)
    assert world.said == ["start", "trouble"]
    there.away = False
    world.ticks(5)
    assert world.said == ["start", "trouble", "started"]
    [(key, conf)] = there.asked
    assert conf == {"alarms": [1], "key": key}
    # Its tasks open the run under that key.
    run = ledger.start_run(RECIPE.name, "", "", {}, attended=False, key=f"airflow:{key}")
    assert world.outcomes == [None]
    ledger.end_run(run.id, "SUCCEEDED", "version 2 is in production")
    world.ticks()
    assert world.outcomes == ["PROMOTED"]


def test_a_run_an_orchestrator_has_lost_ends_unknown_and_is_not_started_again(ledger):
    world = World(ledger, starter=Orchestrator())
    world.alarm()
    world.ticks()
    shift(world, schema.retrain_log.c.at_s, -3601.0)
    world.ticks()
    assert world.outcomes == ["UNKNOWN"]
    assert len(world.starter.asked) == 1


def test_a_job_that_ends_unknown_counts_as_a_failure(ledger):
    world = World(ledger, starter=Orchestrator())
    world.set(max_failures=1)
    world.alarm()
    world.ticks()
    ledger.start_run(RECIPE.name, "", "", {}, False, f"airflow:{world.starter.asked[0][0]}")
    world.ticks()
    assert world.outcomes == [None]
    shift(world, schema.runs.c.started_s, -7201.0)
    world.ticks()
    assert world.outcomes == ["UNKNOWN"]
    world.alarm("2")
    assert world.ticks().why == "stopped"


def test_a_task_that_failed_may_be_tried_again_by_its_orchestrator(ledger):
    world = World(ledger, starter=Orchestrator())
    world.alarm()
    world.ticks()
    key = f"airflow:{world.starter.asked[0][0]}"
    run = ledger.start_run(RECIPE.name, "", "", {}, attended=False, key=key)
    ledger.end_run(run.id, "FAILED", "the source is away")
    world.ticks()
    assert world.outcomes == [None]
    ledger.reopen_run(run.id)
    ledger.end_run(run.id, "INCONCLUSIVE", "too few items")
    world.ticks()
    assert world.outcomes == ["INCONCLUSIVE"]


@pytest.mark.slow
def test_a_task_that_has_failed_for_good_is_a_failure(ledger):
    world = World(ledger, starter=Orchestrator(), lost_after_s=0.01)
    world.alarm()
    world.ticks(1)
    run = ledger.start_run(RECIPE.name, "", "", {}, False, f"airflow:{world.starter.asked[0][0]}")
    ledger.end_run(run.id, "FAILED", "no disk")
    time.sleep(0.02)
    world.ticks()
    assert world.outcomes == ["FAILED"]
