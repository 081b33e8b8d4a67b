import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.transforms import words as module
from penstock.transforms.words import pieces, words_of

UNHURRIED = settings(deadline=None)
TEXTS = st.lists(st.none() | st.text(st.sampled_from("aB é漢\n.\0“"), max_size=12), max_size=8)


def numbers(text):
    return words_of(pl.Series([text])).numbers.tolist()


@pytest.mark.parametrize(
    "other", ["HELLO world", "hello, world!", " hello\n\tworld ", "“Hello” — world", "hello\0world"]
)
def test_case_spacing_and_punctuation_make_no_difference(other):
    assert numbers(other) == numbers("hello world")


@pytest.mark.parametrize("other", ["helloworld", "world hello", "hello world 1", "hello", "hallo"])
def test_other_words_have_other_numbers(other):
    assert numbers(other) != numbers("hello world")


def test_accents_and_scripts_are_told_apart():
    assert numbers("Straße") == numbers("STRAßE") != numbers("Strase")
    assert len(numbers("漢字かな")) == 4
    assert len(numbers("привет мир")) == 2


def test_numbers_never_change_between_versions_of_penstock_or_its_libraries():
    assert numbers("Hello Straße") == [8694658819824496936, 15106273225805399962]


@pytest.mark.slow
@UNHURRIED
@given(TEXTS, st.integers(1, 4))
def test_a_text_has_the_same_words_alone_as_among_others(texts, length):
    together = words_of(pl.Series(texts, dtype=pl.String))
    grams, places = together.grams(length, shorter=True)
    for row, text in enumerate(texts):
        alone = words_of(pl.Series([text], dtype=pl.String))
        assert together.numbers[together.rows == row].tolist() == alone.numbers.tolist()
        assert grams[together.rows[places] == row].tolist() == alone.grams(length, True)[0].tolist()


def test_grams_are_the_runs_of_words_within_a_text():
    words = words_of(pl.Series(["a b c d", "e f", "a b c"]))
    grams, places = words.grams(3)
    assert [words.passage(place, place + 2) for place in places] == ["a b c", "b c d", "a b c"]
    assert grams[0] == grams[2] != grams[1]
    short = words.grams(3, shorter=True)[1]
    assert [words.rows[place] for place in short] == [0, 0, 1, 2]


def test_a_passage_is_cut_from_the_text():
    words = words_of(pl.Series(["One, two; three!"]))
    assert words.passage(0, 1) == "One, two"


@UNHURRIED
@given(TEXTS, st.integers(1, 20))
def test_pieces_hold_all_texts_in_order(texts, size):
    series = pl.Series(texts, dtype=pl.String)
    before, module.PIECE_BYTES = module.PIECE_BYTES, size
    try:
        parts = list(pieces(series))
    finally:
        module.PIECE_BYTES = before
    assert [text for part in parts for text in part] == texts
    assert all(len(part) for part in parts)
