"""``penstock gate`` as a workflow's step calls it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import EvaluationError, RecipeError
from penstock.gates import Decision

OUTPUT = Path(__file__).parent / "lm_eval_output"


def gate(*arguments):
    result = CliRunner().invoke(app, ["gate", "--results", str(OUTPUT / "candidate"), *arguments])
    if isinstance(result.exception, RecipeError | EvaluationError):
        raise result.exception
    return result


@pytest.mark.parametrize(
    ("arguments", "floors"),
    [
        (["--min-car", "0.1", "--min-door=0.2"], {"car": 0.1, "door": 0.2}),
        (["--min-car", "0.1", "--min", "door=0.2"], {"car": 0.1, "door": 0.2}),
    ],
)
def test_a_floor_can_be_named_in_its_flag(arguments, floors):
    result = gate("--json", *arguments)
    decision = json.loads(result.stdout)
    assert decision["policy"]["min"] == floors
    assert result.exit_code == {"PASS": 0, "BLOCK": 3}[decision["verdict"]]


def test_a_ceiling_can_be_named_in_its_flag():
    blocked = gate("--json", "--max-prose", "0.001")
    assert json.loads(blocked.stdout)["policy"]["max"] == {"prose": 0.001}
    assert blocked.exit_code == 3


@pytest.mark.parametrize("arguments", [["--min-", "0.1"], ["--baselin", "x"], ["stray"]])
def test_what_is_no_bound_is_refused(arguments):
    result = gate(*arguments)
    assert result.exit_code == 2
    assert repr(arguments[0]) in result.output


@pytest.mark.parametrize("arguments", [["--min-car"], ["--min-car", "high"]])
def test_a_bound_without_a_number_is_refused(arguments):
    with pytest.raises(RecipeError, match=r"--min 'car=(high)?' is not TASK=NUMBER"):
        gate(*arguments)


@pytest.mark.parametrize(("floor", "verdict"), [("0.01", "PASS"), ("0.999", "BLOCK")])
def test_the_summary_is_appended_whatever_the_verdict(tmp_path, monkeypatch, floor, verdict):
    summary = tmp_path / "summary.md"
    summary.write_text("what an earlier step said\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    files = [
        "--markdown",
        str(tmp_path / "new" / "gate.md"),
        "--decision",
        str(tmp_path / "d.json"),
    ]
    result = gate("--min-car", floor, "--summary", *files)
    assert result.exit_code == {"PASS": 0, "BLOCK": 3}[verdict]
    report = (tmp_path / "new" / "gate.md").read_text()
    assert f"## Gate: {verdict}" in report
    assert summary.read_text() == "what an earlier step said\n" + report
    assert Decision.from_json((tmp_path / "d.json").read_text()).verdict == verdict


def test_results_that_cannot_be_judged_are_in_the_summary_too(tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError):
        gate("--min-car", "0.1", "--summary", "--baseline", str(tmp_path / "empty"))
    assert "## Gate: error" in summary.read_text()
    assert "empty of lm-eval results" in summary.read_text()


def test_a_summary_outside_of_github_says_what_to_give_instead(monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    with pytest.raises(RecipeError, match="GITHUB_STEP_SUMMARY") as refused:
        gate("--min-car", "0.1", "--summary")
    assert "--markdown" in refused.value.hint
