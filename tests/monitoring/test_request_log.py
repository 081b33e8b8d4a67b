"""The request log without a gateway: what becomes a row, and what happens when it cannot."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.day_tables import RESPONSE_ID, DayTable, day_of, id_ms
from penstock.errors import StoreError
from penstock.monitoring import request_log
from penstock.monitoring.metrics import ServingMetrics
from penstock.monitoring.request_log import RequestLog, rows_of
from penstock.serve_section import LogConfig
from penstock.serving.facts import Facts
from penstock.traffic import LOG_SCHEMA
from traffic_rows import asked, response_id


def wait_until(condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


class Fails(DayTable):
    """A table whose store can be away."""

    is_away = False

    def append(self, position, schema, batches):
        if self.is_away:
            raise StoreError("The disk is full.")
        super().append(position, schema, batches)


@pytest.fixture
def table(tmp_path):
    return Fails(tmp_path / "log")


@pytest.fixture
def start(table):
    """Starts logs that write to the table; stops them after the test."""
    logs = []

    def start(**settings):
        log = RequestLog(table, LogConfig(**{"flush_s": 0.05, **settings}))
        log.metrics = ServingMetrics()
        log.start(log.metrics)
        logs.append(log)
        return log

    yield start
    for log in logs:
        log.stop()


def rows(table):
    return [row for batch in table.scan() for row in batch.to_pylist()]


def count(log, outcome):
    labels = {"outcome": outcome}
    value = log.metrics.registry.get_sample_value("penstock_logged_requests_total", labels)
    return value or 0


def test_a_row_says_who_answered_and_how_it_went():
    name = response_id()
    facts = asked(name, tenant="acme", key_id="k1", conversation="c1", stream=True, num_tries=2)
    facts.started_s, facts.queued_s, facts.computing_s = 10.0, 10.5, 11.0
    facts.first_token_s, facts.ended_s = 12.0, 13.0
    (row,) = rows_of([facts], LogConfig(content=True))
    assert row.keys() == set(LOG_SCHEMA.names) - {"_version", "_row"}
    expected = {
        "response_id": name,
        "day": day_of(id_ms(name)),
        "version": 3,
        "run_id": "run-3",
        "data_version": "data-3",
        "arm": "champion",
        "tenant": "acme",
        "conversation": "c1",
        "status": 200,
        "queue_s": 0.5,
        "ttft_s": 2.0,
        "duration_s": 3.0,
        "num_tries": 2,
        "stream": True,
        "answer": "With your key.",
    }
    assert expected.items() <= row.items()
    assert json.loads(row["prompt"]) == [{"role": "user", "content": "How do I sign in?"}]
    assert row["received_at"].timestamp() == pytest.approx(facts.received_at_s)


def test_a_request_that_reached_no_model_has_a_row_too():
    facts = Facts("req-1", "/v1/completions", status=404, error="model_not_found")
    (row,) = rows_of([facts], LogConfig(content=True))
    assert (row["status"], row["error"], row[RESPONSE_ID]) == (404, "model_not_found", None)
    assert row["day"] == day_of(int(facts.received_at_s * 1000))
    assert row["prompt"] is row["answer"] is None


def test_content_that_is_there_for_others_is_not_logged():
    (row,) = rows_of([asked(response_id(), conversation="c1")], LogConfig())
    assert row["conversation"] == "c1"
    assert "With your key." not in row.values()
    assert not {"prompt", "answer"} & row.keys()


def test_personal_data_goes_from_whatever_clients_send():
    name = response_id()
    mail = "ann@example.org"
    facts = asked(name, prompt=f"I am {mail}", answer=f"Hi {mail}", conversation=mail)
    other = asked(name, conversation="bob@example.org")
    row, second = rows_of([facts, other], LogConfig(content=True))
    assert "example.org" not in json.dumps(row, default=str)
    assert row["answer"] == "Hi [EMAIL]"
    assert row["conversation"] != second["conversation"]
    (kept,) = rows_of([facts], LogConfig(redact=False))
    assert kept["conversation"] == mail


def test_text_that_utf8_cannot_hold_is_logged_all_the_same(start, table):
    log = start(redact=False, content=True)
    log.observe(asked(response_id(), prompt="a\ud800b", answer="\udfff"))
    wait_until(lambda: table.count_rows() == 1)
    assert rows(table)[0]["answer"] == "?"


def test_rows_are_written_after_a_while_without_more_traffic(start, table):
    log = start()
    log.observe(asked(response_id()))
    wait_until(lambda: count(log, "written") == 1)
    assert len(rows(table)) == 1


def test_many_rows_are_written_before_their_time(start, table):
    log = start(flush_s=3_600, flush_rows=3)
    for number in range(7):
        log.observe(asked(response_id(number=number)))
    wait_until(lambda: count(log, "written") == 6)
    log.stop()
    assert len(rows(table)) == 7


def test_what_waits_is_written_at_the_end(start, table):
    log = start(flush_s=3_600)
    log.observe(asked(response_id()))
    log.stop()
    assert len(rows(table)) == 1


def test_only_requests_to_models_by_who_may_ask_have_rows(start, table):
    log = start()
    for endpoint in ("/v1/models", "/v1/feedback", "other"):
        log.observe(Facts("req-1", endpoint, status=200))
    log.observe(Facts("req-1", "/v1/completions", status=401))
    log.stop()
    assert table.version() == -1


def test_a_sample_is_the_same_for_every_worker(start, table):
    names = [response_id(number=i) for i in range(200)]
    for _ in range(2):
        log = start(sample=0.3, flush_s=3_600)
        for name in names:
            log.observe(asked(name))
        log.stop()
    found = [row[RESPONSE_ID] for row in rows(table)]
    assert sorted(found) == sorted(2 * sorted(set(found)))
    assert 20 < len(set(found)) < 110


def test_while_the_store_is_away_rows_wait_and_one_warning_is_given(start, table, caplog):
    table.is_away = True
    with caplog.at_level(logging.WARNING):
        log = start()
        log.observe(asked(response_id()))
        failures = log.metrics.log_failures.labels("log")
        wait_until(lambda: failures._value.get() >= 3)
        log.observe(asked(response_id(number=1)))
        table.is_away = False
        wait_until(lambda: table.count_rows() == 2)
    assert len([one for one in caplog.records if "cannot be written" in one.message]) == 1


def test_what_comes_when_too_much_waits_is_dropped_and_counted(start, table, monkeypatch):
    monkeypatch.setattr(request_log, "_MAX_FLUSHES_WAITING", 2)
    monkeypatch.setattr(request_log, "_MAX_WAITING_CHARS", 100)
    table.is_away = True
    log = start(flush_s=3_600, flush_rows=4)
    log.observe(asked(response_id(), answer="x" * 200))
    assert count(log, "dropped") == 1
    for number in range(20):
        log.observe(asked(response_id(number=number), prompt=None, answer=None))
    # Four may have been taken to be written, and wait there.
    assert 20 - 8 - 4 <= count(log, "dropped") - 1 <= 20 - 8
    log.stop()
    assert count(log, "dropped") == 21


def test_what_cannot_be_redacted_is_not_written_as_it_came(start, table, monkeypatch):
    def broken(texts):
        raise RuntimeError("broken")

    monkeypatch.setattr("penstock.monitoring.redaction.redacted_all", broken)
    log = start(content=True)
    log.observe(asked(response_id()))
    wait_until(lambda: count(log, "dropped") == 1)
    log.stop()
    assert table.version() == -1


_WRITES = """
import sys, itertools
from pathlib import Path
from penstock.day_tables import DayTable
from penstock.monitoring.metrics import ServingMetrics
from penstock.monitoring.request_log import RequestLog
from penstock.serve_section import LogConfig
from traffic_rows import asked, response_id
log = RequestLog(DayTable(Path(sys.argv[1])), LogConfig(flush_s=0.01, flush_rows=5))
metrics = ServingMetrics()
log.start(metrics)
written = metrics.logged_requests.labels("written")._value
for number in itertools.count():
    log.observe(asked(response_id(number=number)))
    if number % 50 == 0:
        print(int(written.get()), flush=True)
"""


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_written_and_damages_nothing(tmp_path):
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tests)])}
    command = [sys.executable, "-c", _WRITES, str(tmp_path / "log")]
    table = DayTable(tmp_path / "log")
    for _ in range(2):
        before = table.count_rows()
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            told = 0
            while told < 50:
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        assert table.count_rows() - before >= told
    assert len(rows(table)) == table.count_rows()
