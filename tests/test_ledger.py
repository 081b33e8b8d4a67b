import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
import sqlalchemy as sa

from penstock.artifacts import Artifact
from penstock.errors import ClaimLost, LedgerError, StalePromotion
from penstock.ledger import (
    Ledger,
    ModelVersion,
    Pointer,
    StageRecord,
    is_dead,
    schema,
    this_process,
)
from penstock.promotion import Production

SPAWN = multiprocessing.get_context("spawn")
PATIENCE_S = 60
NUM_RACERS = 8


def artifact(print_="f" * 64, stage="train", **fields):
    values = {"path": f"artifacts/{stage}/{print_[:20]}", "digest": "d" * 64, **fields}
    return Artifact(fingerprint=print_, stage=stage, **values)


def version_of(number, name="penny", **fields):
    values = {
        "train_fingerprint": f"{number:064x}",
        "digest": f"{number:02x}" * 32,
        "path": f"artifacts/train/{number}",
        "run_id": "run",
        "data_version": "rows=1",
        **fields,
    }
    return ModelVersion(name=name, version=number, **values)


def record(ledger, one, recipe="demo"):
    with ledger.try_claim(one.fingerprint) as claim:
        ledger.record(one, recipe, claim)


def set_claim(ledger, key, holder, until_s):
    """Leave a claim as another process would have."""
    claims = sa.table("claims", *map(sa.column, ("key", "holder", "until_s")))
    with ledger._database.engine.begin() as connection:
        connection.execute(sa.delete(claims).where(claims.c.key == key))
        connection.execute(sa.insert(claims).values(key=key, holder=holder, until_s=until_s))


def claim_end(ledger, key):
    claims = sa.table("claims", *map(sa.column, ("key", "until_s")))
    with ledger._database.engine.connect() as connection:
        return connection.scalar(sa.select(claims.c.until_s).where(claims.c.key == key))


@pytest.fixture(scope="module")
def race():
    """``race(worker, *arguments)``: what ``worker(*arguments, number)`` returned in 8 processes.

    They start together. They are started once for all tests: that takes seconds.
    """
    barrier = SPAWN.Barrier(NUM_RACERS)
    with ProcessPoolExecutor(NUM_RACERS, SPAWN, _ready, (barrier,)) as pool:

        def run(worker, *arguments):
            futures = [pool.submit(_go, worker, (*arguments, i)) for i in range(NUM_RACERS)]
            return [future.result(PATIENCE_S) for future in futures]

        yield run


def _ready(barrier):
    _go.barrier = barrier


def _go(worker, arguments):
    _go.barrier.wait(PATIENCE_S)  # each waits for all, so no process runs two
    return worker(*arguments)


def in_threads(num_threads, work):
    """What ``work(number)`` returned in threads that started together."""
    barrier, answers = threading.Barrier(num_threads), [None] * num_threads

    def run(number):
        barrier.wait()
        try:
            answers[number] = work(number)
        except Exception as error:
            answers[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return answers


@pytest.fixture
def another_process():
    """A process of this host that does nothing, until the test kills it."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def name_of(process):
    script = "import sys; from penstock.ledger.processes import birth; import psutil;"
    script += f"print(birth(psutil.Process({process.pid})))"
    birth = subprocess.check_output([sys.executable, "-c", script], text=True).strip()
    return f"{socket.gethostname()}:{process.pid}:{birth}"


# -- results --------------------------------------------------------------------


def test_what_is_recorded_is_found_again_by_its_fingerprint(ledger):
    one = artifact(
        input_contents={"prepare": "b" * 64},
        summary={"rows": {"in": 3, "out": 2}},
        settings={"seed": 17, "text": "naïve"},
        inputs={"prepare": "a" * 64},
        run_id="run-1",
        duration_s=1.5,
    )
    record(ledger, one)
    assert ledger.find(one.fingerprint) == one


def test_what_was_never_recorded_is_not_found(ledger):
    assert ledger.find("0" * 64) is None


def test_a_forgotten_result_is_not_found(ledger):
    record(ledger, artifact())
    ledger.forget("f" * 64)
    assert ledger.find("f" * 64) is None


def test_recording_again_replaces_the_record(ledger):
    record(ledger, artifact(digest="1" * 64))
    record(ledger, artifact(digest="2" * 64))
    assert ledger.find("f" * 64).digest == "2" * 64


def test_the_newest_result_of_a_stage_is_its_own_recipes_and_not_the_one_left_out(ledger):
    for number, recipe in ((1, "demo"), (2, "demo"), (3, "other")):
        record(ledger, artifact(f"{number:064x}"), recipe)
    record(ledger, artifact(f"{4:064x}", stage="gate"))
    assert ledger.latest("demo", "train").fingerprint == f"{2:064x}"
    assert ledger.latest("demo", "train", other_than=f"{2:064x}").fingerprint == f"{1:064x}"
    assert ledger.latest("demo", "deploy") is None


def test_the_results_of_a_stage_come_in_the_order_they_were_recorded(ledger):
    for print_, stage in (("b", "train"), ("c", "gate"), ("a", "train")):
        record(ledger, artifact(print_ * 64, stage))
    record(ledger, artifact("d" * 64), "other")
    assert [one.fingerprint[0] for one in ledger.results("demo", "train")] == ["b", "a"]
    assert ledger.results("demo", "deploy") == []


def test_records_survive_the_process_that_wrote_them(ledger_url):
    first = Ledger(ledger_url)
    record(first, artifact())
    first.close()
    second = Ledger(ledger_url)
    assert second.find("f" * 64) == artifact()
    second.close()


# -- claims ----------------------------------------------------------------------


@pytest.mark.slow
def test_the_next_run_drops_the_claims_of_the_dead_and_of_nobody_else(ledger, another_process):
    ours = ledger.try_claim("ours")
    for key, holder, until_s in (
        ("dead", name_of(another_process), time.time() + 60),
        ("elsewhere", "otherhost:1:1", time.time() - 60),
        ("forgotten", "otherhost:1:1", time.time() - 7200),
    ):
        row = schema.claims.insert().values(key=key, holder=f"{holder}/0", until_s=until_s)
        with ledger._database.write() as connection:
            connection.execute(row)
    another_process.kill()
    another_process.wait()
    ledger.start_run("demo", "", "", {})
    with ledger._database.read() as connection:
        keys = {row.key for row in connection.execute(schema.claims.select())}
    assert keys == {"ours", "elsewhere"}
    assert ledger.holder("ours") == ours.holder


def test_a_key_is_claimed_by_one_thread_at_a_time(ledger):
    claims = in_threads(16, lambda _: ledger.try_claim("key"))
    assert sum(claim is not None for claim in claims) == 1


def _claim(url, number):
    return Ledger(url).try_claim("key") is not None


@pytest.mark.slow
def test_of_eight_racing_processes_one_gets_the_claim(ledger_url, race):
    Ledger(ledger_url).close()
    answers = race(_claim, ledger_url)
    assert sorted(answers) == [False] * 7 + [True]


def _open(url, number):
    ledger = Ledger(url)
    ledger.pin(f"key {number}", number)
    return ledger.pinned(f"key {number}")


@pytest.mark.slow
def test_eight_processes_may_open_a_new_ledger_at_once(ledger_url, race):
    assert race(_open, ledger_url) == list(range(NUM_RACERS))


def test_a_claim_that_is_given_back_is_free(ledger):
    with ledger.try_claim("key") as claim:
        assert ledger.try_claim("key") is None
        assert ledger.holder("key") == claim.holder
        assert ledger.live_claims() == ["key"]
    assert ledger.holder("key") is None
    assert ledger.live_claims() == []
    assert ledger.try_claim("key") is not None


def test_claims_on_different_keys_do_not_meet(ledger):
    with ledger.try_claim("one"), ledger.try_claim("two"):
        assert sorted(ledger.live_claims()) == ["one", "two"]


@pytest.mark.slow
def test_a_held_claim_outlives_its_first_lease(ledger):
    with ledger.try_claim("key", lease_s=0.6):
        first_end = claim_end(ledger, "key")
        deadline = time.monotonic() + 10
        while claim_end(ledger, "key") <= first_end + 0.6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert claim_end(ledger, "key") > first_end + 0.6
        assert ledger.try_claim("key") is None


@pytest.mark.slow
def test_the_lease_of_a_killed_process_of_this_host_is_taken_over_at_once(ledger, another_process):
    holder = f"{name_of(another_process)}/aaaaaaaa"
    set_claim(ledger, "key", holder, time.time() + 3600)
    assert ledger.try_claim("key") is None
    another_process.kill()
    another_process.wait()
    assert ledger.try_claim("key") is not None


@pytest.mark.slow
def test_a_process_that_was_killed_but_not_reaped_is_dead(another_process):
    holder = name_of(another_process)
    assert not is_dead(holder)
    os.kill(another_process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while psutil.Process(another_process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert is_dead(holder)


@pytest.mark.slow
def test_a_process_is_not_taken_for_an_earlier_one_with_its_number(another_process):
    host, pid, birth = name_of(another_process).rsplit(":", 2)
    assert is_dead(f"{host}:{pid}:{int(birth) - 1}")


@pytest.mark.slow
def test_a_process_has_the_same_name_whoever_asks_and_whatever_the_clock_says(monkeypatch):
    mine = this_process()
    assert name_of(SimpleNamespace(pid=os.getpid())) == mine
    # What psutil answers after the clock was set by an hour.
    shifted = psutil.Process().create_time() + 3600
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: shifted)
    assert not is_dead(mine)


def test_another_hosts_process_is_never_known_to_be_dead():
    assert not is_dead("another-host:999999:12345")


def test_an_expired_lease_of_another_host_is_taken_over(ledger):
    set_claim(ledger, "key", "another-host:1:1/aaaaaaaa", time.time() - 5)
    assert ledger.try_claim("key") is not None


def test_a_living_lease_of_another_host_is_respected(ledger):
    set_claim(ledger, "key", "another-host:1:1/aaaaaaaa", time.time() + 60)
    assert ledger.try_claim("key") is None
    assert ledger.live_claims() == ["key"]


def test_of_many_threads_one_takes_over_an_expired_lease(ledger):
    set_claim(ledger, "key", "another-host:1:1/aaaaaaaa", time.time() - 5)
    claims = in_threads(16, lambda _: ledger.try_claim("key"))
    assert sum(claim is not None for claim in claims) == 1


def test_recording_after_the_claim_was_taken_over_is_refused_and_changes_nothing(ledger):
    claim = ledger.try_claim("key")
    set_claim(ledger, "key", "another-host:1:1/aaaaaaaa", time.time() + 60)
    with pytest.raises(ClaimLost, match="key") as lost:
        ledger.record(artifact(), "demo", claim)
    assert lost.value.transient
    assert ledger.find("f" * 64) is None


@pytest.mark.slow
def test_a_lost_claim_is_neither_renewed_nor_given_back(ledger):
    with ledger.try_claim("key", lease_s=0.3):
        until_s = time.time() + 60
        set_claim(ledger, "key", "another-host:1:1/aaaaaaaa", until_s)
        time.sleep(0.5)
    assert ledger.holder("key") == "another-host:1:1/aaaaaaaa"
    assert claim_end(ledger, "key") == pytest.approx(until_s)


@pytest.mark.slow
def test_nobody_takes_over_a_claim_between_its_check_and_the_record(ledger_url, ledger):
    claim = ledger.try_claim("key", lease_s=0.01)
    time.sleep(0.05)
    other, began, ended = Ledger(ledger_url), threading.Event(), threading.Event()

    def slow(*_):
        began.set()
        ended.wait(2)  # a rival asks meanwhile

    sa.event.listen(ledger._database.engine, "commit", slow)
    recording = threading.Thread(target=ledger.record, args=(artifact(), "demo", claim))
    recording.start()
    assert began.wait(PATIENCE_S)
    rival = threading.Thread(target=lambda: (other.try_claim("key"), ended.set()))
    rival.start()
    rival.join(0.5)
    assert rival.is_alive(), "took over a claim that was being recorded under"
    ended.set()
    recording.join(PATIENCE_S)
    rival.join(PATIENCE_S)
    assert other.find("f" * 64) == artifact()
    other.close()


# -- pins ------------------------------------------------------------------------


def test_the_first_value_pinned_is_the_answer_ever_after(ledger):
    assert ledger.pinned("key") is None
    assert ledger.pin("key", {"version": None}) == {"version": None}
    assert ledger.pin("key", {"version": 3}) == {"version": None}
    assert ledger.pinned("key") == {"version": None}


def test_threads_that_pin_at_once_all_get_the_first_value(ledger):
    answers = in_threads(16, lambda number: ledger.pin("key", number))
    assert set(answers) == {ledger.pinned("key")}


def _pin(url, number):
    return Ledger(url).pin("key", number)


def test_processes_that_pin_at_once_all_get_the_first_value(ledger_url, race):
    answers = race(_pin, ledger_url)
    assert set(answers) == {Ledger(ledger_url).pinned("key")}
    assert answers[0] in range(NUM_RACERS)


# -- versions and pointers -------------------------------------------------------


def test_a_registered_version_is_listed_and_found_by_name_and_digest(ledger):
    added = ledger.add_model(version_of(1))
    assert ledger.models() == ledger.models("penny") == [added]
    assert ledger.model("penny", 1) == added
    assert ledger.models_by_digest("0101") == [added]
    assert ledger.models_by_digest("02") == []
    assert ledger.model_with_digest("penny", "01" * 32) == added
    assert ledger.model_with_digest("penny", "02" * 32) is None
    assert ledger.model_names() == ["penny"]


def test_the_same_files_are_registered_once(ledger):
    first = ledger.add_model(version_of(1))
    again = ledger.add_model(version_of(2, digest=first.digest))
    assert again == first
    assert ledger.models() == [first]


def test_a_version_number_is_not_given_to_other_files(ledger):
    ledger.add_model(version_of(1))
    with pytest.raises(LedgerError, match="version 1 already has other content"):
        ledger.add_model(version_of(1, digest="e" * 64))


def test_a_training_that_came_out_otherwise_is_another_version(ledger):
    first = ledger.add_model(version_of(1))
    again = ledger.add_model(version_of(2, train_fingerprint=first.train_fingerprint))
    assert ledger.models() == [first, again]


def test_an_unknown_version_is_answered_with_those_there_are(ledger):
    ledger.add_model(version_of(1))
    ledger.add_model(version_of(2))
    with pytest.raises(LedgerError, match=r"no version 7 of model 'penny'\. It has: 1, 2"):
        ledger.model("penny", 7)
    with pytest.raises(LedgerError, match="Known models: penny"):
        ledger.model("benny", 1)


def test_a_wildcard_in_a_digest_matches_only_itself(ledger):
    ledger.add_model(version_of(1))
    assert ledger.models_by_digest("%") == []


def test_a_pointer_moves_by_compare_and_set(ledger):
    ledger.add_model(version_of(1))
    ledger.add_model(version_of(2))
    assert ledger.pointer("penny") is None
    first = ledger.move_pointer("penny", "production", 1, None, "promote", "first")
    assert first == Pointer(1, 1) == ledger.pointer("penny")
    second = ledger.move_pointer("penny", "production", 2, first, "promote", "better", "run-9")
    assert second == Pointer(2, 2) == ledger.pointer("penny")
    with pytest.raises(StalePromotion) as stale:
        ledger.move_pointer("penny", "production", 1, first, "promote", "late")
    assert stale.value.transient
    assert ledger.pointer("penny") == second


def test_a_pointer_that_returned_to_a_version_is_not_the_pointer_it_was(ledger):
    """A-B-A: the comparison was made before two moves; the epoch tells."""
    ledger.add_model(version_of(1))
    ledger.add_model(version_of(2))
    seen = ledger.move_pointer("penny", "production", 1, None, "promote", "")
    away = ledger.move_pointer("penny", "production", 2, seen, "promote", "")
    ledger.move_pointer("penny", "production", 1, away, "rollback", "")
    with pytest.raises(StalePromotion):
        ledger.move_pointer("penny", "production", 2, seen, "promote", "")


def test_a_pointer_cannot_point_at_what_is_not_registered(ledger):
    with pytest.raises(LedgerError, match="no version 1"):
        ledger.move_pointer("penny", "production", 1, None, "promote", "")
    assert ledger.pointer("penny") is None
    assert ledger.history("penny") == []


def test_aliases_move_apart(ledger):
    ledger.add_model(version_of(1))
    ledger.move_pointer("penny", "canary", 1, None, "promote", "")
    assert ledger.pointer("penny", "canary") == Pointer(1, 1)
    assert ledger.pointer("penny") is None


def test_every_move_is_in_the_audit_log_with_who_why_and_when(ledger):
    ledger.add_model(version_of(1))
    ledger.add_model(version_of(2))
    before_s = time.time()
    first = ledger.move_pointer("penny", "production", 1, None, "promote", "the first", "run-1")
    ledger.move_pointer("penny", "production", 2, first, "promote", "naïve, but better")
    one, two = ledger.history("penny")
    assert (one.epoch, one.from_version, one.to_version, one.run_id) == (1, None, 1, "run-1")
    assert (two.epoch, two.from_version, two.to_version, two.run_id) == (2, 1, 2, None)
    assert (two.action, two.reason) == ("promote", "naïve, but better")
    assert socket.gethostname() in two.actor
    assert before_s <= one.at_s <= two.at_s <= time.time()


@pytest.mark.slow
def test_of_64_racing_promoters_one_wins_each_epoch_and_the_log_has_no_gap(ledger):
    for number in range(1, 65):
        ledger.add_model(version_of(number))
    expected = None
    for epoch in (1, 2, 3):

        def promote(number, expected=expected):
            try:
                ledger.move_pointer("penny", "production", number + 1, expected, "promote", "")
            except StalePromotion:
                return "stale"
            return "won"

        answers = in_threads(64, promote)
        assert sorted(map(str, answers)) == ["stale"] * 63 + ["won"]
        expected = ledger.pointer("penny")
        assert expected.epoch == epoch
    moves = ledger.history("penny")
    assert [move.epoch for move in moves] == [1, 2, 3]
    assert [move.from_version for move in moves[1:]] == [move.to_version for move in moves[:-1]]
    assert moves[-1].to_version == expected.version


def _promote_until_done(url, num_wins, number):
    ledger, won = Ledger(url), 0
    while won < num_wins:
        try:
            expected = ledger.pointer("penny")
            ledger.move_pointer("penny", "production", number + 1, expected, "promote", "")
            won += 1
        except StalePromotion:
            continue
    return won


@pytest.mark.slow
def test_processes_that_keep_promoting_leave_a_log_without_gaps(ledger_url, race):
    ledger = Ledger(ledger_url)
    for number in range(1, 9):
        ledger.add_model(version_of(number))
    assert race(_promote_until_done, ledger_url, 5) == [5] * 8
    moves = ledger.history("penny")
    assert [move.epoch for move in moves] == list(range(1, 41))
    assert [move.from_version for move in moves[1:]] == [move.to_version for move in moves[:-1]]
    assert ledger.pointer("penny") == Pointer(moves[-1].to_version, 40)


# -- promote and roll back ---------------------------------------------------------


class Registry:
    """A registry of aliases that always answers."""

    identity = "in memory"

    def __init__(self):
        self.aliases = {}

    def alias(self, name, alias):
        return self.aliases.get((name, alias))

    def set_alias(self, name, alias, version):
        self.aliases[name, alias] = version

    def version(self, name, version):
        return SimpleNamespace(digest=None)


@pytest.fixture
def production(ledger):
    """A model with three versions, and a registry of their aliases."""
    for number in (1, 2, 3):
        ledger.add_model(version_of(number))
    return Production(ledger, Registry(), "penny", "production")


def promote(production, *versions):
    for version in versions:
        production.promote(version, "test")


def rollback(production):
    return production.rollback("test").version


def test_rolling_back_twice_goes_two_promotions_back_and_then_says_that_is_all(production):
    promote(production, 1, 2, 3)
    assert rollback(production) == 2
    assert rollback(production) == 1
    with pytest.raises(LedgerError, match="version 1, and nothing served before it"):
        rollback(production)
    actions = [move.action for move in production.ledger.history("penny")]
    assert actions == ["promote"] * 3 + ["rollback"] * 2


def test_nothing_can_be_rolled_back_before_anything_serves(production):
    with pytest.raises(LedgerError, match="is nothing, and nothing served before it"):
        rollback(production)


def test_rolling_back_the_first_promotion_is_refused(production):
    promote(production, 1)
    with pytest.raises(LedgerError, match="nothing served before it"):
        rollback(production)
    assert production.ledger.pointer("penny") == Pointer(1, 1)


def test_after_a_rollback_and_a_promotion_the_next_rollback_undoes_that_promotion(production):
    promote(production, 1, 2)
    assert rollback(production) == 1
    promote(production, 3)
    assert rollback(production) == 1


def test_rolling_back_never_goes_in_a_circle(production):
    promote(production, 1, 2, 1)
    assert rollback(production) == 2
    assert rollback(production) == 1
    with pytest.raises(LedgerError, match="nothing served before it"):
        rollback(production)


def test_what_serves_already_is_not_promoted_again(production):
    promote(production, 2)
    with pytest.raises(LedgerError, match="version 2 already"):
        promote(production, 2)


def test_an_unregistered_version_is_not_promoted(production):
    with pytest.raises(LedgerError, match="It has: 1, 2, 3"):
        promote(production, 4)


# -- runs ------------------------------------------------------------------------


def start(ledger, recipe="demo"):
    return ledger.start_run(recipe, "name: demo\n", "/somewhere", {"train.epochs": 2})


def test_a_run_is_listed_with_what_was_asked(ledger):
    run = start(ledger)
    assert run.status == "RUNNING"
    assert (run.written, run.overrides) == ("name: demo\n", {"train.epochs": 2})
    assert run.ended_s is None
    assert ledger.runs("demo") == ledger.runs() == [run]
    assert ledger.runs("other") == []


def test_runs_come_newest_first(ledger):
    ids = [start(ledger).id for _ in range(3)]
    assert [run.id for run in ledger.runs()] == ids[::-1]
    assert [run.id for run in ledger.runs(limit=2)] == ids[:0:-1]


def test_a_run_is_found_by_the_start_of_its_id_when_that_is_unambiguous(ledger):
    run = start(ledger)
    assert ledger.run(run.id[:-2]) == run
    start(ledger)
    with pytest.raises(LedgerError, match="More than one run starts with"):
        ledger.run(run.id[:8])
    for wrong in ("", "nope", "%"):
        with pytest.raises(LedgerError, match="run"):
            ledger.run(wrong)


def test_ending_a_run_moves_its_watermark_in_the_same_transaction(ledger):
    run = start(ledger)
    assert ledger.watermark("demo") is None
    ledger.end_run(run.id, "SUCCEEDED", "promoted", ("demo", {"rows": 10}))
    assert ledger.run(run.id).status == "SUCCEEDED"
    assert ledger.run(run.id).ended_s >= run.started_s
    assert ledger.watermark("demo") == {"rows": 10}
    ledger.end_run(run.id, "SUCCEEDED", "again", ("demo", {"rows": 11}))
    assert ledger.watermark("demo") == {"rows": 11}


def test_when_the_watermark_cannot_be_moved_the_run_is_not_ended(ledger):
    run = start(ledger)
    with pytest.raises(TypeError):
        ledger.end_run(run.id, "SUCCEEDED", "promoted", ("demo", {"rows": {1, 2}}))
    assert ledger.run(run.id).status == "RUNNING"
    assert ledger.watermark("demo") is None


def test_a_stage_noted_again_in_a_run_replaces_the_note(ledger):
    run = start(ledger)
    first = StageRecord("ingest", 0, "a" * 64, "failed", "never run", 0.5)
    other = StageRecord("validate", 1, None, "skipped", "too few", 0.0)
    ledger.record_stage(run.id, other)
    ledger.record_stage(run.id, first)
    again = StageRecord("ingest", 0, "a" * 64, "ran", "never run", 1.5)
    ledger.record_stage(run.id, again)
    assert ledger.stages(run.id) == [again, other]
    assert ledger.stages("another") == []


_RUNNER = """
import sys, time
from penstock.ledger import Ledger
print(Ledger(sys.argv[1]).start_run("demo", "", "", {}).id, flush=True)
time.sleep(600)
"""


def run_of_a_process(url):
    process = subprocess.Popen(
        [sys.executable, "-c", _RUNNER, url], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_run_of_a_killed_process_is_interrupted_once_the_next_one_starts(ledger, ledger_url):
    process, run_id = run_of_a_process(ledger_url)
    try:
        start(ledger)
        assert ledger.run(run_id).status == "RUNNING", "its process is alive"
    finally:
        kill(process)
    start(ledger, "other")
    assert ledger.run(run_id).status == "RUNNING", "another recipe's run says nothing about it"
    start(ledger)
    buried = ledger.run(run_id)
    assert (buried.status, buried.ended_s is None) == ("INTERRUPTED", False)
    assert "its process ended" in buried.message


def test_a_run_that_processes_fill_one_after_the_other_is_not_taken_for_an_interrupted_one(
    ledger,
):
    run = ledger.start_run("demo", "", "", {}, attended=False)
    start(ledger)
    assert ledger.run(run.id).status == "RUNNING"


def test_a_failed_run_can_be_taken_up_again(ledger):
    run = start(ledger)
    ledger.end_run(run.id, "FAILED", "the disk is full")
    again = ledger.reopen_run(run.id)
    assert (again.status, again.message, again.ended_s) == ("RUNNING", "", None)
    with pytest.raises(LedgerError):
        ledger.reopen_run("nope")


def test_a_run_that_ends_well_while_it_is_looked_at_is_not_marked_interrupted(ledger, monkeypatch):
    run = start(ledger)

    def ends_now(holder):
        ledger.end_run(run.id, "SUCCEEDED", "promoted")
        return True

    monkeypatch.setattr("penstock.ledger.ledger.is_dead", ends_now)
    start(ledger)
    assert ledger.run(run.id).status == "SUCCEEDED"


# -- when the database refuses ----------------------------------------------------


def reads_and_writes(ledger):
    return [
        lambda: ledger.find("f" * 64),
        lambda: ledger.latest("demo", "train"),
        lambda: ledger.pointer("penny"),
        lambda: ledger.runs(),
        lambda: ledger.live_claims(),
        lambda: ledger.pinned("key"),
        lambda: ledger.watermark("key"),
        lambda: ledger.try_claim("key"),
        lambda: ledger.pin("key", 1),
        lambda: ledger.forget("f" * 64),
        lambda: ledger.add_model(version_of(1)),
        lambda: start(ledger),
    ]


@pytest.mark.slow
def test_a_database_that_went_away_is_a_ledger_error_whatever_is_asked(postgres_server):
    url = postgres_server.new_database()
    name = sa.make_url(url).database
    ledger = Ledger(url.replace("postgres@", "postgres:s3cret@"))
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    for ask in reads_and_writes(ledger):
        with pytest.raises(LedgerError) as refused:
            ask()
        assert refused.value.hint
        assert "s3cret" not in refused.value.message + refused.value.hint
    ledger.close()


@pytest.mark.slow
def test_a_connection_that_was_cut_is_made_again(postgres_server):
    url = postgres_server.new_database()
    name = sa.make_url(url).database
    ledger = Ledger(url)
    ledger.pin("key", 1)
    postgres_server.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    assert ledger.pinned("key") == 1
    ledger.close()


@pytest.mark.slow
def test_a_claim_is_given_back_quietly_when_the_database_is_gone(postgres_server):
    url = postgres_server.new_database()
    ledger = Ledger(url)

    def fail_while_the_database_goes():
        with ledger.try_claim("key"):
            name = sa.make_url(url).database
            postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
            raise ValueError("the stage's own error")

    with pytest.raises(ValueError, match="the stage's own error"):
        fail_while_the_database_goes()
    ledger.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:s3cret@127.0.0.1:1/name",
        "postgresql://user:s3cret@host:port/name",
        "postgresql://user:s3cret@127.0.0.1/name?nonsense=1",
        "mysql://user:s3cret@host/name",
        "user:s3cret",
        "",
    ],
)
def test_an_address_that_does_not_work_is_explained_without_its_password(url):
    with pytest.raises(LedgerError) as refused:
        Ledger(url)
    assert "ledger" in refused.value.message
    assert refused.value.hint
    error, shown = refused.value, ""
    while error is not None:
        shown += str(error)
        error = error.__cause__
    assert "s3cret" not in shown


def test_a_folder_that_does_not_exist_is_a_ledger_error(tmp_path):
    with pytest.raises(LedgerError, match=r"nowhere.*cannot be opened"):
        Ledger(f"sqlite:///{tmp_path}/nowhere/ledger.db")


def test_a_file_that_is_no_database_is_a_ledger_error(tmp_path):
    (tmp_path / "ledger.db").write_text("These are my notes. " * 500)
    with pytest.raises(LedgerError, match="file is not a database"):
        Ledger(f"sqlite:///{tmp_path}/ledger.db")


def test_a_database_that_only_answers_reads_says_so_on_the_first_write(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    first = Ledger(url)
    first.pin("key", 1)
    first.close()
    ledger = Ledger(url)
    with ledger._database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = 1")
    with pytest.raises(LedgerError, match=r"cannot be written: .*readonly"):
        ledger.pin("other", 1)
    assert ledger.pinned("key") == 1


def test_a_full_disk_is_a_ledger_error_and_nothing_is_half_written(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    run = start(ledger)
    with ledger._database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match="full") as refused:
        ledger.end_run(run.id, "SUCCEEDED", "promoted", ("demo", {"rows": "x" * 100_000}))
    assert "disk space" in refused.value.hint
    assert ledger.run(run.id).status == "RUNNING"
    assert ledger.watermark("demo") is None


@pytest.mark.slow
def test_readers_are_not_kept_waiting_by_a_writer(ledger):
    ledger.pin("key", 1)
    with ledger._database.write() as connection:
        connection.execute(
            sa.text("INSERT INTO pins (key, value) VALUES ('new', :value)"),
            {"value": json.dumps(2)},
        )
        began = time.monotonic()
        answer = in_threads(1, lambda _: (ledger.pinned("key"), ledger.pinned("new")))
        assert answer == [(1, None)]
        assert time.monotonic() - began < 5
