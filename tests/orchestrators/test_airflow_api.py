"""Asking Airflow: what is sent, once for each key, and what is said when it goes wrong."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from penstock.child_process import free_port
from penstock.cli import app
from penstock.errors import RecipeError
from penstock.orchestrators.airflow_api import report_event, run_id_of, trigger
from penstock.orchestrators.asking import NotStarted


class Answers:
    """A server that answers by a table: method and path -> status and JSON."""

    def __init__(self, answers):
        self.asked = asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_any(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                path = self.path.partition("?")[0]
                asked.append((path, json.loads(body or b"null"), self.headers["authorization"]))
                status, answer = answers[self.command, path]
                text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_any

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


RUNS = ("POST", "/api/v2/dags/support/dagRuns")


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Make a recipe whose Airflow answers as told; returns the recipe and the server."""
    monkeypatch.setenv("PENSTOCK_AIRFLOW_TOKEN", "secret-token")
    servers = []

    def made(answers, url=None):
        servers.append(Answers(answers))
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"name: support\norchestrate: {{airflow: {{url: '{url or servers[-1].url}'}}}}\n"
        )
        return path, servers[-1]

    yield made
    for one in servers:
        one.close()


def test_a_run_is_asked_for_by_the_name_its_key_gives_it(ask):
    recipe, server = ask({RUNS: (200, {})})
    conf = {"set": {"ingest.min_new_examples": 3}, "reason": "drift"}
    assert trigger(recipe, "drift-7", conf) == "penstock__drift-7"
    body = {"dag_run_id": "penstock__drift-7", "logical_date": None, "conf": conf}
    assert server.asked == [(RUNS[1], body, "Bearer secret-token")]


def test_a_run_that_is_there_already_is_the_answer(ask):
    recipe, _ = ask({RUNS: (409, {"detail": "exists"})})
    assert trigger(recipe, "k", {}) == "penstock__k"


def test_a_run_that_is_there_after_all_is_the_answer_when_airflow_stumbled(ask):
    there = ("GET", f"{RUNS[1]}/penstock__k")
    recipe, _ = ask({RUNS: (500, {"detail": "database is locked"}), there: (200, {})})
    assert trigger(recipe, "k", {}) == "penstock__k"


def test_keys_that_airflow_would_refuse_get_a_name_of_their_own():
    strange = [run_id_of(key) for key in ("a/b", "a,b", "x" * 250)]
    assert len(set(strange)) == 3
    assert run_id_of("a/b") == strange[0]
    assert all(len(one) <= 250 and "/" not in one for one in strange)


def test_what_may_not_be_set_is_refused_before_airflow_is_asked(ask):
    recipe, server = ask({})
    with pytest.raises(RecipeError, match="may not be set"):
        trigger(recipe, "k", {"set": {"store": "/elsewhere"}})
    assert server.asked == []


@pytest.mark.parametrize(
    ("answer", "says", "transient"),
    [
        ((401, {}), "status 401", False),
        ((404, {"detail": "no DAG"}), "no DAG", False),
        ((503, {}), "status 503", True),
        ((429, {}), "status 429", True),
        ((200, b"<html>"), "no JSON", True),
    ],
)
def test_a_refusal_says_why_and_whether_to_try_again(ask, answer, says, transient):
    recipe, _ = ask({RUNS: answer, ("GET", f"{RUNS[1]}/penstock__k"): (404, {})})
    with pytest.raises(NotStarted, match=says) as error:
        trigger(recipe, "k", {})
    assert error.value.transient is transient
    assert "secret-token" not in error.value.message


def test_an_airflow_that_is_down_is_worth_another_try(ask):
    recipe, _ = ask({}, url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NotStarted, match="does not answer: ConnectError") as error:
        trigger(recipe, "k", {})
    assert error.value.transient


def test_without_credentials_nothing_is_asked(ask, monkeypatch):
    monkeypatch.delenv("PENSTOCK_AIRFLOW_TOKEN")
    recipe, server = ask({})
    with pytest.raises(NotStarted, match="no credentials"):
        trigger(recipe, "k", {})
    assert server.asked == []


ASSETS = ("GET", "/api/v2/assets")
EVENTS = ("POST", "/api/v2/assets/events")


def test_an_event_is_reported_for_the_asset_of_that_name_and_no_other(ask):
    assets = [
        {"id": 1, "uri": "penstock://support/drift-old"},
        {"id": 2, "uri": "penstock://support/drift"},
    ]
    recipe, server = ask({ASSETS: (200, {"assets": assets}), EVENTS: (200, {"id": 9})})
    assert report_event(recipe, "drift", {"reason": "x"}) == 9
    assert server.asked[-1][1] == {"asset_id": 2, "extra": {"reason": "x"}}


def test_an_event_of_a_dag_that_is_not_there_says_so(ask):
    recipe, _ = ask({ASSETS: (200, {"assets": []})})
    with pytest.raises(NotStarted, match="knows no asset penstock://support/new-data"):
        report_event(recipe, "new-data", {})
    with pytest.raises(RecipeError, match="no event 'rain'"):
        report_event(recipe, "rain", {})


def test_the_commands_ask_and_print(ask):
    recipe, server = ask({RUNS: (200, {})})
    call = ["trigger", "airflow", "--key", "k", "-r", str(recipe), "--json", "--reason", "mine"]
    done = CliRunner().invoke(app, [*call, "--set", "ingest.min_new_examples=3"])
    assert json.loads(done.output) == {"run_id": "penstock__k"}
    assert server.asked[0][1]["conf"] == {"set": {"ingest.min_new_examples": 3}, "reason": "mine"}
    assert isinstance(
        CliRunner().invoke(app, ["trigger", "cron", "--key", "k"]).exception, RecipeError
    )
