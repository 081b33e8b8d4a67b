import unicodedata

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import RecipeError
from penstock.transforms.clean import Normalise

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXT = st.text(st.sampled_from("ae \t\n\r\0\x1f\x85\u0301\u00e9\u212b\u2000\u3000\ufb01カ\u3099"))


def normalise(*texts, columns=("t",)):
    transform = Normalise(Normalise.Options(columns=columns))
    table = pa.table({"t": pa.array(texts, pa.string())})
    return transform(table).kept["t"].to_pylist()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a  ", "a"),
        ("e\u0301", "é"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\0b\x1bc\x85d", "abcd"),
        ("a\tb", "a\tb"),
        ("a  \t\nb", "a\nb"),
        ("a\n\n\n\nb", "a\n\nb"),
        ("a\n \n \nb", "a\n\nb"),
        ("  indented\n  code", "indented\n  code"),
        ("", ""),
        (None, None),
    ],
)
def test_text_is_brought_to_one_form(text, clean):
    assert normalise(text) == [clean]


@pytest.mark.slow
@UNHURRIED
@given(st.lists(TEXT | st.none()))
def test_normalising_twice_changes_nothing(texts):
    once = normalise(*texts)
    assert normalise(*once) == once


@UNHURRIED
@given(TEXT)
def test_the_result_is_composed_and_has_no_control_characters(text):
    (clean,) = normalise(text)
    assert unicodedata.is_normalized("NFC", clean)
    assert not any(unicodedata.category(c) == "Cc" for c in clean if c not in "\n\t")
    assert "\n\n\n" not in clean
    assert clean == clean.strip()


def test_only_the_named_columns_change_and_keep_their_place_and_type():
    table = pa.table({"t": pa.array([" a"], pa.large_string()), "u": [" b"]})
    kept = Normalise(Normalise.Options(columns=("t",)))(table).kept
    assert kept.schema == table.schema
    assert kept.to_pylist() == [{"t": "a", "u": " b"}]


def test_a_missing_column_is_an_error_with_the_nearest_spelling():
    table = pa.table({"instructions": ["x"], "response": ["y"], "_row_id": ["1"]})
    with pytest.raises(RecipeError, match=r"no column 'instruction'\. Did you mean 'instructions'"):
        Normalise(Normalise.Options())(table)


def test_a_column_that_is_not_text_is_an_error():
    with pytest.raises(RecipeError, match="'t' is int64, not text"):
        Normalise(Normalise.Options(columns=("t",)))(pa.table({"t": [1]}))
