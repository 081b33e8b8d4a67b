import threading
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from penstock.day_tables import DAY, ID_MS, RESPONSE_ID, DayTable, day_of, id_ms
from penstock.tables import ROW, VERSION, Position, numbered
from traffic_rows import response_id

SCHEMA = pa.schema(
    [
        (DAY, pa.date32()),
        (ID_MS, pa.int64()),
        (RESPONSE_ID, pa.string()),
        ("said", pa.string()),
        (VERSION, pa.int64()),
        (ROW, pa.int64()),
    ]
)


class Opened(DayTable):
    """Remembers which files were opened."""

    def __init__(self, folder):
        super().__init__(folder)
        self.names = []
        real = self.folder.opened
        self.folder.opened = lambda name: (self.names.append(name), real(name))[1]


@pytest.fixture
def table(tmp_path):
    return Opened(tmp_path / "log")


def append(table, names, stream="one", number=0, said="x"):
    rows = [
        {DAY: day_of(id_ms(one)), ID_MS: id_ms(one), RESPONSE_ID: one, "said": said}
        for one in names
    ]
    own = pa.schema([field for field in SCHEMA if field.name not in (VERSION, ROW)])
    batches = [
        pa.RecordBatch.from_pylist([row for row in rows if row[DAY] == day], own)
        for day in sorted({row[DAY] for row in rows})
    ]
    position = Position(stream, number)
    table.append(position, SCHEMA, lambda version: numbered(batches, version, SCHEMA))


def day(name):
    return day_of(id_ms(name))


def test_a_response_is_found_without_opening_files_of_other_days_or_moments(table):
    wanted = response_id(days_ago=1)
    for number in range(10):
        append(table, [response_id(days_ago=number % 3, number=10_000 + number)], "other", number)
    append(table, [wanted])
    table.names.clear()
    found = table.find([wanted], day(wanted)).to_pylist()
    assert [(row[RESPONSE_ID], row[DAY]) for row in found] == [(wanted, day(wanted))]
    assert len(table.names) == 1
    assert table.names[0].startswith(f"{DAY}={day(wanted)}/")


def test_rows_are_found_in_the_order_they_came_and_up_to_a_version(table):
    name = response_id()
    for number, said in enumerate("abc"):
        append(table, [name], number=number, said=said)
    versions = [row[VERSION] for row in table.find([name], day(name)).to_pylist()]
    assert versions == sorted(versions)
    upto = table.find([name], day(name), versions[1]).to_pylist()
    assert [row["said"] for row in upto] == ["a", "b"]


def test_a_span_of_time_is_read_without_opening_files_of_other_moments(table):
    early, late = [response_id(2), response_id(2, 5)], [response_id(1)]
    append(table, early, number=0)
    append(table, late, number=1)
    table.names.clear()
    found = table.between(id_ms(early[0]), id_ms(early[1]), [RESPONSE_ID, "said"])
    assert found[RESPONSE_ID].to_pylist() == early[:1]
    assert len(table.names) == 1
    assert table.between(0, id_ms(early[0]), [RESPONSE_ID]).num_rows == 0
    assert table.between(0, 2**42, [RESPONSE_ID]).num_rows == 3


def test_what_is_not_there_is_not_found(table):
    name = response_id()
    assert table.find([name], day(name)).num_rows == 0
    append(table, [response_id(number=1)])
    assert table.find([name], day(name)).num_rows == 0
    assert table.find([response_id(days_ago=9)], day(name) - timedelta(days=9)).num_rows == 0


def test_trying_again_appends_once(table):
    append(table, [response_id()], number=0)
    append(table, [response_id()], number=0)
    assert table.count_rows() == 1


@pytest.mark.slow
def test_writers_that_begin_at_once_lose_nothing(tmp_path):
    def write(stream):
        for number in range(3):
            append(DayTable(tmp_path / "log"), [response_id()], stream, number)

    threads = [threading.Thread(target=write, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert DayTable(tmp_path / "log").count_rows() == 12


def test_compacting_makes_one_file_of_a_days_many_and_changes_no_row(table):
    names = [response_id(number=i) for i in range(5)]
    for number, name in enumerate(names):
        append(table, [name], number=number, said=f"of {number}")
    before = table.find(names, day(names[0])).to_pylist()
    standing = table.standing()
    table.compact(day(names[0]))
    table.names.clear()
    assert table.find(names, day(names[0])).to_pylist() == before
    assert len(table.names) == 1
    assert table.standing() == standing
    third = before[2][VERSION]
    scanned = [row for batch in table.scan(third - 1, third) for row in batch.to_pylist()]
    assert [row["said"] for row in scanned] == ["of 2"]


def test_days_before_are_dropped_and_others_stay(table):
    old, young = response_id(days_ago=5), response_id()
    append(table, [old, young])
    table.expire(datetime.now(UTC).date() - timedelta(days=4))
    assert table.find([old], day(old)).num_rows == 0
    assert table.find([young], day(young)).num_rows == 1


def test_what_was_said_is_not_in_the_tables_own_log(table, tmp_path):
    names = [response_id(number=i) for i in range(2)]
    for number, name in enumerate(names):
        append(table, [name], number=number, said="a secret")
    table.compact(day(names[0]))
    logs = [path.read_bytes() for path in (tmp_path / "log" / "_delta_log").iterdir()]
    assert len(logs) > 3
    assert not any(b"a secret" in text for text in logs)


def test_the_newest_rows_come_first_and_older_files_stay_closed(table):
    assert table.newest(5) == []
    names = [response_id(days_ago=days) for days in (0, 3, 1)]
    for number, name in enumerate(names):
        append(table, [name], number=number, said=f"of {number}")
    assert [row["said"] for row in table.newest(9)] == ["of 2", "of 1", "of 0"]
    table.names.clear()
    assert [row[RESPONSE_ID] for row in table.newest(1)] == [names[2]]
    assert len(table.names) == 1


def test_no_other_columns_are_read_than_are_asked_for(table):
    name = response_id()
    append(table, [name], said="much")
    (row,) = table.find([name], day(name), columns=[ID_MS]).to_pylist()
    assert sorted(row) == sorted([DAY, ID_MS, RESPONSE_ID, VERSION, ROW])
    (row,) = table.newest(1, columns=["said"])
    assert sorted(row) == sorted(["said", RESPONSE_ID, VERSION, ROW])


def test_rows_of_files_without_a_newer_column_have_nothing_in_it(table):
    name = response_id()
    append(table, [name])
    wider = SCHEMA.insert(3, pa.field("more", pa.string()))
    told = {DAY: day(name), ID_MS: id_ms(name), RESPONSE_ID: name, "said": "y", "more": "z"}
    own = pa.schema([field for field in wider if field.name not in (VERSION, ROW)])
    batch = pa.RecordBatch.from_pylist([told], own)
    table.append(Position("one", 1), wider, lambda version: numbered([batch], version, wider))
    assert table.find([name], day(name))["more"].to_pylist() == [None, "z"]
    assert [row["more"] for row in table.newest(2)] == ["z", None]


def test_what_came_since_a_moment_is_read_without_older_files_and_with_what_got_no_answer(
    tmp_path,
):
    log = Opened(tmp_path / "log")
    schema = SCHEMA.insert(3, pa.field("at", pa.timestamp("us", "UTC")))
    own = pa.schema([field for field in schema if field.name not in (VERSION, ROW)])

    def write(number, *ages_s):
        now = datetime.now(UTC)
        rows = [
            {DAY: now.date(), "said": f"{number}", "at": now - timedelta(seconds=age_s)}
            for age_s in ages_s
        ]
        batch = pa.RecordBatch.from_pylist(rows, own)
        log.append(Position("one", number), schema, lambda v: numbered([batch], v, schema))

    assert log.since(datetime.now(UTC), "at", ["said"]).num_rows == 0
    write(0, 0)
    moment = datetime.now(UTC) + timedelta(milliseconds=1)
    while datetime.now(UTC) < moment + timedelta(milliseconds=2):
        pass
    write(1, 60, -60)
    log.names.clear()
    assert log.since(moment, "at", ["said"])["said"].to_pylist() == ["1"]
    assert len(log.names) == 1
