import json
import threading
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
import sqlalchemy as sa
from deltalake import write_deltalake
from pydantic import ValidationError

import http_api
from http_api import Api, send, send_json, serving
from ingest_project import IngestProject
from penstock.errors import SourceError, SourceUnavailable
from penstock.sources.fivetran import FivetranSource

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
QUICK = {"poll_s": 0.01, "max_wait_s": 0.01, "fresh_s": 0}


class Fivetran(Api):
    """The two endpoints as Fivetran documents them, for one connection.

    Attributes:
        land: Called when a sync ends well, with its time, to write rows.
        looks: How often a sync is still running when it is looked at.
        outcome: "succeeded_at" or "failed_at".
    """

    def __init__(self):
        super().__init__()
        self.land = lambda at: None
        self.looks = 2
        self.outcome = "succeeded_at"
        self.syncs = 0
        self._left = 0
        self.data = {
            "id": "abc_def",
            "service": "zendesk",
            "schema": "support",
            "paused": False,
            "sync_frequency": 360,
            "succeeded_at": None,
            "failed_at": None,
            "status": {
                "setup_state": "connected",
                "schema_status": "ready",
                "sync_state": "scheduled",
                "update_state": "on_schedule",
                "is_historical_sync": False,
                "tasks": [],
                "warnings": [],
            },
        }

    def page(self, handler, _):
        status = self.data["status"]
        if handler.headers.get("Authorization") != "Basic a2V5OnMzY3JldC1zZWNyZXQ=":
            body = {"code": "AuthFailed", "message": "No user was found for key and s3cret-secret"}
            return send_json(handler, body, status=401)
        if not handler.path.startswith("/v1/connections/abc_def"):
            body = {"code": "NotFound_Connection", "message": "Cannot find connection with id 'x'"}
            return send_json(handler, body, status=404)
        if handler.path.endswith("/sync"):
            if status["sync_state"] != "syncing" or json.loads(self.bodies[-1])["force"]:
                self.syncs += 1
                self._left = self.looks
            status["sync_state"] = "syncing"
            text = "Sync has been successfully triggered for connection with id 'abc_def'"
            return send_json(handler, {"code": "Success", "message": text})
        if status["sync_state"] == "syncing":
            self._left -= 1
            if self._left < 0:
                self._end()
        return send_json(handler, {"code": "Success", "data": self.data})

    def _end(self):
        at = START + timedelta(minutes=self.syncs)
        self.data[self.outcome] = at.isoformat().replace("+00:00", "Z")
        self.data["status"]["sync_state"] = "scheduled"
        if self.outcome == "succeeded_at":
            self.land(at)


@pytest.fixture
def fivetran():
    with serving(Fivetran()) as running:
        yield running


class Warehouse:
    """What a connection lands in SQLite: a table with Fivetran's own columns."""

    def __init__(self, folder):
        self.url = f"sqlite:///{folder / 'warehouse.db'}"
        self.engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        self.execute(
            "CREATE TABLE ticket (id INTEGER PRIMARY KEY, text TEXT, _fivetran_deleted BOOLEAN, "
            "_fivetran_synced TIMESTAMP)"
        )

    def execute(self, statement):
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement))

    def put(self, at, *ids, deleted=False, text="t"):
        for i in ids:
            time = at.replace(tzinfo=None)
            self.execute(
                f"INSERT OR REPLACE INTO ticket VALUES ({i}, '{text}{i}', {deleted}, '{time}')"
            )


@pytest.fixture
def warehouse(tmp_path):
    return Warehouse(tmp_path)


def options(fivetran, warehouse, **more):
    return {
        "connection": "abc_def",
        "api_key": "key",
        "api_secret": "s3cret-secret",
        "base_url": fivetran.url,
        "sql": {"url": warehouse.url, "table": "ticket"},
        **QUICK,
        **more,
    }


def source(fivetran, warehouse, tmp_path, **more):
    return FivetranSource(FivetranSource.Options(**options(fivetran, warehouse, **more)), tmp_path)


def project(fivetran, warehouse, tmp_path, **more):
    return IngestProject(tmp_path / "p", type="fivetran", **options(fivetran, warehouse, **more))


@pytest.mark.slow
def test_a_run_has_a_sync_made_waits_for_it_and_reads_what_it_landed(fivetran, warehouse, tmp_path):
    fivetran.land = lambda at: warehouse.put(at - timedelta(seconds=9), 1, 2)
    run = project(fivetran, warehouse, tmp_path)
    assert run.ingest()[1]["rows"] == {"out": 2, "total": 2}
    assert [path for path, _ in fivetran.requests] == [
        "/v1/connections/abc_def",
        "/v1/connections/abc_def/sync",
        *["/v1/connections/abc_def"] * 3,
    ]
    assert fivetran.headers[0]["Accept"] == "application/json;version=2"
    fivetran.land = lambda at: warehouse.put(at - timedelta(seconds=9), 2, 3, text="new")
    assert run.ingest()[1]["rows"] == {"out": 2, "total": 4}
    assert run.column("text") == ["t1", "t2", "new2", "new3"]
    assert len(set(run.column("_row_id"))) == 4


@pytest.mark.slow
def test_a_sync_that_brings_nothing_changes_nothing(fivetran, warehouse, tmp_path):
    fivetran.land = lambda at: warehouse.put(START, 1)
    run = project(fivetran, warehouse, tmp_path)
    run.ingest()
    assert run.ingest()[0] == "hit"
    assert fivetran.syncs == 2


@pytest.mark.slow
@pytest.mark.parametrize(("force", "syncs"), [(False, 1), (True, 2)])
def test_a_sync_that_is_running_is_waited_for_or_begun_anew(
    fivetran, warehouse, tmp_path, force, syncs
):
    fivetran.looks = 3
    fivetran.data["status"]["sync_state"] = "syncing"
    fivetran.syncs, fivetran._left = 1, 3
    fivetran.land = lambda at: warehouse.put(START, 1)
    run = project(fivetran, warehouse, tmp_path, force=force)
    run.ingest()
    assert fivetran.syncs == syncs
    assert run.column("id") == [1]


def test_a_sync_that_succeeded_a_moment_ago_will_do(fivetran, warehouse, tmp_path):
    now = datetime.now(UTC)
    warehouse.put(now - timedelta(seconds=5), 1)
    fivetran.data["succeeded_at"] = now.isoformat()
    run = project(fivetran, warehouse, tmp_path, fresh_s=300)
    run.ingest()
    assert run.column("id") == [1]
    assert fivetran.syncs == 0


@pytest.mark.slow
def test_what_the_next_sync_is_landing_waits_for_its_end(fivetran, warehouse, tmp_path):
    def land(at):
        warehouse.put(at - timedelta(seconds=9), 1)
        warehouse.put(at + timedelta(seconds=30), 3)

    fivetran.land = land
    run = project(fivetran, warehouse, tmp_path)
    run.ingest()
    assert run.column("id") == [1]
    # It lands one more row that is older than the one that was there already.
    fivetran.land = lambda at: warehouse.put(at - timedelta(seconds=40), 2)
    run.ingest()
    assert run.column("id") == [1, 2, 3]


@pytest.mark.slow
def test_rows_that_were_deleted_are_left_out_or_kept_with_their_mark(fivetran, warehouse, tmp_path):
    def land(at):
        warehouse.put(START, 1, 3)
        warehouse.put(START, 2, deleted=True)

    fivetran.land = land
    run = project(fivetran, warehouse, tmp_path)
    run.ingest()
    assert run.column("id") == [1, 3]
    both = IngestProject(
        tmp_path / "q", type="fivetran", **options(fivetran, warehouse, deleted="keep")
    )
    both.ingest()
    assert both.column("_fivetran_deleted") == [False, True, False]


@pytest.mark.slow
def test_it_may_land_in_a_delta_table(fivetran, warehouse, tmp_path):
    def land(at):
        rows = {"id": [1, 2], "_fivetran_deleted": [False, True], "_fivetran_synced": [at, at]}
        write_deltalake(tmp_path / "lake", pa.table(rows), mode="append")

    fivetran.land = land
    lake = {"uri": str(tmp_path / "lake"), "key": "id"}
    run = project(fivetran, warehouse, tmp_path, sql=None, delta=lake)
    run.ingest()
    run.ingest()
    assert run.column("id") == [1, 1]
    assert len(set(run.column("_row_id"))) == 2


def test_a_sync_that_fails_is_told_with_fivetrans_own_words(fivetran, warehouse, tmp_path):
    fivetran.data["failed_at"] = "2026-01-01T00:00:00Z"
    fivetran.outcome = "failed_at"
    fivetran.data["status"]["tasks"] = [{"code": "reconnect", "message": "Reconnect to Zendesk"}]
    with pytest.raises(SourceError, match=r"failed to sync at 2026-03-01T12:01.*Reconnect to Z"):
        source(fivetran, warehouse, tmp_path).snapshot()


def test_a_sync_that_does_not_end_is_told_with_its_state(fivetran, warehouse, tmp_path):
    fivetran.looks = 10**9
    with pytest.raises(SourceError, match=r"not ended its sync within 0.05 s; it is syncing"):
        source(fivetran, warehouse, tmp_path, wait_s=0.05).snapshot()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paused": True}, "is paused"),
        ({"setup_state": "broken"}, "is not set up: it is broken"),
        ({"setup_state": "incomplete"}, "is not set up: it is incomplete"),
    ],
)
def test_a_connection_that_will_never_sync_is_not_waited_for(
    fivetran, warehouse, tmp_path, change, message
):
    fivetran.data |= {k: v for k, v in change.items() if k == "paused"}
    fivetran.data["status"] |= {k: v for k, v in change.items() if k != "paused"}
    with pytest.raises(SourceError, match=message):
        source(fivetran, warehouse, tmp_path).snapshot()
    assert fivetran.syncs == 0


def test_a_connection_paused_while_it_is_waited_for_is_told(fivetran, warehouse, tmp_path):
    fivetran.looks = 10**9
    timer = threading.Timer(0.1, lambda: fivetran.data.update(paused=True))
    timer.start()
    with pytest.raises(SourceError, match="is paused"):
        source(fivetran, warehouse, tmp_path).snapshot()
    timer.join()


@pytest.mark.parametrize(
    ("more", "message", "hint"),
    [
        ({"api_key": "other"}, "HTTP 401 .*AuthFailed: No user was found", "api_key"),
        ({"connection": "other"}, "HTTP 404 .*NotFound_Connection", "connection"),
    ],
)
def test_wrong_credentials_and_ids_are_told_and_not_tried_again(
    fivetran, warehouse, tmp_path, more, message, hint
):
    with pytest.raises(SourceError, match=message) as error:
        source(fivetran, warehouse, tmp_path, **more).snapshot()
    assert hint in error.value.hint
    assert len(fivetran.requests) == 1
    assert "s3cret-secret" not in error.value.message


@pytest.mark.slow
def test_limits_and_server_errors_are_waited_out(fivetran, warehouse, tmp_path):
    fivetran.land = lambda at: warehouse.put(START, 1)
    fivetran.faults = [
        http_api.status(429, ("Retry-After", "1")),
        http_api.status(429, ("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")),
        None,
        http_api.status(500),
        http_api.hangs_up,
        None,
        http_api.status(503, ("Retry-After", "soon")),
    ]
    run = project(fivetran, warehouse, tmp_path)
    run.ingest()
    assert run.column("id") == [1]
    assert fivetran.syncs == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (http_api.status(429), "no answer from http.* in 3 attempts: HTTP 429, saying 'oops'"),
        (http_api.status(502), "in 3 attempts: HTTP 502"),
        (http_api.hangs_up, "in 3 attempts: RemoteProtocolError"),
    ],
    ids=["429", "502", "hangs up"],
)
def test_what_does_not_pass_is_told_after_a_bounded_number_of_attempts(
    fivetran, warehouse, tmp_path, fault, message
):
    fivetran.faults = [fault] * 9
    with pytest.raises(SourceUnavailable, match=message):
        source(fivetran, warehouse, tmp_path, attempts=3).snapshot()
    assert len(fivetran.requests) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>proxy</html>", "in place of JSON"),
        (b"[1]", "in place of JSON"),
        (b'{"code": "Success"}', "without `data.status`"),
        (b'{"data": {"status": "ok"}}', "without `data.status`"),
    ],
)
def test_what_is_not_fivetrans_answer_is_told(fivetran, warehouse, tmp_path, body, message):
    fivetran.faults = [lambda handler: send(handler, 200, body)]
    with pytest.raises(SourceError, match=message):
        source(fivetran, warehouse, tmp_path).snapshot()


def test_key_and_secret_come_from_the_environment_and_are_written_nowhere(
    fivetran, warehouse, tmp_path, monkeypatch
):
    monkeypatch.setenv("FIVETRAN_SECRET", "s3cret-secret")
    fivetran.land = lambda at: warehouse.put(START, 1)
    run = project(fivetran, warehouse, tmp_path, api_secret="${FIVETRAN_SECRET}")
    run.ingest()
    assert run.column("id") == [1]
    assert "s3cret-secret" not in run.text()


@pytest.mark.slow
def test_moving_the_warehouse_or_the_connection_reads_nothing_again(fivetran, warehouse, tmp_path):
    fivetran.land = lambda at: warehouse.put(START, 1)
    run = project(fivetran, warehouse, tmp_path)
    run.ingest()
    (tmp_path / "warehouse.db").rename(tmp_path / "moved.db")
    landed = {"url": f"sqlite:///{tmp_path / 'moved.db'}", "table": "ticket"}
    run.write(type="fivetran", **options(fivetran, warehouse, sql=landed, fresh_s=10**9))
    assert run.ingest()[0] == "hit"


def test_where_it_lands_must_be_said_once(fivetran, warehouse):
    known = options(fivetran, warehouse)
    for more in ({"sql": None}, {"delta": {"uri": "x", "key": "id"}}):
        with pytest.raises(ValidationError, match="either `sql` or `delta`"):
            FivetranSource.Options(**{**known, **more})
    with pytest.raises(ValidationError, match="_fivetran_id"):
        FivetranSource.Options(**{**known, "sql": None, "delta": {"uri": "x"}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "calls"),
    [
        ("penstock.sources.fivetran:_Connection._look", 2),
        ("penstock.stages.ingest:_Spool.add", 1),
        ("penstock.tables:Table.append_once", 2),
    ],
)
def test_killed_anywhere_and_run_again_nothing_is_lost_or_doubled(
    fivetran, warehouse, tmp_path, function, calls
):
    def land(at):
        first = 100 * fivetran.syncs
        warehouse.put(at - timedelta(seconds=9), *range(first, first + 100))

    fivetran.land = land
    run = project(fivetran, warehouse, tmp_path)
    run.ingest()
    assert run.killed_ingest(function, calls)
    run.ingest()
    landed = range(100, 100 * fivetran.syncs + 100)
    assert sorted(run.column("id")) == list(landed)
    assert len(set(run.column("_row_id"))) == len(landed)
