from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.errors import RecipeError, SourceError
from penstock.recipe_file import load_recipe
from penstock.starter import write_starter


def rows(path: Path, **columns: object) -> Path:
    path.write_text("".join(json.dumps(columns) + "\n" for _ in range(3)))
    return path


def test_the_recipe_loads_and_names_the_folder(tmp_path: Path) -> None:
    path = write_starter(tmp_path / "my-model", [])
    assert load_recipe(path).name == "my-model"


def test_common_column_names_are_mapped(tmp_path: Path) -> None:
    data = rows(tmp_path / "a.jsonl", question="q" * 20, answer="an answer")
    recipe = load_recipe(write_starter(tmp_path / "project", [data]))
    assert recipe.sources["rows"].columns == {"instruction": "question", "response": "answer"}


def test_the_recipe_finds_the_data_it_was_made_for(tmp_path: Path) -> None:
    data = rows(tmp_path / "a.jsonl", instruction="i" * 20, response="response")
    recipe = load_recipe(write_starter(tmp_path / "project", [data]))
    source, options = recipe.plugin("sources", recipe.sources["rows"])
    assert len(source(options, recipe.folder).snapshot()) == 1


def test_a_quality_column_gets_its_rule_and_only_then(tmp_path: Path) -> None:
    with_score = rows(tmp_path / "a.jsonl", prompt="p" * 20, output="text", quality_score=0.9)
    without = rows(tmp_path / "b.jsonl", prompt="p" * 20, output="text")
    scored = load_recipe(write_starter(tmp_path / "one", [with_score]))
    plain = load_recipe(write_starter(tmp_path / "two", [without]))
    assert scored.validate_.range["quality_score"].min == 0.6
    assert plain.validate_.range == {}


def test_files_without_a_likely_column_are_refused_with_their_columns(tmp_path: Path) -> None:
    data = rows(tmp_path / "a.jsonl", foo="x", bar="y")
    with pytest.raises(RecipeError, match="bar, foo"):
        write_starter(tmp_path / "project", [data])
    assert not (tmp_path / "project").exists()


def test_an_existing_recipe_is_not_overwritten(tmp_path: Path) -> None:
    path = write_starter(tmp_path, [])
    path.write_text("mine")
    with pytest.raises(RecipeError, match="exists already"):
        write_starter(tmp_path, [])
    assert path.read_text() == "mine"


def test_a_missing_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        write_starter(tmp_path / "project", [tmp_path / "nowhere.jsonl"])


def test_a_folder_whose_name_cannot_be_a_models_gets_one_that_can(tmp_path: Path) -> None:
    path = write_starter(tmp_path / "2026 Größe", [])
    assert load_recipe(path).name.isascii()
