"""Features in the prompts of a served model."""

import httpx
import pytest
from doubles import Pointer, model, served
from tiny_llama import save_tokenizer

from memory_store import MemoryStore
from penstock.features.base import FeatureOptions
from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.server import BackgroundServer

SETTINGS = {
    "names": ("profile:plan", "profile:tickets"),
    "entities": {"user_id": "customer"},
    "timestamp": "asked_at",
    # The fake backend answers with what follows "say".
    "template": "say {plan}, {tickets}: {instruction}",
}
CONTENT_ONLY = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture
def start(tmp_path):
    """Serves a model that was trained with features; stops after the test."""
    servers = []

    def begin(store, **changed):
        folder = tmp_path / "model"
        save_tokenizer(folder, CONTENT_ONLY)
        (folder / "config.json").write_text('{"max_position_embeddings": 256}')
        FeatureOptions(**{**SETTINGS, **changed}).prompt.save(folder)
        config = Serve(port=0, metrics_port=0, models={"penny": model()})
        pointer = Pointer(served(folder, 1))
        around = Surroundings(pointer, tmp_path / "cache", features=store)
        server = BackgroundServer(config, around)
        servers.append(server)
        server.__enter__().wait_ready(30)
        return server

    yield begin
    for server in servers:
        server.__exit__(None, None, None)


def ask(server, metadata=None, messages=None, path="chat/completions", **fields):
    messages = messages or [{"role": "user", "content": "hello"}]
    body = {"model": "penny", "messages": messages, "metadata": metadata, **fields}
    return httpx.post(f"{server.url}/v1/{path}", json=body)


def text(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_a_prompt_holds_the_values_of_now(start):
    server = start(MemoryStore())
    assert text(ask(server, {"customer": "a"})) == "pro, 2: hello"
    assert text(ask(server, {"customer": "b", "other": "x"})) == "free, 3: hello"


def test_only_the_first_user_turn_is_filled(start):
    turns = [("system", "say "), ("user", "one"), ("assistant", "two"), ("user", "three")]
    messages = [{"role": role, "content": content} for role, content in turns]
    answer = text(ask(start(MemoryStore()), {"customer": "a"}, messages))
    assert answer == "say pro, 2: onetwothree"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "'metadata' does not say customer"),
        ({"user_id": "a"}, "'metadata' does not say customer"),
        ({"customer": "nobody"}, "Nothing is known of this entity: profile:plan"),
        ({"customer": 7}, "Input should be a valid string"),
        ({"customer": "x" * 513}, "at most 512 characters"),
    ],
)
def test_an_entity_that_is_not_known_is_refused(start, metadata, message):
    answer = ask(start(MemoryStore()), metadata)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_with_defaults_nobody_has_to_be_known(start):
    store = MemoryStore()
    server = start(store, defaults={"plan": "free", "tickets": 0})
    assert text(ask(server)) == "free, 0: hello"
    assert text(ask(server, {"customer": "nobody"})) == "free, 0: hello"
    store.broken = True
    assert text(ask(server, {"customer": "a"})) == "free, 0: hello"
    lookups = httpx.get(server.metrics_url).text
    assert 'penstock_feature_lookups_total{outcome="failed"} 1.0' in lookups
    assert 'penstock_feature_lookups_total{outcome="unnamed"} 1.0' in lookups


def test_without_defaults_a_store_that_fails_is_a_503_and_says_nothing_of_its_insides(start):
    store = MemoryStore()
    server = start(store)
    store.broken = True
    answer = ask(server, {"customer": "a"})
    assert answer.status_code == 503
    assert "broken" not in answer.text


def test_a_recipe_without_the_section_cannot_serve_such_a_model(start):
    answer = ask(start(None), {"customer": "a"})
    assert answer.status_code == 503
    assert "names no feature store" in answer.json()["error"]["message"]


def test_a_plain_completion_is_taken_as_it_is(start):
    body = {"model": "penny", "prompt": "say hello"}
    answer = httpx.post(f"{start(MemoryStore()).url}/v1/completions", json=body)
    assert answer.json()["choices"][0]["text"] == "hello"
