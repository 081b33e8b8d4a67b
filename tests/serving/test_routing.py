"""Who answers, asked over HTTP as clients do: models tell by their answers who they are."""

import httpx
import pytest
from doubles import model, served, wait_until
from prometheus_client.parser import text_string_to_metric_families

from penstock.serve_section import RouteConfig


def ask(server, name, prompt="hello", **fields):
    body = {"model": name, "prompt": prompt, **fields}
    headers = fields.pop("headers", {})
    body.pop("headers", None)
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers)


def answered_by(answer):
    assert answer.status_code == 200, answer.text
    return answer.headers["x-penstock-model"]


@pytest.fixture
def routed(gateway, fake_folders):
    """A gateway with two generating models, a classifier, and a route over them."""

    def start(route, **more):
        return gateway(
            more={
                "big": model(source=str(fake_folders[2])),
                "intent": model(
                    task="classify", source=str(fake_folders[3]), labels=["billing", "chat"]
                ),
                **more,
            },
            routes={"assistant": RouteConfig.model_validate(route)},
        )

    return start


def test_a_route_is_listed_with_the_models(routed):
    server = routed({"to": "penny"})
    listed = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [one["id"] for one in listed] == ["penny", "vectors", "big", "intent", "assistant"]


def test_the_first_rule_that_fits_decides(routed):
    rules = [
        {"when": {"metadata": {"plan": "gold"}}, "to": "big"},
        {"when": {"min_prompt_chars": 20, "max_prompt_chars": 30}, "to": "big"},
    ]
    server = routed({"rules": rules, "to": "penny"})
    assert answered_by(ask(server, "assistant")) == "penny"
    assert answered_by(ask(server, "assistant", metadata={"plan": "gold"})) == "big"
    assert answered_by(ask(server, "assistant", metadata={"plan": "tin"})) == "penny"
    assert answered_by(ask(server, "assistant", "x" * 25)) == "big"
    assert answered_by(ask(server, "assistant", "x" * 31)) == "penny"


@pytest.mark.parametrize(("confidence", "expected"), [(0.6, "big"), (0.95, "penny")])
def test_an_intent_counts_when_the_classifier_is_sure(routed, confidence, expected):
    route = {
        "classifier": "intent",
        "min_confidence": confidence,
        "rules": [{"when": {"intent": "billing"}, "to": "big"}],
        "to": "penny",
    }
    server = routed(route)
    assert answered_by(ask(server, "assistant", "about billing")) == expected
    assert answered_by(ask(server, "assistant", "about the weather")) == "penny"


def test_a_classifier_that_fails_is_passed_over(routed, fake_folders):
    route = {
        "classifier": "intent",
        "rules": [{"when": {"intent": "billing"}, "to": "big"}],
        "to": "penny",
    }
    # Without labels nothing can be told apart, and asking fails.
    server = routed(route, intent=model(task="classify", source=str(fake_folders[3])))
    assert answered_by(ask(server, "assistant", "about billing")) == "penny"


def test_a_conversation_stays_where_it_is_and_weights_share_the_rest(routed):
    server = routed({"to": {"penny": 1, "big": 1}})
    by_conversation = {
        number: {
            answered_by(ask(server, "assistant", headers={"x-penstock-conversation": f"c{number}"}))
            for _ in range(3)
        }
        for number in range(12)
    }
    assert all(len(models) == 1 for models in by_conversation.values())
    assert set().union(*by_conversation.values()) == {"penny", "big"}
    same = ask(server, "assistant", metadata={"conversation_id": "c1"})
    assert {answered_by(same)} == by_conversation[1]


def test_choices_are_counted_by_route_model_and_reason(routed):
    server = routed({"rules": [{"when": {"min_prompt_chars": 9}, "to": "big"}], "to": "penny"})
    ask(server, "assistant", "long enough")
    ask(server, "penny")
    samples = {
        tuple(sample.labels[key] for key in ("route", "model", "why")): sample.value
        for family in text_string_to_metric_families(httpx.get(server.metrics_url).text)
        for sample in family.samples
        if sample.name == "penstock_routed_requests_total"
    }
    assert samples == {("assistant", "big", "rule"): 1, ("penny", "penny", "name"): 1}


def test_a_model_is_not_asked_for_what_it_does_not_do(routed):
    server = routed({"to": "intent"})
    for name in ("intent", "assistant"):
        answer = ask(server, name)
        assert answer.status_code == 400
        assert "/v1/classify" in answer.json()["error"]["message"]


class TestFailures:
    def test_a_fallback_answers_for_a_model_that_breaks(self, routed, events):
        server = routed({"to": "penny", "fallbacks": ["big"]})
        answer = ask(server, "assistant", "break once")
        # Both break on this prompt; the client learns what the first one said.
        assert answer.status_code == 500
        assert answer.headers["x-penstock-model"] == "big"
        assert events["started"] == 4  # each was tried twice

    def test_a_model_that_is_not_loaded_has_its_fallback(self, gateway, pointer, fake_folders):
        pointer.version = None
        more = {"penny": model(fallbacks=["big"]), "big": model(source=str(fake_folders[2]))}
        server = gateway(ready=False, more=more)
        wait_until(lambda: server.gateway.models["big"].ready)
        assert answered_by(ask(server, "penny")) == "big"

    def test_a_broken_model_is_left_alone_after_some_failures(self, routed, events):
        server = routed({"to": "penny"})
        for _ in range(3):
            assert ask(server, "penny", "break").status_code == 500
        started = events["started"]
        answer = ask(server, "penny", "say hello")
        assert answer.status_code == 503
        assert events["started"] == started
        shown = httpx.get(f"{server.url}/readyz").json()["models"]["penny"]
        assert shown["answers"] is False
        assert answered_by(ask(server, "big")) == "big"

    def test_a_client_that_asks_wrongly_opens_no_breaker_and_is_not_tried_twice(
        self, routed, events
    ):
        server = routed({"to": "penny", "fallbacks": ["big"]})
        for _ in range(8):
            assert ask(server, "assistant", "x" * 100).status_code == 400
        assert events["started"] == 0
        assert answered_by(ask(server, "penny")) == "penny"

    def test_a_slow_model_gives_way_to_its_fallback(self, routed, fake_folders):
        server = routed(
            {"to": "slow"},
            slow=model(source=str(fake_folders[3]), timeout_s=0.1, fallbacks=["big"]),
        )
        assert answered_by(ask(server, "slow", "say hi")) == "slow"
        assert answered_by(ask(server, "slow", "hang v3")) == "big"
        wait_until(lambda: server.gateway.models["slow"].table.current.num_in_flight == 0)


class TestTrial:
    """A challenger beside the champion."""

    @pytest.mark.slow
    def test_it_answers_its_share_and_conversations_stay(self, gateway, pointer, fake_folders):
        server = gateway()
        pointer.challenger, pointer.share = served(fake_folders[2], 2), 0.5
        pointer.rollout = "r1"
        table = server.gateway.models["penny"].table
        wait_until(lambda: table.challenger is not None)
        versions = {}
        for number in range(20):
            header = {"x-penstock-conversation": f"c{number}"}
            versions[number] = {
                ask(server, "penny", headers=header).headers["x-penstock-model-version"]
                for _ in range(2)
            }
        assert all(len(some) == 1 for some in versions.values())
        assert set().union(*versions.values()) == {"1", "2"}

    def test_its_promotion_loads_nothing_again(self, gateway, pointer, fake_folders, events):
        server = gateway()
        table = server.gateway.models["penny"].table
        pointer.challenger, pointer.share = served(fake_folders[2], 2), 1.0
        wait_until(lambda: table.challenger is not None)
        pointer.version = served(fake_folders[2], 2, epoch=7)
        wait_until(lambda: table.current.served.epoch == 7)
        assert table.challenger is None
        assert events["load v2"] == 1
        assert ask(server, "penny").headers["x-penstock-model-version"] == "2"

    def test_its_end_leaves_the_champion_alone(self, gateway, pointer, fake_folders, events):
        server = gateway()
        table = server.gateway.models["penny"].table
        pointer.challenger, pointer.share = served(fake_folders[2], 2), 1.0
        wait_until(lambda: table.challenger is not None)
        assert ask(server, "penny").headers["x-penstock-model-version"] == "2"
        pointer.challenger, pointer.share = None, 0.0
        wait_until(lambda: table.challenger is None)
        assert ask(server, "penny").headers["x-penstock-model-version"] == "1"
        wait_until(lambda: events["open"] == 2)

    def test_what_it_breaks_the_champion_answers(self, gateway, pointer, fake_folders, tmp_path):
        server = gateway()
        pointer.challenger, pointer.share = served(fake_folders[2], 2), 1.0
        table = server.gateway.models["penny"].table
        wait_until(lambda: table.challenger is not None)
        table.challenger.backend.broken = True
        answer = ask(server, "penny")
        assert answer.status_code == 200
        assert answer.headers["x-penstock-model-version"] == "1"

    def test_a_challenger_that_cannot_be_loaded_is_named_and_harms_nobody(
        self, gateway, pointer, tmp_path
    ):
        server = gateway()
        (tmp_path / "broken").touch()
        pointer.challenger, pointer.share = served(tmp_path, 2), 1.0
        shown = lambda: httpx.get(f"{server.url}/readyz").json()["models"]["penny"]  # noqa: E731
        wait_until(lambda: shown()["challenger_load_failure"])
        assert ask(server, "penny").headers["x-penstock-model-version"] == "1"
        assert shown()["load_failure"] is None


class Notes:
    """Who wants to know: keeps what it is told."""

    def __init__(self):
        self.facts = []

    def observe(self, facts):
        self.facts.append(facts)


class TestShadow:
    @pytest.fixture
    def shadowed(self, gateway, fake_folders):
        def start(**settings):
            notes = Notes()
            more = {"shade": model(source=str(fake_folders[2]), **settings)}
            routes = {"assistant": RouteConfig(to={"penny": 1}, shadow={"to": "shade"})}
            return gateway(more=more, routes=routes, observers=(notes,)), notes

        return start

    @pytest.mark.parametrize("stream", [False, True])
    def test_it_gets_a_copy_and_the_client_the_models_answer(self, shadowed, stream, events):
        server, notes = shadowed()
        answer = ask(server, "assistant", "count 3", stream=stream)
        assert answered_by(answer) == "penny"
        assert "v2" not in answer.text
        wait_until(lambda: len(notes.facts) == 2)
        copy = next(one for one in notes.facts if one.shadow)
        assert (copy.model, copy.status, copy.completion_tokens) == ("shade", 200, 3)
        assert copy.response_id not in answer.text
        assert copy.key_id is None

    @pytest.mark.slow
    def test_one_that_fails_or_hangs_harms_nobody(self, shadowed):
        server, notes = shadowed(timeout_s=0.5)

        def shadows():
            return [one.status for one in notes.facts if one.shadow]

        server.gateway.models["shade"].table.current.backend.broken = True
        assert answered_by(ask(server, "assistant")) == "penny"
        wait_until(lambda: shadows() == [500])
        server.gateway.models["shade"].table.current.backend.broken = False
        assert answered_by(ask(server, "assistant", "hang v2")) == "penny"
        wait_until(lambda: shadows() == [500, 504])

    def test_one_without_a_free_slot_is_left_out(self, shadowed):
        server, notes = shadowed(max_concurrency=1)
        for _ in range(2):
            assert answered_by(ask(server, "assistant", "hang v2")) == "penny"
        assert "left_out" in httpx.get(server.metrics_url).text
        server.__exit__(None, None, None)
        assert [one.status for one in notes.facts if one.shadow] == [499]
