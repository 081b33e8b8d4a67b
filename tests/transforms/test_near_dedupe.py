"""Near-duplicates, through a whole run: the transform by itself only sketches and acts."""

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.engines.base import StreamedRows, run_transforms
from penstock.engines.local import LocalEngine
from penstock.errors import RecipeError
from penstock.transforms.near_dedupe import CLUSTER, NearDedupe, _band_size, jaccard
from penstock.transforms.split import Split

UNHURRIED = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
WORDS = ["the", "gate", "lets", "water", "into", "a", "pipe", "that", "feeds", "turbines"]
# Short texts of few words, so that many are alike and their sketches are exact.
TEXTS = st.lists(
    st.none() | st.lists(st.sampled_from("abc"), max_size=7).map(" ".join), max_size=25
)


def table_of(texts):
    ids = pa.array([f"{i:032x}" for i in range(len(texts))], pa.string())
    return pa.table({"_row_id": ids, "text": pa.array(texts, pa.string())})


def prepare(scratch, texts, *more, batch=7, **options):
    """Rows that were kept, by number, and the ledger rows, by number."""
    table = table_of(texts)
    rows = StreamedRows(table.schema, lambda: table.to_batches(max_chunksize=batch))
    step = NearDedupe(NearDedupe.Options(columns=("text",), **options))
    prepared = run_transforms(LocalEngine(scratch), rows, [step, *more])
    kept = [row for part in prepared.kept.batches() for row in part.to_pylist()]
    gone = [entry for part in prepared.removed_batches() for entry in part.to_pylist()]
    number = {row_id: i for i, row_id in enumerate(table["_row_id"].to_pylist())}
    return (
        {number[row["_row_id"]]: row for row in kept},
        {number[entry["_row_id"]]: entry for entry in gone},
        number,
    )


def grams(text, length):
    words = (text or "").split()
    runs = {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
    return runs or ({tuple(words)} if words else set())


def similarity(one, other, length=3):
    a, b = grams(one, length), grams(other, length)
    return len(a & b) / len(a | b) if a | b else 0.0


def test_a_row_with_one_word_changed_is_removed_and_names_the_first(tmp_path):
    # Of 40 words one is changed: 3 of 38 n-grams, a similarity of 35/41.
    words = [f"{word}{i}" for i in range(4) for word in WORDS[:10]]
    changed = [*words[:20], "other", *words[21:]]
    kept, gone, _ = prepare(tmp_path, [" ".join(words), "something else", " ".join(changed)])
    assert sorted(kept) == [0, 1]
    assert gone[2] == {
        "_row_id": f"{2:032x}",
        "step": "near_dedupe",
        "reason": "nearly the same text as an earlier row",
        "evidence": f"like {0:032x}, similarity 0.85",
    }


def test_case_and_punctuation_do_not_make_a_row_new(tmp_path):
    kept, _, _ = prepare(tmp_path, ["What is it? A gate.", "what is it -- a GATE", "what is it"])
    assert sorted(kept) == [0, 2]


def test_rows_without_a_word_are_like_no_other(tmp_path):
    kept, _, _ = prepare(tmp_path, ["", None, "...", "", "!!", None])
    assert sorted(kept) == list(range(6))


def test_a_chain_of_small_changes_is_not_followed_to_the_end(tmp_path):
    words = [f"w{i}" for i in range(60)]
    chain = [" ".join([*(f"x{j}" for j in range(i)), *words[i:]]) for i in range(0, 41, 4)]
    kept, gone, _ = prepare(tmp_path, chain, ngram=1, threshold=0.7)
    assert similarity(chain[0], chain[-1], 1) < 0.3
    assert len(kept) > 1
    assert gone


@pytest.mark.slow
@UNHURRIED
@given(TEXTS, st.sampled_from([0.5, 0.8, 1.0]), st.integers(1, 3), st.integers(1, 9))
def test_every_removed_row_names_an_earlier_kept_row_that_it_is_like(
    tmp_path, texts, threshold, ngram, batch
):
    kept, gone, number = prepare(tmp_path, texts, batch=batch, threshold=threshold, ngram=ngram)
    assert sorted([*kept, *gone]) == list(range(len(texts)))
    for place, entry in gone.items():
        _, leader, _, stated = entry["evidence"].replace(",", "").split()
        assert number[leader] in kept
        assert number[leader] < place
        found = similarity(texts[number[leader]], texts[place], ngram)
        assert found >= threshold
        assert float(stated) == pytest.approx(found, abs=0.006)


@pytest.mark.slow
@UNHURRIED
@given(TEXTS, TEXTS, st.sampled_from(["first", "all"]), st.integers(1, 9))
def test_rows_that_arrive_later_change_nothing_about_those_that_were_there(
    tmp_path, old, new, keep, batch
):
    before = prepare(tmp_path, old, threshold=0.5, ngram=2, keep=keep)
    after = prepare(tmp_path, old + new, batch=batch, threshold=0.5, ngram=2, keep=keep)
    for was, now in zip(before[:2], after[:2], strict=True):
        assert {i: row for i, row in now.items() if i < len(old)} == was


@pytest.mark.slow
@UNHURRIED
@given(TEXTS)
def test_equal_rows_always_share_a_fate(tmp_path, texts):
    kept, gone, _ = prepare(tmp_path, texts, threshold=0.6, ngram=2, keep="all")
    fate = {}
    for i, text in enumerate(texts):
        if text:
            mine = kept[i][CLUSTER] if i in kept else gone[i]["evidence"]
            assert fate.setdefault(text, mine) == mine


def test_nearly_all_planted_near_duplicates_are_found_and_no_other_row_is_removed(tmp_path):
    chance = random.Random(3)
    originals = [[f"v{chance.randrange(3000)}" for _ in range(60)] for _ in range(1500)]
    copies = []
    for words in originals[:500]:
        words = words.copy()
        words[chance.randrange(60)] = "changed"
        copies.append(words)
    texts = [" ".join(words) for words in originals + copies]
    kept, gone, _ = prepare(tmp_path, texts, batch=300)
    assert set(range(1500)) <= set(kept)
    assert len(gone) >= 490


@pytest.mark.slow
def test_rows_that_differ_in_one_word_of_many_give_pairs_in_proportion_to_rows(
    tmp_path, monkeypatch
):
    from penstock.engines import clusters

    seen = []
    judged = clusters._judged

    def counted(transform, sketches, pairs):
        seen.append(len(pairs))
        return judged(transform, sketches, pairs)

    monkeypatch.setattr(clusters, "_judged", counted)
    text = " ".join(f"w{i}" for i in range(200))
    _, gone, _ = prepare(tmp_path, [f"{text} {i}" for i in range(2000)], batch=500)
    assert len(gone) == 1999
    assert seen[0] < 16 * 2000


@pytest.mark.slow
def test_equal_rows_are_not_even_compared(tmp_path, monkeypatch):
    from penstock.transforms import near_dedupe

    def never(*sketches):
        raise AssertionError("compared")

    monkeypatch.setattr(near_dedupe, "jaccard", never)
    kept, gone, _ = prepare(tmp_path, ["one and the same row"] * 20_000, batch=5_000)
    assert list(kept) == [0]
    assert len(gone) == 19_999


# -- clusters ----------------------------------------------------------------------


@pytest.mark.slow
@UNHURRIED
@given(TEXTS, st.integers(0, 5))
def test_near_duplicates_that_are_kept_are_never_on_both_sides_of_a_split(tmp_path, texts, seed):
    split = Split(Split.Options(by=(CLUSTER,), validation=0.5, seed=seed))
    kept, gone, _ = prepare(tmp_path, texts, split, threshold=0.4, ngram=1, keep="all")
    side_of = {}
    for row in kept.values():
        assert side_of.setdefault(row[CLUSTER], row["split"]) == row["split"]
    for entry in gone.values():
        assert entry["reason"] == "nearly the same as rows of two clusters"


def test_a_cluster_is_named_by_its_first_row_and_a_bridge_between_two_is_removed(tmp_path):
    left = [f"l{i}" for i in range(10)]
    right = [f"r{i}" for i in range(10)]
    texts = [
        " ".join([*left, *right[:4]]),
        " ".join([*right, *left[:4]]),
        " ".join([*left, *right]),
        " ".join([*left, "x"]),
    ]
    kept, gone, _ = prepare(tmp_path, texts, threshold=0.65, ngram=1, keep="all")
    assert {i: int(row[CLUSTER], 16) for i, row in kept.items()} == {0: 0, 1: 1, 3: 0}
    assert gone[2]["evidence"] == f"like rows of {0:032x} and of {1:032x}"


def test_two_steps_cannot_both_name_clusters(tmp_path):
    step = NearDedupe(NearDedupe.Options(columns=("text",), keep="all"))
    with pytest.raises(RecipeError, match="column '_cluster' already"):
        prepare(tmp_path, ["a"], step, keep="all")


def test_a_split_by_cluster_without_clusters_says_which_column_is_missing(tmp_path):
    with pytest.raises(RecipeError, match="no column '_cluster'"):
        prepare(tmp_path, ["a"], Split(Split.Options(by=(CLUSTER,))))


# -- sketches ----------------------------------------------------------------------

SETS = st.frozensets(st.integers(0, 60), max_size=40)


@given(SETS, SETS)
def test_the_similarity_of_small_sets_is_exact(one, other):
    a, b = (np.array(sorted(values), np.uint32) for values in (one, other))
    exact = len(one & other) / len(one | other) if one | other else 0.0
    assert jaccard(a, b) == jaccard(b, a) == exact


def test_the_similarity_of_large_sets_is_estimated_without_bias():
    chance = random.Random(5)
    errors = []
    for _, share in itertools.product(range(60), (0.5, 0.8, 0.95)):
        both = chance.sample(range(2**32), 1000)
        num_common = int(1000 * share)
        cut = (1000 - num_common) // 2
        one, other = both[: 1000 - cut], both[:num_common] + both[1000 - cut :]
        a, b = (np.array(sorted(values)[:128], np.uint32) for values in (one, other))
        errors.append(jaccard(a, b) - num_common / len({*one, *other}))
    # Four standard errors of a mean of 180 estimates, each with one below 0.045.
    assert abs(np.mean(errors)) < 4 * 0.045 / 180**0.5
    assert np.std(errors) < 0.045


@pytest.mark.parametrize("threshold", [0.4, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_are_short_enough_to_find_pairs_at_the_threshold(threshold):
    size = _band_size(threshold)
    assert 112 % size == 0
    assert 1 - (1 - threshold**size) ** (112 / size) >= 0.95


def test_a_column_that_is_not_text_is_refused():
    step = NearDedupe(NearDedupe.Options(columns=("n",)))
    with pytest.raises(RecipeError, match="column 'n' is int64, not text"):
        step.sketch(pa.table({"_row_id": ["0"], "n": [1]}))
