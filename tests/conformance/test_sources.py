"""What every source must do. To check another one, add a case to ``CASES``.

A case makes some input in a folder and returns the source that reads it; the
input must hold at least one row and, where the format can have them, one piece
that is not a row.
"""

import contextlib
import gzip
import json
import pickle
import sqlite3
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

import kafka_broker
from http_api import Api, send_json, serving
from penstock.sources import cursors, formats
from penstock.sources import huggingface as huggingface_module
from penstock.sources import kafka as kafka_module
from penstock.sources.base import (
    OFFSET,
    ORIGIN,
    RESERVED,
    ROW_KEY,
    DeadLetter,
    Options,
    Unit,
)
from penstock.sources.delta import DeltaSource
from penstock.sources.files import FilesSource
from penstock.sources.fivetran import FivetranSource
from penstock.sources.huggingface import HuggingFaceSource
from penstock.sources.kafka import KafkaSource
from penstock.sources.requests import RequestsSource
from penstock.sources.rest import RestSource
from penstock.sources.sql import SqlSource
from traffic_rows import Writers, asked, correction, opinion, response_id

# As many rows as make three batches; the real limit is ten times higher.
BATCH_ROWS = 1_000
MAX_BATCH_ROWS = 2_000
NUM_ROWS = 2_345


def _jsonl() -> bytes:
    lines = [json.dumps({"instruction": f"q{i}", "n": i}) for i in range(NUM_ROWS)]
    return "\n".join(["not json", *lines]).encode()


def files_jsonl(folder):
    (folder / "a.jsonl").write_bytes(_jsonl())
    (folder / "b.jsonl").write_bytes(b'{"instruction": "one more"}\n')
    return FilesSource(FilesSource.Options(paths="*.jsonl"), folder)


def files_jsonl_gz(folder):
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(_jsonl(), mtime=0))
    return FilesSource(FilesSource.Options(paths="*.gz"), folder)


def files_csv(folder):
    lines = ["instruction,n", *(f"q{i},{i}" for i in range(NUM_ROWS)), "ragged"]
    (folder / "a.csv").write_text("\n".join(lines))
    return FilesSource(FilesSource.Options(paths="a.csv"), folder)


def files_parquet(folder):
    table = pa.table({"instruction": [f"q{i}" for i in range(NUM_ROWS)]})
    pq.write_table(table, folder / "a.parquet")
    return FilesSource(FilesSource.Options(paths="a.parquet"), folder)


@contextlib.contextmanager
def kafka(folder):
    with kafka_broker.running() as broker:
        topic = broker.topic(2)
        broker.send(topic, [b"not json", *({"instruction": f"q{i}"} for i in range(NUM_ROWS))])
        broker.send(topic, [{"instruction": "one more"}], partition=1)
        options = KafkaSource.Options(topics=topic, bootstrap_servers=broker.address)
        yield lambda: KafkaSource(options, folder)


# A case that needs a server is a context manager around the way to build the source.
def _database(folder):
    path = folder / "shop.db"
    if not path.exists():
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, n INTEGER, at TIMESTAMP)")
            database.executemany(
                "INSERT INTO rows VALUES (?, ?, '2026-03-01 12:00:00')",
                [(i, "odd" if i == 7 else i) for i in range(NUM_ROWS)],
            )
        database.close()
    return f"sqlite:///{path}"


def sql_cursor(folder):
    options = {"url": _database(folder), "table": "rows", "cursor": "at"}
    return SqlSource(SqlSource.Options(**options), folder)


def sql_query_without_key(folder):
    options = {"url": _database(folder), "query": "SELECT n, at FROM rows", "cursor": "at"}
    return SqlSource(SqlSource.Options(**options), folder)


def sql_whole(folder):
    return SqlSource(SqlSource.Options(url=_database(folder), table="rows"), folder)


def _lake(folder):
    if not (folder / "lake").exists():
        for part in (range(NUM_ROWS), range(NUM_ROWS, NUM_ROWS + 5)):
            write_deltalake(folder / "lake", pa.table({"id": list(part)}), mode="append")
    return {"uri": "lake"}


def delta(folder):
    return DeltaSource(DeltaSource.Options(**_lake(folder)), folder)


def delta_cursor(folder):
    return DeltaSource(DeltaSource.Options(**_lake(folder), cursor="id", key="id"), folder)


class _Api:
    """The addresses of APIs that run as long as these tests."""

    url = ""
    fivetran = ""


@pytest.fixture(scope="module", autouse=True)
def _api():
    api = Api()
    api.rows = [{"id": i, "at": "2026-03-01T12:00:00Z"} for i in range(NUM_ROWS)]
    api.rows[7]["id"] = "seven"
    api.page_size = 900
    done = {"succeeded_at": "2026-03-01T12:00:01Z", "status": {"setup_state": "connected"}}
    described = {"code": "Success", "data": done}
    with serving(api), serving(answer=lambda handler, _: send_json(handler, described)) as other:
        _Api.url, _Api.fivetran = api.url, other.url
        yield


def rest_cursor(folder):
    return _rest(folder, cursor="at", key="id", null_cursor="leave_out")


def rest_whole(folder):
    return _rest(folder)


def _rest(folder, **options):
    pages = {"paginator": "json_link", "paginator_options": {"next_url_path": "next"}}
    options = {"base_url": _Api.url, "path": "rows", "data_selector": "data", **pages, **options}
    return RestSource(RestSource.Options(**options), folder)


def huggingface(folder):
    (folder / "data").mkdir(exist_ok=True)
    lines = [json.dumps({"instruction": f"q{i}", "n": i}) for i in range(NUM_ROWS)]
    (folder / "data" / "train.jsonl").write_text("\n".join(lines))
    return HuggingFaceSource(HuggingFaceSource.Options(path="data"), folder)


def fivetran(folder):
    options = {"connection": "abc", "api_key": "k", "api_secret": "s", "fresh_s": 10**12}
    landed = {"url": _database(folder), "table": "rows", "cursor": "at"}
    options |= {"base_url": _Api.fivetran, "sql": landed}
    return FivetranSource(FivetranSource.Options(**options), folder)


def requests(folder):
    if not (folder / ".penstock").exists():
        writers = Writers(folder / ".penstock")
        names = [response_id(days_ago=i % 2, number=i) for i in range(2_500)]
        unlogged = response_id(number=9_999)
        writers.log(*map(asked, names))
        writers.log(asked(unlogged, prompt=None))
        writers.say(*map(opinion, names), opinion(unlogged), correction(names[0], "Better."))
    return RequestsSource(RequestsSource.Options(), folder)


CASES = [
    # Importing datasets takes seconds.
    pytest.param(huggingface, marks=pytest.mark.slow, id="huggingface"),
    *(files_jsonl, files_jsonl_gz, files_csv, files_parquet),
    *(sql_cursor, sql_query_without_key, sql_whole),
    *(delta, delta_cursor),
    *(rest_cursor, rest_whole),
    kafka,
    fivetran,
    requests,
]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    for module in (cursors, formats, huggingface_module, kafka_module):
        monkeypatch.setattr(module, "BATCH_ROWS", BATCH_ROWS)


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def make(request, tmp_path):
    """Builds the source anew, as another process would."""
    if request.param is kafka:
        with request.param(tmp_path) as build:
            yield build
    else:
        yield lambda: request.param(tmp_path)


def batches_of(source, unit):
    return [piece for piece in source.read(unit) if isinstance(piece, pa.RecordBatch)]


@pytest.mark.slow
def test_the_same_input_gives_the_same_units(make):
    units = make().snapshot()
    assert units
    assert make().snapshot() == units


def test_no_two_units_share_a_place_on_a_stream(make):
    units = make().snapshot()
    assert len({(unit.stream, unit.position) for unit in units}) == len(units)


@pytest.mark.slow
def test_a_unit_survives_pickling_and_can_be_read_by_another_process(make):
    for unit in make().snapshot():
        copy = pickle.loads(pickle.dumps(unit))
        assert isinstance(copy, Unit)
        assert copy == unit
        assert list(make().read(copy))


@pytest.mark.slow
def test_reading_twice_gives_the_same_rows_and_letters_in_the_same_order(make):
    source = make()
    for unit in source.snapshot():
        first, second = list(source.read(unit)), list(make().read(unit))
        assert [p for p in first if isinstance(p, DeadLetter)] == [
            p for p in second if isinstance(p, DeadLetter)
        ]
        rows = [[p for p in pieces if not isinstance(p, DeadLetter)] for pieces in (first, second)]
        assert pa.Table.from_batches(rows[0]).equals(pa.Table.from_batches(rows[1]))


def test_every_row_says_where_it_came_from_and_no_two_say_the_same(make):
    source = make()
    origins = []
    for unit in source.snapshot():
        for piece in source.read(unit):
            if isinstance(piece, DeadLetter):
                origins.append(piece.origin)
            else:
                assert piece.schema.field(ORIGIN).type == pa.string()
                assert piece[ORIGIN].null_count == 0
                origins += piece[ORIGIN].to_pylist()
    assert len(set(origins)) == len(origins) > 0


def test_batches_are_bounded_and_never_empty(make):
    source = make()
    for unit in source.snapshot():
        for batch in batches_of(source, unit):
            assert 0 < batch.num_rows <= MAX_BATCH_ROWS


@pytest.mark.slow
def test_a_batch_holds_no_reserved_column_but_the_origin(make):
    source = make()
    for unit in source.snapshot():
        for batch in batches_of(source, unit):
            ours = set(batch.schema.names) & set(RESERVED)
            assert ORIGIN in ours
            assert ours <= {ORIGIN, OFFSET, ROW_KEY}


@pytest.mark.slow
def test_rows_that_say_where_they_stand_stand_within_the_unit_and_are_told_apart(make):
    source = make()
    for unit in source.snapshot():
        names = []
        for batch in batches_of(source, unit):
            if OFFSET not in batch.schema.names:
                continue
            offsets = batch[OFFSET].to_pylist()
            assert all(unit.after < offset <= unit.position for offset in offsets)
            names += batch[ROW_KEY if ROW_KEY in batch.schema.names else OFFSET].to_pylist()
        assert len(set(names)) == len(names)


@pytest.mark.slow
def test_what_is_committed_of_a_stream_that_grows_is_not_read_again(make):
    source = make()
    for unit in source.snapshot():
        pieces = list(source.read(replace(unit, after=unit.position)))
        if any(OFFSET in batch.schema.names for batch in batches_of(source, unit)):
            assert pieces == []


@pytest.mark.slow
def test_letters_give_a_reason_and_a_short_excerpt(make):
    source = make()
    for unit in source.snapshot():
        for piece in source.read(unit):
            if isinstance(piece, DeadLetter):
                assert piece.reason
                assert len(piece.excerpt) <= 200


@pytest.mark.slow
def test_reading_can_be_given_up_half_way(make):
    source = make()
    unit = source.snapshot()[0]
    pieces = source.read(unit)
    next(pieces)
    pieces.close()
    assert list(source.read(unit))


def test_options_are_frozen_and_refuse_unknown_keys(make):
    options = type(make()).Options
    assert issubclass(options, Options)
    assert options.model_config["extra"] == "forbid"
    assert options.model_config["frozen"] is True
