import math

import pyarrow as pa
import pytest

from penstock.errors import RecipeError
from penstock.transforms.filter import Filter


def run(rows, **options):
    schema = pa.schema(
        [("_row_id", "string"), ("instruction", "string"), ("response", "string"), ("q", "double")]
    )
    rows = [{"_row_id": str(i), **row} for i, row in enumerate(rows)]
    transform = Filter(Filter.Options(quality_column="q", **options))
    outcome = transform(pa.Table.from_pylist(rows, schema=schema))
    return outcome.kept["_row_id"].to_pylist(), outcome.removed.to_pylist()


def row(instruction="a question", response="an answer", q=1.0):
    return {"instruction": instruction, "response": response, "q": q}


def test_rows_without_text_are_removed_with_what_they_hold_instead():
    kept, removed = run([row(), row(instruction=None), row(response=" \n")])
    assert kept == ["0"]
    assert removed == [
        {"_row_id": "1", "step": "filter", "reason": "instruction is empty", "evidence": "null"},
        {"_row_id": "2", "step": "filter", "reason": "response is empty", "evidence": "blank"},
    ]


def test_length_counts_characters_not_bytes_and_limits_are_inclusive():
    rows = [row(response="é" * n) for n in (2, 3, 5, 6)]
    kept, removed = run(rows, min_characters={"response": 3}, max_characters={"response": 5})
    assert kept == ["1", "2"]
    assert [(entry["reason"], entry["evidence"]) for entry in removed] == [
        ("response has fewer than 3 characters", "2"),
        ("response has more than 5 characters", "6"),
    ]


def test_low_quality_is_removed_and_unknown_quality_is_not_judged():
    kept, removed = run([row(q=0.5), row(q=0.49), row(q=None)], min_quality=0.5)
    assert kept == ["0", "2"]
    assert [(entry["reason"], entry["evidence"]) for entry in removed] == [
        ("q is below 0.5", "0.49")
    ]


def test_a_score_that_is_no_number_is_removed_like_a_low_one():
    kept, removed = run([row(q=0.5), row(q=math.nan), row(q=math.inf)], min_quality=0.5)
    assert kept == ["0", "2"]
    assert [(entry["_row_id"], entry["reason"], entry["evidence"]) for entry in removed] == [
        ("1", "q is below 0.5", "nan")
    ]


def test_quality_is_not_asked_of_rows_that_have_no_such_column():
    table = pa.table({"_row_id": ["1"], "instruction": ["x"], "response": ["y"]})
    assert Filter(Filter.Options(min_quality=0.5))(table).kept.num_rows == 1


def test_a_row_with_several_faults_is_removed_once_for_the_first():
    _, removed = run([row(instruction="", response="", q=0.0)], min_quality=0.5)
    assert [entry["reason"] for entry in removed] == ["instruction is empty"]


def test_a_limit_on_a_column_that_may_be_null_says_nothing_about_nulls():
    kept, _ = run([row(response=None)], columns=("instruction",), min_characters={"response": 3})
    assert kept == ["0"]


def test_columns_of_the_wrong_kind_are_errors_that_say_what_to_do():
    table = pa.table({"_row_id": ["1"], "n": [1], "quality_score": ["high"]})
    with pytest.raises(RecipeError, match="'n' is int64, not text"):
        Filter(Filter.Options(columns=("n",)))(table)
    with pytest.raises(RecipeError, match="'quality_score' is string, not a number") as caught:
        Filter(Filter.Options(columns=(), min_quality=0.5))(table)
    assert "types: {quality_score: number}" in caught.value.hint
