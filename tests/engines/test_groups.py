"""Choosing in one bucket, however large it is."""

import pickle
from contextlib import contextmanager

import pyarrow as pa
import pytest

from penstock.engines.base import StreamedRows, run_transforms
from penstock.engines.clusters import _FirstOfBucket
from penstock.engines.groups import ORDINAL, chosen, with_key
from penstock.engines.local import LocalEngine
from penstock.engines.parcels import PARCELS, Work, packed
from penstock.transforms.dedupe import ExactDedupe
from penstock.transforms.near_dedupe import NearDedupe

MB = 1 << 20


def table_of(texts, start=0):
    ids = [f"{start + i:032x}" for i in range(len(texts))]
    rows = {"_row_id": ids, "instruction": texts, "response": texts}
    return pa.table({name: pa.array(column, pa.string()) for name, column in rows.items()})


def equal_rows(count, text):
    """``count`` equal rows, made a few at a time."""

    def read():
        for start in range(0, count, 5_000):
            yield table_of([text] * min(5_000, count - start), start)

    return StreamedRows(table_of([]).schema, read)


@contextmanager
def counted_memory():
    """Counts what Arrow holds at most; yields a function that says it."""
    counting = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(counting)
    try:
        yield counting.max_memory
    finally:
        pa.set_memory_pool(before)


@pytest.mark.slow
def test_100_000_equal_rows_are_deduped_a_piece_at_a_time(tmp_path):
    rows = equal_rows(100_000, "x" * 400)
    engine = LocalEngine(tmp_path, bucket_bytes=4 * MB, batch_bytes=4 * MB)
    with counted_memory() as most:
        prepared = run_transforms(engine, rows, [ExactDedupe(ExactDedupe.Options())])
    assert prepared.counts == {"dedupe": 99_999}
    assert most() < 40 * MB < 100_000 * 800
    ledger = pa.concat_tables(prepared.removed_batches())
    assert ledger["_row_id"].to_pylist() == [f"{i:032x}" for i in range(1, 100_000)]
    assert ledger["evidence"].unique().to_pylist() == [f"the same as {0:032x}"]


@pytest.mark.slow
def test_equal_rows_meet_the_first_of_their_bucket_a_piece_at_a_time(tmp_path, monkeypatch):
    seen = []
    keep = _FirstOfBucket.keep

    def counted(self, rows):
        seen.append(rows.num_rows)
        return keep(self, rows)

    monkeypatch.setattr(_FirstOfBucket, "keep", counted)
    engine = LocalEngine(tmp_path, bucket_bytes=100_000)
    step = NearDedupe(NearDedupe.Options())
    prepared = run_transforms(engine, equal_rows(20_000, "one two three four"), [step])
    assert prepared.counts == {"near_dedupe": 19_999}
    assert max(seen) < 5_000


class Counting(ExactDedupe):
    """Notes how many rows it has seen at once."""

    most = 0

    def keep(self, rows):
        type(self).most = max(self.most, rows.num_rows)
        return super().keep(rows)


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(Counting, "most", 0)
    return Counting(Counting.Options())


def test_a_worker_unpacks_a_large_bucket_a_piece_at_a_time(counting):
    columns = {name: [] for name in PARCELS.names}
    for start in range(0, 10_000, 500):
        rows = with_key(table_of(["same"] * 500, start), start, counting)
        for name, value in zip(PARCELS.names, (3, start, "rows", packed(rows)), strict=True):
            columns[name].insert(0, value)  # they come in any order
    work = Work("choose", pickle.dumps(counting), (), piece_bytes=100_000)
    made = work(pa.table(columns, schema=PARCELS))
    tables = {"kept": [], "removed": []}
    for parcel in made.to_pylist():
        tables[parcel["kind"]].append(pa.ipc.open_stream(parcel["rows"]).read_all())
    kept, removed = (pa.concat_tables(tables[kind]) for kind in ("kept", "removed"))
    assert kept[ORDINAL].to_pylist() == [0]
    assert removed[ORDINAL].to_pylist() == list(range(1, 10_000))
    assert set(removed["evidence"].to_pylist()) == {f"the same as {0:032x}"}
    assert 500 < Counting.most < 2_000


class WholeGroups(Counting):
    """As any transform that does not say that the first of a group is enough."""

    by_first = False


@pytest.mark.parametrize(("transform", "most"), [(Counting, 2), (WholeGroups, 7)])
def test_only_a_transform_that_needs_the_first_row_alone_gets_pieces(monkeypatch, transform, most):
    monkeypatch.setattr(transform, "most", 0)
    step = transform(transform.Options())
    rows = with_key(table_of(list("abacaba")), 0, step)
    pieces = (rows.slice(start, 2) for start in range(0, 7, 2))
    found = list(chosen(pieces, rows.schema, step, piece_bytes=1))
    kept = [row["instruction"] for stay, _ in found for row in stay.to_pylist()]
    gone = [row[ORDINAL] for _, removed in found for row in removed.to_pylist()]
    assert kept == ["a", "b", "c"]
    assert gone == [2, 4, 5, 6]
    assert transform.most == most
