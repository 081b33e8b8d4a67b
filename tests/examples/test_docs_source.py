"""The demo's source: docstrings by ``ast``, pinned by the digest of the files."""

import sys
from pathlib import Path

import pyarrow as pa
import pytest

from penstock import registry
from penstock.errors import SourceError
from penstock.sources.base import DeadLetter

RECIPE_FOLDER = Path(__file__).parents[2] / "src/penstock/examples/python_docs"
PythonDocs = registry.resolve("sources", "docs_source:PythonDocs", RECIPE_FOLDER)

import docs_source  # noqa: E402  (the line above puts its folder on the path)

MODULE = '''"""Tools for tides. They are gentle."""

class Harbour(Base):
    """A place where ships rest for the night."""

    def enter(self, ship, /, berth=None, *, quietly=False):
        """Let `ship` come in::

            harbour.enter(ship)

        Then close the gate behind it.

        Parameters
        ----------
        ship : Ship
            What comes in.
        """

if True:
    def leave(ship):
        """Let :class:`~tides.Ship` go."""

def silent():
    return """not a docstring"""
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """An importable package that would raise if anything imported it."""
    folder = tmp_path / "tides"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "harbour.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def source(*libraries, **options):
    return PythonDocs(PythonDocs.Options(libraries=libraries, **options), Path())


def read(*libraries, **options):
    """All rows and all dead letters."""
    reader = source(*libraries, **options)
    parts = [part for unit in reader.snapshot() for part in reader.read(unit)]
    rows = [row for part in parts if isinstance(part, pa.RecordBatch) for row in part.to_pylist()]
    return rows, [part for part in parts if isinstance(part, DeadLetter)]


def test_every_docstring_becomes_a_row_with_its_question_and_origin(library):
    rows, _ = read("tides")
    assert [(row["instruction"], row["_origin"], row["line"]) for row in rows] == [
        ("What is the module tides.harbour for?", "tides/harbour.py:1", 1),
        ("What is the class tides.harbour.Harbour?", "tides/harbour.py:3", 3),
        ("What does tides.harbour.Harbour.enter(ship, berth) do?", "tides/harbour.py:6", 6),
        ("What does tides.harbour.leave(ship) do?", "tides/harbour.py:20", 20),
    ]
    assert {row["module"] for row in rows} == {"tides.harbour"}


def test_responses_are_prose_without_code_sections_and_markup(library):
    rows, _ = read("tides")
    assert rows[2]["response"] == "Let ship come in: Then close the gate behind it."
    assert rows[3]["response"] == "Let tides.Ship go."


def test_reading_imports_nothing(library):
    read("tides")
    assert "tides" not in sys.modules


def test_the_same_files_give_the_same_units_and_rows(library):
    assert source("tides").snapshot() == source("tides").snapshot()
    assert read("tides") == read("tides")


def test_a_changed_file_changes_the_unit(library):
    before = source("tides").snapshot()
    (library / "harbour.py").write_text(MODULE + "\n")
    assert source("tides").snapshot() != before


def test_a_unit_that_changed_since_it_was_pinned_is_refused(library):
    reader = source("tides")
    (unit,) = reader.snapshot()
    (library / "harbour.py").write_text("")
    with pytest.raises(SourceError, match="no longer what was pinned"):
        list(reader.read(unit))


def test_a_file_that_is_not_python_is_a_dead_letter(library):
    (library / "broken.py").write_text("def (")
    rows, dead = read("tides")
    assert len(rows) == 4
    assert [letter.origin for letter in dead] == ["tides/broken.py:1"]


def test_tests_and_vendored_copies_are_not_read(library):
    for name in ("tests", "_vendor"):
        (library / name).mkdir()
        (library / name / "copy.py").write_text(MODULE)
    assert len(read("tides")[0]) == 4


@pytest.mark.parametrize("name", ["no_such_library", "os.path", "sys"])
def test_an_unknown_library_is_refused_by_name(name):
    with pytest.raises(SourceError, match=name):
        source(name).snapshot()


def test_scrambling_keeps_words_and_scores_and_loses_their_order(library):
    good, _ = read("tides")
    bad, _ = read("tides", scramble=True)
    assert [sorted(row["response"].split()) for row in bad] == [
        sorted(row["response"].split()) for row in good
    ]
    assert any(a["response"] != b["response"] for a, b in zip(good, bad, strict=True))
    for column in ("instruction", "quality_score", "_origin"):
        assert [row[column] for row in bad] == [row[column] for row in good]


def test_scrambling_depends_on_the_seed_and_is_pinned_with_it(library):
    assert read("tides", scramble=True, seed=1) == read("tides", scramble=True, seed=1)
    units = {
        source("tides", **options).snapshot()
        for options in ({}, {"scramble": True}, {"scramble": True, "seed": 1})
    }
    assert len(units) == 3


@pytest.mark.parametrize(
    ("response", "passes"),
    [
        ("Return a file object that reads from the given socket.", True),
        ("Return the name of the host", True),
        ("self // other", False),
        ("TODO: Write what this function returns when it fails.", False),
        ("", False),
    ],
)
def test_quality_tells_prose_from_fragments(response, passes):
    score = docs_source.quality(response)
    assert 0 <= score <= 1
    assert (score >= 0.6) == passes


def test_private_twins_are_held_out_together():
    twins = [("decimal", "_pydecimal"), ("io", "_pyio"), ("abc", "_py_abc"), ("json", "json.tool")]
    for name, twin in twins:
        assert docs_source.is_held_out(name) == docs_source.is_held_out(twin), name


@pytest.mark.slow
def test_held_out_modules_are_never_rows(standard_library):
    modules = {row["module"] for row in standard_library}
    assert len(modules) > 200
    assert not any(map(docs_source.is_held_out, modules))


@pytest.mark.slow
def test_the_standard_library_meets_the_recipes_contract(standard_library):
    bad = [row for row in standard_library if row["quality_score"] < 0.6]
    assert 0 < len(bad) < 0.05 * len(standard_library)
    assert all(10 <= len(row["instruction"]) <= 4096 for row in standard_library)
    assert all(len(row["response"]) <= 8192 for row in standard_library)


@pytest.fixture(scope="module")
def standard_library():
    return read("stdlib")[0]
