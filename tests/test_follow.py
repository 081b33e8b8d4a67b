import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress

import pytest
import sqlalchemy as sa

import http_api
import kafka_broker
import postgres
from penstock import follow
from penstock.errors import SourceError
from penstock.follow import Follower
from penstock.monitoring.metrics import IngestMetrics
from penstock.pipeline import open_pipeline
from penstock.sources import sql
from penstock.sources.files import FilesSource
from penstock.sources.kafka_client import Kafka
from penstock.stages import ingest
from penstock.tables import Table
from penstock.walk import Walk

pytestmark = pytest.mark.slow

_TAIL = "evaluate: {tasks: [t]}\ngate: {min: {t: 0.5}}\n"
_FILES = "name: demo\nsources: {files: {type: files, paths: 'data/*'}}\n" + _TAIL


def _source(**options):
    return f"name: demo\nsources: {json.dumps({'orders': options})}\n" + _TAIL


def _kafka(broker, topic, **more):
    return _source(type="kafka", topics=topic, bootstrap_servers=broker.address, **more)


def _rest(api):
    options = {"base_url": api.url, "path": "rows", "data_selector": "data", "attempts": 1}
    return _source(type="rest", **options, cursor="at", key="n", settle_s=0)


@pytest.fixture(scope="module")
def broker():
    with kafka_broker.running() as running:
        yield running


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(follow, "LOOK_S", 0.05)
    monkeypatch.setattr(follow, "BREATH_S", 0.05)
    monkeypatch.setattr(follow, "FIRST_BACKOFF_S", 0.05)


class Said:
    """Progress that remembers what was said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    @contextmanager
    def track(self, label, total=None):
        yield lambda count: None


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path)
    yield made
    made.close()


class Project:
    """A folder with a recipe, and what is in its tables."""

    def __init__(self, folder):
        self.folder, self._open = folder, []
        (folder / "data").mkdir()

    def write(self, recipe):
        (self.folder / "recipe.yaml").write_text(recipe)

    def jsonl(self, name, *numbers):
        lines = [json.dumps({"n": n}) if isinstance(n, int) else n for n in numbers]
        (self.folder / "data" / name).write_text("\n".join(lines) + "\n")

    def pipeline(self, progress=None):
        opened = open_pipeline(self.folder / "recipe.yaml", {}, progress)
        self._open.append(opened)
        return opened

    def follower(self, every_rows=1_000_000, every_s=0.05, progress=None):
        metrics = IngestMetrics()
        return Follower(self.pipeline(progress), every_rows, every_s, metrics)

    def run(self):
        return self.pipeline().run(until="ingest")

    def numbers(self):
        pipeline = self.pipeline()
        [name] = pipeline.recipe.sources
        raw, _ = ingest.tables_of(pipeline.recipe, pipeline.store, name)
        return [row["n"] for batch in raw.scan() for row in batch.to_pylist()]

    def letters(self):
        """The offsets of the dead letters."""
        pipeline = self.pipeline()
        _, dead = ingest.tables_of(pipeline.recipe, pipeline.store, "orders")
        origins = [origin for batch in dead.scan() for origin in batch["_origin"].to_pylist()]
        return [int(origin.rpartition("@")[2]) for origin in origins]

    def close(self):
        for opened in self._open:
            opened.ledger.close()


@contextmanager
def own_postgres():
    """A server that a test may stop."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(postgres.running())
        except postgres.Unavailable as reason:
            pytest.skip(f"PostgreSQL: {reason}")
        yield server


@contextmanager
def following(follower):
    """A follower at work in a thread; its error, if it ends in one, is raised at the end."""
    errors = []

    def work():
        try:
            follower.run()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield errors
    finally:
        follower.stop()
        thread.join(30)
    assert not thread.is_alive()


def until(condition, what="it"):
    """Wait for what is going to be; a minute is for ever."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"{what} did not happen")


def turns(follower, count=4):
    """So many turns, one after the other, each of which looks at everything."""
    for _ in range(count):
        for one in follower._sources:
            one.look_s = 0.0
        follower.turn()


def holds_what_it_says(report, pipeline):
    """Whether a recorded ingest's fingerprint says exactly what its table versions hold."""
    from deltalake import DeltaTable

    artifact = report.artifacts["ingest"]
    for path, version in artifact.summary["tables"].items():
        table = DeltaTable(pipeline.store.root / path, version=version)
        [units] = artifact.summary["units"].values()
        for unit in units:
            assert (table.transaction_version(unit["stream"]) or 0) == max(unit["position"], 0)
        assert table.count() == artifact.summary["raw_rows"][path]
        [said] = artifact.settings["units"].values()
        assert sorted(said) == sorted([unit["stream"], unit["position"]] for unit in units)
    return True


# -- what is committed, and when -------------------------------------------------------


def test_what_arrives_is_ingested_once_and_a_later_run_has_nothing_to_read(broker, project):
    topic = broker.topic(2)
    project.write(_kafka(broker, topic))
    follower = project.follower()
    broker.send(topic, [{"n": 0}, b"poison"])
    with following(follower):
        until(lambda: project.numbers() == [0])
        broker.send(topic, [{"n": 1}], partition=1)
        until(lambda: sorted(project.numbers()) == [0, 1])
    report = project.run()
    assert report.artifacts["ingest"].summary["rows"]["total"] == 2
    assert report.artifacts["ingest"].summary["dead_total"] == 1
    assert holds_what_it_says(report, project.pipeline())
    assert project.run().stages[0].outcome == "hit"


def test_nothing_is_committed_before_so_many_rows_wait_or_so_long(broker, project):
    topic = broker.topic()
    project.write(_kafka(broker, topic))
    follower = project.follower(every_rows=10, every_s=3600)
    broker.send(topic, [{"n": n} for n in range(9)])
    turns(follower)
    assert project.numbers() == []
    broker.send(topic, [{"n": 9}])
    turns(follower)
    assert project.numbers() == list(range(10))
    broker.send(topic, [{"n": 10}])
    turns(follower)
    assert project.numbers() == list(range(10))
    follower._sources[0].committed_s -= 3600
    turns(follower)
    assert project.numbers() == list(range(11))


def test_a_backlog_is_committed_in_parts_of_so_many_rows(broker, project):
    topic = broker.topic()
    project.write(_kafka(broker, topic))
    broker.send(topic, [{"n": n} for n in range(35)])
    follower = project.follower(every_rows=10, every_s=60)
    turns(follower)
    assert project.numbers() == list(range(35))
    assert follower._metrics.commits.labels("orders")._value.get() == 4


def test_new_files_are_picked_up(project):
    project.write(_FILES)
    project.jsonl("a.jsonl", 1, "no json")
    with following(project.follower()):
        until(lambda: project.numbers() == [1])
        project.jsonl("b.jsonl", 2)
        until(lambda: project.numbers() == [1, 2])
    report = project.run()
    assert report.artifacts["ingest"].summary["dead_total"] == 1
    assert holds_what_it_says(report, project.pipeline())


def test_a_folder_that_is_still_empty_is_waited_for(project):
    project.write(_FILES)
    said = Said()
    with following(project.follower(progress=said)):
        until(lambda: said.lines)
        project.jsonl("a.jsonl", 1)
        until(lambda: project.numbers() == [1])
    assert "No file matches 'data/*'" in said.lines[0]
    assert said.lines[1:] == ["files: goes on."]


def test_what_no_waiting_mends_ends_the_follower(broker, project):
    project.write(_kafka(broker, "nowhere"))
    with pytest.raises(SourceError, match="no topic nowhere"):
        project.follower().run()


def test_an_outage_is_said_once_and_survived(project):
    said = Said()
    with kafka_broker.running() as own:
        topic = own.topic()
        project.write(_kafka(own, topic, timeout_s=0.3))
        own.send(topic, [{"n": 0}])
        follower = project.follower(progress=said)
        with following(follower):
            until(lambda: project.numbers() == [0])
            own.down()
            failures = follower._metrics.failures.labels("orders")._value
            until(lambda: failures.get() >= 5)
            own.up()
            own.send(topic, [{"n": 1}])
            until(lambda: project.numbers() == [0, 1])
    outages = [line for line in said.lines if "sent nothing" in line]
    # The client has two ways to put it, and may go from one to the other and back.
    assert 1 <= len(outages) < failures.get()
    assert said.lines[-1] == "orders: goes on."


@pytest.mark.slow
def test_an_api_that_goes_away_and_comes_back_is_followed_on(project):
    bad_days = [http_api.status(503), http_api.status(429), http_api.half_json, http_api.hangs_up]
    with http_api.serving() as api:
        api.rows = [{"n": 0, "at": "2026-03-01T12:00:00Z"}]
        project.write(_rest(api))
        said = Said()
        follower = project.follower(progress=said)
        with following(follower):
            until(lambda: project.numbers() == [0])
            api.faults = bad_days * 1_000
            failures = follower._metrics.failures.labels("orders")._value
            until(lambda: failures.get() >= len(bad_days))
            api.rows.append({"n": 1, "at": "2026-03-01T12:00:01Z"})
            api.faults = []
            until(lambda: project.numbers() == [0, 1])
    assert said.lines[-1] == "orders: goes on."


@pytest.mark.slow
def test_a_database_that_goes_away_and_comes_back_is_followed_on(project, monkeypatch):
    monkeypatch.setattr(sql, "_FIRST_PAUSE_S", 0.01)
    said = Said()
    with own_postgres() as server:
        url = server.new_database()
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE t (n BIGINT PRIMARY KEY)"))
            connection.execute(sa.text("INSERT INTO t VALUES (0)"))
        project.write(_source(type="sql", url=url, table="t", cursor="n", settle_s=0))
        follower = project.follower(progress=said)
        with following(follower):
            until(lambda: project.numbers() == [0])
            server.down()
            failures = follower._metrics.failures.labels("orders")._value
            until(lambda: failures.get() >= 2)
            server.up()
            with engine.begin() as connection:
                connection.execute(sa.text("INSERT INTO t VALUES (1)"))
            until(lambda: project.numbers() == [0, 1])
    assert said.lines[-1] == "orders: goes on."


@pytest.mark.parametrize("code", [401, 403, 404])
def test_an_api_that_refuses_ends_the_follower(project, code):
    with http_api.serving() as api:
        api.faults = [http_api.status(code)] * 9
        project.write(_rest(api))
        with pytest.raises(SourceError, match=f"answered HTTP {code}"):
            project.follower().run()


def test_a_source_that_takes_every_error_for_its_own_is_interrupted_all_the_same(
    project, monkeypatch
):
    project.write(_FILES)
    project.jsonl("a.jsonl", 1)
    tries = []

    def deaf(source):
        while len(tries) < 3:
            tries.append(1)
            with suppress(Exception):
                signal.raise_signal(signal.SIGTERM)
        return ()

    monkeypatch.setattr(FilesSource, "snapshot", deaf)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("asked twice"))
    follow.follow(project.pipeline(Said()), 10, 0.05, None)
    assert len(tries) == 1


def test_while_a_run_has_the_claim_the_follower_gives_way(broker, project):
    topic = broker.topic()
    project.write(_kafka(broker, topic))
    broker.send(topic, [{"n": 0}])
    project.run()
    broker.send(topic, [{"n": 1}])
    follower = project.follower()
    with project.pipeline().ledger.try_claim("demo/ingest"):
        turns(follower)
        assert project.numbers() == [0]
    turns(follower)
    assert project.numbers() == [0, 1]


def test_another_run_does_not_sweep_away_what_a_follower_is_spooling(broker, project, monkeypatch):
    topic = broker.topic()
    project.write(_kafka(broker, topic))
    broker.send(topic, [{"n": 0}])
    follower, other = project.follower(), project.pipeline()
    real, swept = Table.append_once, []

    def sweep_first(table, *arguments):
        other._sweep()
        swept.append(table.name)
        return real(table, *arguments)

    turns(follower, 1)  # the stream is made known
    monkeypatch.setattr(Table, "append_once", sweep_first)
    turns(follower)
    assert swept
    assert project.numbers() == [0]
    assert not list((other.store.root / "staging").iterdir())


def test_partitions_that_a_topic_gains_are_read_from_their_start(broker, project, monkeypatch):
    topic = broker.topic(3)
    project.write(_kafka(broker, topic))
    # The mock cluster cannot add a partition: it is hidden from who asks how many there are.
    real, there = Kafka.partitions, 1
    monkeypatch.setattr(Kafka, "partitions", lambda kafka, name: real(kafka, name)[:there])
    for partition in range(3):
        broker.send(topic, [{"n": partition}, {"n": 10 + partition}], partition=partition)
    follower = project.follower()
    turns(follower)
    assert project.numbers() == [0, 10]
    there = 2
    turns(follower)
    assert project.numbers() == [0, 10, 1, 11]
    there = 3
    report = project.run()
    assert project.numbers() == [0, 10, 1, 11, 2, 12]
    assert len(report.artifacts["ingest"].summary["units"]["orders"]) == 3
    assert holds_what_it_says(report, project.pipeline())
    broker.send(topic, [{"n": 22}], partition=2)
    turns(follower)
    assert project.numbers() == [0, 10, 1, 11, 2, 12, 22]


# -- a signal ------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["dead_letters", "raw-"])
def test_a_signal_in_the_middle_of_a_commit_lets_it_finish_and_nothing_more(
    broker, project, monkeypatch, table
):
    topic = broker.topic()
    project.write(_kafka(broker, topic))
    broker.send(topic, [b"poison" if n % 4 == 3 else {"n": n} for n in range(25)])
    real, signals = Table.append_once, []

    def signalled(self, *arguments):
        if self.name.startswith(table) and not signals:
            signals.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(Table, "append_once", signalled)
    follow.follow(project.pipeline(Said()), 10, 0.05, None)
    assert signals
    assert project.numbers() == [0, 1, 2, 4, 5, 6, 8, 9]
    assert project.letters() == [3, 7]
    turns(project.follower(every_rows=10))
    assert project.numbers() == [n for n in range(25) if n % 4 != 3]
    assert project.letters() == [3, 7, 11, 15, 19, 23]


# -- runs beside a follower --------------------------------------------------------------


def test_a_run_that_was_overtaken_records_what_the_tables_hold(broker, project, monkeypatch):
    topic = broker.topic(2)
    project.write(_kafka(broker, topic))
    broker.send(topic, [{"n": n} for n in range(5)])
    broker.send(topic, [{"n": 100}], partition=1)
    follower = project.follower()
    turns(follower)
    pipeline, real = project.pipeline(), Walk._claimed
    fingerprints = []

    def overtake(walk, node):
        """Between the run's pinning and its claim, more arrives and is followed."""
        fingerprints.append(walk.prints["ingest"])
        broker.send(topic, [{"n": n} for n in range(5, 9)])
        turns(follower)
        return real(walk, node)

    broker.send(topic, [{"n": 101}], partition=1)
    monkeypatch.setattr(Walk, "_claimed", overtake)
    report = pipeline.run(until="ingest")
    monkeypatch.undo()
    artifact = report.artifacts["ingest"]
    assert artifact.fingerprint not in fingerprints
    assert sorted(project.numbers()) == [*range(9), 100, 101]
    assert artifact.summary["rows"]["total"] == 11
    assert holds_what_it_says(report, pipeline)
    # The next run pins the same, and finds it.
    assert project.run().stages[0].outcome == "hit"
    # Another process that goes on with this run sees what it pinned in the end.
    step = project.pipeline().step("ingest", report.run_id)
    assert step.artifacts["ingest"].fingerprint == artifact.fingerprint
    # And what the follower brings later changes nothing of what was recorded.
    broker.send(topic, [{"n": 9}])
    turns(follower)
    again = project.pipeline().report(report.run_id)
    assert holds_what_it_says(again, pipeline)


def test_letters_that_a_killed_follower_committed_alone_are_part_of_what_a_run_pins(
    broker, project, monkeypatch
):
    topic = broker.topic()
    project.write(_kafka(broker, topic))
    broker.send(topic, [{"n": 0}, b"poison"])
    follower = project.follower()
    turns(follower, 1)
    real = Table.append_once

    def dies_before_rows(table, *arguments):
        if table.name != ingest.DEAD_LETTERS:
            raise KeyboardInterrupt
        return real(table, *arguments)

    monkeypatch.setattr(Table, "append_once", dies_before_rows)
    with pytest.raises(KeyboardInterrupt):
        turns(follower)
    monkeypatch.undo()
    report = project.run()
    assert report.artifacts["ingest"].summary["dead_total"] == 1
    assert project.numbers() == [0]
    assert holds_what_it_says(report, project.pipeline())


def test_what_was_followed_and_then_vanished_is_still_in_what_a_run_pins(project):
    project.write(_FILES)
    project.jsonl("a.jsonl", 1)
    turns(project.follower())
    os.unlink(project.folder / "data" / "a.jsonl")
    project.jsonl("b.jsonl", 2)
    report = project.run()
    assert report.artifacts["ingest"].summary["rows"]["total"] == 2
    assert len(report.artifacts["ingest"].summary["units"]["files"]) == 2
    assert holds_what_it_says(report, project.pipeline())


def test_a_topic_made_anew_without_ids_is_refused_and_not_taken_for_the_old_one(broker, project):
    topic = broker.topic()
    project.write(_kafka(broker, topic, topic_id=False))
    broker.send(topic, [{"n": n} for n in range(5)])
    project.run()
    broker.delete(topic)
    broker.topic(name=topic)
    broker.send(topic, [{"n": n} for n in range(2)])
    with pytest.raises(SourceError, match="ends at 1, but was ingested up to 4"):
        project.run()
    follower = project.follower()
    with pytest.raises(SourceError) as error:
        follower.run()
    assert "another name" in error.value.hint


def test_a_topic_made_anew_with_ids_is_read_beside_what_the_old_one_gave(broker, project):
    topic = broker.topic()
    project.write(_kafka(broker, topic))
    broker.send(topic, [{"n": n} for n in range(5)])
    follower = project.follower()
    turns(follower)
    broker.delete(topic)
    broker.topic(name=topic)
    broker.send(topic, [{"n": 50}])
    turns(follower)
    assert project.numbers() == [*range(5), 50]
    report = project.run()
    assert len(report.artifacts["ingest"].summary["units"]["orders"]) == 2
    assert holds_what_it_says(report, project.pipeline())


# -- the command ---------------------------------------------------------------------------


def _command(project, *more):
    command = [sys.executable, "-m", "penstock.cli", "ingest", *more]
    return subprocess.Popen(
        command, cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_ingest_without_follow_ingests_once(project):
    project.write(_FILES)
    project.jsonl("a.jsonl", 1, 2)
    process = _command(project, "--json")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert [one["stage"] for one in json.loads(output)["stages"]] == ["ingest"]
    assert project.numbers() == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_in_good_order_and_until_then_it_shows_its_lag(
    broker, project, number
):
    topic = broker.topic(2)
    project.write(_kafka(broker, topic))
    broker.send(topic, [{"n": n} for n in range(3)])
    process = _command(
        project, "--follow", "--every-s", "3600", "--every-rows", "10", "--metrics-port", "0"
    )
    try:
        said = [process.stderr.readline(), process.stderr.readline()]
        [address] = [word for word in said[0].split() if word.startswith("http")]
        assert address.startswith("http://127.0.0.1:")

        def metrics():
            return urllib.request.urlopen(address.rstrip("."), timeout=10).read().decode()

        lag = f'penstock_ingest_lag{{source="orders",stream="{topic}/0"}}'
        until(lambda: f"{lag} 3.0" in metrics(), "the lag")
        broker.send(topic, [{"n": n} for n in range(3, 10)])
        until(lambda: f"{lag} 0.0" in metrics(), "the commit")
        assert 'penstock_ingest_rows{source="orders"} 10.0' in metrics()
    finally:
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "Stopped." in rest
    assert project.numbers() == list(range(10))


@pytest.mark.slow
def test_a_signal_leaves_what_waits_to_the_next_start(broker, project):
    topic = broker.topic()
    project.write(_kafka(broker, topic))
    broker.send(topic, [{"n": n} for n in range(3)])
    patient = ("--follow", "--every-s", "3600", "--every-rows", "10", "--metrics-port", "0")
    process = _command(project, *patient)
    try:
        said = [process.stderr.readline(), process.stderr.readline()]
        [address] = [word.rstrip(".") for word in said[0].split() if word.startswith("http")]
        lag = f'penstock_ingest_lag{{source="orders",stream="{topic}/0"}} 3.0'
        until(lambda: lag in urllib.request.urlopen(address, timeout=10).read().decode(), "the lag")
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert project.numbers() == []
    turns(project.follower())
    assert project.numbers() == [0, 1, 2]


@pytest.mark.slow
def test_a_signal_during_an_outage_is_heard_before_the_time_allowed_is_over(project):
    project.write(
        "name: demo\nsources: {orders: {type: kafka, topics: t, bootstrap_servers: '127.0.0.1:1',"
        " timeout_s: 3000}}\n" + _TAIL
    )
    process = _command(project, "--follow", "--metrics-port", "0")
    process.stderr.readline()
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow
def test_a_service_killed_again_and_again_loses_and_doubles_nothing(broker, project):
    topic = broker.topic(2)
    project.write(_kafka(broker, topic))
    for start in range(0, 600, 100):
        broker.send(
            topic, [{"n": n} for n in range(start, start + 100)], partition=start // 100 % 2
        )
        process = _command(
            project, "--follow", "--every-s", "0.1", "--every-rows", "7", "--metrics-port", "0"
        )
        process.stderr.readline()
        process.stderr.readline()
        time.sleep(0.05 + start / 1000)
        process.kill()
        process.communicate()
    report = project.run()
    assert Counter(project.numbers()) == Counter(range(600))
    assert holds_what_it_says(report, project.pipeline())
