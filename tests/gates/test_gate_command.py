"""``penstock gate`` as a workflow's step calls it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import RecipeError

OUTPUT = Path(__file__).parent / "lm_eval_output"


def gate(*arguments):
    result = CliRunner().invoke(app, ["gate", "--results", str(OUTPUT / "candidate"), *arguments])
    if isinstance(result.exception, RecipeError):
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
