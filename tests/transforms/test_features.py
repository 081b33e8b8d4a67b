from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from memory_store import MemoryStore
from penstock.errors import RecipeError
from penstock.features.base import FeatureOptions
from penstock.prompt import Prompt, shown
from penstock.transforms.features import JoinFeatures

SETTINGS = {
    "names": ("profile:plan", "profile:tickets"),
    "entities": {"user_id": "customer"},
    "timestamp": "asked_at",
    "template": "[{plan}, {tickets}] {instruction}",
}


def joined(rows, **changed):
    for number, row in enumerate(rows):
        row.setdefault("_row_id", f"{number:032x}")
    table = pa.Table.from_pylist(rows)
    return JoinFeatures(FeatureOptions(**{**SETTINGS, **changed}), MemoryStore())(table)


def row(customer="a", asked_at="2026-02-01", instruction="How?"):
    return {"customer": customer, "asked_at": asked_at, "instruction": instruction}


def instructions(outcome):
    return outcome.kept["instruction"].to_pylist()


def test_a_prompt_holds_the_values_of_the_rows_time():
    outcome = joined([row(), row(asked_at="2026-03-02T00:00:00Z")])
    assert instructions(outcome) == ["[free, 1] How?", "[pro, 2] How?"]


def test_a_time_without_a_zone_is_utc():
    just_before, just_after = row(asked_at="2026-02-28T23:59:59"), row(asked_at="2026-03-01T00:00")
    assert instructions(joined([just_before, just_after])) == ["[free, 1] How?", "[pro, 2] How?"]


def test_a_row_without_a_value_goes_and_says_why():
    outcome = joined([row(), row(customer="nobody"), row(instruction=None)])
    assert instructions(outcome) == ["[free, 1] How?"]
    reasons = outcome.removed.to_pylist()
    assert [one["reason"] for one in reasons] == ["no value", "no value"]
    assert "profile:plan, profile:tickets of user_id=nobody" in reasons[0]["evidence"]
    assert reasons[1]["evidence"].startswith("instruction of user_id=a")


def test_a_default_stands_in_for_a_value():
    defaults = {"plan": "unknown", "tickets": 0}
    assert instructions(joined([row(customer="nobody")], defaults=defaults)) == [
        "[unknown, 0] How?"
    ]


def test_braces_in_an_instruction_are_text():
    assert instructions(joined([row(instruction="{plan} {0} {")])) == ["[free, 1] {plan} {0} {"]


@pytest.mark.parametrize("asked_at", ["yesterday", 3])
def test_what_is_no_time_is_an_error(asked_at):
    with pytest.raises(RecipeError, match="'asked_at' holds no times"):
        joined([row(asked_at=asked_at)])


def test_a_missing_column_is_an_error():
    with pytest.raises(RecipeError, match="no column 'client'"):
        joined([row()], entities={"user_id": "client"})


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(1, 12)), max_size=12),
    st.lists(st.integers(0, 12), max_size=3),
)
def test_however_rows_are_cut_into_batches_the_same_rows_come_out(known, cuts):
    schema = pa.schema(
        [(n, pa.string()) for n in ("_row_id", "customer", "asked_at", "instruction")]
    )
    rows = pa.Table.from_pylist(
        [
            {"_row_id": f"{i:032x}", **row(customer, f"2026-{month:02d}-01")}
            for i, (customer, month) in enumerate(known)
        ],
        schema=schema,
    )
    transform = JoinFeatures(FeatureOptions(**SETTINGS), MemoryStore())
    whole = transform(rows)
    ends = [0, *sorted(min(cut, rows.num_rows) for cut in cuts), rows.num_rows]
    parts = [transform(rows.slice(start, end - start)) for start, end in pairwise(ends)]
    for side in ("kept", "removed"):
        tables = [getattr(part, side) for part in parts]
        assert pa.concat_tables(tables).to_pylist() == getattr(whole, side).to_pylist()
    assert whole.kept.num_rows + whole.removed.num_rows == rows.num_rows


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": ("plan",)}, "'plan' is not VIEW:FEATURE"),
        ({"names": ("a:plan", "b:plan")}, "two features are called the same"),
        ({"names": ("a:instruction",)}, "two features are called the same"),
        ({"template": "{plan} {instruction}"}, "has instruction, plan, needs instruction, plan, t"),
        ({"template": "{plan} {tickets}"}, "needs instruction"),
        ({"template": "{plan.__class__} {tickets} {instruction}"}, "is not a plain name"),
        ({"template": "{plan!r} {tickets} {instruction}"}, "is not a plain name"),
        ({"template": "{plan"}, "expected '}'"),
        ({"defaults": {"age": 3}}, "age is not among the features"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changed, message):
    with pytest.raises(ValidationError, match=message):
        FeatureOptions(**{**SETTINGS, **changed})


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (3, "3"), (0.5, "0.5"), (True, "True"), ("x", "x"), (1e300, "1e+300")],
)
def test_a_number_is_shown_the_same_by_both_stores(value, text):
    assert shown(value) == text


def test_a_prompt_travels_in_a_folder(tmp_path):
    prompt = FeatureOptions(**SETTINGS, defaults={"plan": "free"}).prompt
    prompt.save(tmp_path)
    assert Prompt.load(tmp_path) == prompt
    assert Prompt.load(tmp_path / "elsewhere") is None
