"""One run for each name, whoever asks for it and how often."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import sqlalchemy as sa

from penstock.ledger import Ledger, schema

pytestmark = pytest.mark.slow

SPAWN = multiprocessing.get_context("spawn")
NUM_RACERS = 6


def start(ledger, key, recipe="tiny"):
    return ledger.start_run(recipe, "", "/", {}, attended=False, key=key).id


def start_at(url, barrier_s, key):
    import time

    ledger = Ledger(url)
    time.sleep(max(0.0, barrier_s - time.time()))
    try:
        return start(ledger, key)
    finally:
        ledger.close()


def test_a_key_opens_a_run_once_and_is_joined_after_that(ledger):
    first = start(ledger, "weekly-1")
    assert start(ledger, "weekly-1") == first
    assert [run.id for run in ledger.runs("tiny")] == [first]


def test_other_keys_other_recipes_and_no_key_open_other_runs(ledger):
    ids = {start(ledger, "a"), start(ledger, "b"), start(ledger, "a", recipe="other")}
    assert len(ids | {start(ledger, None), start(ledger, None)}) == 5


def test_a_key_is_joined_also_after_its_run_has_ended(ledger):
    first = start(ledger, "a")
    ledger.end_run(first, "SUCCEEDED", "done")
    assert start(ledger, "a") == first
    assert ledger.run(first).status == "SUCCEEDED"


def test_processes_that_start_the_same_run_at_once_get_the_same_one(ledger_url):
    import time

    Ledger(ledger_url).close()
    with ProcessPoolExecutor(NUM_RACERS, mp_context=SPAWN) as pool:
        pool.submit(abs, 1).result()
        at_s = time.time() + 2.0
        racing = [pool.submit(start_at, ledger_url, at_s, "same") for _ in range(NUM_RACERS)]
        ids = {one.result() for one in racing}
    ledger = Ledger(ledger_url)
    assert [run.id for run in ledger.runs("tiny")] == list(ids)
    ledger.close()


def test_a_run_that_cannot_be_written_leaves_no_key_behind(ledger):
    first = start(ledger, "a")
    with ledger.database.write() as connection:
        connection.execute(sa.delete(schema.run_keys))

    def refuse(*_):
        raise RuntimeError("killed here")

    sa.event.listen(ledger.database.engine, "commit", refuse)
    with pytest.raises(RuntimeError):
        start(ledger, "a")
    sa.event.remove(ledger.database.engine, "commit", refuse)
    assert [run.id for run in ledger.runs("tiny")] == [first]
    assert start(ledger, "a") != first
