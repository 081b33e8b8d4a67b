"""vLLM behind the gateway: started and watched, or found; always token for token."""

import asyncio
import os
import signal
from dataclasses import replace

import httpx
import psutil
import pytest
from asking import collect
from doubles import model, wait_until
from fake_vllm import END, FakeVllm, as_python, backwards, event
from pydantic import ValidationError

from penstock.errors import ServingError
from penstock.serving.backends import vllm_server
from penstock.serving.backends.base import Generation, ModelFiles
from penstock.serving.backends.vllm import VllmBackend, VllmOptions

NAME = "penny-v1-01010101"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(vllm_server, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(vllm_server, "_LOOK_INTERVAL_S", 0.02)


@pytest.fixture
def folder(fake_folders, tmp_path):
    """A model's folder of which tests may break things."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in fake_folders[1].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "model.safetensors").touch()
    return copy


@pytest.fixture
def python(tmp_path):
    return as_python(tmp_path / "python")


@pytest.fixture
def loaded(folder, tmp_path):
    """Makes backends, and ends them."""
    made = []

    def load(**options):
        files = ModelFiles(folder, tmp_path / "cache", options, NAME, recipe_folder=tmp_path)
        made.append(VllmBackend(files))
        made[-1].load()
        return made[-1]

    yield load
    for backend in made:
        backend.close()


@pytest.fixture
def running():
    with FakeVllm(NAME, backwards(NAME)) as server:
        yield server


def ids_of(backend, prompt_ids, max_tokens=20, **more):
    async def main():
        request = Generation(tuple(prompt_ids), max_tokens, **more)
        chunks = [chunk async for chunk in backend.generate(request)]
        return [one for chunk in chunks for one in chunk.token_ids], chunks[-1].finish_reason

    return asyncio.run(main())


def child_of(backend):
    """The process that is ``vllm serve``."""
    (child,) = psutil.Process(backend._server._child.process.pid).children()
    return child


def cmdline(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


class TestStarted:
    @pytest.mark.slow
    def test_it_is_told_what_to_serve_and_answers_only_us(self, loaded, python, folder, tmp_path):
        backend = loaded(python="python", args=["--dtype", "float32", "--max-num-seqs", 4])
        assert ids_of(backend, [50, 60, 70]) == ([70, 60, 50], "stop")
        words = (tmp_path / "cache" / f"vllm-{os.getpid()}.log").read_text()
        assert f"serve {folder} --served-model-name {NAME} --host 127.0.0.1" in words
        assert "--generation-config vllm" in words
        assert "--dtype float32 --max-num-seqs 4" in words
        assert "trust" not in words
        assert backend._server.key not in words
        assert httpx.get(f"{backend._server.url}/models").status_code == 401

    @pytest.mark.slow
    def test_one_that_dies_is_unwell_at_once_and_is_started_again(self, loaded, python, tmp_path):
        backend = loaded(python="python")

        async def main():
            while not await backend.healthy():
                await asyncio.sleep(0.01)
            first = child_of(backend)
            first.send_signal(signal.SIGKILL)
            while await backend.healthy():
                await asyncio.sleep(0.01)
            with pytest.raises(ServingError):
                await collect(backend, Generation((50,), 3))
            while not await backend.healthy():
                await asyncio.sleep(0.01)
            assert child_of(backend).pid != first.pid
            return [chunk.token_ids async for chunk in backend.generate(Generation((50,), 3))]

        assert asyncio.run(asyncio.wait_for(main(), 60))[0] == (50,)
        assert (tmp_path / "cache" / f"vllm-{os.getpid()}.log.1").exists()

    @pytest.mark.slow
    def test_closing_it_ends_its_process(self, loaded, python):
        backend = loaded(python="python")
        child = child_of(backend)
        backend.close()
        assert not child.is_running()

    def test_one_that_cannot_start_says_its_last_words(self, loaded, python, folder):
        (folder / "broken").write_text("torch.OutOfMemoryError: not today")
        with pytest.raises(ServingError, match="not today") as caught:
            loaded(python="python")
        assert f"vllm-{os.getpid()}.log" in caught.value.hint

    @pytest.mark.slow
    def test_one_that_never_comes_up_is_given_up(self, loaded, python, folder):
        (folder / "slow").touch()
        with pytest.raises(ServingError, match=r"was not up after 0\.5 s"):
            loaded(python="python", start_timeout_s=0.5)
        # Other tests of this process have children of their own.
        assert not [p for p in psutil.Process().children(recursive=True) if "vllm" in cmdline(p)]

    def test_a_python_without_vllm_is_named(self, loaded):
        with pytest.raises(ServingError, match="cannot run vLLM") as caught:
            loaded()
        assert "make-env.sh" in caught.value.hint

    def test_weights_that_are_pickles_are_not_loaded(self, loaded, python, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ServingError, match="safetensors"):
            loaded(python="python")


class TestFound:
    def test_a_running_one_is_asked_under_the_name_of_the_version(self, loaded, running):
        assert ids_of(loaded(url=running.url), [50, 60]) == ([60, 50], "stop")
        body = running.asked("/v1/completions")[-1].body
        assert body["model"] == NAME
        assert (body["top_k"], body["repetition_penalty"], body["min_p"]) == (0, 1.0, 0.0)
        assert body["ignore_eos"]
        assert body["stop_token_ids"] == [END]

    def test_one_that_serves_something_else_is_refused(self, loaded, running):
        with pytest.raises(ServingError, match=f"serves {NAME}, not 'other'"):
            loaded(url=running.url, served_name="other")

    def test_one_that_is_not_there_is_said(self, loaded, running):
        running.die()
        with pytest.raises(ServingError, match="cannot be asked"):
            loaded(url=running.url)

    def test_its_key_comes_from_the_environment(self, loaded, running, monkeypatch):
        running.key = "vllm-key-0123456789"
        with pytest.raises(ServingError, match="cannot be asked"):
            loaded(url=running.url)
        monkeypatch.setenv("VLLM_KEY", running.key)
        assert ids_of(loaded(url=running.url, api_key_env="VLLM_KEY"), [50])[0] == [50]

    def test_one_that_does_not_say_token_ids_is_refused(self, loaded, running):
        async def old(request, reply):
            await reply.start()
            await reply.event({"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]})
            await reply.end()

        running.answer = old
        with pytest.raises(ServingError, match="does not say token ids"):
            loaded(url=running.url)

    @pytest.mark.parametrize(
        "lie",
        [
            [event(NAME, [50, 10**6], "stop")],
            [event(NAME, [50, -1], "stop")],
            [event(NAME, [50, True], "stop")],
            [event(NAME, [50, "60"], "stop")],
            [event(NAME, [50])],
            [event(NAME, [50], "abort")],
            [event(NAME, [50]), {"error": {"message": "secret"}}],
            [event(NAME, [50]), {"choices": []}],
            ["half"],
        ],
    )
    def test_an_answer_that_is_none_is_a_failure(self, loaded, running, lie):
        backend = loaded(url=running.url)

        async def answer(request, reply):
            await reply.start()
            for one in lie:
                await reply.event(one)
            await reply.end()

        running.answer = answer
        with pytest.raises(ServingError) as caught:
            ids_of(backend, [50])
        assert "secret" not in str(caught.value)

    def test_more_tokens_than_were_asked_for_are_cut_off(self, loaded, running):
        backend = loaded(url=running.url)

        async def answer(request, reply):
            await reply.start()
            for token_id in range(50, 90):
                await reply.event(event(NAME, [token_id]))
            await reply.event(event(NAME, [], "stop"))
            await reply.end()

        running.answer = answer
        assert ids_of(backend, [50], max_tokens=3) == ([50, 51, 52], "length")

    def test_a_second_end_is_no_second_answer(self, loaded, running):
        backend = loaded(url=running.url)

        async def answer(request, reply):
            await reply.start()
            for one in (event(NAME, [50, END], "stop"), event(NAME, [60], "length")):
                await reply.event(one)
            await reply.end()

        running.answer = answer
        assert ids_of(backend, [50]) == ([50], "stop")


class TestOptions:
    @pytest.mark.parametrize(
        "words",
        [
            ["--host", "0.0.0.0"],
            ["--port=80"],
            ["--trust-remote-code"],
            ["--trust_remote_code"],
            ["--trust"],
            ["--model", "x"],
            ["--api-key", "x"],
            ["--config", "x.yaml"],
            ["--served-model-name", "x"],
            ["--dtype", "float32", "--middleware", "x"],
            ["--hf-overrides.a", "1"],
        ],
    )
    def test_words_that_are_ours_are_refused(self, words):
        with pytest.raises(ValidationError, match="is set by Penstock"):
            VllmOptions(args=words)

    @pytest.mark.parametrize(
        "words", [["--max-model-len", 256], ["-tp", 2], ["--tokenizer-mode", "auto"], ["-1"]]
    )
    def test_other_words_pass(self, words):
        assert VllmOptions(args=words).args == tuple(words)

    @pytest.mark.parametrize(
        "options",
        [
            {"url": "http://host/v1", "python": "python"},
            {"url": "http://host/v1", "args": ["--dtype", "auto"]},
            {"served_name": "x"},
            {"api_key_env": "X"},
            {"url": "http://169.254.169.254/v1"},
        ],
    )
    def test_options_of_another_way_are_refused(self, options):
        with pytest.raises(ValidationError):
            VllmOptions.model_validate(options)


@pytest.mark.slow
def test_a_version_served_by_a_vllm_that_dies_is_answered_by_its_fallback(
    gateway, pointer, folder, python, monkeypatch
):
    """Through the gateway: died, noticed, bridged, back."""
    # This stand-in is up again before a look at its health, which a real vLLM never is.
    monkeypatch.setattr(vllm_server, "_FIRST_PAUSE_S", 2.0)
    pointer.version = replace(pointer.version, folder=folder)
    options = {"python": str(python)}
    penny = model("vllm", options, fallbacks=["spare"])
    spare = model(source=str(folder))
    server = gateway(more={"penny": penny, "spare": spare})

    def who():
        body = {"model": "penny", "prompt": "ab", "max_tokens": 5}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-penstock-model"]

    def answers():
        return httpx.get(f"{server.url}/readyz").json()["models"]["penny"]["answers"]

    wait_until(answers)
    assert who() == "penny"
    below = psutil.Process().children(recursive=True)
    (child,) = [p for p in below if str(python) in p.cmdline() and p.ppid() != os.getpid()]
    child.kill()
    wait_until(lambda: not answers())
    assert who() == "spare"
    wait_until(answers)
    assert who() == "penny"
