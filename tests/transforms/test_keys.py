import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import RecipeError
from penstock.transforms.keys import row_keys

VALUES = st.none() | st.text("a:-1", max_size=3)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), max_size=20))
def test_keys_are_equal_exactly_when_all_values_are(rows):
    table = pa.table(
        {
            "a": pa.array([a for a, _ in rows], pa.string()),
            "b": pa.array([b for _, b in rows], pa.string()),
        }
    )
    keys = row_keys(table, ["a", "b"], "step").to_pylist()
    assert len(set(zip(keys, rows, strict=True))) == len(set(keys)) == len(set(rows))


def test_keys_never_change_between_versions_of_penstock_or_its_libraries():
    table = pa.table({"a": ["x", None], "b": [1, 2]})
    keys = row_keys(table, ["a", "b"], "step", salt="s").to_pylist()
    assert [key.hex() for key in keys] == [
        "45fd42400df811e079fa1246a17482a7",
        "e42e0c14c4b822536b29f7e6612eb693",
    ]


def test_a_salt_gives_other_keys():
    table = pa.table({"a": ["x"]})
    assert row_keys(table, ["a"], "s", "1") != row_keys(table, ["a"], "s", "2")


def test_text_has_the_same_key_whatever_arrow_type_holds_it():
    types = (pa.string(), pa.large_string(), pa.string_view())
    keys = [row_keys(pa.table({"a": pa.array(["x"], t)}), ["a"], "s")[0].as_py() for t in types]
    assert len(set(keys)) == 1


def test_nested_values_cannot_be_keys():
    with pytest.raises(RecipeError, match=r"dedupe: column 'a' is list.* cannot be a key"):
        row_keys(pa.table({"a": [[1]]}), ["a"], "dedupe")
