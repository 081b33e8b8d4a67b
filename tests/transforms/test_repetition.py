"""Measured on whole columns; held to the same measures written down plainly, one text at a time."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.transforms import repetition

pytestmark = pytest.mark.slow

# Few different words, so that phrases repeat.
TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "bb", "ccc", "é", "\n"]), max_size=40).map(" ".join), max_size=6
)


def grams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def size(words):
    return sum(map(len, words))


def top(text, n):
    words = text.split()
    counts = Counter(grams(words, n))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0
    return max(most * size(gram) for gram in counts if counts[gram] == most) / size(words)


def duplicate(text, n):
    words, seen, covered = text.split(), set(), set()
    for start, gram in enumerate(grams(words, n)):
        if gram in seen:
            covered |= set(range(start, start + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / size(words) if words else 0.0


def first_fault(text, limits, measure):
    found = ((n, measure(text, n)) for n, limit in limits.items() if measure(text, n) > limit)
    return next((f"{n}-grams: {share:.3f}" for n, share in found), None)


@settings(deadline=None, max_examples=150)
@given(TEXTS)
@example([])
@example(["", " \n "])
@example(["a b c d e f a b c d e f"])
def test_phrases_are_found_as_by_counting_them_one_by_one(texts):
    series = pl.Series(texts, dtype=pl.String)
    assert repetition.top_ngrams(series).to_list() == [
        first_fault(text, repetition.TOP_NGRAMS, top) for text in texts
    ]
    assert repetition.duplicate_ngrams(series).to_list() == [
        first_fault(text, repetition.DUPLICATE_NGRAMS, duplicate) for text in texts
    ]


def test_a_long_phrase_is_found_where_a_short_one_is_below_its_limit():
    """Of 100 words 12 are a repeated phrase: 12 % is right for 5-grams, too much for 10-grams."""
    words = [f"w{i:03d}" for i in range(88)]
    text = " ".join([*words, *words[:12]])
    assert repetition.duplicate_ngrams(pl.Series([text])).to_list() == ["9-grams: 0.120"]


def test_phrases_do_not_run_from_one_text_into_the_next():
    assert repetition.top_ngrams(pl.Series(["a b", "a b", "a b"])).to_list() == [None] * 3


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_lines_are_counted_as_one_by_one(texts):
    def share(text):
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        return (len(lines) - len(set(lines))) / len(lines) if lines else None

    series = pl.Series(texts, dtype=pl.String)
    assert repetition.lines(series).to_list() == [share(text) for text in texts]
