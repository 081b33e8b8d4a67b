"""The console beside the gateway's API, and when it is refused there."""

import pytest

from console_browser import Browser
from penstock.cli.console import console_of
from penstock.console import create_console, gateway_console
from penstock.errors import RecipeError
from penstock.pipeline import open_pipeline
from penstock.serve_section import ModelConfig, Serve
from penstock.serving.app import create_app
from penstock.serving.gateway import Surroundings
from rollout_world import MODEL


@pytest.fixture
def gateway():
    """A gateway that has loaded nothing, with or without a console."""

    def make(console=None):
        models = {"far": ModelConfig(source="m", backend={"type": "openai", "url": "http://h/v1"})}
        return create_app(Serve(models=models), Surroundings(None, console=console))

    return make


def test_it_is_there_when_the_recipe_wants_it(project, gateway):
    browser = Browser(gateway(create_console(project.pipeline, production=project.production)))
    assert MODEL in browser.get("/").text
    assert browser.ask("GET", "/console").status_code == 307
    assert browser.confirm("/versions/2/promote").status_code == 303
    assert project.serving == 2


def test_the_api_beside_it_is_as_it_was(project, gateway):
    browser = Browser(gateway(create_console(project.pipeline)))
    assert browser.ask("GET", "/healthz").json() == {"status": "ok"}
    assert browser.ask("GET", "/consoles").status_code == 404
    assert "content-security-policy" not in browser.ask("GET", "/healthz").headers


def test_without_it_there_is_no_such_path(gateway):
    answer = Browser(gateway()).get("/")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def opened(project, **serve):
    return open_pipeline(project.recipe, {f"serve.{name}": value for name, value in serve.items()})


def test_a_recipe_that_does_not_ask_for_it_gets_none(project):
    assert console_of(opened(project)) is None
    assert console_of(opened(project, console=True)) is not None


def test_where_others_can_reach_it_the_admin_key_is_needed(project, monkeypatch):
    monkeypatch.delenv("PENSTOCK_CONSOLE_KEY", raising=False)
    pipeline = opened(project, host="0.0.0.0", console=True)
    with pytest.raises(RecipeError, match="ask nobody for a key"):
        gateway_console(pipeline)
    monkeypatch.setenv("PENSTOCK_CONSOLE_KEY", "short")
    with pytest.raises(RecipeError, match="5 characters"):
        gateway_console(pipeline)
    monkeypatch.setenv("PENSTOCK_CONSOLE_KEY", "k" * 32)
    browser = Browser(gateway_console(pipeline), "http://models.test")
    assert browser.get("/").status_code == 401
