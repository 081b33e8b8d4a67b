import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.transforms.decontaminate import Decontaminate, Item

UNHURRIED = settings(deadline=None)
QUESTION = "Which of the seven gates of the old dam was opened first after the great flood of 1953?"
ITEMS = [
    Item("floods item 0", (QUESTION, "the eastern one", "B")),
    Item("floods item 1", ("How many turbines does the lower power house have?",)),
    Item("floods item 2", ("Yes", "No")),
]


def removed(texts, items=ITEMS, **options):
    transform = Decontaminate(Decontaminate.Options(columns=("text",), **options), items)
    ids = [str(i) for i in range(len(texts))]
    outcome = transform(pa.table({"_row_id": ids, "text": pa.array(texts, pa.string())}))
    assert len(outcome.kept) + len(outcome.removed) == len(texts)
    return {int(entry["_row_id"]): entry for entry in outcome.removed.to_pylist()}


def test_a_row_that_quotes_an_item_is_removed_with_the_item_and_the_words():
    row = f"Answer this.\n{QUESTION.lower()} I think it was the first."
    assert removed([row, "Nothing of the kind."]) == {
        0: {
            "_row_id": "0",
            "step": "decontaminate",
            "reason": "holds an evaluation item",
            "evidence": f"floods item 0: {QUESTION.lower()[:-1]}",
        }
    }


def test_thirteen_words_in_common_are_too_many_and_twelve_are_not():
    words = QUESTION.split()
    assert set(removed([" ".join(["So", *words[2:15]]), " ".join([*words[:12], "more"])])) == {0}


def test_an_item_shorter_than_that_must_occur_as_a_whole():
    question = ITEMS[1].texts[0]
    assert "floods item 1" in removed([f"Tell me: {question} Twelve."])[0]["evidence"]
    assert removed(["How many turbines does the lower power house"]) == {}


def test_texts_of_a_few_words_may_stand_anywhere():
    assert removed(["Yes", "No", "the eastern one"]) == {}
    transform = Decontaminate(Decontaminate.Options(), ITEMS)
    assert transform.num_skipped == 1
    assert set(removed(["It is the eastern one."], shortest=3)) == {0}


def test_a_quotation_over_two_columns_is_found():
    transform = Decontaminate(Decontaminate.Options(columns=("a", "b")), ITEMS)
    words = QUESTION.split()
    rows = {"_row_id": ["0"], "a": [" ".join(words[:9])], "b": [" ".join(words[9:])]}
    assert transform(pa.table(rows)).removed.num_rows == 1


def test_evidence_of_a_long_passage_is_cut():
    passage = " ".join(f"word{i}" for i in range(500))
    evidence = removed([passage], [Item("long item 0", (passage,))])[0]["evidence"]
    assert evidence.startswith("long item 0: word0 word1 ")
    assert evidence.endswith("…")
    assert len(evidence) < 350


def test_without_items_every_row_stays():
    assert removed(["a b c", None, ""], []) == {}
    assert removed([], ITEMS) == {}


WORDS = st.lists(st.sampled_from("abc"), max_size=8)


@pytest.mark.slow
@UNHURRIED
@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=4), st.integers(1, 4))
def test_exactly_the_rows_with_a_run_in_common_are_removed(rows, items, ngram):
    def runs(words, length):
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    shortest = max(1, ngram - 1)
    bad = {
        row
        for row, words in enumerate(rows)
        for item in items
        if len(item) >= shortest
        and runs(item, min(ngram, len(item))) & runs(words, min(ngram, len(item)))
    }
    named = [Item(f"item {i}", (" ".join(item),)) for i, item in enumerate(items)]
    texts = [" ".join(words) for words in rows]
    assert set(removed(texts, named, ngram=ngram, shortest=shortest)) == bad


@pytest.mark.parametrize("options", [{"ngram": 0}, {"shortest": 0}, {"n": 3}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="Options"):
        Decontaminate.Options(**options)
