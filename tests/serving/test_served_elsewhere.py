"""A gateway in front of servers elsewhere: fallbacks, lies, and another gateway."""

import asyncio
import json
import threading
from contextlib import contextmanager

import httpx
import openai
import pytest
from doubles import model, wait_until
from fake_upstream import NAMED, FakeUpstream, choice, frame, honest

from penstock.serving.facts import Observer


class Seen(Observer):
    def __init__(self):
        self.facts = []

    def observe(self, facts):
        self.facts.append(facts)


@pytest.fixture
def upstream():
    with FakeUpstream() as server:
        yield server


def big(upstream, **more):
    return model("openai", {"url": upstream.url, **more.pop("options", {})}, source=NAMED, **more)


def ask(server, prompt, **more):
    body = {"model": "big", "prompt": prompt, **more}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)


def state(server):
    return httpx.get(f"{server.url}/readyz").json()["models"]["big"]


@contextmanager
def streaming(server, prompt, **more):
    body = {"model": "big", "messages": [{"role": "user", "content": prompt}], "stream": True}
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body | more, timeout=30) as answer:
        yield answer


def test_answers_usage_and_headers_are_ours(gateway, upstream):
    server = gateway(more={"big": big(upstream)})
    answer = ask(server, "say one two three")
    assert answer.json()["choices"][0]["text"] == "one two three"
    assert answer.json()["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "total_tokens": 7,
    }
    assert answer.json()["model"] == "big"
    assert answer.headers["x-penstock-run"] == "external"


@pytest.mark.slow
def test_a_dead_server_is_noticed_its_fallback_answers_and_it_comes_back(gateway, upstream):
    server = gateway(more={"big": big(upstream, fallbacks=["penny"])})
    wait_until(lambda: state(server)["answers"] and upstream.asked("/health"))
    upstream.die()
    # Nobody has asked it for anything: the health check alone notices.
    wait_until(lambda: not state(server)["answers"])
    answer = ask(server, "say hello")
    assert answer.json()["choices"][0]["text"] == "hello"
    assert answer.headers["x-penstock-model"] == "penny"
    assert upstream.asked("/v1/completions") == []
    upstream.rise()
    wait_until(lambda: state(server)["answers"])
    assert ask(server, "say hello").headers["x-penstock-model"] == "big"


def test_a_server_that_dies_under_a_request_costs_the_client_nothing(gateway, upstream):
    """Before the health check has had a look, that is."""
    server = gateway(more={"big": big(upstream, fallbacks=["penny"])})

    async def die(request, reply):
        reply.hang_up()

    upstream.answer = die
    for stream in (False, True):
        answer = ask(server, "say hello", stream=stream)
        assert answer.headers["x-penstock-model"] == "penny"
    # Each request had its two tries there first.
    assert len(upstream.asked("/v1/completions")) == 4


def test_a_server_elsewhere_as_the_fallback_of_one_here(gateway, upstream):
    penny = model(fallbacks=["big"])
    server = gateway(more={"penny": penny, "big": big(upstream)})
    answer = ask(server, "break", model="penny")
    assert answer.headers["x-penstock-model"] == "big"
    assert answer.status_code == 200


def test_a_client_that_leaves_a_stream_stops_the_server_elsewhere(gateway, upstream):
    server = gateway(more={"big": big(upstream)})
    with streaming(server, "hang") as answer:
        assert "first" in next(answer.iter_text())
        assert upstream.num_left == 0
    wait_until(lambda: upstream.num_left == 1)


def test_too_much_to_do_is_passed_on_with_its_pause(gateway, upstream):
    server = gateway(more={"big": big(upstream)})

    async def busy(request, reply):
        await reply.json({"error": {"message": "slow down"}}, 429, retry_after="17")

    upstream.answer = busy
    answer = ask(server, "x")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "17")
    assert answer.json()["error"]["code"] == "overloaded"
    # That is no failure of the server.
    assert state(server)["answers"]


async def html(request, reply):
    await reply.whole(b"<html>secret</html>", "text/html")


async def half(request, reply):
    await reply.start()
    await reply.event('{"choices": [{"ind')
    await reply.end()


async def no_end(request, reply):
    await reply.start()
    await reply.event(frame(request.body, [choice(request.body, "word")]))
    await reply.end()


class TestLies:
    @pytest.mark.parametrize("lie", [html, half, no_end])
    def test_the_client_gets_an_error_in_openais_shape_and_the_gateway_stays(
        self, gateway, upstream, lie
    ):
        server = gateway(more={"big": big(upstream)})
        upstream.answer = lie
        answer = ask(server, "x")
        assert answer.status_code == 500
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert "secret" not in answer.text
        assert str(upstream.port) not in answer.text
        upstream.answer = honest
        assert ask(server, "say well").status_code == 200

    def test_a_stream_that_breaks_off_ends_with_an_error_and_without_a_second_answer(
        self, gateway, upstream
    ):
        server = gateway(more={"big": big(upstream, fallbacks=["penny"])})
        upstream.answer = no_end
        with streaming(server, "x") as answer:
            events = [line for line in answer.iter_lines() if line]
        assert "word" in events[1]
        assert "error" in json.loads(events[-1].removeprefix("data: "))
        assert len(events) == 3
        assert len(upstream.asked("/v1/chat/completions")) == 1

    @pytest.mark.slow
    def test_a_server_that_keeps_talking_and_says_nothing_ends_with_the_deadline(
        self, gateway, upstream
    ):
        async def drip(request, reply):
            await reply.start()
            while True:
                await reply.piece(b": still here\n\n")
                await asyncio.sleep(0.01)

        server = gateway(more={"big": big(upstream)}, request_timeout_s=0.7)
        upstream.answer = drip
        answer = ask(server, "x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        wait_until(lambda: upstream.num_left == 1)

    @pytest.mark.parametrize("claimed", [-5, 0, 10**12])
    def test_a_wrong_count_is_not_passed_on(self, gateway, upstream, claimed):
        seen = Seen()
        server = gateway(more={"big": big(upstream)}, observers=(seen,))

        async def lie(request, reply):
            counts = {"prompt_tokens": claimed, "completion_tokens": claimed}
            await reply.start()
            for _ in range(3):
                await reply.event(frame(request.body, [choice(request.body, "four")]))
            await reply.event(frame(request.body, [choice(request.body, "", "stop")], usage=counts))
            await reply.event("[DONE]")
            await reply.end()

        upstream.answer = lie
        answer = ask(server, "x" * 100, max_tokens=50)
        usage = {"prompt_tokens": 25, "completion_tokens": 3, "total_tokens": 28}
        assert answer.json()["usage"] == usage
        wait_until(lambda: seen.facts)
        assert (seen.facts[0].prompt_tokens, seen.facts[0].completion_tokens) == (25, 3)
        metrics = httpx.get(f"{server.metrics_url}/metrics").text
        assert 'llm_tokens_generated_total{model="big"} 3.0' in metrics

    def test_what_was_written_before_a_client_left_is_counted(self, gateway, upstream):
        seen = Seen()
        server = gateway(more={"big": big(upstream)}, observers=(seen,))
        with streaming(server, "hang") as answer:
            next(answer.iter_text())
        wait_until(lambda: seen.facts)
        assert (seen.facts[0].prompt_tokens, seen.facts[0].completion_tokens) == (1, 2)


class TestAnotherGateway:
    """Our own API is checked with the official client, so it is what the client must read."""

    @pytest.fixture
    def client(self, gateway, fake_folders):
        further = {
            "ranker": model(task="rerank", source=str(fake_folders[3])),
            "moods": model(task="classify", source=str(fake_folders[3]), labels=["cat", "dog"]),
        }
        behind = gateway(more=further)

        def there(name, **more):
            return model("openai", {"url": behind.url}, source=name, **more)

        front = gateway(
            more={
                "penny": there("penny"),
                "vectors": there("vectors", task="embed"),
                "ranker": there("ranker", task="rerank"),
                "moods": there("moods", task="classify", labels=["dog", "cat"]),
            }
        )
        with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    @pytest.mark.slow
    def test_every_task_passes_through(self, client):
        turns = [{"role": "user", "content": "say one two"}]
        chat = client.chat.completions.create(model="penny", messages=turns)
        # A chat's prompt there begins with its template, so it is no order.
        assert chat.choices[0].message.content == "v1"
        chunks = list(client.completions.create(model="penny", prompt="count 3", stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == "v1 0\nv1 1\nv1 2\n"
        rows = client.embeddings.create(model="vectors", input=["four", "a"]).data
        assert [row.embedding for row in rows] == [[4.0, 1.5, -2.0], [1.0, 1.5, -2.0]]
        root = str(client.base_url)
        body = {"model": "ranker", "query": "ab", "documents": ["xa", "ab"]}
        ranked = httpx.post(f"{root}rerank", json=body).json()["results"]
        assert [(row["index"], row["relevance_score"]) for row in ranked] == [(1, 1.0), (0, 0.5)]
        body = {"model": "moods", "input": ["a dog"]}
        answer = httpx.post(f"{root}classify", json=body)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["data"]
        assert row["label"] == "dog"
        assert [round(one, 3) for one in row["probs"]] == [0.9, 0.1]

    @pytest.mark.slow
    def test_a_refusal_passes_through(self, client):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="penny", prompt="x" * 400)
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.slow
def test_many_streams_at_once_keep_their_own_words(gateway, upstream):
    server = gateway(more={"big": big(upstream, max_concurrency=8)})
    texts = {}

    def one(number):
        texts[number] = ask(server, f"say {number} of many").json()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [said for said in texts.values() if "choices" not in said] == []
    assert {n: said["choices"][0]["text"] for n, said in texts.items()} == {
        n: f"{n} of many" for n in texts
    }
    assert len(texts) == 40
