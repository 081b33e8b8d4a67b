"""Files that a copy or a disk has damaged, and files made to fill memory or disk."""

import gzip
import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from ingest_project import IngestProject
from penstock.errors import SourceError
from penstock.sources import formats, lines
from penstock.sources.files import FilesSource
from penstock.sources.formats import read_parquet

# Nothing in it packs well, so that most bits of a packed file are of its rows.
ROWS = [{"n": i, "x": hashlib.sha256(str(i).encode()).hexdigest()} for i in range(4_000)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = "".join(["n,x\n", *(f"{row['n']},{row['x']}\n" for row in ROWS)]).encode()


def gz(data):
    return gzip.compress(data, mtime=0)


def zst(data):
    """As the program zstd packs it, with a checksum, which Arrow's writer leaves out."""
    packed = bytearray(pa.Codec("zstd").compress(data, asbytes=True))
    packed[4] |= 0b100
    return bytes(packed) + (xxhash.xxh64(data).intdigest() & 0xFFFFFFFF).to_bytes(4, "little")


def parquet(table=None, **options):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS) if table is None else table, sink, **options)
    return sink.getvalue()


WHOLE = {
    "a.jsonl.gz": gz(JSONL),
    "a.csv.gz": gz(CSV),
    "a.jsonl.zst": zst(JSONL),
    "a.parquet": parquet(write_page_checksum=True),
}


def flipped(data, at):
    """One bit is another; ``at`` is a share of the whole."""
    damaged = bytearray(data)
    damaged[int(at * len(data))] ^= 0x10
    return bytes(damaged)


@pytest.fixture
def run(tmp_path):
    return IngestProject(tmp_path, type="files", paths="a.*")


def put(run, name, data):
    (run.folder / name).write_bytes(data)


def assert_refused(run, message):
    with pytest.raises(SourceError, match=message) as error:
        run.ingest()
    assert error.value.hint
    assert run.rows() == []
    assert run.dead_letters() == []


@pytest.mark.parametrize("name", WHOLE)
def test_an_undamaged_file_is_read_whole(run, name):
    put(run, name, WHOLE[name])
    run.ingest()
    assert [{"n": row["n"], "x": row["x"]} for row in run.rows()] == ROWS


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_with_one_flipped_bit_is_refused_and_nothing_is_committed(run, name, at):
    put(run, name, flipped(WHOLE[name], at))
    assert_refused(run, f"{name}: not a whole (gzip|zstd|Parquet) file")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_flipped_bit_in_the_checksum_itself_is_noticed_too(run, name):
    at = {"a.jsonl.gz": -8, "a.jsonl.zst": -4}[name]
    data = bytearray(WHOLE[name])
    data[at] ^= 1
    put(run, name, bytes(data))
    assert_refused(run, f"{name}: not a whole")


@pytest.mark.slow
@pytest.mark.parametrize("num_missing", [1, 9, 50_000])
@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_file_is_refused_and_nothing_is_committed(run, name, num_missing):
    put(run, name, WHOLE[name][:-num_missing])
    assert_refused(run, f"{name}: not a whole (gzip|zstd|Parquet) file")


def test_parquet_without_checksums_whose_text_is_damaged_is_refused(run):
    data = bytearray(parquet(compression="none", use_dictionary=False))
    data[data.index(ROWS[2_000]["x"].encode())] ^= 0x80
    put(run, "a.parquet", bytes(data))
    assert_refused(run, r"a\.parquet: not a whole Parquet file: .*UTF8")


def test_parquet_without_checksums_whose_pages_do_not_unpack_is_refused(run):
    data = bytearray(parquet(compression="zstd"))
    data[len(data) // 2 : len(data) // 2 + 60] = b"\xff" * 60
    put(run, "a.parquet", bytes(data))
    assert_refused(run, r"a\.parquet: not a whole Parquet file")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pack", "line"),
    [
        ("a.jsonl.gz", gz, b'{"x": 1}\n'),
        ("a.jsonl.zst", zst, b'{"x": 1}\n'),
        ("a.csv.gz", gz, b"1,2,3,4\n"),
    ],
)
def test_a_small_file_of_very_many_lines_is_refused_before_it_fills_the_disk(
    run, monkeypatch, name, pack, line
):
    monkeypatch.setattr(lines, "NO_BOMB_BYTES", 1 << 20)
    packed = pack(line * ((4 << 20) // len(line)))
    assert len(packed) * 200 < 4 << 20
    put(run, name, packed)
    assert_refused(run, f"{name} unpacks to more than [0-9,]+ bytes.*bomb")


@pytest.mark.slow
def test_how_far_a_file_may_unpack_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "NO_BOMB_BYTES", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gz(b'{"x": 1}\n' * 200_000))
    source = FilesSource(FilesSource.Options(paths="a.*", max_expansion=10_000), tmp_path)
    (unit,) = source.snapshot()
    assert sum(batch.num_rows for batch in source.read(unit)) == 200_000


# 200 rows of 100 kB each, 20 MB in all; the file says the text once and is as small as one.
LONG = "x" * 100_000
BOMBS = {
    "text": pa.table({"x": [LONG] * 200}),
    "large text": pa.table({"x": pa.array([LONG] * 200, pa.large_string())}),
    "chats": pa.table({"x": [[{"role": "user", "content": LONG}]] * 200}),
    "texts by name": pa.table(
        {"x": pa.array([[("k", LONG)]] * 200, pa.map_(pa.string(), pa.string()))}
    ),
    "numbers": pa.table({"x": [[0] * 12_500] * 200}),
    "short rows first": pa.table({"x": ["x"] * 5_000 + [LONG] * 200}),
}


@pytest.mark.parametrize("rows", BOMBS)
def test_parquet_that_says_a_long_text_once_is_read_in_small_batches(monkeypatch, rows):
    monkeypatch.setattr(formats, "BATCH_BYTES", 1 << 20)
    table = BOMBS[rows]
    data = parquet(table)
    assert len(data) < 200_000
    num_rows = 0
    for batch in read_parquet(io.BytesIO(data), "a.parquet"):
        assert batch.nbytes < 6 << 20
        assert batch.schema.field("x").type == table.schema.field("x").type
        assert batch["x"].to_pylist() == table["x"].slice(num_rows, batch.num_rows).to_pylist()
        num_rows += batch.num_rows
    assert num_rows == table.num_rows


@pytest.mark.parametrize("rows", BOMBS)
def test_parquet_that_unpacks_without_end_is_refused_before_it_fills_the_disk(
    run, monkeypatch, rows
):
    monkeypatch.setattr(lines, "NO_BOMB_BYTES", 1 << 20)
    monkeypatch.setattr(formats, "BATCH_BYTES", 1 << 20)
    put(run, "a.parquet", parquet(BOMBS[rows], compression="zstd"))
    assert_refused(run, r"a\.parquet unpacks to more than [0-9,]+ bytes.*bomb")
