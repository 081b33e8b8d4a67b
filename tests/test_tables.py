import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from penstock import tables
from penstock.errors import StoreError
from penstock.tables import ROW, VERSION, Position, Table, conform, numbered

STAMPS = [(VERSION, pa.int64()), (ROW, pa.int64())]
SCHEMA = pa.schema([("x", pa.int64()), *STAMPS])


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "tables" / "demo")


def batches_of(values, version, schema=SCHEMA, batch_rows=2):
    pieces = [values[i : i + batch_rows] for i in range(0, len(values), batch_rows)]
    plain = (pa.RecordBatch.from_pydict({"x": piece}) for piece in pieces)
    return numbered(plain, version, schema)


def append(table, stream, position, values, schema=SCHEMA):
    return table.append_once(
        Position(stream, position), schema, lambda version: batches_of(values, version, schema)
    )


def rows(table, **bounds):
    return [row for batch in table.scan(**bounds) for row in batch.to_pylist()]


def values(table, **bounds):
    return [row["x"] for row in rows(table, **bounds)]


def commit_of_rows(table):
    """Version -> number of rows its own log entry added."""
    added = {}
    for path in sorted((table.folder.path / "_delta_log").glob("*.json")):
        added[int(path.stem)] = sum('"add":' in line for line in path.read_text().splitlines())
    return added


# -- reading ----------------------------------------------------------------------


def test_before_the_first_commit_there_is_nothing(table):
    assert table.version() == -1
    assert table.position("a") == -1
    assert table.count_rows() == 0
    assert table.schema().names == []
    assert rows(table) == []
    assert table.sweep() == 0


def test_rows_come_back_in_the_order_they_were_given(table):
    append(table, "a", 1, [3, 1, 2])
    append(table, "b", 1, [9, 7])
    assert values(table) == [3, 1, 2, 9, 7]
    assert table.count_rows() == 5


def test_rows_are_stamped_with_the_version_that_committed_them_and_their_place(table):
    for stream, some in (("a", [1, 2, 3]), ("b", [4]), ("c", [5, 6])):
        append(table, stream, 1, some)
        newest = [row for row in rows(table) if row[VERSION] == table.version()]
        assert [row["x"] for row in newest] == some
        assert [row[ROW] for row in newest] == list(range(len(some)))
    added = commit_of_rows(table)
    assert {row[VERSION] for row in rows(table)} == {v for v, files in added.items() if files}


def test_rows_are_read_by_a_range_of_versions(table):
    ends = []
    for number in (1, 2, 3):
        append(table, "a", number, [number])
        ends.append(table.version())
    assert values(table, after=ends[0]) == [2, 3]
    assert values(table, upto=ends[1]) == [1, 2]
    assert values(table, after=ends[0], upto=ends[1]) == [2]
    assert values(table, after=ends[2]) == []


def test_only_the_asked_columns_are_read_and_unknown_ones_are_left_out(table):
    append(table, "a", 1, [1])
    assert rows(table, columns=["x"]) == [{"x": 1}]
    assert rows(table, columns=["x", "unknown"]) == [{"x": 1}]


def test_batches_are_no_larger_than_asked(table):
    append(table, "a", 1, list(range(100)))
    sizes = [batch.num_rows for batch in table.scan(batch_rows=30)]
    assert sum(sizes) == 100
    assert max(sizes) <= 30


def test_a_scan_that_began_is_not_disturbed_by_a_commit(table):
    append(table, "a", 1, [1])
    scan = table.scan()
    append(table, "a", 2, [2])
    assert [batch["x"].to_pylist() for batch in scan] == [[1]]


def test_a_scan_can_feed_an_append_to_another_table(table, tmp_path):
    append(table, "a", 1, [1, 2, 3])
    other = Table(tmp_path / "other")
    other.append_once(Position("a", 1), SCHEMA, lambda version: table.scan())
    assert rows(other) == rows(table)


@pytest.mark.parametrize("num_columns", [10, 31, 40, 120])
def test_a_table_may_have_any_number_of_columns(table, num_columns):
    schema = pa.schema([(f"c{i}", pa.int64()) for i in range(num_columns)] + list(SCHEMA))
    append(table, "a", 1, [1, 2], schema)
    append(table, "a", 2, [3], schema)
    assert values(table) == [1, 2, 3]
    assert values(table, after=rows(table)[0][VERSION]) == [3]


def test_an_object_before_the_stamps_does_not_hide_them(table):
    schema = pa.schema([("meta", pa.struct([("a", pa.int64())])), *SCHEMA])
    append(table, "a", 1, [1, 2], schema)
    assert values(table) == [1, 2]


@pytest.mark.slow
def test_a_commit_of_many_files_keeps_the_order_of_its_rows(table, monkeypatch):
    monkeypatch.setattr(tables, "FILE_BYTES", 20_000)
    expected = list(range(50_000))
    table.append_once(
        Position("a", 1), SCHEMA, lambda version: batches_of(expected, version, batch_rows=500)
    )
    append(table, "b", 1, [-1])
    assert len(list(table.folder.path.glob("*.parquet"))) > 10
    assert values(table) == [*expected, -1]
    assert [row[ROW] for row in rows(table)] == [*expected, 0]
    assert table.count_rows() == 50_001


def test_any_reader_of_delta_sees_the_same_rows(table):
    append(table, "a", 1, [1, 2])
    append(table, "b", 1, [3])
    theirs = DeltaTable(table.folder.path).to_pyarrow_table().sort_by([(VERSION, "ascending")])
    assert sorted(theirs["x"].to_pylist()) == [1, 2, 3]
    assert DeltaTable(table.folder.path).transaction_version("a") == 1


# -- exactly once -------------------------------------------------------------------


def test_a_position_that_is_there_is_not_committed_again(table):
    assert append(table, "a", 5, [1]) is True
    assert append(table, "a", 5, [1]) is False
    assert append(table, "a", 4, [2]) is False
    assert values(table) == [1]
    assert table.position("a") == 5


def test_a_replayed_position_does_not_even_ask_for_the_rows(table):
    append(table, "a", 1, [1])

    def never(version):
        raise AssertionError("asked")

    assert table.append_once(Position("a", 1), SCHEMA, never) is False


def test_streams_have_positions_of_their_own(table):
    append(table, "a", 7, [1])
    append(table, "b", 2, [2])
    assert (table.position("a"), table.position("b"), table.position("c")) == (7, 2, -1)


def test_a_unit_without_rows_commits_its_position(table):
    assert table.append_once(Position("a", 1), SCHEMA, lambda version: iter(())) is True
    assert table.position("a") == 1
    assert table.append_once(Position("a", 1), SCHEMA, lambda version: iter(())) is False
    append(table, "b", 1, [1])
    assert values(table) == [1]


def test_a_unit_of_nothing_but_empty_batches_commits_its_position(table):
    def empty(version):
        batch = pa.RecordBatch.from_pydict({"x": pa.array([], pa.int64())})
        return numbered([batch, batch], version, SCHEMA)

    append(table, "a", 1, [1])
    assert table.append_once(Position("b", 1), SCHEMA, empty) is True
    assert table.position("b") == 1
    assert values(table) == [1]


def test_a_writer_that_was_overtaken_stamps_its_rows_with_the_version_they_get(table):
    append(table, "other", 0, [0])
    rival, versions = Table(table.folder.path), []

    def overtaken(version):
        versions.append(version)
        if len(versions) == 1:
            append(rival, "other", 1, [10])
        return batches_of([20], version)

    assert table.append_once(Position("mine", 1), SCHEMA, overtaken) is True
    assert len(versions) == 2
    assert values(table) == [0, 10, 20]
    added = commit_of_rows(table)
    assert [row[VERSION] for row in rows(table)] == [v for v, files in added.items() if files]


def test_a_writer_that_was_overtaken_with_its_own_position_commits_nothing(table):
    rival, asked = Table(table.folder.path), []

    def overtaken(version):
        asked.append(version)
        append(rival, "a", 1, [1])
        return batches_of([1], version)

    assert table.append_once(Position("a", 1), SCHEMA, overtaken) is False
    assert values(table) == [1]
    assert len(asked) == 1


def test_a_writer_that_is_always_overtaken_gives_up_with_a_reason(table):
    rival, count = Table(table.folder.path), []

    def overtaken(version):
        count.append(version)
        append(rival, "other", len(count), [0])
        return batches_of([1], version)

    with pytest.raises(StoreError, match="being written by another process") as error:
        table.append_once(Position("a", 1), SCHEMA, overtaken)
    assert error.value.hint
    assert table.position("a") == -1
    assert 1 not in values(table)


def test_threads_that_create_a_table_at_once_commit_each_unit_once(tmp_path):
    """Each unit is tried by two threads; losers of a race look again, as a caller would."""
    barrier = threading.Barrier(8)

    def write(number):
        barrier.wait()
        table = Table(tmp_path / "raced")
        for _ in range(20):
            try:
                append(table, f"unit {number // 2}", 1, [number // 2])
            except StoreError:
                continue
            return

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table = Table(tmp_path / "raced")
    assert sorted(values(table)) == [0, 1, 2, 3]
    added = commit_of_rows(table)
    assert sorted(row[VERSION] for row in rows(table)) == [v for v, n in added.items() if n]


def _write_units(path, units, seed):
    """Append units in a random order, again and again until all of them are there."""
    rng, table = random.Random(seed), Table(path)
    todo = list(range(units))
    while todo:
        unit = rng.choice(todo)
        try:
            append(table, f"unit {unit}", 1, [unit * 10 + i for i in range(5)])
        except StoreError:
            continue
        todo.remove(unit)


@pytest.mark.slow
def test_writers_that_are_killed_at_random_lose_nothing_and_double_nothing(tmp_path):
    path, units, seed = tmp_path / "killed", 60, 17
    spawn = multiprocessing.get_context("spawn")
    rng = random.Random(seed)
    starts = iter(range(1000))

    def start():
        process = spawn.Process(target=_write_units, args=(path, units, next(starts)))
        process.start()
        return process

    writers, kills = [start() for _ in range(2)], 0
    deadline = time.monotonic() + 120
    while any(writer.exitcode is None for writer in writers):
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.3, 0.9))
        if kills < 12 and Table(path).version() >= 0:
            victim = rng.choice([writer for writer in writers if writer.exitcode is None] or [None])
            if victim is not None:
                os.kill(victim.pid, signal.SIGKILL)
                victim.join()
                writers[writers.index(victim)] = start()
                kills += 1
    assert all(writer.exitcode == 0 for writer in writers)
    assert kills > 0
    table = Table(path)
    expected = Counter(unit * 10 + i for unit in range(units) for i in range(5))
    assert Counter(values(table)) == expected
    by_version = {}
    for row in rows(table):
        by_version.setdefault(row[VERSION], []).append(row["x"])
    assert len(by_version) == units, "a unit is one commit"
    table.sweep()
    assert Counter(values(table)) == expected


# -- columns ------------------------------------------------------------------------


def test_rows_older_than_a_column_hold_null_in_it(table):
    append(table, "a", 1, [1])
    wider = pa.schema([("x", pa.int64()), ("y", pa.string()), *STAMPS])
    table.append_once(
        Position("a", 2),
        wider,
        lambda version: numbered(
            [pa.RecordBatch.from_pydict({"x": [2], "y": ["new"]})], version, wider
        ),
    )
    assert [(row["x"], row["y"]) for row in rows(table)] == [(1, None), (2, "new")]
    assert rows(table, columns=["y"]) == [{"y": None}, {"y": "new"}]


def test_a_batch_without_a_column_of_the_table_holds_null_in_it(table):
    wider = pa.schema([("x", pa.int64()), ("y", pa.string()), *STAMPS])
    append(table, "a", 1, [1], wider)
    append(table, "a", 2, [2], SCHEMA)
    assert [(row["x"], row["y"]) for row in rows(table)] == [(1, None), (2, None)]


def test_conforming_casts_adds_nulls_and_drops_what_is_not_asked_for():
    batch = pa.RecordBatch.from_pydict({"x": pa.array([1], pa.int32()), "z": ["dropped"]})
    out = conform(batch, pa.schema([("y", pa.string()), ("x", pa.float64())]))
    assert out.to_pylist() == [{"y": None, "x": 1.0}]


def test_conforming_refuses_a_value_that_does_not_fit():
    batch = pa.RecordBatch.from_pydict({"x": ["many"]})
    with pytest.raises(pa.ArrowInvalid):
        conform(batch, pa.schema([("x", pa.int64())]))


def test_numbering_counts_over_batches_and_replaces_earlier_stamps():
    batches = [pa.RecordBatch.from_pydict({"x": [1, 2]}), pa.RecordBatch.from_pydict({"x": [3]})]
    once = list(numbered(batches, 4, SCHEMA))
    again = [row for batch in numbered(once, 9, SCHEMA) for row in batch.to_pylist()]
    assert [row[ROW] for row in again] == [0, 1, 2]
    assert {row[VERSION] for row in again} == {9}


# -- when something fails -------------------------------------------------------------


class Gone(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [Gone("the source went away"), PermissionError(13, "Permission denied", "source.jsonl")],
    ids=["own error", "looks like the disk's"],
)
def test_an_error_of_the_rows_propagates_as_itself_and_nothing_is_committed(table, error):
    append(table, "a", 1, [1])

    def fails(version):
        yield from batches_of([2, 3, 4], version)
        raise error

    with pytest.raises(type(error)) as raised:
        table.append_once(Position("a", 2), SCHEMA, fails)
    assert raised.value is error
    assert values(table) == [1]
    assert table.position("a") == 1
    assert append(table, "a", 2, [2]) is True
    assert values(table) == [1, 2]


def test_an_interrupted_append_commits_nothing(table):
    def stopped(version):
        yield from batches_of([1], version)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.append_once(Position("a", 1), SCHEMA, stopped)
    assert values(table) == []
    assert table.position("a") == -1


def test_sweeping_removes_what_no_version_names_and_nothing_else(table, monkeypatch):
    monkeypatch.setattr(tables, "FILE_BYTES", 100)
    append(table, "a", 1, list(range(200)))
    kept = {path.name for path in table.folder.path.glob("*.parquet")}
    assert len(kept) > 1
    for name in ("part-9-left.parquet", "part-9-left.parquet#1"):
        (table.folder.path / name).write_bytes(b"half a file")
    (table.folder.path / "notes.txt").write_text("mine")
    assert table.sweep() == 2
    assert {path.name for path in table.folder.path.glob("*.parquet*")} == kept
    assert (table.folder.path / "notes.txt").exists()
    assert values(table) == list(range(200))


def test_what_a_failed_append_left_is_swept(table):
    append(table, "a", 1, [1])

    def fails(version):
        yield from batches_of([2, 3, 4], version)
        raise Gone

    with pytest.raises(Gone):
        table.append_once(Position("a", 2), SCHEMA, fails)
    assert table.sweep() == 1
    assert values(table) == [1]


def test_a_file_in_the_way_of_a_table_is_a_store_error(tmp_path):
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(StoreError, match="a file is in its way"):
        append(Table(tmp_path / "demo"), "a", 1, [1])


def test_rows_that_begin_elsewhere_than_the_stream_stands_are_not_appended(table):
    def rows(version):
        return batches_of([1], version, SCHEMA)

    assert table.append_once(Position("a", 5), SCHEMA, rows, after=-1) is True
    # Another worker read from the start too, and came further.
    assert table.append_once(Position("a", 9), SCHEMA, rows, after=-1) is False
    assert table.append_once(Position("a", 9), SCHEMA, rows, after=5) is True
    assert table.position("a") == 9


def test_a_table_that_would_forget_its_positions_is_not_written_and_says_why(table):
    append(table, "a", 1, [1])
    DeltaTable(table.folder.path).alter.set_table_properties(
        {"delta.setTransactionRetentionDuration": "interval 1 day"}
    )
    with pytest.raises(StoreError, match="forgets which positions it has taken"):
        append(table, "a", 2, [2])
