"""Contracts of Soda, run by Soda itself in an environment of its own."""

import json
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from penstock.contracts.soda import SodaContract
from penstock.errors import RecipeError
from penstock.pipeline import open_pipeline
from penstock.quarantine import held, rows

HOME = Path(__file__).parent.parent.parent
PYTHON = HOME / ".venvs" / "soda" / "bin" / "python"

pytestmark = pytest.mark.slow  # its environment has to be made, and each contract is a process

CONTRACT = """
dataset: warehouse/sales/public/tickets
columns:
  - name: instruction
    checks:
      - missing:
      - invalid:
          valid_min_length: 5
  - name: score
    checks:
      - invalid:
          valid_max: 1
          threshold:
            metric: percent
            must_be_less_than: 50
      - aggregate:
          function: avg
          threshold:
            must_be_less_than: 100
checks:
  - row_count:
      threshold:
        must_be_greater_than: 2
  - failed_rows:
      name: scores below a half
      expression: score < 0.5
"""
ROWS = {
    "_row_id": ["a", "b", "c", "d"],
    "instruction": ["hello there", None, "x", "long enough"],
    "score": [0.5, 0.7, 2.0, 0.1],
}


@pytest.fixture(scope="module", autouse=True)
def environment():
    made = subprocess.run(
        [HOME / "scripts" / "make-env.sh", "soda"], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"Soda cannot be installed: {made.stderr.strip()}")


@pytest.fixture
def check(tmp_path):
    def run(contract=CONTRACT, columns=None, pieces=1):
        (tmp_path / "c.yml").write_text(contract)
        table = pa.table(columns or ROWS)
        size = -(-table.num_rows // pieces)
        cut = [table.slice(i, size) for i in range(0, table.num_rows, size)]
        return SodaContract(tmp_path / "c.yml", str(PYTHON)).check("files", cut)

    return run


@pytest.mark.parametrize("pieces", [1, 3])
def test_every_failing_row_of_every_check_about_rows_is_found(check, pieces):
    findings = check(pieces=pieces)
    assert [(f.is_met, f.failing) for f in findings] == [
        (False, {"b": "null"}),
        (False, {"c": "x"}),
        (True, {}),  # one in four is within its threshold
        (True, {}),
        (True, {}),
        (False, {"d": "null"}),
    ]
    assert str(findings[0].rule).startswith("c.yml: missing(column='instruction'")
    assert "scores below a half" in str(findings[5].rule)
    assert {finding.num_rows for finding in findings} == {4}


def test_a_check_about_a_whole_column_fails_with_what_was_observed(check):
    findings = check(CONTRACT.replace("must_be_less_than: 100", "must_be_less_than: 0.1"))
    assert (findings[3].is_met, findings[3].failing) == (False, {})
    assert findings[3].observed.startswith("0.8")


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        ("just text", "it is not a mapping"),
        (CONTRACT.replace("missing:", "mising:"), "mising"),
        (CONTRACT.replace("score < 0.5", "no_such_column < 0.5"), "no_such_column"),
    ],
)
def test_a_contract_that_soda_does_not_accept_is_refused_with_its_words(check, contract, said):
    with pytest.raises(RecipeError, match=said):
        check(contract)


def test_a_python_without_soda_is_told_how_to_get_it(tmp_path):
    (tmp_path / "c.yml").write_text(CONTRACT)
    with pytest.raises(RecipeError, match="has no Soda") as error:
        SodaContract(tmp_path / "c.yml", None).check("files", [pa.table(ROWS)])
    assert "pip install soda-duckdb" in error.value.hint
    with pytest.raises(RecipeError, match="cannot be started"):
        SodaContract(tmp_path / "c.yml", "/no/python").check("files", [pa.table(ROWS)])


RECIPE = """
name: demo
sources: {files: {type: files, paths: data.jsonl}}
validate:
  not_null: []
  length: {}
  range: {}
  contracts: [{engine: soda, file: c.yml, python: PYTHON}]
  max_bad_rows: 0.8
evaluate: {tasks: [word_order]}
gate: {min: {word_order: 0.6}}
"""


def test_a_recipe_with_a_soda_contract_quarantines_its_failing_rows(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("PYTHON", str(PYTHON)))
    (tmp_path / "c.yml").write_text(CONTRACT)
    pairs = zip(ROWS["instruction"], ROWS["score"], strict=True)
    lines = [json.dumps({"instruction": text, "score": score}) for text, score in pairs]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    pipeline = open_pipeline(tmp_path / "recipe.yaml")
    report = pipeline.run(until="validate")
    assert report.artifacts["validate"].summary["rows"] == {"in": 4, "quarantined": 3, "out": 1}
    assert len(held(pipeline)) == 3
    assert {row.row["instruction"] for row in rows(pipeline)} == {None, "x", "long enough"}
    assert open_pipeline(tmp_path / "recipe.yaml").run(until="validate").stages[1].outcome == "hit"
    (tmp_path / "c.yml").write_text(CONTRACT.replace("missing:", "missing: {name: there}"))
    again = open_pipeline(tmp_path / "recipe.yaml").run(until="validate")
    assert again.stages[1].outcome == "ran"


def test_a_contract_file_that_is_not_there_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("PYTHON", str(PYTHON)))
    (tmp_path / "data.jsonl").write_text('{"instruction": "x"}')
    with pytest.raises(RecipeError, match=r"there is no file .*c\.yml"):
        open_pipeline(tmp_path / "recipe.yaml").run(until="validate")
