"""Files for Dagster and Prefect; what asking either says when it does not work."""

import ast

import pytest
from typer.testing import CliRunner

from penstock.child_process import free_port
from penstock.cli import app
from penstock.errors import PenstockError, RecipeError
from penstock.orchestrators import dagster_api, prefect_api
from penstock.orchestrators.asking import NotStarted

TOOLS = ["dagster", "prefect"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text("name: support\nstore: s\n")
    return path


def export(tool, *words):
    return CliRunner().invoke(app, ["export", tool, *words])


@pytest.mark.parametrize("tool", TOOLS)
def test_a_file_is_short_and_stays_as_a_person_has_edited_it(tool, recipe):
    assert export(tool).exit_code == 0
    path = recipe.with_name(f"support_{tool}.py")
    text = path.read_text()
    assert len(ast.parse(text).body) <= 4
    assert str(recipe) in text
    assert export(tool, "--check").exit_code == 0
    path.write_text(text + "# mine\n")
    assert isinstance(export(tool).exception, PenstockError)
    assert isinstance(export(tool, "--check").exception, PenstockError)
    assert path.read_text() == text + "# mine\n"
    assert export(tool, "--force").exit_code == 0
    assert path.read_text() == text


@pytest.mark.parametrize("tool", TOOLS)
def test_a_recipe_whose_path_has_quotes_is_one_string_in_the_file(tool, recipe):
    odd = recipe.with_name('it\'s "odd".yaml')
    recipe.rename(odd)
    assert export(tool, "--recipe", str(odd)).exit_code == 0
    tree = ast.parse(recipe.with_name(f"support_{tool}.py").read_text())
    found = [one.value for one in ast.walk(tree) if isinstance(one, ast.Constant)]
    assert str(odd) in found


@pytest.mark.parametrize("tool", TOOLS)
def test_a_stage_in_a_pod_is_refused(tool, recipe):
    recipe.write_text(
        "name: support\norchestrate:\n  executors: {train: {type: kubernetes, image: 'x:1'}}\n"
    )
    error = export(tool).exception
    assert isinstance(error, RecipeError)
    assert "executors.train" in error.message


@pytest.mark.parametrize(
    ("tool", "trigger"), [("dagster", dagster_api.trigger), ("prefect", prefect_api.trigger)]
)
def test_a_tool_that_is_down_may_be_asked_again_and_what_may_not_be_set_is_refused(
    tool, trigger, recipe
):
    url = f"http://127.0.0.1:{free_port()}"
    recipe.write_text(f"name: support\norchestrate: {{{tool}: {{url: '{url}'}}}}\n")
    with pytest.raises(NotStarted) as down:
        trigger(recipe, "k", {})
    assert down.value.transient
    with pytest.raises(RecipeError, match="may not be set"):
        trigger(recipe, "k", {"set": {"store": "elsewhere"}})
    with pytest.raises(RecipeError, match="cannot name a run"):
        trigger(recipe, "two words", {})
