import subprocess
import sys

import pyarrow as pa
import pytest
from pydantic import ValidationError

from penstock.errors import RecipeError
from penstock.transforms.language import Language

ENGLISH = "The water comes down to the turbine through a long pipe of steel."
GERMAN = "Das Wasser kommt durch ein langes Rohr aus Stahl zur Turbine herab."
NORWEGIAN = "Vannet kommer ned til turbinen gjennom et langt rør av stål, og porten er åpen."


def run(*texts, **options):
    """Which texts stay, and what the ledger says of the others."""
    rows = pa.table(
        {
            "_row_id": [str(i) for i in range(len(texts))],
            "text": pa.array(texts, pa.string()),
        }
    )
    transform = Language(Language.Options(columns=("text",), **options))
    transform.open()
    outcome = transform(rows)
    return [int(i) for i in outcome.kept["_row_id"].to_pylist()], outcome.removed.to_pylist()


def test_rows_in_another_language_are_removed_with_language_and_probability():
    kept, (entry,) = run(ENGLISH, GERMAN)
    assert kept == [0]
    assert entry["reason"] == "not in en"
    language, probability, *rest = entry["evidence"].split()
    assert language == "de"
    assert float(probability.rstrip(",")) > 0.9
    assert rest == ["en", "0.00"]


def test_several_languages_can_stay():
    assert run(ENGLISH, GERMAN, keep=("de", "en"))[0] == [0, 1]
    assert run(ENGLISH, GERMAN, keep=("fr",))[0] == []


def test_probabilities_of_the_languages_to_keep_are_added_up():
    # Close relatives: neither alone need reach what both together do.
    assert run(NORWEGIAN, keep=("no", "nn", "da"), min_probability=0.9)[0] == [0]


def test_texts_too_short_to_tell_stay_unless_asked_for():
    assert run("Guten Tag!", " \n" * 30, "", None)[0] == [0, 1, 2, 3]
    assert run("Guten Tag!", min_characters=5)[0] == []


@pytest.mark.slow
def test_a_choice_of_languages_makes_the_probability_about_those_alone():
    text = "What is 2+2, and is it so?"
    assert run(text, min_probability=0.99)[0] == []
    assert run(text, among=("en", "de"), min_probability=0.99)[0] == [0]


def test_only_the_beginning_of_a_long_text_is_read():
    assert run(ENGLISH * 40 + GERMAN * 4000)[0] == [0]


@pytest.mark.slow
def test_languages_that_are_not_known_are_errors_that_list_those_that_are():
    with pytest.raises(RecipeError, match=r"'eng' is not a language.*Did you mean 'en'"):
        run(ENGLISH, keep=("eng",))
    with pytest.raises(RecipeError, match=r"among.*klingon"):
        run(ENGLISH, among=("en", "klingon"))
    with pytest.raises(ValidationError, match="'de' is not in among"):
        Language.Options(keep=("de",), among=("en",))


def test_columns_must_be_text():
    rows = pa.table({"_row_id": ["1"], "n": [1]})
    with pytest.raises(RecipeError, match="not text"):
        Language(Language.Options(columns=("n",)))(rows)


@pytest.mark.slow
def test_a_missing_package_is_named_with_the_extra_to_install():
    script = """
import sys
sys.modules["py3langid"] = None
from penstock.errors import MissingExtra
from penstock.transforms.language import Language
try:
    Language(Language.Options()).open()
except MissingExtra as error:
    print(error.message, error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "py3langid" in done.stdout
    assert "penstock[text]" in done.stdout
