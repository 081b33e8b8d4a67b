import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from pydantic import ValidationError

sys.path.append(str(Path(__file__).parents[1] / "serving"))

from doubles import Pointer, free_port, served, wait_until
from tiny_llama import save_trained_llama

import evaluation_tasks
import openai_server
from penstock.errors import EvaluationError, RecipeError
from penstock.evaluators.base import Evaluation
from penstock.evaluators.endpoint import EndpointEvaluator, EndpointOptions
from penstock.evaluators.hf import HfEvaluator, HfOptions
from penstock.serve_section import ModelConfig, Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.server import BackgroundServer

pytestmark = pytest.mark.slow
DIGEST = "5e" * 32


class Silent:
    def expect(self, total):
        pass

    def __call__(self, count):
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save_trained_llama(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return evaluation_tasks.write(tmp_path_factory.mktemp("tasks") / "tasks")


@pytest.fixture(scope="module")
def shared(model):
    with openai_server.serving(model) as server:
        yield server


@pytest.fixture
def server(shared):
    shared.fail, shared.likelihoods, shared.seen = None, True, []
    return shared


@pytest.fixture
def run(model, tasks):
    def measure(url, *names, digest=DIGEST, apply_chat_template=False, **options):
        options = {"model": openai_server.NAMED, "identity": "assumed", "max_tries": 2, **options}
        made = EndpointEvaluator(EndpointOptions(base_url=url, **options), tasks)
        asked = Evaluation(
            model, digest, "tiny", names or ("free",), (tasks,),
            apply_chat_template=apply_chat_template,
        )  # fmt: skip
        return made.run(asked, Silent())

    return measure


def always(status, text, **headers):
    return lambda path, body: (status, text, headers)


def answers(results):
    return [sample["resps"] for sample in results["samples"]["free"]]


def test_a_server_that_is_down_is_named(run):
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EvaluationError, match=rf"{url}/completions cannot be reached: .*, 2 times"):
        run(url)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_goes_on_failing_is_given_up(run, server, status):
    server.fail = always(status, '{"error": {"message": "not today"}}', **{"Retry-After": "0"})
    with pytest.raises(EvaluationError, match=rf"answered HTTP {status}: .*not today.*2 times"):
        run(server.url)
    assert len(server.seen) == 2


def test_a_server_that_recovers_gives_the_same_results(run, server):
    undisturbed = answers(run(server.url))
    failed = []

    def every_other(path, body):
        key = json.dumps(body)
        if key not in failed:
            failed.append(key)
            return 429, "slow down", {"Retry-After": "0"}
        return None

    server.fail = every_other
    assert answers(run(server.url)) == undisturbed
    assert failed


def test_a_web_page_is_not_taken_for_an_answer(run, server):
    server.fail = always(200, "<html><body>Please log in</body></html>")
    with pytest.raises(EvaluationError, match=r"is no completion: '<html><body>Please log in"):
        run(server.url)
    assert len(server.seen) == 1


@pytest.mark.parametrize("answer", ['{"choices": []}', '{"choices": 3}', "[]", "{", "null", "7"])
def test_json_that_is_no_completion_is_not_taken_for_an_answer(run, server, answer):
    server.fail = always(200, answer)
    with pytest.raises(EvaluationError, match="is no completion"):
        run(server.url)


def test_a_redirect_is_not_followed(run, server):
    server.fail = always(302, "", Location="http://127.0.0.1:9/v1/completions")
    with pytest.raises(EvaluationError, match="HTTP 302"):
        run(server.url)


def test_a_failure_in_the_middle_of_many_requests_ends_the_evaluation(run, server):
    count = 0

    def third(path, body):
        nonlocal count
        count += 1
        return (500, "out of memory", {"Retry-After": "0"}) if count > 3 else None

    server.fail = third
    with pytest.raises(EvaluationError, match="out of memory"):
        run(server.url, "which", num_concurrent=4)


def test_requests_go_out_side_by_side_but_no_more_than_allowed(run, server):
    time.sleep(1)  # what earlier tests gave up may still be on its way
    wait_until(lambda: server.at_once == 0)
    server.most_at_once = 0
    server.fail = lambda path, body: time.sleep(0.05)
    run(server.url, "which", num_concurrent=3)
    assert 2 <= server.most_at_once <= 3


def test_a_model_the_server_does_not_have_is_named(run, server):
    with pytest.raises(EvaluationError, match=r"does not know the model 'other'.*no model other"):
        run(server.url, model="other")


def test_a_server_that_nothing_is_known_of_is_refused(run, server):
    with pytest.raises(EvaluationError, match="Nothing says which model") as caught:
        run(server.url, identity="checked")
    assert "{digest}" in caught.value.hint


def test_a_server_that_ignores_the_name_is_found_out(run, server):
    server.fail = always(200, json.dumps({"model": "gpt", "choices": [{"index": 0, "text": "x"}]}))
    with pytest.raises(EvaluationError, match=rf"asked for 'tiny-{DIGEST}' and answered as 'gpt'"):
        run(server.url, model="tiny-{digest}", identity="checked")


@pytest.mark.parametrize("status", [200, 400])
def test_a_server_without_likelihoods_says_which_tasks_it_can_run(run, server, status):
    if status == 200:
        server.likelihoods = False
    else:
        server.fail = lambda path, body: (400, "echo: no", {}) if body.get("echo") else None
    with pytest.raises(EvaluationError) as caught:
        run(server.url, "which", "free", "given")
    assert "which these tasks ask for: given, which." in caught.value.message
    assert "Tasks that can be run: free." in caught.value.message
    assert answers(run(server.url, "free"))


def test_nothing_is_generated_before_it_is_known_that_all_tasks_can_be_run(run, server):
    server.likelihoods = False
    with pytest.raises(EvaluationError):
        run(server.url, "free", "which")
    assert len(server.seen) == 2  # the two that ask what the server can do


def test_a_chat_answers_as_the_model_does_through_its_own_template(run, server, model, tasks):
    chat = answers(run(server.url, api="chat", apply_chat_template=True))
    asked = Evaluation(model, DIGEST, "tiny", ("free",), (tasks,), apply_chat_template=True)
    assert chat == answers(HfEvaluator(HfOptions(), tasks).run(asked, Silent()))
    assert {path for path, _, _ in server.seen} == {"/v1/chat/completions"}


def test_a_chat_cannot_say_how_likely_a_text_is(run, server):
    with pytest.raises(EvaluationError, match=r"Chats give no log-likelihood.*which"):
        run(server.url, "which", api="chat", apply_chat_template=True)


def test_a_chat_without_the_chat_template_is_a_mistake(run, server):
    with pytest.raises(RecipeError, match="apply_chat_template is false"):
        run(server.url, api="chat")


def test_the_key_comes_from_the_environment_and_stays_out_of_messages(run, server, monkeypatch):
    monkeypatch.setenv("THE_KEY", "sk-secret")
    run(server.url, api_key_env="THE_KEY")
    assert {headers["Authorization"] for _, headers, _ in server.seen} == {"Bearer sk-secret"}
    server.fail = always(401, "Incorrect API key provided: sk-secret")
    with pytest.raises(EvaluationError) as caught:
        run(server.url, api_key_env="THE_KEY")
    assert "Incorrect API key provided: [the key]" in caught.value.message
    assert "sk-secret" not in f"{caught.value.message}{caught.value.hint}"


def test_a_key_that_is_not_set_is_named(run, server, monkeypatch):
    monkeypatch.delenv("THE_KEY", raising=False)
    with pytest.raises(RecipeError, match="no variable 'THE_KEY'"):
        run(server.url, api_key_env="THE_KEY")
    assert server.seen == []


def test_a_password_in_the_address_is_not_shown(run):
    port = free_port()
    with pytest.raises(EvaluationError) as caught:
        run(f"http://user:hunter2@127.0.0.1:{port}/v1")
    assert "hunter2" not in caught.value.message


def test_a_task_that_wants_more_tokens_than_the_model_has_is_refused(run, server, tasks):
    text = (tasks / "free.yaml").read_text()
    long = text.replace("task: free", "task: long").replace("16", "400")
    (tasks / "long.yaml").write_text(long)
    try:
        with pytest.raises(EvaluationError, match="asks for 400 new tokens"):
            run(server.url, "long")
    finally:
        (tasks / "long.yaml").unlink()


@pytest.mark.parametrize(
    "options",
    [{"base_url": "127.0.0.1:8000"}, {"base_url": "http://127.0.0.1:{port}/v1"}, {"api": "chats"}],
)
def test_options_that_cannot_work_are_refused_with_the_recipe(options):
    with pytest.raises(ValidationError):
        EndpointOptions.model_validate(options)


class TestCommand:
    def test_a_command_that_is_not_there_is_named(self, run):
        with pytest.raises(EvaluationError, match=r"ended before.*nowhere/vllm cannot be started"):
            run("http://127.0.0.1:{port}/v1", command=("nowhere/vllm", "serve"))

    def test_a_server_that_ends_early_is_quoted(self, run):
        command = (sys.executable, "-c", "raise SystemExit('no GPU in this machine')")
        with pytest.raises(EvaluationError, match="last words: no GPU in this machine"):
            run("http://127.0.0.1:{port}/v1", command=command)

    def test_a_server_that_never_answers_is_ended(self, run, tmp_path):
        pids = tmp_path / "pid"
        script = (
            f"import os, time; open({str(pids)!r}, 'w').write(str(os.getpid())); time.sleep(99)"
        )
        with pytest.raises(EvaluationError, match=r"did not answer within 3 s"):
            run(
                "http://127.0.0.1:{port}/v1",
                command=(sys.executable, "-c", script),
                start_timeout_s=3,
            )
        assert not psutil.pid_exists(int(pids.read_text()))

    def test_a_server_ends_with_the_process_that_started_it_however_that_ends(self, tmp_path):
        pids = tmp_path / "pid"
        server = (
            "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_DFL);"
            f"open({str(pids) + '.new'!r}, 'w').write(str(os.getpid()));"
            f"os.rename({str(pids) + '.new'!r}, {str(pids)!r}); time.sleep(99)"
        )
        script = (
            "from penstock.child_process import running\nimport sys, time\n"
            f"with running([sys.executable, '-c', {server!r}]): time.sleep(99)"
        )
        parent = subprocess.Popen([sys.executable, "-c", script])
        while not pids.exists():
            assert parent.poll() is None
            time.sleep(0.02)
        pid = int(pids.read_text())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        for _ in range(500):
            if not psutil.pid_exists(pid):
                break
            time.sleep(0.02)
        assert not psutil.pid_exists(pid)


class TestGateway:
    """Penstock's own gateway: it says with each answer which version gave it."""

    @pytest.fixture(scope="class")
    @classmethod
    def pointer(cls, model):
        return Pointer(served(model, 1, digest=DIGEST))

    @pytest.fixture(scope="class")
    @classmethod
    def gateway(cls, pointer, tmp_path_factory):
        models = {"penny": ModelConfig(registered="penny")}
        config = Serve(port=0, metrics_port=None, models=models, poll_interval_s=0.02)
        around = Surroundings(pointer, tmp_path_factory.mktemp("cache"))
        with BackgroundServer(config, around) as server:
            server.wait_ready(60)
            yield f"{server.url}/v1"

    @pytest.mark.parametrize("api", ["completions", "chat"])
    def test_answers_through_the_gateway_are_those_of_transformers(
        self, run, gateway, model, tasks, api
    ):
        chat = {"api": api, "apply_chat_template": api == "chat"}
        found = run(gateway, model="penny", identity="checked", **chat)
        asked = Evaluation(
            model, DIGEST, "tiny", ("free",), (tasks,), apply_chat_template=api == "chat"
        )
        wanted = answers(HfEvaluator(HfOptions(), tasks).run(asked, Silent()))
        assert [[[text.strip()] for [text] in one] for one in answers(found)] == [
            [[text.strip()] for [text] in one] for one in wanted
        ]

    def test_a_gateway_that_serves_another_version_is_found_out(self, run, gateway):
        with pytest.raises(EvaluationError, match=r"penny version 1 \(digest 5e5e.*has the digest"):
            run(gateway, model="penny", identity="assumed", digest="77" * 32)

    def test_the_gateway_lacks_likelihoods_and_that_is_said(self, run, gateway):
        with pytest.raises(EvaluationError, match="Tasks that can be run: free"):
            run(gateway, "which", "free", model="penny", identity="checked")

    def test_a_promotion_in_the_middle_of_an_evaluation_is_found_out(
        self, run, gateway, pointer, model, monkeypatch
    ):
        from penstock.evaluators import asking

        before, moved = pointer.version, served(model, 2, digest="66" * 32)
        plain, count = asking.Asker.ask, 0

        async def ask(self, session, path, body):
            nonlocal count
            count += 1
            if count == 3:
                pointer.version = moved
                wait_until(lambda: _version(gateway) == "2")
            return await plain(self, session, path, body)

        monkeypatch.setattr(asking.Asker, "ask", ask)
        try:
            with pytest.raises(EvaluationError, match=r"penny version 2 \(digest 6666"):
                run(gateway, model="penny", identity="checked", num_concurrent=1)
        finally:
            pointer.version = before


def _version(gateway):
    body = {"model": "penny", "prompt": "water", "max_tokens": 1}
    return httpx.post(f"{gateway}/completions", json=body).headers["x-penstock-model-version"]
