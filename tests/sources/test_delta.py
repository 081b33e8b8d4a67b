import io
import json
import shutil
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pydantic import ValidationError

import http_api
import s3_server
from ingest_project import IngestProject
from penstock.errors import SourceError, SourceUnavailable
from penstock.sources import formats, lines
from penstock.sources.base import ORIGIN
from penstock.sources.delta import DeltaSource

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Foreign:
    """A Delta table that somebody else writes."""

    def __init__(self, folder):
        self.path = folder / "events"

    def append(self, *ids, **options):
        self.write(pa.table({"id": list(ids), "text": [f"t{i}" for i in ids]}), **options)

    def write(self, table, mode="append", **options):
        write_deltalake(self.path, table, mode=mode, **options)

    def handle(self, version=None):
        return DeltaTable(self.path, version=version)

    def files(self):
        return sorted(self.path.rglob("*.parquet"))


@pytest.fixture
def foreign(tmp_path):
    return Foreign(tmp_path)


def source(foreign, **options):
    return DeltaSource(DeltaSource.Options(uri="events", **options), foreign.path.parent)


def project(foreign, **options):
    return IngestProject(
        foreign.path.parent / "project", type="delta", uri=str(foreign.path), **options
    )


def ids_of(one, unit=None):
    return [i for batch in one.read(unit or one.snapshot()[0]) for i in batch["id"].to_pylist()]


@pytest.mark.slow
def test_a_table_that_is_appended_to_is_read_by_what_each_version_added(foreign):
    foreign.append(1, 2)
    foreign.append(3)
    run = project(foreign)
    assert run.ingest()[1]["rows"] == {"out": 3, "total": 3}
    assert run.ingest()[0] == "hit"
    foreign.append(4)
    foreign.append(5, 6)
    assert run.ingest()[1]["rows"] == {"out": 3, "total": 6}
    assert sorted(run.column("id")) == [1, 2, 3, 4, 5, 6]
    assert len(set(run.column("_row_id"))) == 6
    assert run.column(ORIGIN)[0].startswith("events/part-")


@pytest.mark.slow
def test_where_units_end_changes_no_row_id(foreign):
    foreign.append(1)
    run = project(foreign)
    run.ingest()
    foreign.append(2)
    run.ingest()
    other = IngestProject(foreign.path.parent / "other", type="delta", uri=str(foreign.path))
    other.ingest()
    assert sorted(run.column("_row_id")) == sorted(other.column("_row_id"))


@pytest.mark.slow
def test_a_compaction_brings_no_row_again(foreign):
    for i in range(5):
        foreign.append(i)
    run = project(foreign)
    run.ingest()
    foreign.handle().optimize.compact()
    foreign.append(9)
    run.ingest()
    assert sorted(run.column("id")) == [0, 1, 2, 3, 4, 9]


@pytest.mark.slow
def test_a_commit_without_rows_moves_the_position_and_nothing_else(foreign):
    foreign.append(1)
    run = project(foreign)
    run.ingest()
    foreign.handle().alter.set_table_properties({"delta.appendOnly": "true"})
    assert run.ingest()[1]["rows"] == {"out": 0, "total": 1}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["delete", "update", "overwrite", "merge"])
def test_after_rows_were_rewritten_the_whole_version_comes_again_under_new_ids(foreign, change):
    foreign.append(1, 2, 3)
    run = project(foreign)
    run.ingest()
    table = foreign.handle()
    if change == "delete":
        table.delete("id = 2")
    elif change == "update":
        table.update(predicate="id = 2", new_values={"text": "'new'"})
    elif change == "merge":
        rows = pa.table({"id": [2], "text": ["new"]})
        merge = table.merge(rows, "s.id = t.id", source_alias="s", target_alias="t")
        merge.when_matched_update_all().execute()
    else:
        foreign.write(pa.table({"id": [7], "text": ["t7"]}), mode="overwrite")
    foreign.append(4)
    run.ingest()
    again = {"delete": [1, 3, 4], "overwrite": [4, 7]}.get(change, [1, 2, 3, 4])
    assert sorted(run.column("id")[3:]) == again
    assert len(set(run.column("_row_id"))) == 3 + len(again)
    assert run.ingest()[0] == "hit"


def test_rewritten_rows_can_be_refused_with_version_and_operation(foreign):
    foreign.append(1, 2)
    run = project(foreign, rewrites="refuse")
    run.ingest()
    foreign.handle().delete("id = 2")
    with pytest.raises(SourceError, match=r"version 1 \(DELETE\) rewrote rows") as error:
        run.ingest()
    assert "cursor" in error.value.hint
    assert run.column("id") == [1, 2]


@pytest.mark.slow
def test_a_log_that_was_cleaned_up_beyond_the_position_is_told(foreign):
    foreign.append(1)
    run = project(foreign, rewrites="refuse")
    run.ingest()
    for i in range(2, 5):
        foreign.append(i)
    foreign.handle().create_checkpoint()
    (foreign.path / "_delta_log" / f"{1:020d}.json").unlink()
    with pytest.raises(SourceError, match="log no longer tells what version 1 did"):
        run.ingest()
    again = project(foreign)
    again.ingest()
    assert sorted(again.column("id")) == [1, 2, 3, 4]


def test_one_version_can_be_asked_for_and_stays_as_it_was(foreign):
    foreign.append(1)
    foreign.append(2)
    foreign.append(3)
    assert ids_of(source(foreign, version=1)) == [1, 2]
    with pytest.raises(SourceError, match="no version 9; its newest is 2"):
        source(foreign, version=9).snapshot()


def test_what_is_pinned_is_read_though_the_table_grew_meanwhile(foreign):
    foreign.append(1)
    one = source(foreign)
    (unit,) = one.snapshot()
    foreign.append(2)
    foreign.handle().delete("id = 1")
    assert ids_of(one, unit) == [1]


def test_a_table_vacuumed_under_us_is_an_error_and_commits_nothing(foreign):
    foreign.append(1)
    one = source(foreign)
    (unit,) = one.snapshot()
    foreign.handle().delete("id = 1")
    foreign.append(2)
    foreign.handle().vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(SourceError, match="is gone: the table was vacuumed") as error:
        ids_of(one, unit)
    assert "Run again" in error.value.hint
    assert ids_of(one) == [2]


def test_a_table_made_again_in_the_same_place_is_another_stream(foreign):
    foreign.append(1, 2)
    run = project(foreign)
    run.ingest()
    one = source(foreign)
    (unit,) = one.snapshot()
    shutil.rmtree(foreign.path)
    foreign.append(1)
    with pytest.raises(SourceUnavailable, match="deleted and made again"):
        ids_of(one, unit)
    run.ingest()
    assert run.column("id") == [1, 2, 1]
    assert len(set(run.column("_row_id"))) == 3


@pytest.mark.slow
def test_partitions_and_columns_that_came_later_are_whole(foreign):
    days = pa.table({"id": [1, 2], "day": [date(2026, 3, 1), None], "word": ["a b/c", "d"]})
    foreign.write(days, partition_by=["day", "word"])
    run = project(foreign)
    run.ingest()
    more = pa.table({"id": [3], "day": [date(2026, 3, 2)], "word": ["ü%"], "n": [7]})
    foreign.write(more, schema_mode="merge")
    run.ingest()
    rows = {row["id"]: (row["day"], row["word"], row["n"]) for row in run.rows()}
    assert rows == {
        1: (date(2026, 3, 1), "a b/c", None),
        2: (None, "d", None),
        3: (date(2026, 3, 2), "ü%", 7),
    }


def test_along_a_cursor_too_partitions_and_columns_that_came_later_are_whole(foreign):
    first = pa.table({"id": [1, 2], "word": ["a b/c", None]})
    foreign.write(first, partition_by=["word"])
    foreign.write(pa.table({"id": [3], "word": ["ü%"], "n": [7]}), schema_mode="merge")
    run = project(foreign, cursor="id", key="id")
    run.ingest()
    rows = {row["id"]: (row["word"], row["n"]) for row in run.rows()}
    assert rows == {1: ("a b/c", None), 2: (None, None), 3: ("ü%", 7)}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_data_file_is_named_and_commits_nothing(foreign, damage):
    foreign.append(*range(1000))
    (path,) = foreign.files()
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[100:160] = b"\xff" * 60
        path.write_bytes(data[:-7] if damage == "truncated" else data)
    run = project(foreign)
    with pytest.raises(SourceError, match=r"part-.*parquet"):
        run.ingest()
    assert run.rows() == []


def test_a_damaged_log_is_an_error_without_a_traceback(foreign):
    foreign.append(1)
    (foreign.path / "_delta_log" / f"{0:020d}.json").write_text("{half")
    with pytest.raises(SourceError):
        source(foreign).snapshot()


LAKE = {
    "uri": "s3://lake/events",
    "storage_options": {
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "hush-hush",
        "max_retries": "0",
    },
}


def aws_lake(url):
    options = {**LAKE, "storage_options": {**LAKE["storage_options"], "AWS_ENDPOINT_URL": url}}
    return DeltaSource(DeltaSource.Options(**options), Path())


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_store_that_is_too_busy_or_broken_is_an_outage(code):
    with http_api.serving() as store:
        store.faults = [http_api.status(code)] * 9
        with pytest.raises(SourceUnavailable, match=f"events cannot be read now: .*{code}"):
            aws_lake(store.url).snapshot()


def test_a_store_that_is_down_is_an_outage():
    with http_api.serving() as store:
        pass
    with pytest.raises(SourceUnavailable, match="events cannot be read now"):
        aws_lake(store.url).snapshot()


@pytest.mark.parametrize("code", [401, 403])
def test_a_store_that_refuses_is_no_outage(code):
    with http_api.serving() as store:
        store.faults = [http_api.status(code)] * 9
        with pytest.raises(SourceError, match="events cannot be read") as error:
            aws_lake(store.url).snapshot()
    assert not error.value.transient


def test_a_store_that_goes_away_while_a_file_is_read_is_an_outage(foreign, monkeypatch):
    foreign.append(*range(1000))
    one = source(foreign)
    (unit,) = one.snapshot()

    class Away(io.BytesIO):
        def size(self):
            return len(self.getvalue())

        def read(self, *_):
            raise OSError("Generic S3 error: HTTP error: error sending request")

    @contextmanager
    def open_file(*_):
        yield Away(foreign.files()[0].read_bytes())

    monkeypatch.setattr(DeltaSource, "_data_file", open_file)
    with pytest.raises(SourceUnavailable, match="error sending request"):
        ids_of(one, unit)


def test_without_a_table_the_error_says_where_it_looked(foreign):
    with pytest.raises(SourceError, match="no Delta table at 'events'"):
        source(foreign).snapshot()
    foreign.path.mkdir()
    with pytest.raises(SourceError, match="no Delta table at 'events'"):
        source(foreign).snapshot()


def _with_protocol(foreign, features, configuration):
    """Rewrite the table's first commit to ask more of its readers."""
    path = foreign.path / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in path.read_text().splitlines()]
    for action in actions:
        if "protocol" in action:
            action["protocol"] = {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": features,
                "writerFeatures": features,
            }
        if "metaData" in action:
            action["metaData"]["configuration"] = configuration
    path.write_text("\n".join(json.dumps(action) for action in actions))


def test_column_mapping_is_refused_by_name(foreign):
    foreign.append(1)
    _with_protocol(foreign, ["columnMapping"], {"delta.columnMapping.mode": "name"})
    with pytest.raises(SourceError, match="columnMapping"):
        source(foreign).snapshot()


def test_deletion_vectors_are_refused_only_where_there_are_any(foreign):
    foreign.append(*range(30))
    _with_protocol(foreign, ["deletionVectors"], {"delta.enableDeletionVectors": "true"})
    assert ids_of(source(foreign)) == list(range(30))
    path = foreign.path / "_delta_log" / f"{0:020d}.json"
    (add,) = (json.loads(x)["add"] for x in path.read_text().splitlines() if '"add"' in x)
    vector = {
        "storageType": "i",
        "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
        "offset": None,
        "sizeInBytes": 44,
        "cardinality": 6,
    }
    commit = [{"remove": {"path": add["path"], "dataChange": True, "deletionTimestamp": 1}}]
    commit.append({"add": {**add, "deletionVector": vector}})
    following = foreign.path / "_delta_log" / f"{1:020d}.json"
    following.write_text("\n".join(json.dumps(action) for action in commit))
    with pytest.raises(SourceError, match="deletionVectors"):
        source(foreign).snapshot()


def _merged(foreign, **rows):
    table = pa.table({"id": rows["id"], "text": rows["text"], "at": rows["at"]})
    merge = foreign.handle().merge(table, "s.id = t.id", source_alias="s", target_alias="t")
    merge.when_matched_update_all().when_not_matched_insert_all().execute()


@pytest.mark.slow
def test_a_table_that_is_merged_into_is_read_along_a_cursor_without_repeats(foreign):
    foreign.write(pa.table({"id": [1, 2], "text": ["a", "b"], "at": [NOON, NOON]}))
    run = project(foreign, cursor="at", key="id", settle_s=0)
    run.ingest()
    later = NOON + timedelta(seconds=1)
    _merged(foreign, id=[2, 3], text=["new", "c"], at=[later, later])
    assert run.ingest()[1]["rows"] == {"out": 2, "total": 4}
    assert sorted(run.column("text")) == ["a", "b", "c", "new"]
    foreign.handle().optimize.compact()
    assert run.ingest()[0] == "hit"


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        pa.array([0, 1, 2**62]),
        pa.array([date(2026, 3, 1), date(2026, 3, 1), date(2026, 3, 4)]),
        pa.array([0, 1, 1_000_001], pa.timestamp("us")),
    ],
    ids=lambda array: str(array.type),
)
def test_any_kind_of_cursor_takes_each_row_once(foreign, values):
    foreign.write(pa.table({"id": [1, 2], "at": values[:2]}))
    run = project(foreign, cursor="at", key=["id"], settle_s=0)
    run.ingest()
    foreign.write(pa.table({"id": [3], "at": values[2:]}))
    run.ingest()
    assert sorted(run.column("id")) == [1, 2, 3]
    assert run.ingest()[0] == "hit"


def test_a_time_in_the_cursor_counts_only_once_it_is_settled(foreign):
    now = datetime.now(UTC)
    foreign.write(pa.table({"id": [1, 2], "at": [now - timedelta(hours=2), now]}))
    one = source(foreign, cursor="at", key="id", settle_s=3600)
    assert ids_of(one) == [1]


def test_cursors_that_do_not_work_are_refused(foreign):
    table = pa.table({"id": [1, 1], "at": [NOON, NOON], "n": [None, 1], "bad": [-1, 1]})
    foreign.write(table)
    with pytest.raises(SourceError, match="two rows have the same at and id: id=1"):
        ids_of(source(foreign, cursor="at", key="id"))
    with pytest.raises(SourceError, match="'n' is null in 1 rows"):
        source(foreign, cursor="n", key="id").snapshot()
    assert ids_of(source(foreign, cursor="n", key="id", null_cursor="leave_out")) == [1]
    with pytest.raises(SourceError, match="below 0"):
        source(foreign, cursor="bad", key="id").snapshot()
    with pytest.raises(SourceError, match=r"no column 'att'. Did you mean 'at'\?"):
        source(foreign, cursor="att", key="id").snapshot()
    with pytest.raises(ValidationError, match="`cursor` needs a `key`"):
        DeltaSource.Options(uri="events", cursor="at")


def test_a_text_is_refused_as_a_cursor(foreign):
    foreign.append(1)
    with pytest.raises(SourceError, match=r"'text' is (large_)?string"):
        source(foreign, cursor="text", key="id").snapshot()


def test_a_table_of_penstocks_own_columns_is_refused(foreign):
    foreign.write(pa.table({"_row_id": ["x"]}))
    with pytest.raises(SourceError, match="'_row_id' is reserved"):
        source(foreign).snapshot()


# 200 rows of 100 kB, which their file says once.
LONG = pa.table({"id": range(200), "text": ["x" * 100_000] * 200})


@pytest.mark.parametrize("options", [{}, {"cursor": "id", "key": "id"}], ids=["files", "cursor"])
def test_a_long_text_that_is_said_once_is_read_in_small_batches(foreign, monkeypatch, options):
    monkeypatch.setattr(formats, "BATCH_BYTES", 1 << 20)
    foreign.write(LONG)
    one = source(foreign, **options)
    batches = list(one.read(one.snapshot()[0]))
    assert max(batch.nbytes for batch in batches) < 6 << 20
    assert [i for batch in batches for i in batch["id"].to_pylist()] == list(range(200))
    assert {text for batch in batches for text in batch["text"].to_pylist()} == {"x" * 100_000}


@pytest.mark.parametrize("options", [{}, {"cursor": "id", "key": "id"}], ids=["files", "cursor"])
def test_a_table_that_unpacks_without_end_is_refused(foreign, monkeypatch, options):
    monkeypatch.setattr(lines, "NO_BOMB_BYTES", 1 << 20)
    monkeypatch.setattr(formats, "BATCH_BYTES", 1 << 20)
    foreign.write(LONG)
    with pytest.raises(SourceError, match="unpacks to more than") as error:
        ids_of(source(foreign, max_expansion=2, **options))
    assert "max_expansion" in error.value.hint
    assert ids_of(source(foreign, max_expansion=1e6, **options)) == list(range(200))


@pytest.fixture(scope="module")
def lake():
    import boto3  # takes a second

    with s3_server.running():
        client = boto3.client("s3")
        client.create_bucket(Bucket="lake")
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"cursor": "id", "key": "id"}], ids=["files", "cursor"])
def test_a_table_in_s3_is_read_like_one_in_a_folder(lake, tmp_path, options):
    uri = f"s3://lake/{len(options)}/events"

    def write(*ids):
        table = pa.table({"id": list(ids), "text": [f"t{i}" for i in ids]})
        write_deltalake(uri, table, mode="append", storage_options={"allow_http": "true"})

    run = IngestProject(tmp_path, type="delta", uri=uri, **options)
    with pytest.raises(SourceError, match=f"no Delta table at '{uri}'"):
        run.ingest()
    write(1, 2)
    assert run.ingest()[1]["rows"] == {"out": 2, "total": 2}
    assert run.ingest()[0] == "hit"
    write(3)
    assert run.ingest()[1]["rows"] == {"out": 1, "total": 3}
    assert sorted(run.column("id")) == [1, 2, 3]
    assert run.column(ORIGIN)[0].startswith("events")


def test_a_data_file_that_is_gone_from_s3_is_named_and_commits_nothing(lake, tmp_path):
    uri = "s3://lake/gone/events"
    table = pa.table({"id": [1]})
    write_deltalake(uri, table, storage_options={"allow_http": "true"})
    found = lake.list_objects_v2(Bucket="lake", Prefix="gone/events/part")["Contents"]
    lake.delete_object(Bucket="lake", Key=found[0]["Key"])
    run = IngestProject(tmp_path, type="delta", uri=uri)
    with pytest.raises(SourceError, match=r"part-.*parquet"):
        run.ingest()
    assert run.rows() == []


def test_a_store_that_is_down_is_told_without_the_secret(lake, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    options = {"max_retries": "0", "retry_timeout": "1s"}
    one = DeltaSource(DeltaSource.Options(uri="s3://lake/x", storage_options=options), tmp_path)
    with pytest.raises(SourceError, match="cannot be read") as error:
        one.snapshot()
    assert "hush-hush" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "calls"),
    [
        ("penstock.stages.ingest:_Spool.add", 2),
        ("penstock.tables:Table.append_once", 1),
        ("penstock.tables:Table.append_once", 2),
        ("penstock.ledger:Ledger.record", 1),
    ],
)
def test_killed_anywhere_and_run_again_nothing_is_lost_or_doubled(foreign, function, calls):
    foreign.append(*range(12_000))
    foreign.append(*range(12_000, 15_000))
    run = project(foreign)
    assert run.killed_ingest(function, calls)
    foreign.append(*range(15_000, 15_500))
    _, summary = run.ingest()
    assert sorted(run.column("id")) == list(range(15_500))
    assert len(set(run.column("_row_id"))) == summary["rows"]["total"] == 15_500
