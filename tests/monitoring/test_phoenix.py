"""Traces in a real Phoenix, read back by its own API."""

import json

import pytest
from prometheus_client import CollectorRegistry

import phoenix_server
from penstock.monitoring.score_calls import ScoresNotSent
from penstock.monitoring.score_export import ScoreSender
from penstock.monitoring.traces import Tracer
from penstock.project import open_project
from penstock.traces_section import TracesConfig
from traced_request import ANSWER, LINEAGE, PROMPT, RESPONSE_ID, request
from traffic_rows import Writers, asked, correction, opinion, response_id

pytestmark = pytest.mark.slow

RECIPE = """
name: support
store: store
sources: {rows: {type: files, paths: rows.jsonl}}
evaluate: {tasks: [held_out]}
gate: {max: {held_out: 8.0}}
"""


@pytest.fixture(scope="session")
def phoenix(tmp_path_factory):
    if reason := phoenix_server.missing():
        pytest.skip(f"Phoenix's environment: {reason}")
    server = phoenix_server.Phoenix(tmp_path_factory.mktemp("phoenix"))
    try:
        yield server.start()
    finally:
        server.stop()


def sent(phoenix, project, key=phoenix_server.KEY, **settings):
    """One request's trace, and what the metric says became of it."""
    registry = CollectorRegistry()
    config = TracesConfig(to="phoenix", endpoint=phoenix.url, project=project, **settings)
    tracer = Tracer(config, registry, {"PHOENIX_API_KEY": key})
    tracer.start()
    trace = request(tracer)
    tracer.close(30)
    outcomes = {
        name: registry.get_sample_value("penstock_traces_total", {"outcome": name})
        for name in ("sent", "failed")
    }
    return trace, outcomes


def by_name(spans):
    return {span["name"]: span for span in spans}


def test_phoenix_shows_a_request_with_its_steps_model_tokens_and_session(phoenix):
    trace, outcomes = sent(phoenix, "penny")
    assert outcomes == {"sent": 1, "failed": 0}
    spans = by_name(phoenix.spans("penny", 4))
    assert spans.keys() == {"gateway", "route", "queue", "chat penny"}
    root, call = spans["gateway"], spans["chat penny"]
    assert {span["context"]["trace_id"] for span in spans.values()} == {trace.id}
    assert root["parent_id"] is None
    assert call["parent_id"] == root["context"]["span_id"]
    assert (root["span_kind"], call["span_kind"]) == ("CHAIN", "LLM")
    shown = call["attributes"]
    assert shown["llm.model_name"] == "penny"
    assert shown["llm.token_count.prompt"] == 12
    assert shown["llm.token_count.completion"] == 8
    assert json.loads(shown["llm.invocation_parameters"])["temperature"] == 0.5
    assert root["attributes"]["session.id"] == "conversation-7"
    text = json.dumps(spans)
    assert "ann@example.org" not in text
    assert "You help" not in text


def test_a_trace_is_found_in_phoenix_from_a_response_id(phoenix):
    trace, _ = sent(phoenix, "found")
    spans = phoenix.spans("found", 4)
    (hit,) = [one for one in spans if one["attributes"].get("gen_ai.response.id") == RESPONSE_ID]
    assert hit["context"]["trace_id"] == trace.id
    root = by_name(spans)["gateway"]["attributes"]
    assert root["metadata.response_id"] == RESPONSE_ID
    assert root["metadata.digest"] == LINEAGE["digest"]


def test_content_that_was_asked_for_is_there_and_redacted(phoenix):
    sent(phoenix, "content", content=True)
    call = by_name(phoenix.spans("content", 4))["chat penny"]["attributes"]
    assert call["output.value"] == ANSWER.replace("ann@example.org", "[EMAIL]")
    asked = call["llm.input_messages.1.message.content"]
    assert asked == PROMPT[1][1].replace("ann@example.org", "[EMAIL]")


def test_tokens_and_cost_of_a_request_are_counted_once(phoenix):
    sent(phoenix, "once")
    spans = phoenix.spans("once", 4)
    counts = [span["attributes"].get("llm.token_count.prompt") for span in spans]
    assert [count for count in counts if count] == [12]


def test_a_wrong_key_is_refused_by_phoenix_and_counted(phoenix):
    _, outcomes = sent(phoenix, "refused", key="px-not-a-key")
    assert outcomes == {"sent": 0, "failed": 1}


# -- scores ----------------------------------------------------------------------


class Scored:
    """A project whose responses are traced, and scored."""

    def __init__(self, folder, phoenix, name):
        self.name, self._phoenix = name, phoenix
        self._folder = folder
        (folder / "recipe.yaml").write_text(RECIPE)
        (folder / "store").mkdir()
        self.writers = Writers(folder / "store")

    def traced(self, *response_ids):
        """Send a trace of each, and wait until Phoenix has them."""
        config = TracesConfig(to="phoenix", endpoint=self._phoenix.url, project=self.name)
        tracer = Tracer(config, CollectorRegistry(), {"PHOENIX_API_KEY": phoenix_server.KEY})
        tracer.start()
        for one in response_ids:
            tracer.begin(unique=one[-32:]).end(200)
        tracer.close(30)
        self._phoenix.spans(self.name, len(response_ids))

    def send(self, key=phoenix_server.KEY, **settings):
        traces = {"to": "phoenix", "endpoint": self._phoenix.url, "project": self.name}
        project = open_project(self._folder / "recipe.yaml", {"serve.traces": traces | settings})
        try:
            return ScoreSender(*project, environ={"PHOENIX_API_KEY": key}).send()
        finally:
            project.ledger.close()

    def shown(self, *response_ids):
        """Annotations of their traces: by trace and name."""
        asked = "&".join(f"trace_ids={one[-32:]}" for one in response_ids)
        path = f"/v1/projects/{self.name}/trace_annotations?limit=1000&{asked}"
        found = self._phoenix.get(path)["data"]
        return {(one["trace_id"], one["name"], one["identifier"]): one for one in found}


@pytest.fixture
def scored(phoenix, tmp_path, request):
    return Scored(tmp_path, phoenix, f"scored-{request.node.name}")


def test_phoenix_shows_what_people_said_beside_the_trace(scored):
    name = response_id()
    scored.traced(name)
    scored.writers.say(
        opinion(name, "thumb", 0.0, comment="bob@example.org says five", tenant="acme"),
        correction(name, "Hold it for ten seconds."),
    )
    assert scored.send(content=True).num_sent == 2
    shown = {kind: one for (_, kind, _), one in scored.shown(name).items()}
    thumb, corrected = shown["user_thumb"], shown["user_correction"]
    assert thumb["annotator_kind"] == "HUMAN"
    assert thumb["result"]["score"] == 0.0
    assert thumb["result"]["explanation"] == "[EMAIL] says five"
    assert thumb["metadata"] == {"response_id": name, "rater": "ann", "tenant": "acme"}
    assert corrected["result"]["label"] == "corrected"
    assert corrected["result"]["explanation"] == "Hold it for ten seconds."


def test_a_changed_word_replaces_the_old_one_in_phoenix(scored):
    name = response_id()
    scored.traced(name)
    scored.writers.say(opinion(name, score=1.0), opinion(name, score=1.0, rater="bob"))
    scored.send()
    scored.writers.say(opinion(name, score=0.0))
    assert scored.send().num_sent == 1
    values = [one["result"]["score"] for one in scored.shown(name).values()]
    assert sorted(values) == [0.0, 1.0]


def test_a_score_waits_until_phoenix_has_its_trace_and_holds_up_no_other(scored):
    there, late = response_id(), response_id(number=1)
    scored.traced(there)
    scored.writers.say(opinion(there), opinion(late))
    report = scored.send()
    assert (report.num_sent, report.num_waiting) == (1, 1)
    assert len(scored.shown(there)) == 1
    scored.traced(there, late)
    report = scored.send()
    assert (report.num_sent, report.num_waiting) == (1, 0)
    assert len(scored.shown(there, late)) == 2


def test_a_continued_trace_is_found_by_the_log(scored, phoenix):
    callers = "0af7651916cd43dd8448eb211c80319c"
    name = response_id()
    scored.traced(f"a caller's {callers}")
    scored.writers.log(asked(name, trace_id=callers))
    scored.writers.say(opinion(name))
    assert scored.send(trust_traceparent=True).num_sent == 1
    assert [trace for trace, _, _ in scored.shown(callers)] == [callers]


def test_a_wrong_key_for_scores_ends_it_and_names_the_variable(scored):
    name = response_id()
    scored.traced(name)
    scored.writers.say(opinion(name))
    with pytest.raises(ScoresNotSent, match="does not let us in") as refused:
        scored.send(key="px-not-a-key")
    assert "PHOENIX_API_KEY" in refused.value.hint
    assert scored.send().num_sent == 1
