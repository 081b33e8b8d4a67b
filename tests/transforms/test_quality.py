import pyarrow as pa
import pytest
from pydantic import ValidationError

from penstock.errors import RecipeError
from penstock.transforms.quality import Quality, rules

OFF = {
    name: False if field.annotation is bool else None
    for name, field in Quality.Options.model_fields.items()
    if name not in ("columns", "stop_words")
}
# A text that no rule of either paper takes anything against.
GOOD = (
    "A penstock is the pipe that brings water down to a turbine. It is closed by a gate, and the "
    "gate has to hold the whole weight of the lake behind it. When it opens, the flow begins "
    "slowly, so that no sudden pressure can break the pipe.\n\nOlder plants used wood with iron "
    "bands; later ones have been built of steel. Both need to be looked "
    "after with great care every year."
)


def run(texts, **options):
    """Which texts stay, and reason and evidence of the others."""
    schema = pa.schema([("_row_id", "string"), ("response", "string")])
    rows = [{"_row_id": str(i), "response": text} for i, text in enumerate(texts)]
    outcome = Quality(Quality.Options(**options))(pa.Table.from_pylist(rows, schema=schema))
    removed = {
        int(entry["_row_id"]): (entry["reason"], entry["evidence"])
        for entry in outcome.removed.to_pylist()
    }
    return [int(i) for i in outcome.kept["_row_id"].to_pylist()], removed


def only(text, **options):
    """What one rule says of one text; None where nothing is wrong."""
    return run([text], **OFF | options)[1].get(0)


def test_good_text_breaks_no_rule():
    assert run([GOOD]) == ([0], {})


@pytest.mark.parametrize(
    ("option", "bad", "evidence"),
    [
        ("lorem_ipsum", "Lorem ipsum dolor. ", "lorem_ipsum: 1"),
        ("curly_brackets", "f() { }", "curly_brackets: 1"),
        ("javascript", "Please enable JavaScript.", "javascript: 1"),
        ("min_sentences", "One. Two", "min_sentences: 1"),
        ("min_words", "only three words", "min_words: 3"),
        ("max_words", "w " * 100_001, "max_words: 1e+05"),
        ("min_mean_word_length", "a b cd", "min_mean_word_length: 1.333"),
        ("max_mean_word_length", "abcdefghijk", "max_mean_word_length: 11"),
        ("max_symbols", "# one two", "max_symbols: 0.3333"),
        ("max_symbols", "one... two three", "max_symbols: 0.3333"),
        ("max_symbols", "one… two three", "max_symbols: 0.3333"),
        ("max_bullet_lines", "- a\n* b\n\n  • c", "max_bullet_lines: 1"),
        ("max_ellipsis_lines", "More ...\nread on…\nend", "max_ellipsis_lines: 0.6667"),
        ("min_alphabetic_words", "12 34 a1 5 é", "min_alphabetic_words: 0.4"),
        ("min_stop_words", "THE theatre, the thee", "min_stop_words: 1"),
        ("max_duplicate_lines", "a\nb\n a \na\n\n", "max_duplicate_lines: 0.5"),
        ("max_duplicate_line_characters", "long line\nlong line\nx",
         "max_duplicate_line_characters: 0.4737"),
        ("max_duplicate_paragraphs", "a\nb\n\nc\n\na\nb", "max_duplicate_paragraphs: 0.3333"),
        ("max_duplicate_paragraph_characters", "a b\n\nc\n \nd\n\na b",
         "max_duplicate_paragraph_characters: 0.375"),
        ("top_ngrams", "to be or not to be", "top_ngrams: 2-grams: 0.615"),
        ("duplicate_ngrams", "a b c d e x a b c d e", "duplicate_ngrams: 5-grams: 0.455"),
    ],
)  # fmt: skip
def test_each_rule_can_be_used_alone_and_says_what_it_measured(option, bad, evidence):
    on = {option: Quality.Options.model_fields[option].default}
    assert only(GOOD, **on) is None
    reason, found = only(bad, **on)
    assert found == evidence
    paper = (
        "Raffel"
        if option in ("lorem_ipsum", "curly_brackets", "javascript", "min_sentences")
        else "Rae"
    )
    assert reason.startswith("response ")
    assert paper in reason
    assert only(bad) is None, "switched off, it finds nothing"


def test_limits_are_inclusive():
    assert only("one two three", min_words=3, max_words=3) is None
    assert only("ab abcd", min_mean_word_length=3, max_mean_word_length=3) is None


def test_every_option_that_is_a_rule_is_on_by_default():
    assert {rule.option for rule in rules(Quality.Options())} == set(OFF)
    assert list(rules(Quality.Options(**OFF))) == []


def test_the_first_rule_broken_is_the_one_recorded():
    kept, removed = run(["{ lorem ipsum }", GOOD, "{"])
    assert kept == [1]
    assert [evidence for _, evidence in removed.values()] == ["lorem_ipsum: 1", "curly_brackets: 1"]


def test_null_is_not_judged_and_empty_text_is():
    kept, removed = run([None, "", GOOD], min_sentences=None)
    assert kept == [0, 2]
    assert removed[1][1] == "min_words: 0"


def test_no_measure_of_a_text_without_words_is_an_error():
    assert run([" \n ", ""], **OFF | {"max_symbols": 0, "max_bullet_lines": 0, "top_ngrams": True})[
        0
    ] == [0, 1]


def test_stop_words_of_another_language_are_taken_literally():
    assert only("der Hund a.b", min_stop_words=2, stop_words=("der", "a.b")) is None
    assert only("der Hund axb", min_stop_words=2, stop_words=("der", "a.b")) is not None


def test_columns_that_hold_no_text_are_errors_that_say_what_to_do():
    table = pa.table({"_row_id": ["1"], "n": [1]})
    with pytest.raises(RecipeError, match="no column 'response'"):
        Quality(Quality.Options())(table)
    with pytest.raises(RecipeError, match="not text"):
        Quality(Quality.Options(columns=("n",)))(table)
    with pytest.raises(ValidationError):
        Quality.Options(max_bullet_lines=1.5)
