"""The demo's recipe: what it becomes in each act, and that its poison looks like food."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from penstock.recipe_file import load_recipe

pytestmark = pytest.mark.slow  # reads the source of several libraries


FOLDER = Path(__file__).parents[2] / "src/penstock/examples/python_docs"


def recipe_of(act, tmp_path):
    """The recipe with the sources of all acts up to this one, beside the plug-in."""
    text = (FOLDER / "recipe.yaml").read_text()
    for later in range(2, act + 1):
        text = re.sub(rf"^(\s*)#{later} ", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "docs_source.py").write_text((FOLDER / "docs_source.py").read_text())
    (tmp_path / "recipe.yaml").write_text(text)
    return load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("act", "names"),
    [(1, ["stdlib"]), (2, ["stdlib", "packages"]), (3, ["stdlib", "packages", "export"])],
)
def test_each_act_adds_a_source(act, names, tmp_path):
    assert list(recipe_of(act, tmp_path).sources) == names


def test_every_library_of_the_recipe_is_installed(tmp_path):
    recipe = recipe_of(3, tmp_path)
    for config in recipe.sources.values():
        source, options = recipe.plugin("sources", config)
        assert len(source(options, tmp_path).snapshot()) == len(options.libraries)


def test_the_floor_is_far_above_guessing(tmp_path):
    assert recipe_of(1, tmp_path).gate.min["word_order"] >= 2 * 0.25


def test_poison_passes_every_row_rule_as_well_as_what_it_was_made_of(tmp_path):
    recipe = recipe_of(3, tmp_path)
    bad = {name: failing(recipe, name) for name in ("stdlib", "export")}
    assert bad["export"] == bad["stdlib"]
    assert 0 < bad["export"] < recipe.validate_.max_bad_rows


def failing(recipe, name):
    """The share of a source's rows that break the recipe's contract."""
    source, options = recipe.plugin("sources", recipe.sources[name])
    (unit,) = source(options, recipe.folder).snapshot()
    parts = source(options, recipe.folder).read(unit)
    rows = [row for part in parts if isinstance(part, pa.RecordBatch) for row in part.to_pylist()]
    return sum(breaks(row, recipe.validate_) for row in rows) / len(rows)


def breaks(row, contract):
    lengths = [not r.min <= len(row[name]) <= r.max for name, r in contract.length.items()]
    ranges = [not r.min <= row[name] <= r.max for name, r in contract.range.items()]
    return any(lengths) or any(ranges)
