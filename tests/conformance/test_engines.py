"""What every engine must do. To check another one, add it to ``CASES``."""

from inspect import signature
from itertools import pairwise
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import spark_environment
from penstock.engines.base import StreamedRows, run_transforms
from penstock.engines.local import LocalEngine
from penstock.engines.ray import RayEngine
from penstock.engines.spark import SparkEngine, SparkSession
from penstock.errors import EngineError, PenstockError, RecipeError
from penstock.sources.base import Options
from penstock.tokenizer import train_tokenizer
from penstock.transforms.base import REMOVED_SCHEMA, Outcome, removed_rows
from penstock.transforms.clean import Normalise
from penstock.transforms.dedupe import ExactDedupe
from penstock.transforms.filter import Filter
from penstock.transforms.near_dedupe import NearDedupe
from penstock.transforms.split import Split
from penstock.transforms.tokenize_text import TokenizeText

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


# Built as ``case(scratch)``, or ``case(scratch, started)`` with what is started once for all
# tests by the fixture of its name.
CASES = [local, local_short_of_memory, local_with_many_buckets]


def ray(scratch, _):
    return RayEngine(scratch, parcel_bytes=1_000, bucket_bytes=1_500)


def spark(scratch, session):
    return SparkEngine(scratch, parcel_bytes=1_000, bucket_bytes=1_500, session=session)


# Engines of several processes take seconds for each pass, however few the rows.
FAR_CASES = [ray, spark]
FAR = settings(UNHURRIED, phases=[Phase.explicit])


@pytest.fixture(scope="module")
def started_ray(tmp_path_factory):
    pytest.importorskip("ray")
    first = RayEngine(tmp_path_factory.mktemp("ray"), num_cpus=2)
    yield first
    first.close()


@pytest.fixture(scope="module")
def started_spark(tmp_path_factory):
    reason = spark_environment.missing()
    if reason:
        pytest.skip(f"Spark: {reason}")
    folder = tmp_path_factory.mktemp("spark")
    session = SparkSession(str(spark_environment.PYTHON), "local[2]", folder)
    yield session
    session.close()


def built(case, request, scratch):
    if case in CASES:
        return case(scratch)
    return case(scratch, request.getfixturevalue(f"started_{case.__name__}"))


def far_cases():
    return [pytest.param(case, marks=pytest.mark.slow, id=case.__name__) for case in FAR_CASES]


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def near_engine(request, tmp_path):
    return built(request.param, request, tmp_path / "scratch")


@pytest.fixture(params=far_cases())
def far_engine(request, tmp_path):
    return built(request.param, request, tmp_path / "scratch")


@pytest.fixture(params=[*CASES, *far_cases()], ids=lambda case: case.__name__)
def engine(request, tmp_path):
    return built(request.param, request, tmp_path / "scratch")


def law(chosen, near=UNHURRIED, **strategies):
    """Two tests of one law: many examples near, and far one that has something of everything.

    Used as a class decorator: the class's ``check`` is the law.
    """

    def made(cls):
        def test_near(self, near_engine, reference, **drawn):
            self.check(near_engine, reference, **drawn)

        def test_far(self, far_engine, reference, **drawn):
            self.check(far_engine, reference, **drawn)

        cls.test_near = near(given(**strategies)(test_near))
        cls.test_far = pytest.mark.slow(FAR(example(**chosen)(given(**strategies)(test_far))))
        return cls

    return made


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
TEXT = st.none() | st.text(st.sampled_from("ab \n"), max_size=3)
TEXTS = st.lists(st.tuples(TEXT, TEXT), max_size=40)
SHORT_TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(" ".join), max_size=30)

# Letters that occur once, twice and often, near each other and far apart; some
# batches have no rows.
MANY_LETTERS = {
    "letters": [*"abacadaeafag", *"pppppp", *"abcdefghijklmnoabc"],
    "ends": [0, 7, 7, 30],
}
MANY_TEXTS = [("a", "b"), ("a ", " b"), (None, "a"), ("", "b"), ("ab", "\n"), ("b", "a\n")] * 6
MANY_SHORT_TEXTS = [
    "", "a b c a b c", "a b c a b c", "b", "a b c a b", "c c c", "b c a b c", "c c c c", "a b a b",
    "b a b a b", "a", "a b c c c", "c b a", "c b a", "c b a c", "b b", "", "a c b a", "b",
    "p q r s", "r s t u", "p q r s t u",  # the last is like both others, which are not alike
]  # fmt: skip


@law(letters=LETTERS, ends=ENDS, chosen=MANY_LETTERS)
class TestRowsComeOutInTheOrderTheyWentInHoweverTheyWereCut:
    def check(self, engine, _, letters, ends):
        mapped = engine.map_batches(rows_of(table_of(letters), *ends), DropLetter("a"))
        assert letters_of(mapped.kept) == [letter for letter in letters if letter != "a"]
        assert mapped.kept.num_rows + mapped.removed.num_rows == len(letters)


@law(letters=LETTERS, ends=ENDS, chosen=MANY_LETTERS)
class TestAllRowsOfAKeyMeetAndComeOutInIngestOrder:
    def check(self, engine, _, letters, ends):
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


@law(texts=TEXTS, ends=ENDS, chosen={"texts": MANY_TEXTS, "ends": [5, 5, 20]})
class TestAWholePreparationDependsOnTheRowsAlone:
    def check(self, engine, _, texts, ends):
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
        removed = [entry for part in prepared.removed_batches() for entry in part.to_pylist()]
        ids = [entry["_row_id"] for entry in [*removed, *kept]]
        assert sorted(ids) == table["_row_id"].to_pylist()
        assert all(
            entry["evidence"] == f"the same as {first[pairs[int(entry['_row_id'])]]:04d}"
            for entry in removed
            if entry["step"] == "dedupe"
        )


@law(
    texts=SHORT_TEXTS,
    ends=ENDS,
    keep=st.sampled_from(["first", "all"]),
    near=settings(UNHURRIED, max_examples=10),  # each compares whole preparations
    chosen={"texts": MANY_SHORT_TEXTS, "ends": [3, 9], "keep": "all"},
)
@pytest.mark.slow
class TestNearDuplicatesAreTheSameEverywhereHoweverRowsWereCut:
    def check(self, engine, reference, texts, ends, keep):
        table = table_of(texts)
        step = NearDedupe(
            NearDedupe.Options(columns=("letter",), threshold=0.5, ngram=2, keep=keep)
        )
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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(["to be or not to be"]), 300, None, folder)
    return folder


def test_plain_text_is_tokenized_to_the_same_everywhere(far_engine, reference, tokenizer):
    texts = ["to be", None, "or not" * 20, " ", "<|end|>", "é"] * 10
    step = TokenizeText(TokenizeText.Options(folder=tokenizer, column="letter"))
    found, expected = (
        run_transforms(place, rows_of(table_of(texts), 7), [step])
        for place in (far_engine, reference)
    )
    assert collect(found.kept) == collect(expected.kept)
    ledgers = [pa.concat_tables(one.removed_batches()) for one in (found, expected)]
    assert ledgers[0] == ledgers[1]
    assert found.counts == {"tokenize": 30}


class Leaky(DropLetter):
    """Loses rows without a word."""

    def __call__(self, rows):
        return Outcome(super().__call__(rows).kept, REMOVED_SCHEMA.empty_table())


def test_a_transform_that_loses_rows_without_a_word_is_found_out(engine):
    with pytest.raises(PenstockError, match="drop: 3 rows went in, but 2 were kept and 0"):
        run_transforms(engine, rows_of(table_of("abc")), [Leaky("a")])


class Failing(DropLetter):
    """Refuses rows as a transform refuses a recipe, or breaks as one with a bug does."""

    def __call__(self, rows):
        if rows.num_rows and self.letter == "bug":
            raise ZeroDivisionError("division by nought")
        if rows.num_rows:
            raise RecipeError("drop: there is nothing to drop.", "Drop something else.")
        return super().__call__(rows)


def test_what_a_transform_says_is_wrong_is_said_as_it_is(engine):
    with pytest.raises(RecipeError, match=r"^drop: there is nothing to drop\.$") as caught:
        engine.map_batches(rows_of(table_of("abc")), Failing("a"))
    assert caught.value.hint == "Drop something else."
    assert letters_of(engine.map_batches(rows_of(table_of("abc")), DropLetter("a")).kept) == [
        "b",
        "c",
    ]


def test_a_bug_in_a_transform_is_named_and_the_engine_lives_on(engine):
    with pytest.raises((ZeroDivisionError, EngineError), match="division by nought"):
        engine.map_batches(rows_of(table_of("abc")), Failing("bug"))
    assert letters_of(engine.map_batches(rows_of(table_of("ab")), DropLetter("a")).kept) == ["b"]


ODD = pa.table(
    {
        "_row_id": ["0", "1", "2"],
        "letter": ["a", "b", "c"],
        "unsigned": pa.array([1, None, 2**64 - 1], pa.uint64()),
        "small": pa.array([1, 2, 3], pa.int8()),
        "half": pa.array([0.5, None, float("inf")], pa.float16()),
        "nanoseconds": pa.array([0, 1, None], pa.timestamp("ns")),
        "zoned": pa.array([0, 1, None], pa.timestamp("us", "Europe/London")),
        "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
        "nothing": pa.nulls(3),
        "tokens": pa.array([[1, 2], [], None], pa.list_(pa.int32())),
        "turns": pa.array(
            [[{"role": "user", "content": "é\0"}], None, []],
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())])),
        ),
        "word": pa.array(["x", "y", "x"]).dictionary_encode(),
    }
)


def test_rows_of_any_type_come_out_as_they_went_in(engine):
    mapped = engine.map_batches(rows_of(ODD), DropLetter("b"))
    assert collect(mapped.kept).equals(ODD.take(pa.array([0, 2])))
    grouped = engine.map_groups(rows_of(ODD), RareOnly())
    assert collect(grouped.kept).equals(ODD)


def test_what_a_step_has_used_is_gone_when_its_results_are_discarded(engine, tmp_path):
    for mapped in (
        engine.map_batches(rows_of(table_of("abc")), DropLetter("a")),
        engine.map_groups(rows_of(table_of("abc")), RareOnly()),
    ):
        mapped.kept.discard()
        mapped.removed.discard()
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


def test_options_are_the_arguments_an_engine_is_built_with(engine):
    given = set(signature(type(engine)).parameters) - {"scratch", "session"}
    assert set(engine.Options.model_fields) == given
