"""The console beside the gateway's API, and when it is refused there."""

import json
import re
import subprocess
import sys
import time

import httpx
import pytest

from console_browser import Browser
from console_project import ConsoleProject
from penstock.cli.console import console_of
from penstock.console import create_console, gateway_console
from penstock.errors import RecipeError
from penstock.pipeline import open_pipeline
from penstock.quarantine import rows
from penstock.serve_section import ModelConfig, Serve
from penstock.serving.app import create_app
from penstock.serving.gateway import Surroundings
from rollout_world import MODEL

pytestmark = pytest.mark.slow

# A model that nothing is loaded for.
FAR = {"source": "m", "backend": {"type": "openai", "url": "http://h.test/v1"}}


@pytest.fixture
def gateway():
    """A gateway that has loaded nothing, with or without a console."""

    def make(console=None):
        models = {"far": ModelConfig.model_validate(FAR)}
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


@pytest.fixture(
    scope="module",
    params=[1, pytest.param(2, marks=pytest.mark.slow)],
    ids=["alone", "two workers"],
)
def served(tmp_path_factory, request):
    """A project that ``penstock serve`` shows, in processes of its own, and their address."""
    project = ConsoleProject(tmp_path_factory.mktemp("served"))
    serve = {"console": True, "port": 0, "workers": request.param, "models": {"far": FAR}}
    serve |= {"log": {"flush_s": 0.1}}
    settings = [f"--set=serve.{name}={json.dumps(value)}" for name, value in serve.items()]
    command = [sys.executable, "-m", "penstock.cli", "serve", "--recipe", str(project.recipe)]
    command += [*settings, "--set=serve.metrics_port=null"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield project, re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        process.terminate()


def test_penstock_serve_has_it(served):
    project, url = served
    browser = Browser(None, url)
    for _ in range(4):  # with two workers both have a turn
        assert MODEL in browser.get("/").text
    assert browser.get("/", host="evil.test").status_code == 421
    path = f"/quarantine/release?row={project.row_ids[0]}"
    fields = {**browser.fields(path), "reason": "why"}
    elsewhere = browser.post("/quarantine/release", fields, origin="http://evil.test")
    assert elsewhere.status_code == 403
    assert browser.confirm(path, "fine").status_code == 303
    (row,) = rows(project.pipeline, project.row_ids[0])
    assert (row.decision.action, row.decision.reason) == ("release", "fine")
    assert row.decision.by.startswith("console by ")


def test_what_the_gateway_is_asked_is_seen_as_live_traffic(served):
    _, url = served
    browser = Browser(None, url)
    assert "No request was written down" in browser.get("/traffic").text
    chat = {"model": "far", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    answer = httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=60)
    assert answer.status_code >= 500  # there is no such host
    end_s = time.monotonic() + 60
    while 'scope="row">far</th>' not in (page := browser.get("/traffic").text):
        assert time.monotonic() < end_s, page
        time.sleep(0.1)
    assert '<span class="word failed">1</span>' in page


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
