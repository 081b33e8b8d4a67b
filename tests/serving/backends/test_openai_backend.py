"""The client of servers elsewhere: what it sends, what it believes, what failures become."""

import asyncio
import logging
from pathlib import Path

import numpy as np
import openai
import pytest
import yaml
from asking import answered, chat, collect, plain
from fake_upstream import LABELS, NAMED, choice, frame, honest, usage_of
from pydantic import ValidationError

from penstock.errors import (
    ContextExceeded,
    InvalidRequest,
    Overloaded,
    RecipeError,
    ServingError,
    Timeout,
)
from penstock.serving.backends.base import Generation, Usage
from penstock.serving.backends.openai import OpenAIOptions

KEY = "sk-very-secret-0123456789"


def answering(*steps):
    """An upstream's answer: events, or what is done to the reply."""

    async def answer(request, reply):
        await reply.start()
        for step in steps:
            await (step(request, reply) if callable(step) else reply.event(step))
        await reply.end()

    return answer


def said(text, reason=None):
    async def step(request, reply):
        await reply.event(frame(request.body, [choice(request.body, text, reason)]))

    return step


def counted(prompt_tokens, completion_tokens):
    async def step(request, reply):
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        await reply.event(frame(request.body, [], usage=counts))

    return step


async def forever(request, reply):
    await asyncio.sleep(3600)


async def hang_up(request, reply):
    reply.hang_up()
    await asyncio.sleep(3600)


def refusing(status, content, **headers):
    async def answer(request, reply):
        await reply.json(content, status, **headers)

    return answer


class TestTheFake:
    """The double speaks the protocol: the official client says so."""

    @pytest.fixture
    def client(self, upstream):
        with openai.OpenAI(base_url=upstream.url, api_key="none", max_retries=0) as client:
            yield client

    def test_streams_a_chat_with_usage(self, client):
        stream = client.chat.completions.create(
            model=NAMED,
            messages=[{"role": "user", "content": "say one two three"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "one two three"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert chunks[-1].usage.completion_tokens == 3

    def test_streams_a_completion(self, client):
        chunks = list(
            client.completions.create(model=NAMED, prompt="count 9", max_tokens=2, stream=True)
        )
        assert "".join(chunk.choices[0].text for chunk in chunks) == "0 1 "
        assert chunks[-1].choices[0].finish_reason == "length"

    def test_embeds_and_lists_its_model(self, client):
        (row,) = client.embeddings.create(model=NAMED, input="four").data
        assert row.embedding == [4.0, 1.5, -2.0]
        assert [one.id for one in client.models.list()] == [NAMED]
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="other", input="four")


class TestAsking:
    def test_an_answer_comes_with_its_end_and_its_counts(self, elsewhere):
        text, last = answered(elsewhere(), chat("say one two three"))
        assert (text, last.finish_reason) == ("one two three", "stop")
        assert last.usage == Usage(4, 3)

    def test_what_was_asked_is_sent(self, elsewhere, upstream):
        request = chat("count 9", 2, temperature=0.0, top_p=0.5, stop=("x",), seed=7)
        text, last = answered(elsewhere(), request)
        assert (text, last.finish_reason) == ("0 1 ", "length")
        (asked,) = upstream.asked("/v1/chat/completions")
        assert asked.body == {
            "model": NAMED,
            "messages": [{"role": "user", "content": "count 9"}],
            "max_tokens": 2,
            "temperature": 0.0,
            "top_p": 0.5,
            "stop": ["x"],
            "seed": 7,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def test_a_plain_completion_goes_as_text(self, elsewhere, upstream):
        assert answered(elsewhere(), plain("say a b"))[0] == "a b"
        assert upstream.asked("/v1/completions")[0].body["prompt"] == "say a b"

    def test_an_open_ended_answer_has_no_limit_of_ours(self, elsewhere, upstream):
        answered(elsewhere(), chat("say a", 4096, open_ended=True))
        assert "max_tokens" not in upstream.seen[-1].body

    def test_token_ids_cannot_be_sent_and_the_client_is_told(self, elsewhere):
        with pytest.raises(InvalidRequest, match="reads text"):
            answered(elsewhere(), Generation((), 5))

    def test_connections_carry_answer_after_answer(self, elsewhere, upstream):
        answered(elsewhere(), *[chat(f"say {n}") for n in range(40)])
        # While one stream's last bytes are read, the next request has another connection.
        assert upstream.num_connections <= 2

    def test_a_stop_string_holds_even_if_the_server_ignores_it(self, elsewhere, upstream):
        upstream.answer = answering(said("a b"), said("c d"), said("e", "stop"))
        text, last = answered(elsewhere(), chat("x", stop=("bc",)))
        assert (text, last.finish_reason) == ("a ", "stop")

    def test_key_and_headers_are_sent(self, elsewhere, upstream, monkeypatch):
        monkeypatch.setenv("BIG_KEY", KEY)
        answered(elsewhere({"api_key_env": "BIG_KEY", "headers": {"X-Team": "pipes"}}), chat("say"))
        headers = upstream.seen[-1].headers
        assert (headers["authorization"], headers["x-team"]) == (f"Bearer {KEY}", "pipes")

    def test_an_answer_that_came_whole_is_an_answer(self, elsewhere, upstream):
        async def whole(request, reply):
            message = {"role": "assistant", "content": "all at once"}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            await reply.json(frame(request.body, choices, usage=usage_of(request.body, 3)))

        upstream.answer = whole
        text, last = answered(elsewhere(), chat("say a b"))
        assert (text, last.finish_reason, last.usage) == ("all at once", "stop", Usage(3, 3))

    def test_a_filtered_answer_says_so(self, elsewhere, upstream):
        upstream.answer = answering(said("I", "content_filter"))
        assert answered(elsewhere(), chat("x"))[1].finish_reason == "content_filter"

    @pytest.mark.parametrize("prompt", ["hang", "never"])
    def test_a_client_that_leaves_is_noticed_there(self, elsewhere, upstream, prompt):
        """Both in the middle of an answer and while nothing has come yet."""
        if prompt == "never":
            upstream.answer = forever
        backend = elsewhere()

        async def main():
            stream = backend.generate(chat(prompt))
            if prompt == "hang":
                assert (await anext(stream)).text == "first"
                await stream.aclose()
            else:
                waiting = asyncio.ensure_future(anext(stream))
                while not upstream.seen:
                    await asyncio.sleep(0.005)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            while not upstream.num_left:
                await asyncio.sleep(0.005)

        asyncio.run(asyncio.wait_for(main(), 30))
        assert upstream.num_left == 1


class TestServersThatKnowLess:
    """Fields that a server refuses are left out, from then on."""

    def unknowing(self, *fields):
        async def answer(request, reply):
            wrong = [field for field in fields if field in request.body]
            if wrong:
                said = f"Unsupported parameter: '{wrong[0]}'."
                if wrong[0] == "max_tokens":
                    said += " Use 'max_completion_tokens' instead."
                await reply.json({"error": {"message": said, "param": wrong[0]}}, 400)
            else:
                await honest(request, reply)

        return answer

    def test_stream_options_and_max_tokens(self, elsewhere, upstream):
        upstream.answer = self.unknowing("stream_options", "max_tokens")
        answers = answered(elsewhere(), chat("count 3", 2), chat("count 3", 2))
        assert [(text, last.finish_reason) for text, last in answers] == [("0 1 ", "length")] * 2
        assert answers[0][1].usage is None
        # Two refusals the first time, none the second.
        assert len(upstream.seen) == 4
        assert upstream.seen[-1].body["max_completion_tokens"] == 2

    def test_base64(self, elsewhere, upstream):
        upstream.answer = self.unknowing("encoding_format")
        backend = elsewhere(task="embed")

        async def main():
            return [await backend.embed(["a", "bc"]) for _ in range(2)]

        for vectors, num_tokens in asyncio.run(main()):
            assert vectors.tolist() == [[1, 1.5, -2], [2, 1.5, -2]]
            assert num_tokens == 2
        assert len(upstream.seen) == 3

    def test_labels(self, elsewhere, upstream):
        upstream.answer = self.unknowing("labels")
        backend = elsewhere(task="classify", labels=LABELS)
        scores, _ = asyncio.run(backend.classify(["no!"]))
        np.testing.assert_allclose(scores, [[0.1, 0.9]], rtol=1e-6)

    def test_a_refusal_that_names_a_field_but_stays_is_no_lesson(self, elsewhere, upstream):
        upstream.answer = refusing(400, {"error": {"message": "your stream_options are ugly"}})
        backend = elsewhere()
        with pytest.raises(InvalidRequest, match="ugly"):
            answered(backend, chat("x"))
        upstream.answer = honest
        answered(backend, chat("say x"))
        assert "stream_options" in upstream.seen[-1].body


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "content", "kind", "shown"),
        [
            (400, {"error": {"message": "temperature is odd"}}, InvalidRequest, "is odd"),
            (422, {"detail": [{"loc": ["body", "x"], "msg": "bad"}]}, InvalidRequest, "bad"),
            (413, {"error": "too big"}, InvalidRequest, "too big"),
            (
                400,
                {"error": {"message": "too many", "code": "context_length_exceeded"}},
                ContextExceeded,
                "too many",
            ),
            (
                400,
                {"message": "This model's maximum context length is 9 tokens."},
                ContextExceeded,
                "9 tokens",
            ),
        ],
    )
    def test_what_is_wrong_with_the_request_is_passed_on(
        self, elsewhere, upstream, status, content, kind, shown
    ):
        upstream.answer = refusing(status, content)
        with pytest.raises(kind, match=shown) as caught:
            answered(elsewhere(), chat("x"))
        assert type(caught.value) is kind
        assert caught.value.status == 400

    @pytest.mark.parametrize("status", [401, 403, 404, 405, 500, 502, 503, 418, 302])
    def test_what_is_wrong_with_the_server_is_logged_and_not_shown(
        self, elsewhere, upstream, status, caplog
    ):
        upstream.answer = refusing(
            status, {"error": {"message": "the disk of host7 is full"}}, location="/elsewhere"
        )
        with caplog.at_level(logging.WARNING), pytest.raises(ServingError) as caught:
            answered(elsewhere(), chat("x"))
        assert caught.value.status == 500
        assert "host7" not in str(caught.value)
        assert f"HTTP {status}: the disk of host7 is full" in caplog.text
        # A redirect is not followed.
        assert [one.path for one in upstream.seen] == ["/v1/chat/completions"]

    @pytest.mark.parametrize(
        ("header", "pause_s"), [("7", 7), ("0.2", 1), ("99999", 600), ("tomorrow", 1), ("nan", 1)]
    )
    def test_a_server_with_too_much_to_do_says_when_to_come_again(
        self, elsewhere, upstream, header, pause_s
    ):
        upstream.answer = refusing(429, {"error": {"message": "slow down"}}, retry_after=header)
        with pytest.raises(Overloaded) as caught:
            answered(elsewhere(), chat("x"))
        assert caught.value.retry_after_s == pause_s

    def test_keys_and_addresses_are_never_shown_nor_logged(
        self, elsewhere, upstream, monkeypatch, caplog
    ):
        monkeypatch.setenv("BIG_KEY", KEY)
        told = f"{KEY} at {upstream.url} and http://10.1.2.3/x and 127.0.0.1:{upstream.port}"
        backend = elsewhere({"api_key_env": "BIG_KEY"})
        for status in (400, 401):
            upstream.answer = refusing(status, {"error": {"message": f"No: {told}"}})
            with caplog.at_level(logging.DEBUG), pytest.raises(ServingError) as caught:
                answered(backend, chat("x"))
            assert str(upstream.port) not in str(caught.value)
            assert "10.1.2.3" not in str(caught.value)
            assert KEY not in str(caught.value) + caplog.text

    def test_a_server_that_is_not_there(self, elsewhere, upstream):
        upstream.die()
        with pytest.raises(ServingError, match="failed to answer") as caught:
            answered(elsewhere(), chat("x"))
        assert caught.value.status == 500

    def test_nothing_is_sent_to_where_a_cloud_keeps_its_secrets(self, elsewhere):
        backend = elsewhere({"url": "http://0xA9FEA9FE/v1"})
        with pytest.raises(ServingError, match="failed to answer"):
            answered(backend, chat("x"))


LONG = "x" * 100_000


class TestLies:
    """None hangs, none gives a second answer, none is shown."""

    @pytest.mark.parametrize(
        "lie",
        {
            "no end": answering(said("a")),
            "done without an end": answering(said("a"), "[DONE]"),
            "half a JSON": answering(said("a"), '{"choices": [{"index": 0, "delta": {"con'),
            "no object": answering("[1, 2]"),
            "choices that are none": answering({"choices": "many"}),
            "text that is none": answering(said({"a": 1})),
            "an error in the stream": answering(said("a"), {"error": {"message": "secret"}}),
            "more than was asked for": answering(*[said(LONG)] * 3, said("", "stop")),
            "an event without end": answering(*[lambda _, reply: reply.piece(LONG.encode())] * 12),
            "broken off": answering(said("a"), hang_up),
        }.items(),
        ids=lambda lie: lie[0],
    )
    def test_an_answer_that_is_none_is_a_failure(self, elsewhere, upstream, lie):
        upstream.answer = lie[1]
        with pytest.raises(ServingError, match="server behind this model") as caught:
            answered(elsewhere(), chat("x"))
        assert caught.value.status == 500
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            (b"<html>Welcome</html>", "text/html"),
            (b'{"choices": [{"message": {"con', "application/json"),
            (b'{"choices": []}', "application/json"),
            (b"null", "application/json"),
            (b"", "application/json"),
            (b"\xff\xfe", "text/plain"),
        ],
    )
    def test_a_page_instead_of_an_answer_is_a_failure(self, elsewhere, upstream, body, kind):
        async def answer(request, reply):
            await reply.whole(body, kind)

        upstream.answer = answer
        with pytest.raises(ServingError, match="server behind this model"):
            answered(elsewhere(), chat("x"))

    @pytest.mark.parametrize(
        "raw",
        [
            b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\ncontent-type: application/json\r\n\r\n{",
            b"220 mail.example.com ESMTP\r\n",
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        ],
        ids=["half a body", "no HTTP", "a giant header"],
    )
    def test_broken_http_is_a_failure(self, elsewhere, upstream, raw):
        async def answer(request, reply):
            await reply.raw(raw)
            await asyncio.sleep(0.05)
            reply.hang_up()

        upstream.answer = answer
        with pytest.raises(ServingError, match="server behind this model"):
            answered(elsewhere(), chat("x"))

    @pytest.mark.parametrize("lie", [forever, answering(said("a"), forever)])
    def test_silence_is_waited_for_so_long_and_no_longer(self, elsewhere, upstream, lie):
        upstream.answer = lie
        with pytest.raises(Timeout, match=r"said nothing for 0\.2 s"):
            answered(elsewhere({"timeout_s": 0.2}), chat("x"))

    def test_two_ends_are_one_and_nothing_behind_it_is_part_of_the_answer(
        self, elsewhere, upstream
    ):
        upstream.answer = answering(
            said("one", "stop"), said(" two", "length"), said(" three"), counted(3, 2), "[DONE]"
        )
        text, last = answered(elsewhere(), chat("x"))
        assert (text, last.finish_reason, last.usage) == ("one", "stop", Usage(3, 2))

    def test_another_choice_is_not_mixed_in(self, elsewhere, upstream):
        async def both(request, reply):
            ours, other = choice(request.body, "ours", "stop"), choice(request.body, "other")
            await reply.event(frame(request.body, [other | {"index": 1}]))
            await reply.event(frame(request.body, [other | {"index": 1}, ours]))

        upstream.answer = answering(both)
        assert answered(elsewhere(), chat("x"))[0] == "ours"

    @pytest.mark.slow
    def test_a_stream_that_stays_open_behind_its_end_holds_nobody_up(self, elsewhere, upstream):
        upstream.answer = answering(said("one", "stop"), forever)
        text, last = answered(elsewhere(), chat("x"))
        assert (text, last.finish_reason, last.usage) == ("one", "stop", None)

    @pytest.mark.parametrize(
        "usage", ["many", [], {"prompt_tokens": "3"}, {"prompt_tokens": True}, {}, None]
    )
    def test_counts_that_are_none_are_no_counts(self, elsewhere, upstream, usage):
        upstream.answer = answering(said("one", "stop"), {"choices": [], "usage": usage})
        assert answered(elsewhere(), chat("x"))[1].usage is None


class TestVectorsAndScores:
    def test_vectors_come_in_the_order_of_the_texts(self, elsewhere):
        vectors, num_tokens = asyncio.run(elsewhere(task="embed").embed(["a", "bc d", "efg"]))
        assert vectors.dtype == np.float32
        assert vectors.tolist() == [[1, 1.5, -2], [4, 1.5, -2], [3, 1.5, -2]]
        assert num_tokens == 4

    @pytest.mark.parametrize(
        "rows",
        [
            [],
            [{"index": 0, "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}] * 2,
            [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [None]}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AAB"}],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AADAfw=="}],
            [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}],
            [{"index": 0, "embedding": [[1.0]]}, {"index": 1, "embedding": [[1.0]]}],
            [{"index": {}, "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}],
            ["a", "b"],
            None,
        ],
    )
    def test_vectors_that_are_none_are_a_failure(self, elsewhere, upstream, rows):
        upstream.answer = refusing(200, {"data": rows, "usage": {"prompt_tokens": 2}})
        with pytest.raises(ServingError, match="no answer"):
            asyncio.run(elsewhere(task="embed").embed(["a", "b"]))

    @pytest.mark.parametrize("claimed", [-1, 0, 10**9, "2", None])
    def test_a_wrong_count_of_what_was_read_is_not_believed(self, elsewhere, upstream, claimed):
        rows = [{"index": 0, "embedding": [1.0]}]
        upstream.answer = refusing(200, {"data": rows, "usage": {"prompt_tokens": claimed}})
        _, num_tokens = asyncio.run(elsewhere(task="embed").embed(["y" * 64]))
        assert num_tokens == 16

    def test_relevance_comes_in_the_order_of_the_documents(self, elsewhere, upstream):
        scores, num_tokens = asyncio.run(elsewhere(task="rerank").rerank("abc", ["xa", "cab", "z"]))
        np.testing.assert_allclose(scores, [1 / 3, 1, 0], rtol=1e-6)
        assert num_tokens == 9
        assert upstream.asked("/v1/rerank")[0].body["documents"] == ["xa", "cab", "z"]

    def test_logits_become_shares_in_the_same_order(self, elsewhere, upstream):
        rows = [{"index": i, "relevance_score": s} for i, s in enumerate([-2.0, 5.0, 0.0])]
        upstream.answer = refusing(200, {"results": rows})
        scores, _ = asyncio.run(elsewhere(task="rerank").rerank("abc", ["a", "b", "c"]))
        assert scores[1] > scores[2] == 0.5 > scores[0] > 0

    def test_vllm_classifies_beside_its_v1_and_names_only_the_best(self, elsewhere, upstream):
        backend = elsewhere(task="classify", labels=LABELS)

        async def main():
            return [await backend.classify(["fine", "no!"]) for _ in range(2)]

        for scores, num_tokens in asyncio.run(main()):
            np.testing.assert_allclose(scores, [[0.9, 0.1], [0.1, 0.9]], rtol=1e-6)
            assert num_tokens == 5
        # Where it is was found out once.
        paths = [one.path for one in upstream.seen]
        assert paths == ["/v1/classify", "/classify", "/classify"]

    def test_jina_names_every_label(self, elsewhere, upstream):
        pairs = [{"label": "angry", "score": 0.25}, {"label": "calm", "score": 0.75}]
        upstream.answer = refusing(200, {"data": [{"index": 0, "predictions": pairs}]})
        scores, _ = asyncio.run(elsewhere(task="classify", labels=LABELS).classify(["fine"]))
        assert scores.tolist() == [[0.75, 0.25]]
        assert upstream.seen[-1].body["labels"] == list(LABELS)

    @pytest.mark.parametrize(
        "row", [{}, {"probs": [1.0]}, {"probs": ["a", "b"]}, {"predictions": [{"label": "calm"}]}]
    )
    def test_classes_that_are_not_ours_are_a_failure(self, elsewhere, upstream, row):
        upstream.answer = refusing(200, {"data": [row]})
        with pytest.raises(ServingError, match="no answer"):
            asyncio.run(elsewhere(task="classify", labels=LABELS).classify(["fine"]))


async def becomes(backend, healthy):
    """Look until it is so; returns how many looks that took."""
    num_looks = 1
    while await backend.healthy() is not healthy:
        num_looks += 1
        await asyncio.sleep(0.02)
    return num_looks


class TestHealth:
    def test_a_server_that_dies_is_unwell_and_well_again_when_it_is_back(self, elsewhere, upstream):
        backend = elsewhere()

        async def main():
            await becomes(backend, True)
            while not upstream.asked("/health"):
                await asyncio.sleep(0.02)
            upstream.die()
            await becomes(backend, False)
            upstream.rise()
            await becomes(backend, True)
            upstream.health = 503
            await becomes(backend, False)

        asyncio.run(asyncio.wait_for(main(), 30))

    def test_a_server_without_a_health_path_is_asked_for_its_models(self, elsewhere, upstream):
        upstream.health = 404
        backend = elsewhere()

        async def main():
            while len(upstream.seen) < 4:
                await becomes(backend, True)
                await asyncio.sleep(0.02)

        asyncio.run(asyncio.wait_for(main(), 30))
        paths = [one.path for one in upstream.seen]
        assert paths[:4] == ["/health", *["/v1/models"] * 3]

    def test_connections_are_closed_while_the_loop_runs_on(self, elsewhere, upstream):
        backend = elsewhere()

        async def main():
            await collect(backend, chat("say a"))
            assert upstream.num_open == 1
            await asyncio.to_thread(backend.close)
            while upstream.num_open:
                await asyncio.sleep(0.005)

        asyncio.run(asyncio.wait_for(main(), 30))


class TestSettings:
    def test_a_key_that_is_not_there_is_said_when_the_model_is_loaded(self, elsewhere, monkeypatch):
        monkeypatch.delenv("BIG_KEY", raising=False)
        with pytest.raises(RecipeError, match="BIG_KEY"):
            elsewhere({"api_key_env": "BIG_KEY"})

    def test_the_servers_name_for_the_model_is_needed(self, elsewhere):
        with pytest.raises(RecipeError, match="nothing says"):
            elsewhere(source=None)

    def test_a_classifier_needs_labels(self, elsewhere):
        with pytest.raises(RecipeError, match="tells apart"):
            elsewhere(task="classify")

    @pytest.mark.parametrize(
        "headers",
        [{"Authorization": "Bearer x"}, {"host": "other"}, {"a b": "c"}, {"x": "a\r\nhost: b"}],
    )
    def test_headers_that_are_keys_or_break_the_request_are_refused(self, headers):
        with pytest.raises(ValidationError, match=r"header|api_key_env"):
            OpenAIOptions(url="http://host/v1", headers=headers)

    def test_a_recipe_with_a_wrong_address_is_refused_when_it_is_loaded(self, tmp_path):
        import tiny_project
        from penstock.recipe_file import load_recipe

        path = tiny_project.write_project(tmp_path)
        recipe = yaml.safe_load(Path(path).read_text())
        wrong = {"openai": {"url": "http://169.254.169.254/v1", "timeout": 3}}
        recipe.setdefault("serve", {})["models"] = {
            "tiny": {},
            "big": {"source": NAMED, "backend": wrong},
        }
        path.write_text(yaml.safe_dump(recipe))
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert "metadata address" in caught.value.message
        assert "timeout" in caught.value.message
        recipe["serve"]["models"]["big"]["backend"] = {"openai": {"url": "http://host:1/v1"}}
        path.write_text(yaml.safe_dump(recipe))
        assert load_recipe(path).serve.models["big"].options == {"url": "http://host:1/v1"}
