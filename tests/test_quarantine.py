"""``penstock quarantine``: rows are held by a real validation, and read by the command line."""

import json

import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import StoreError
from penstock.pipeline import open_pipeline
from penstock.quarantine import held, rows

pytestmark = pytest.mark.slow  # importing Great Expectations takes seconds

RECIPE = """
name: demo
sources: {files: {type: files, paths: data.jsonl}}
validate:
  not_null: [instruction]
  length: {response: {min: 3, max: 20}}
  range: {}
  max_bad_rows: 0.9
evaluate: {tasks: [word_order]}
gate: {min: {word_order: 0.6}}
"""
HOSTILE = "\x1b]0;owned\x07[red]x"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quarantine")
    (folder / "recipe.yaml").write_text(RECIPE)
    answers = ["fine", "no", "it is fine", "a" * 30, HOSTILE + "y" * 20]
    lines = [json.dumps({"instruction": f"q{i}", "response": a}) for i, a in enumerate(answers)]
    lines.append(json.dumps({"instruction": None, "response": "fine"}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    pipeline = open_pipeline(folder / "recipe.yaml")
    pipeline.run(until="validate")
    return pipeline


def penstock(pipeline, *arguments):
    recipe = ["--recipe", str(pipeline.recipe.folder / "recipe.yaml")]
    result = CliRunner().invoke(app, ["quarantine", *arguments, *recipe])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_held_rows_are_counted_by_rule_the_most_broken_first(pipeline):
    lengths, nulls = held(pipeline)
    assert (lengths.source, lengths.num_rows, nulls.num_rows) == ("files", 3, 1)
    assert "lengths_to_be_between" in lengths.rule
    assert "not_be_null" in nulls.rule
    shown = json.loads(penstock(pipeline, "list", "--json"))
    assert [one["num_rows"] for one in shown] == [3, 1]


def test_a_row_is_shown_by_the_start_of_its_id(pipeline):
    example = held(pipeline)[0].example
    (one,) = rows(pipeline, example[:10])
    assert one.row == {"instruction": "q1", "response": "no"}
    assert one.value == "no"
    assert one.origin.endswith("data.jsonl:2")
    assert one.row_id == example


def test_no_more_rows_than_wanted_are_shown(pipeline):
    assert len(rows(pipeline, limit=2)) == 2
    assert len(json.loads(penstock(pipeline, "show", "--json", "--source", "files"))) == 4


def test_a_row_cannot_steer_the_terminal(pipeline):
    shown = penstock(pipeline, "show")
    assert "\x1b]" not in shown
    assert r"\x1b]0;owned\x07[red]x" in shown


@pytest.mark.parametrize("wanted", [{"row_id": "zz"}, {"source": "other"}])
def test_what_is_not_held_is_said_not_to_be(pipeline, wanted):
    with pytest.raises(StoreError, match="in quarantine"):
        rows(pipeline, **wanted)
