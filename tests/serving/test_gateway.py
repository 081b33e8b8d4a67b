"""The gateway over real connections, in front of a backend without a model."""

import asyncio
import base64
import json
import logging
import os
import threading
import time

import httpx
import numpy as np
import psutil
import pytest
from doubles import model, served, wait_until

from penstock.errors import PenstockError, RecipeError
from penstock.serve_section import ModelConfig
from penstock.serving.response_id import parse_response_id

pytestmark = pytest.mark.slow


def readiness(server, name="penny"):
    """What the readiness page says of a model."""
    return httpx.get(f"{server.url}/readyz").json()["models"][name]


def complete(server, prompt, **more):
    return httpx.post(
        f"{server.url}/v1/completions", json={"model": "penny", "prompt": prompt, **more}
    )


def chat(server, content="hi", **more):
    messages = [{"role": "user", "content": content}]
    return httpx.post(
        f"{server.url}/v1/chat/completions", json={"model": "penny", "messages": messages, **more}
    )


def events_of(response):
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


def sample(server, name, **labels):
    return server.gateway.metrics.registry.get_sample_value(name, labels)


def test_an_answer_says_which_version_gave_it(gateway):
    server = gateway()
    answer = chat(server)
    expected = {
        "x-penstock-model": "penny",
        "x-penstock-model-version": "1",
        "x-penstock-run": "run-1",
        "x-penstock-data-version": "data-1",
    }
    assert expected.items() <= dict(answer.headers).items()
    body = answer.json()
    assert body["model"] == "penny"
    assert body["system_fingerprint"] == "v1-" + "01" * 8
    assert parse_response_id(body["id"]).digest_prefix == "01" * 8


def test_no_answer_waits_for_an_acknowledgement_of_its_head(gateway):
    server = gateway()
    times_s = []
    with httpx.Client() as client:
        for _ in range(30):
            started_s = time.monotonic()
            client.get(f"{server.url}/healthz")
            times_s.append(time.monotonic() - started_s)
    # Delayed acknowledgements take 40 ms; a busy machine may too, but not each time.
    assert min(times_s) < 0.02


def test_an_error_after_routing_says_it_too(gateway):
    answer = chat(gateway(), max_tokens=10_000)
    assert answer.status_code == 400
    assert answer.headers["x-penstock-model-version"] == "1"


def test_embeddings_say_which_model_gave_them(gateway):
    answer = httpx.post(f"{gateway().url}/v1/embeddings", json={"model": "vectors", "input": "abc"})
    assert answer.headers["x-penstock-model"] == "vectors"
    assert answer.headers["x-penstock-run"] == "external"
    assert parse_response_id(answer.json()["id"]).kind == "emb"


def test_base64_embeddings_are_the_float_ones(gateway):
    server = gateway()

    def embed(**more):
        body = {"model": "vectors", "input": ["a", "abc"], **more}
        return httpx.post(f"{server.url}/v1/embeddings", json=body).json()

    floats = [entry["embedding"] for entry in embed()["data"]]
    packed = [entry["embedding"] for entry in embed(encoding_format="base64")["data"]]
    unpacked = [np.frombuffer(base64.b64decode(text), "<f4").tolist() for text in packed]
    assert floats == unpacked == [[1, 1.5, -2], [3, 1.5, -2]]
    assert embed()["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_the_short_form_generates_and_embeds(gateway):
    server = gateway()
    generated = httpx.post(server.url, json={"endpoint": "generate", "prompt": "say hello"}).json()
    assert generated["text"] == "hello"
    assert generated["version"] == 1
    embedded = httpx.post(server.url, json={"endpoint": "embed", "texts": ["a", "bc"]}).json()
    assert embedded["embeddings"] == [[1, 1.5, -2], [2, 1.5, -2]]


def test_a_stream_is_the_whole_answer_in_events(gateway):
    server = gateway()
    answer = complete(server, "count 3", stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = events_of(answer)
    assert done == "[DONE]"
    *pieces, usage = map(json.loads, events)
    text = "".join(piece["choices"][0]["text"] for piece in pieces)
    assert text == complete(server, "count 3").json()["choices"][0]["text"]
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None, None, None, "stop"]
    assert all(piece["usage"] is None for piece in pieces)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert len({event["id"] for event in [*pieces, usage]}) == 1


def test_a_chat_stream_begins_with_the_role_and_has_no_usage_unless_asked(gateway):
    events = events_of(chat(gateway(), stream=True))
    pieces = [json.loads(event) for event in events[:-1]]
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in piece for piece in pieces)


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "said"),
    [
        ("/v1/completions", {"model": "gpt", "prompt": "x"}, 404, "model_not_found", "'gpt'"),
        ("/v1/completions", {"model": "vectors", "prompt": "x"}, 400, "invalid_request", "embed"),
        ("/v1/embeddings", {"model": "penny", "input": "x"}, 400, "invalid_request", "embed"),
        ("/v1/embeddings", {"model": "gpt", "input": "x"}, 404, "model_not_found", "'vectors'"),
        ("/v1/completions", {"model": "penny", "prompt": "x", "max_tokens": -1}, 400,
         "invalid_request", "max_tokens"),
        ("/v1/completions", {"model": "penny", "prompt": [100_000]}, 400, "invalid_request",
         "100000"),
        ("/v1/completions", {"prompt": "x"}, 400, "invalid_request", "model"),
        ("/", {"endpoint": "generate", "prompt": "x", "stream": True}, 400, "invalid_request",
         "/v1/completions"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_what_is_wrong(gateway, path, body, status, code, said):
    answer = httpx.post(gateway().url + path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert said in error["message"]


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(gateway):
    server = gateway()
    for ask in (complete, chat):
        error = ask(server, "x " * 5_000).json()["error"]
        assert error["code"] == "context_length_exceeded"
        numbers = [
            int(word) for word in error["message"].replace(".", "").split() if word.isdigit()
        ]
        assert numbers[0] >= 5_000
        assert 64 in numbers


def test_a_prompt_that_leaves_too_little_room_is_told_how_much_there_is(gateway):
    server = gateway()
    prompt_ids = [5] * 60
    assert complete(server, prompt_ids, max_tokens=4).status_code == 200
    error = complete(server, prompt_ids, max_tokens=5).json()["error"]
    assert "at most 4" in error["message"]
    assert complete(server, [5] * 64).status_code == 400


def test_a_chat_that_the_template_refuses_is_a_400(gateway):
    messages = [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]
    answer = httpx.post(
        f"{gateway().url}/v1/chat/completions", json={"model": "penny", "messages": messages}
    )
    assert answer.status_code == 400
    assert "system message must come first" in answer.json()["error"]["message"]


def test_a_bug_in_the_backend_is_a_500_without_its_details(gateway, caplog):
    server = gateway()
    for stream in (False, True):
        answer = complete(server, "break", stream=stream)
        assert answer.status_code == 500
        assert "secret" not in answer.text
    assert "secret detail" in caplog.text


def test_no_prompt_is_logged(gateway, caplog):
    server = gateway()
    with caplog.at_level(logging.DEBUG):
        for prompt in ("say zebra", "break zebra"):
            complete(server, prompt)
            complete(server, prompt, stream=True)
        chat(server, "zebra " * 500)
    ours = [
        record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert ours
    assert not [record for record in ours if "zebra" in record.getMessage() + str(record.exc_text)]


def test_a_hundred_megabytes_are_refused_in_bounded_memory(gateway):
    server = gateway()
    before = psutil.Process(os.getpid()).memory_info().rss
    peak = before

    def blocks():
        nonlocal peak
        for _ in range(100):
            peak = max(peak, psutil.Process(os.getpid()).memory_info().rss)
            yield b"x" * 1_000_000

    answer = httpx.post(f"{server.url}/v1/completions", content=blocks())
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert peak - before < 30_000_000
    assert complete(server, "say on").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_the_computation_and_leaks_nothing(gateway, events, stream):
    server = gateway(max_concurrency=2)
    for _ in range(8):  # more than there are slots
        with httpx.Client() as client:
            request = client.build_request(
                "POST",
                f"{server.url}/v1/completions",
                json={"model": "penny", "prompt": "hang", "stream": stream},
            )
            if stream:
                answer = client.send(request, stream=True)
                next(answer.iter_lines())
                answer.close()
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(request.url, json=json.loads(request.content), timeout=0.1)
    wait_until(lambda: events["ended"] == events["started"] == 8)
    assert events["cancelled"] == 8
    wait_until(lambda: sample(server, "llm_active_requests", model="penny") == 0)
    labels = {"model": "penny", "endpoint": "/v1/completions", "status": "499"}
    wait_until(lambda: sample(server, "llm_requests_total", **labels) == 8)
    assert complete(server, "say fine").status_code == 200


def test_more_than_slots_and_queue_get_a_429_with_retry_after(gateway):
    server = gateway(max_concurrency=1, max_queue=2)

    async def main():
        async with httpx.AsyncClient(timeout=30) as client:
            return await asyncio.gather(
                *(
                    client.post(
                        f"{server.url}/v1/completions",
                        json={"model": "penny", "prompt": "count 40", "max_tokens": 50},
                    )
                    for _ in range(10)
                )
            )

    answers = asyncio.run(main())
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 7
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "overloaded"


def test_a_stream_that_takes_too_long_ends_with_an_error(gateway, events):
    server = gateway(request_timeout_s=0.3)
    *_, last = events_of(complete(server, "hang", stream=True))
    assert json.loads(last)["error"]["code"] == "timeout"
    wait_until(lambda: events["ended"] == 1)


def test_tokens_and_times_are_counted(gateway):
    server = gateway()
    complete(server, "count 5")
    complete(server, "count 5", stream=True)
    wait_until(lambda: sample(server, "llm_tokens_generated_total", model="penny") == 10)
    assert sample(server, "llm_prompt_tokens_total", model="penny") > 0
    assert sample(server, "llm_time_to_first_token_seconds_count", model="penny") == 2
    labels = {"model": "penny", "endpoint": "/v1/completions"}
    wait_until(lambda: sample(server, "llm_requests_total", **labels, status="200") == 2)
    assert sample(server, "llm_request_duration_seconds_count", **labels) == 2


def test_an_embedding_model_that_cannot_be_loaded_stops_the_gateway(gateway, tmp_path):
    (tmp_path / "broken").touch()
    broken = model(task="embed", source=str(tmp_path))
    with pytest.raises(PenstockError, match="is broken"):
        gateway(more={"vectors": broken})
    with pytest.raises(RecipeError, match="no installed package holds"):
        gateway(more={"vectors": ModelConfig(task="embed", source="unheard-of")})


def test_a_backend_that_cannot_generate_is_named_on_the_readiness_page(gateway):
    server = gateway(ready=False, more={"penny": model("sentence_transformers")})
    failure = lambda: readiness(server)["load_failure"]  # noqa: E731
    wait_until(failure)
    assert httpx.get(f"{server.url}/readyz").status_code == 503
    assert "cannot generate" in failure()["error"]


class TestPromotion:
    """Clients that ask without a pause see no failure and no mixture of versions."""

    NUM_CLIENTS = 6
    NUM_MOVES = 14

    def hammer(self, server, answers, failures, stop, stream):
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                try:
                    answer = client.post(
                        f"{server.url}/v1/completions",
                        json={"model": "penny", "prompt": "count 6", "stream": stream},
                    )
                    answers.append(self.read(answer, stream))
                except Exception as error:
                    failures.append(error)

    def read(self, answer, stream):
        assert answer.status_code == 200, answer.text
        if stream:
            *events, done = events_of(answer)
            assert done == "[DONE]"
            bodies = [json.loads(event) for event in events]
        else:
            bodies = [answer.json()]
        text = "".join(body["choices"][0]["text"] for body in bodies)
        prefixes = {parse_response_id(body["id"]).digest_prefix for body in bodies}
        return answer.headers["x-penstock-model-version"], text, prefixes

    def test_promotions_and_rollbacks_drop_nothing_and_mix_nothing(
        self, gateway, pointer, fake_folders, events
    ):
        server = gateway()
        table = server.gateway.models["penny"].table
        answers, failures, stop = [], [], threading.Event()
        clients = [
            threading.Thread(
                target=self.hammer, args=(server, answers, failures, stop, number % 2 == 0)
            )
            for number in range(self.NUM_CLIENTS)
        ]
        for client in clients:
            client.start()
        for move in range(self.NUM_MOVES):
            number = 1 + (move + 1) % 3
            pointer.version = served(fake_folders[number], number, epoch=10 + move)
            wait_until(lambda move=move: table.current.served.epoch == 10 + move)
            time.sleep(0.05)
        stop.set()
        for client in clients:
            client.join()
        assert failures == []
        assert len(answers) > 3 * self.NUM_MOVES
        for version, text, prefixes in answers:
            assert text == "".join(f"v{version} {i}\n" for i in range(6))
            assert prefixes == {f"0{version}" * 8}
        assert {version for version, _, _ in answers} == {"1", "2", "3"}
        # Only the version that serves and the embedding model are still loaded.
        wait_until(lambda: events["open"] == 2)

    def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(
        self, gateway, pointer, fake_folders, tmp_path
    ):
        server = gateway()
        (tmp_path / "broken").touch()
        pointer.version = served(tmp_path, 2)
        wait_until(lambda: readiness(server)["load_failure"])
        assert complete(server, "x").headers["x-penstock-model-version"] == "1"
        ready = httpx.get(f"{server.url}/readyz")
        assert ready.status_code == 200
        shown = readiness(server)
        assert (shown["version"], shown["wanted_version"]) == (1, 2)
        assert "is broken" in shown["load_failure"]["error"]
        assert sample(server, "penstock_load_failures_total", model="penny") >= 1
        pointer.version = served(fake_folders[2], 2, epoch=3)
        wait_until(lambda: complete(server, "x").headers["x-penstock-model-version"] == "2")

    def test_a_stream_in_flight_ends_on_the_version_it_began_on(
        self, gateway, pointer, fake_folders, events
    ):
        server = gateway()
        body = {"model": "penny", "prompt": "count 300", "max_tokens": 9, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            pointer.version = served(fake_folders[2], 2)
            wait_until(lambda: server.gateway.models["penny"].table.current.served.version == 2)
            assert complete(server, "x").headers["x-penstock-model-version"] == "2"
            assert events["open"] == 3
            rest = "\n".join(lines)
        assert "v1 299" in rest
        assert "v2" not in rest
        wait_until(lambda: events["open"] == 2)
