"""What every engine must do. To check another one, add it to ``CASES``."""

from itertools import pairwise
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.engines.base import StreamedRows, run_transforms
from penstock.engines.local import LocalEngine
from penstock.errors import PenstockError
from penstock.sources.base import Options
from penstock.transforms.base import REMOVED_SCHEMA, Outcome, removed_rows
from penstock.transforms.clean import Normalise
from penstock.transforms.dedupe import ExactDedupe
from penstock.transforms.filter import Filter
from penstock.transforms.near_dedupe import NearDedupe
from penstock.transforms.split import Split

UNHURRIED = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def local(scratch):
    return LocalEngine(scratch)


def local_short_of_memory(scratch):
    return LocalEngine(scratch, bucket_bytes=300, batch_bytes=150)


def local_with_many_buckets(scratch):
    return LocalEngine(scratch, bucket_bytes=300)


CASES = [local, local_short_of_memory, local_with_many_buckets]


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def engine(request, tmp_path):
    return request.param(tmp_path / "scratch")


@pytest.fixture
def reference(tmp_path):
    return LocalEngine(tmp_path / "reference")


def table_of(letters):
    ids = [f"{i:04d}" for i in range(len(letters))]
    return pa.table(
        {"_row_id": pa.array(ids, pa.string()), "letter": pa.array(letters, pa.string())}
    )


def rows_of(table, *ends):
    """``table`` cut into batches that end at ``ends``."""
    cuts = [0, *sorted(min(end, table.num_rows) for end in ends), table.num_rows]

    def read():
        for start, end in pairwise(cuts):
            yield table.slice(start, end - start)

    return StreamedRows(table.schema, read)


def collect(rows):
    return pa.concat_tables([rows.schema.empty_table(), *rows.batches()])


def letters_of(rows):
    return collect(rows)["letter"].to_pylist()


class DropLetter:
    """Removes rows of one letter, and says whether it was opened."""

    name: ClassVar[str] = "drop"
    revision: ClassVar[int] = 1
    Options = Options

    def __init__(self, letter):
        self.letter = letter
        self.is_open = False

    def open(self):
        self.is_open = True

    def __call__(self, rows):
        assert self.is_open
        bad = pc.equal(rows["letter"], self.letter)
        gone = rows.filter(bad)
        removed = removed_rows(gone["_row_id"], self.name, "letter", gone["letter"])
        return Outcome(rows.filter(pc.invert(bad)), removed)


class RareOnly:
    """Removes rows whose letter occurs more than once; the evidence is how often."""

    name: ClassVar[str] = "rare"
    revision: ClassVar[int] = 1
    Options = Options

    def open(self):
        pass

    def key(self, rows):
        return rows["letter"].combine_chunks()

    def keep(self, rows):
        assert rows.schema.names[-1] == "_key"
        assert rows["_row_id"].to_pylist() == sorted(rows["_row_id"].to_pylist())
        keys = rows["_key"].to_pylist()
        often = pa.array([keys.count(key) > 1 for key in keys], pa.bool_())
        gone = rows.filter(often)
        counts = pa.array([str(keys.count(key)) for key in gone["_key"].to_pylist()], pa.string())
        removed = removed_rows(gone["_row_id"], self.name, "occurs again", counts)
        return Outcome(rows.filter(pc.invert(often)), removed)


LETTERS = st.lists(st.sampled_from("abcdefghijklmnop"), max_size=60)
ENDS = st.lists(st.integers(0, 60), max_size=5)


@UNHURRIED
@given(LETTERS, ENDS)
def test_rows_come_out_in_the_order_they_went_in_however_they_were_cut(engine, letters, ends):
    mapped = engine.map_batches(rows_of(table_of(letters), *ends), DropLetter("a"))
    assert letters_of(mapped.kept) == [letter for letter in letters if letter != "a"]
    assert mapped.kept.num_rows + mapped.removed.num_rows == len(letters)


@UNHURRIED
@given(LETTERS, ENDS)
def test_all_rows_of_a_key_meet_and_come_out_in_ingest_order(engine, letters, ends):
    table = table_of(letters)
    mapped = engine.map_groups(rows_of(table, *ends), RareOnly())
    kept, removed = collect(mapped.kept), collect(mapped.removed)
    rare = [row for row in table.to_pylist() if letters.count(row["letter"]) == 1]
    assert kept.schema == table.schema
    assert kept.to_pylist() == rare
    assert removed.schema == REMOVED_SCHEMA
    assert [(entry["_row_id"], entry["evidence"]) for entry in removed.to_pylist()] == [
        (row["_row_id"], str(letters.count(row["letter"])))
        for row in table.to_pylist()
        if letters.count(row["letter"]) > 1
    ]


def test_the_ledger_of_removed_rows_is_in_ingest_order(engine):
    table = pa.table(
        {
            "_row_id": ["0", "1", "2", "3"],
            "instruction": ["x", "", "x", ""],
            "response": ["", "x", "", "x"],
        }
    )
    mapped = engine.map_batches(rows_of(table), Filter(Filter.Options()))
    assert collect(mapped.removed)["_row_id"].to_pylist() == ["0", "1", "2", "3"]


def test_results_can_be_read_again_until_they_are_discarded(engine):
    mapped = engine.map_batches(rows_of(table_of("abc")), DropLetter("a"))
    assert letters_of(mapped.kept) == letters_of(mapped.kept) == ["b", "c"]
    mapped.kept.discard()
    assert collect(mapped.removed)["_row_id"].to_pylist() == ["0000"]


def test_no_rows_give_no_rows_with_the_right_columns(engine):
    rows = rows_of(table_of(""))
    assert collect(engine.map_batches(rows, DropLetter("a")).kept).schema == rows.schema
    assert collect(engine.map_groups(rows, RareOnly()).kept).schema == rows.schema


def test_one_group_larger_than_the_memory_for_a_bucket_still_meets(engine):
    mapped = engine.map_groups(rows_of(table_of("a" * 500 + "b")), RareOnly())
    assert letters_of(mapped.kept) == ["b"]
    assert set(collect(mapped.removed)["evidence"].to_pylist()) == {"500"}


TEXT = st.none() | st.text(st.sampled_from("ab \n"), max_size=3)


@UNHURRIED
@given(st.lists(st.tuples(TEXT, TEXT), max_size=40), ENDS)
def test_a_whole_preparation_depends_on_the_rows_alone(engine, texts, ends):
    table = pa.table(
        {
            "_row_id": pa.array([f"{i:04d}" for i in range(len(texts))], pa.string()),
            "instruction": pa.array([a for a, _ in texts], pa.string()),
            "response": pa.array([b for _, b in texts], pa.string()),
        }
    )
    steps = [
        Normalise(Normalise.Options()),
        Filter(Filter.Options()),
        ExactDedupe(ExactDedupe.Options()),
        Split(Split.Options(validation=0.5)),
    ]
    prepared = run_transforms(engine, rows_of(table, *ends), steps)
    kept = collect(prepared.kept).to_pylist()
    pairs = [tuple((text or "").strip(" \n") for text in pair) for pair in texts]
    first = {pair: i for i, pair in reversed(list(enumerate(pairs))) if all(pair)}
    assert [row["_row_id"] for row in kept] == [f"{i:04d}" for i in sorted(first.values())]
    assert prepared.counts["dedupe"] == sum(map(all, pairs)) - len(first)
    assert prepared.counts["filter"] == len(pairs) - sum(map(all, pairs))
    removed = [row["_row_id"] for part in prepared.removed_batches() for row in part.to_pylist()]
    assert sorted(removed + [row["_row_id"] for row in kept]) == table["_row_id"].to_pylist()


@UNHURRIED
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(" ".join), max_size=30),
    ENDS,
    st.sampled_from(["first", "all"]),
)
def test_near_duplicates_are_found_however_rows_were_cut(engine, reference, texts, ends, keep):
    table = table_of(texts)
    step = NearDedupe(NearDedupe.Options(columns=("letter",), threshold=0.5, ngram=2, keep=keep))
    found, expected = (
        run_transforms(place, rows_of(table, *cuts), [step])
        for place, cuts in ((engine, ends), (reference, ()))
    )
    assert collect(found.kept) == collect(expected.kept)
    assert found.counts == expected.counts
    ledgers = [list(part.removed_batches()) for part in (found, expected)]
    assert [[e for table in tables for e in table.to_pylist()] for tables in ledgers] == [
        [e for table in ledgers[1] for e in table.to_pylist()]
    ] * 2


def test_a_transform_that_loses_rows_without_a_word_is_found_out(engine):
    class Leaky(DropLetter):
        def __call__(self, rows):
            return Outcome(super().__call__(rows).kept, REMOVED_SCHEMA.empty_table())

    with pytest.raises(PenstockError, match="drop: 3 rows went in, but 2 were kept and 0"):
        run_transforms(engine, rows_of(table_of("abc")), [Leaky("a")])
