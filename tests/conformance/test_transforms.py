"""What every transform must do. To check another one, add it to ``CASES``.

Rows have text in ``instruction`` and ``response`` and a number in
``quality_score``, each perhaps null, and an id of their own.
"""

import os
import pickle
import shutil
import tempfile
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.sources.base import Options
from penstock.tokenizer import train_tokenizer
from penstock.transforms.base import (
    REMOVED_SCHEMA,
    ClusteredTransform,
    KeyedTransform,
    RowTransform,
)
from penstock.transforms.clean import Normalise
from penstock.transforms.decontaminate import Decontaminate, Item
from penstock.transforms.dedupe import ExactDedupe
from penstock.transforms.filter import Filter
from penstock.transforms.language import Language
from penstock.transforms.near_dedupe import NearDedupe
from penstock.transforms.quality import Quality
from penstock.transforms.redact import Redact
from penstock.transforms.split import Split
from penstock.transforms.tokenize import Tokenize
from penstock.transforms.tokenize_text import TokenizeText

UNHURRIED = settings(
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# For what hardly depends on the rows.
FEW = settings(UNHURRIED, max_examples=5)
FILTER = {
    "min_characters": {"response": 2},
    "max_characters": {"response": 4},
    "min_quality": 0.3,
}
# Trained when the first test needs it.
TOKENIZER = Path(tempfile.gettempdir()) / f"penstock-tokenizer-{os.getpid()}"
CASES = [
    Normalise(Normalise.Options()),
    Filter(Filter.Options(**FILTER)),
    ExactDedupe(ExactDedupe.Options()),
    ExactDedupe(ExactDedupe.Options(columns=("quality_score",))),
    Language(Language.Options(min_characters=4, among=("de", "en"))),
    Quality(Quality.Options()),
    Redact(Redact.Options()),
    Redact(Redact.Options(kinds=("email", "phone"), remove=("email",))),
    NearDedupe(NearDedupe.Options(threshold=0.5, ngram=1)),
    NearDedupe(NearDedupe.Options(threshold=0.5, ngram=1, keep="all")),
    Decontaminate(Decontaminate.Options(ngram=2, shortest=1), [Item("t item 0", ("a b", "b"))]),
    Split(Split.Options(validation=0.5)),
    Split(Split.Options(validation=0.5, by=("instruction",))),
]
# Importing transformers takes seconds; Quality asks fifty questions of each row.
SLOW_CASES = [
    Quality(Quality.Options(columns=("response",), min_words=None, min_sentences=None)),
    Tokenize(Tokenize.Options(folder=TOKENIZER, max_length=12)),
    TokenizeText(TokenizeText.Options(folder=TOKENIZER, column="response")),
]
SCHEMA = pa.schema(
    [
        ("_row_id", pa.string()),
        ("instruction", pa.string()),
        ("response", pa.string()),
        ("quality_score", pa.float64()),
    ]
)

TEXT = st.none() | st.one_of(
    st.text(st.sampled_from("ab \n\0\u0301"), max_size=5),
    st.sampled_from(["a@b.org", "+49 30 901820 a@b.org", "to be or not to be", "Das ist es."]),
    st.just("<|end|>"),
)
SCORE = st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def tables(draw):
    rows = draw(st.lists(st.tuples(TEXT, TEXT, SCORE), max_size=25))
    named = [dict(zip(SCHEMA.names[1:], row, strict=True)) for row in rows]
    return pa.Table.from_pylist(
        [{"_row_id": f"{i:032x}", **row} for i, row in enumerate(named)], schema=SCHEMA
    )


def name_of(transform):
    return transform.name


def cases(kind=object):
    fast = [case for case in CASES if isinstance(case, kind)]
    slow = [case for case in SLOW_CASES if isinstance(case, kind)]
    marked = [pytest.param(case, marks=pytest.mark.slow) for case in slow]
    return pytest.mark.parametrize("transform", [*fast, *marked], ids=name_of)


by_row, by_key, by_likeness = (
    cases(kind) for kind in (RowTransform, KeyedTransform, ClusteredTransform)
)
every = cases()


@pytest.fixture(scope="module")
def tokenizer():
    train_tokenizer(iter(["to be or not to be"]), 300, None, TOKENIZER)
    yield
    shutil.rmtree(TOKENIZER)


@pytest.fixture(autouse=True)
def _open(request):
    transform = request.getfixturevalue("transform")
    if isinstance(transform, Tokenize | TokenizeText):
        request.getfixturevalue("tokenizer")
    transform.open()


def apply(transform, rows):
    if isinstance(transform, KeyedTransform):
        return transform.keep(rows.append_column("_key", transform.key(rows)))
    if isinstance(transform, ClusteredTransform):
        return transform.act(judged(transform, rows))
    return transform(rows)


def judged(transform, rows):
    """The rows as they are when all have been compared with all before them."""
    judge = transform.judge(rows.num_rows)
    places = np.arange(rows.num_rows)
    everyone = [places[:place] for place in places]
    sketches = transform.sketch(rows)["_sketch"]
    judge.compare(places, sketches, everyone, np.ones(rows.num_rows, bool))
    found, names = judge.found(), rows["_row_id"].to_pylist()
    like = [names[j] if j != i else None for i, j in enumerate(found.like)]
    also = [names[j] if j >= 0 else None for j in found.also]
    rows = rows.append_column("_like", pa.array(like, pa.string()))
    rows = rows.append_column("_similarity", pa.array(found.similarity, pa.float64()))
    return rows.append_column("_also", pa.array(also, pa.string()))


def ids(rows):
    return rows["_row_id"].to_pylist()


def ledger(*outcomes):
    """All removed rows, sorted: their order within a batch is the engine's work."""
    entries = [entry for outcome in outcomes for entry in outcome.removed.to_pylist()]
    return sorted(entries, key=lambda entry: entry["_row_id"])


@pytest.mark.slow
@every
@UNHURRIED
@given(tables())
def test_every_row_is_kept_or_recorded_as_removed_with_step_reason_and_evidence(transform, rows):
    outcome = apply(transform, rows)
    assert sorted(ids(outcome.kept) + ids(outcome.removed)) == ids(rows)
    assert ids(outcome.kept) == sorted(ids(outcome.kept)), "kept rows changed their order"
    assert outcome.removed.schema == REMOVED_SCHEMA
    for entry in outcome.removed.to_pylist():
        assert entry["step"] == transform.name
        assert entry["reason"]
        assert entry["evidence"]


@pytest.mark.slow
@by_row
@UNHURRIED
@given(tables(), st.lists(st.integers(0, 25), max_size=4))
def test_however_rows_are_cut_into_batches_the_same_rows_come_out(transform, rows, cuts):
    whole = transform(rows)
    ends = [0, *sorted(min(cut, rows.num_rows) for cut in cuts), rows.num_rows]
    parts = [transform(rows.slice(start, end - start)) for start, end in pairwise(ends)]
    kept = pa.concat_tables([part.kept for part in parts])
    assert kept.to_pylist() == whole.kept.to_pylist()
    assert ledger(*parts) == ledger(whole)


@by_key
@UNHURRIED
@given(tables(), st.integers(1, 4))
def test_however_groups_are_put_together_the_same_rows_come_out(transform, rows, num_buckets):
    keyed = rows.append_column("_key", transform.key(rows))
    numbers = [zlib.crc32(key) % num_buckets for key in keyed["_key"].to_pylist()]
    buckets = pa.array(numbers, pa.int64())
    parts = [transform.keep(keyed.filter(pa.compute.equal(buckets, i))) for i in range(num_buckets)]
    whole = transform.keep(keyed)
    kept = [row for part in parts for row in part.kept.to_pylist()]
    assert sorted(kept, key=lambda row: row["_row_id"]) == whole.kept.to_pylist()
    assert ledger(*parts) == ledger(whole)


@by_key
@UNHURRIED
@given(tables(), st.integers(0, 25))
def test_a_group_in_pieces_after_its_first_row_is_the_same_if_it_says_so(transform, rows, cut):
    if not getattr(transform, "by_first", False):
        pytest.skip("it needs to see whole groups")
    keyed = rows.append_column("_key", transform.key(rows))
    before, after = keyed.slice(0, cut), keyed.slice(cut)
    known = [before["_key"].to_pylist().index(key) for key in set(before["_key"].to_pylist())]
    firsts = before.take(pa.array(sorted(known), pa.int64()))
    part, whole = transform.keep(pa.concat_tables([firsts, after])), transform.keep(keyed)
    late = set(ids(after))
    assert [row for row in part.kept.to_pylist() if row["_row_id"] in late] == [
        row for row in whole.kept.to_pylist() if row["_row_id"] in late
    ]
    assert [entry for entry in ledger(part) if entry["_row_id"] in late] == [
        entry for entry in ledger(whole) if entry["_row_id"] in late
    ]


@by_likeness
@UNHURRIED
@given(tables(), st.lists(st.integers(0, 25), max_size=4))
def test_however_rows_are_cut_their_sketches_are_the_same(transform, rows, cuts):
    ends = [0, *sorted(min(cut, rows.num_rows) for cut in cuts), rows.num_rows]
    parts = [transform.sketch(rows.slice(start, end - start)) for start, end in pairwise(ends)]
    whole = transform.sketch(rows)
    assert whole.column_names == ["_equal", "_buckets", "_sketch"]
    assert pa.concat_tables(parts).to_pylist() == whole.to_pylist()


@by_likeness
@UNHURRIED
@given(tables())
def test_rows_that_are_equal_in_a_sketch_meet_in_every_bucket(transform, rows):
    sketches = transform.sketch(rows).to_pylist()
    for one in sketches:
        for other in sketches:
            if one["_equal"] is not None and one["_equal"] == other["_equal"]:
                assert one == other


@by_key
@FEW
@given(tables())
def test_kept_rows_of_a_group_have_all_the_columns_they_came_with(transform, rows):
    keyed = rows.append_column("_key", transform.key(rows))
    assert transform.keep(keyed).kept.schema == keyed.schema


@every
@FEW
@given(tables())
def test_no_rows_have_the_same_columns_as_many(transform, rows):
    assert apply(transform, rows).kept.schema == apply(transform, SCHEMA.empty_table()).kept.schema


@pytest.mark.slow
@every
@FEW
@given(tables())
def test_a_transform_that_was_pickled_does_the_same(transform, rows):
    copy = pickle.loads(pickle.dumps(transform))
    copy.open()
    assert apply(copy, rows).kept.equals(apply(transform, rows).kept)


@every
def test_a_transform_declares_its_name_revision_and_options(transform):
    assert transform.name
    assert transform.revision >= 1
    assert issubclass(transform.Options, Options)
