"""What a command works on: typed options go before what the environment says."""

import pytest
from typer.testing import CliRunner

import tiny_project
from penstock.cli import app
from penstock.errors import LedgerError, RecipeError
from penstock.ledger import Ledger

pytestmark = pytest.mark.slow  # imports MLflow


@pytest.fixture
def recipe(tmp_path):
    return tiny_project.write_project(tmp_path / "project")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A ledger and an MLflow of somebody else's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    return {
        "PENSTOCK_LEDGER": f"sqlite:///{tmp_path / 'other-ledger.db'}",
        "PENSTOCK_STORE": str(tmp_path / "other"),
    }


def penstock(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("variable", ["PENSTOCK_LEDGER", "PENSTOCK_STORE"])
def test_a_recipe_that_is_typed_goes_before_a_ledger_of_the_environment(
    recipe, elsewhere, variable, tmp_path, monkeypatch
):
    monkeypatch.setenv(variable, elsewhere[variable])
    done = penstock("promote", "--version", 1, "--recipe", recipe)
    assert isinstance(done.exception, LedgerError), "a recipe promotes what passed its gate only"
    assert "no version 1 of model 'tiny'" in done.exception.message
    monkeypatch.chdir(recipe.parent)
    for typed in (("--recipe", "recipe.yaml"), ("--set", "seed=3")):
        assert penstock("model", "serving", *typed).stdout == "\n"
    assert not (tmp_path / "other-ledger.db").exists()
    assert not (tmp_path / "other").exists()


def test_a_ledger_of_the_environment_goes_before_a_recipe_that_only_lies_there(
    recipe, elsewhere, monkeypatch
):
    monkeypatch.setenv("PENSTOCK_LEDGER", elsewhere["PENSTOCK_LEDGER"])
    monkeypatch.chdir(recipe.parent)
    done = penstock("model", "serving")
    assert isinstance(done.exception, RecipeError)
    assert "--model-name is missing" in done.exception.message
    assert penstock("model", "serving", "--model-name", "tiny").stdout == "\n"


@pytest.mark.parametrize("option", ["--ledger", "--store"])
def test_a_ledger_that_is_typed_goes_before_the_environments(
    recipe, elsewhere, option, tmp_path, monkeypatch
):
    for variable, value in elsewhere.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("PENSTOCK_RECIPE", str(recipe))
    (tmp_path / "mine").mkdir()
    url = f"sqlite:///{tmp_path / 'mine' / 'ledger.db'}"
    typed = url if option == "--ledger" else tmp_path / "mine"
    assert penstock("model", "history", "--model-name", "tiny", option, typed).exit_code == 0
    assert Ledger(url).aliases() == []
    assert not (tmp_path / "other-ledger.db").exists()
    assert not (tmp_path / "other").exists()
    both = penstock("model", "history", "--model-name", "tiny")
    assert isinstance(both.exception, RecipeError), "the environment names two"


def test_a_recipe_and_a_ledger_that_are_both_typed_are_a_mistake(recipe, tmp_path):
    done = penstock("model", "serving", "--recipe", recipe, "--store", tmp_path / "other")
    assert isinstance(done.exception, RecipeError)
    assert "both given" in done.exception.message
