"""Scores on their way to traces: each at least once, shown once, the last word in the end."""

import uuid

import pytest
import yaml
from langsmith import Client
from langsmith.integrations.otel import langsmith_run_id_from_otel_span_id
from langsmith.schemas import FeedbackCreate

from penstock.day_tables import DAY, ID_MS, RESPONSE_ID, day_of, id_ms
from penstock.errors import LedgerError, PenstockError, RecipeError
from penstock.judged import JUDGED_SCHEMA
from penstock.monitoring import score_calls, score_export
from penstock.monitoring.row_writer import RowWriter
from penstock.monitoring.score_calls import ScoresNotSent
from penstock.monitoring.score_export import ScoreSender, headline, summary
from penstock.monitoring.score_targets import NOT_THERE, Traced, langsmith_feedback
from penstock.monitoring.scores import Score
from penstock.project import open_project
from score_tools import KEYS, SESSION, ScoreTools
from traffic_rows import Writers, asked, correction, opinion, response_id

RECIPE = {
    "name": "support",
    "store": "store",
    "sources": {"rows": {"type": "files", "paths": ["rows.jsonl"]}},
    "evaluate": {"tasks": ["held_out"]},
    "gate": {"max": {"held_out": 8.0}},
}


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.setattr(score_calls, "_PAUSES_S", (0.0, 0.0))
    with ScoreTools() as running:
        yield running


class World:
    """A project with feedback, and what its scores are sent to."""

    def __init__(self, folder, tools):
        self._folder, self._tools = folder, tools
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        self.writers = Writers(folder / "store")
        self._projects = []

    def project(self, **traces):
        given = {"to": "langfuse", "endpoint": self._tools.url} | traces
        project = open_project(self._folder / "recipe.yaml", {"serve.traces": given})
        self._projects.append(project)
        return project

    def sender(self, environ=None, **traces):
        return ScoreSender(*self.project(**traces), environ=KEYS | (environ or {}))

    def send(self, environ=None, **traces):
        return self.sender(environ, **traces).send()

    def close(self):
        for project in self._projects:
            project.ledger.close()


@pytest.fixture
def world(tmp_path, tools):
    (tmp_path / "store").mkdir()
    made = World(tmp_path, tools)
    yield made
    made.close()


def shown(tools):
    """What Langfuse shows: value by trace, name."""
    return {(one["traceId"], one["name"]): one["value"] for one in tools.scores.values()}


def test_feedback_stands_beside_its_traces_in_langfuse(world, tools):
    up, half, other = response_id(), response_id(), response_id()
    world.writers.say(opinion(up, "thumb", 1.0), opinion(half, "score", 0.5))
    world.writers.say(correction(other, "Hold it for ten seconds."))
    report = world.send()
    assert (report.num_sent, report.num_waiting, report.given_up) == (3, 0, {})
    assert shown(tools) == {
        (up[-32:], "user_thumb"): 1,
        (half[-32:], "user_score"): 0.5,
        (other[-32:], "user_correction"): "corrected",
    }


def test_what_was_sent_is_not_sent_again(world, tools):
    world.writers.say(opinion(response_id()))
    assert world.send().num_sent == 1
    assert world.send().num_sent == 0
    assert len(tools.requests) == 1


def test_a_changed_word_replaces_the_old_one_in_langfuse(world, tools):
    name = response_id(days_ago=3)
    world.writers.say(opinion(name, score=1.0))
    world.send()
    world.writers.say(opinion(name, score=0.0))
    assert world.send().num_sent == 1
    assert shown(tools) == {(name[-32:], "user_thumb"): 0}


@pytest.mark.parametrize("to", ["langfuse", "langsmith"])
def test_a_comment_that_is_taken_back_is_gone(world, tools, to):
    name = response_id()
    world.writers.say(opinion(name, comment="It said five"))
    world.send(to=to, content=True)
    world.writers.say(opinion(name))
    world.send(to=to, content=True)
    (shown,) = [*tools.scores.values(), *tools.feedback.values()]
    assert not shown["comment"]


def test_two_raters_and_two_tenants_do_not_replace_each_other(world, tools):
    name = response_id()
    world.writers.say(opinion(name, rater="ann"), opinion(name, rater="bob"))
    world.writers.say(opinion(name, rater="ann", tenant="acme"))
    world.send()
    assert len(tools.scores) == 3


@pytest.mark.parametrize("known_again", [409, 200])
def test_a_changed_word_replaces_the_old_one_in_langsmith(world, tools, known_again):
    tools.known_again = known_again
    name = response_id()
    world.writers.say(opinion(name, "score", 0.123456, comment="Meh"))
    world.send(to="langsmith", content=True)
    world.writers.say(opinion(name, "score", 1.0, comment="Good after all"))
    assert world.send(to="langsmith", content=True).num_sent == 1
    (feedback,) = tools.feedback.values()
    assert (feedback["key"], feedback["score"]) == ("user_score", 1.0)
    assert feedback["comment"] == "Good after all"


def test_langsmith_is_told_the_run_that_it_makes_of_the_gateways_span(world, tools):
    name = response_id()
    world.writers.say(opinion(name))
    world.send(to="langsmith")
    (feedback,) = tools.feedback.values()
    span = bytes.fromhex(name[-16:])
    assert feedback["run_id"] == str(langsmith_run_id_from_otel_span_id(span))
    assert feedback["session_id"] == SESSION


def test_langsmiths_own_client_sends_the_same_body(tools):
    score = Score(response_id(), "user_score", "ann", "HUMAN", 0.5, comment="Meh")
    ours = langsmith_feedback(Traced(score, score.response_id[-32:]), SESSION)
    assert FeedbackCreate(**ours, trace_id=None).id == score.id
    client = Client(api_url=tools.url, api_key=KEYS["LANGSMITH_API_KEY"], info={})
    client.create_feedback(
        run_id=uuid.UUID(ours["run_id"]),
        key="user_score",
        score=0.5,
        comment="Meh",
        feedback_id=score.id,
        session_id=SESSION,
        source_info=ours["feedback_source"]["metadata"],
    )
    (theirs,) = [body for method, path, body in tools.requests if path == "/feedback"]
    for name in ("created_at", "modified_at", "extend_trace_retention"):
        theirs.pop(name)
    assert theirs == ours


def test_scores_of_runs_that_langsmith_does_not_know_yet_wait(world, tools):
    name, known = response_id(), response_id()
    tools.runs = {str(uuid.UUID(int=int(known[-16:], 16)))}
    world.writers.say(opinion(name), opinion(known))
    report = world.send(to="langsmith")
    assert (report.num_sent, report.num_waiting) == (1, 1)
    tools.runs = None
    report = world.send(to="langsmith")
    assert (report.num_sent, report.num_waiting) == (1, 0)
    assert len(tools.feedback) == 2


def test_scores_wait_while_langsmith_has_no_such_project(world, tools):
    world.writers.say(opinion(response_id()))
    assert world.send(to="langsmith", project="new").num_waiting == 1
    tools.projects["new"] = SESSION
    assert world.send(to="langsmith", project="new").num_sent == 1


def test_a_trace_that_is_not_there_after_a_day_is_given_up_and_counted(world, tools):
    tools.runs = set()
    world.writers.say(opinion(response_id(days_ago=2)))
    report = world.send(to="langsmith")
    assert report.num_waiting == 0
    assert report.given_up == {NOT_THERE: 1}


def test_a_response_that_waited_too_long_is_given_up(world, tools, monkeypatch):
    tools.runs = set()
    world.writers.say(opinion(response_id()))
    assert world.send(to="langsmith").num_waiting == 1
    monkeypatch.setattr(score_export, "_PATIENCE_S", -1.0)
    report = world.send(to="langsmith")
    assert (report.num_waiting, sum(report.given_up.values())) == (0, 1)
    assert not sum(world.send(to="langsmith").given_up.values())


@pytest.mark.slow
def test_a_receiver_that_is_down_loses_nothing(world, tools):
    names = [response_id(number=n) for n in range(4)]
    world.writers.say(*map(opinion, names))
    tools.answer = lambda number: None if number <= 2 else 503
    with pytest.raises(ScoresNotSent, match="503") as refused:
        world.send()
    assert refused.value.transient
    assert refused.value.exit_code != 0
    tools.answer = lambda number: None
    world.send()
    assert {trace for trace, _ in shown(tools)} == {name[-32:] for name in names}
    assert len(tools.scores) == 4


def test_nobody_who_listens_is_said_in_words_and_loses_nothing(world, tools):
    world.writers.say(opinion(response_id()))
    with pytest.raises(ScoresNotSent, match="does not answer") as refused:
        world.send(endpoint="http://127.0.0.1:9")
    assert refused.value.transient


def test_a_busy_receiver_is_asked_again(world, tools):
    world.writers.say(opinion(response_id()))
    tools.answer = lambda number: 429 if number == 1 else None
    assert world.send().num_sent == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "variable"),
    [("langfuse", "LANGFUSE_SECRET_KEY"), ("langsmith", "LANGSMITH_API_KEY")],
)
def test_a_wrong_key_ends_it_and_names_the_variable(world, tools, to, variable):
    world.writers.say(opinion(response_id()))
    with pytest.raises(ScoresNotSent) as refused:
        world.send({variable: "sk-not-a-key"}, to=to)
    assert variable in refused.value.hint
    assert "sk-not-a-key" not in str(refused.value.args) + refused.value.hint
    assert not refused.value.transient
    assert world.send(to=to).num_sent == 1


def test_a_missing_key_is_named(world):
    with pytest.raises(PenstockError, match="LANGFUSE_SECRET_KEY"):
        world.sender({"LANGFUSE_SECRET_KEY": ""})


def test_an_endpoint_that_is_no_langfuse_ends_it(world, tools):
    world.writers.say(opinion(response_id()))
    tools.answer = lambda number: 404
    with pytest.raises(ScoresNotSent, match="404") as refused:
        world.send()
    assert "serve.traces.endpoint" in refused.value.hint
    tools.answer = lambda number: None
    assert world.send().num_sent == 1


@pytest.mark.parametrize("to", ["phoenix", "langfuse", "langsmith"])
def test_a_web_page_that_answers_everything_is_no_receiver(world, tools, to):
    world.writers.say(opinion(response_id()))
    tools.answer = lambda number: 200
    with pytest.raises(ScoresNotSent, match="none of its own"):
        world.send(to=to)
    tools.answer = lambda number: None
    if to != "phoenix":
        assert world.send(to=to).num_sent == 1


def test_before_the_first_feedback_there_is_nothing_to_send(world, tools):
    assert world.send().num_sent == 0
    assert tools.requests == []


def test_a_refused_score_is_counted_and_does_not_hold_up_others(world, tools):
    world.writers.say(opinion(response_id()), opinion(response_id(number=1)))
    tools.answer = lambda number: 400 if number == 1 else None
    report = world.send()
    assert (report.num_sent, report.num_waiting) == (1, 0)
    assert report.given_up == {"it was refused with status 400": 1}


def test_responses_outside_of_the_sample_have_no_trace_to_score(world, tools):
    world.writers.say(opinion(response_id()))
    report = world.send(sample=0)
    assert (report.num_sent, report.num_untraced) == (0, 1)
    assert tools.requests == []


@pytest.mark.slow
def test_the_log_knows_which_trace_a_response_belongs_to(world, tools):
    mine, theirs, untraced = response_id(), response_id(), response_id()
    world.writers.log(
        asked(theirs, trace_id="0af7651916cd43dd8448eb211c80319c"), asked(untraced, trace_id=None)
    )
    world.writers.say(*map(opinion, (mine, theirs, untraced)))
    report = world.send(trust_traceparent=True)
    assert shown(tools) == {("0af7651916cd43dd8448eb211c80319c", "user_thumb"): 1}
    assert (report.num_untraced, report.num_waiting) == (1, 1)
    world.writers.log(asked(mine, trace_id=mine[-32:]))
    assert world.send(trust_traceparent=True).num_sent == 1
    assert (mine[-32:], "user_thumb") in shown(tools)


def test_a_failed_request_outside_of_the_sample_has_a_trace(world, tools):
    name = response_id()
    world.writers.log(asked(name, trace_id=name[-32:], num_tries=2))
    world.writers.say(opinion(name))
    assert world.send(sample=0).num_sent == 1


def test_what_people_wrote_is_sent_only_with_content_and_redacted(world, tools):
    name = response_id()
    world.writers.say(
        correction(name, "Ask bob@example.org.", comment="ann@example.org", rater="a@example.org")
    )
    world.send()
    (sent,) = tools.scores.values()
    assert "comment" not in sent
    assert sent["metadata"]["rater"].startswith("[EMAIL]-")
    tools.scores.clear()
    world.send(content=True, project="other")
    (sent,) = tools.scores.values()
    assert sent["comment"] == "[EMAIL]\n\nAsk [EMAIL]."
    world.send(content=True, redact=False, project="a third")
    (sent,) = tools.scores.values()
    assert sent["comment"] == "ann@example.org\n\nAsk bob@example.org."


def test_another_receiver_gets_all_from_the_beginning(world, tools):
    world.writers.say(opinion(response_id()))
    world.send()
    assert world.send(to="langsmith").num_sent == 1


def test_of_two_processes_one_sends(world, tools):
    world.writers.say(opinion(response_id()))
    sender = world.sender()
    with sender._claimed(), pytest.raises(LedgerError, match="Another process"):
        world.send()
    assert world.send().num_sent == 1


@pytest.mark.slow
def test_a_process_that_ends_before_it_notes_how_far_it_is_sends_once_more(
    world, tools, monkeypatch
):
    names = [response_id(number=n) for n in range(3)]
    for name in names:
        world.writers.say(opinion(name))
    with monkeypatch.context() as patched:
        patched.setattr(ScoreSender, "move", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.send()
    assert world.send().num_sent == 3
    assert len(tools.requests) == 6
    assert len(tools.scores) == 3


@pytest.mark.slow
def test_long_backlogs_are_noted_on_the_way(world, tools, monkeypatch):
    monkeypatch.setattr(score_export, "_MOST_VERSIONS", 2)
    for number in range(5):
        world.writers.say(opinion(response_id(number=number)))
    tools.answer = lambda number: None if number <= 3 else 503
    with pytest.raises(ScoresNotSent):
        world.send()
    tools.answer = lambda number: None
    report = world.send()
    assert report.num_sent < 5
    assert len(tools.scores) == 5


def judged(name, score=0.75, judge="ab" * 32, **more):
    """A row of the judge's, as it would be written."""
    row = {"kind": "mark", "score": score, "judge": judge, "judge_model": "judge-1"}
    row |= {DAY: day_of(id_ms(name)), ID_MS: id_ms(name), RESPONSE_ID: name}
    return row | {"reason": "It answers ann@example.org."} | more


def test_a_judges_scores_stand_beside_those_of_people(world, tools):
    name = response_id()
    writer = RowWriter(world.writers.traffic.judged, JUDGED_SCHEMA, None)
    pair = judged(name, kind="pair", other_id=response_id())
    writer.append(writer.begin(), [judged(name), pair, judged(name, None, note="no verdict")])
    world.writers.say(opinion(name))
    assert world.send(content=True).num_sent == 2
    shown_ = {one["name"]: one for one in tools.scores.values()}
    assert shown_["user_thumb"]["value"] == 1
    said = shown_["judge"]
    assert (said["value"], said["traceId"]) == (0.75, name[-32:])
    assert said["comment"] == "It answers [EMAIL]."
    assert said["metadata"]["judge_model"] == "judge-1"


@pytest.mark.slow
def test_a_judges_new_word_replaces_its_own_and_no_other_judges(world, tools):
    name = response_id()
    writer = RowWriter(world.writers.traffic.judged, JUDGED_SCHEMA, None)
    writer.append(writer.begin(), [judged(name), judged(name, 0.5, judge="cd" * 32)])
    world.send(to="langsmith")
    writer.append(writer.begin(), [judged(name, 0.25)])
    assert world.send(to="langsmith").num_sent == 1
    assert sorted(one["score"] for one in tools.feedback.values()) == [0.25, 0.5]
    assert {one["feedback_source"]["type"] for one in tools.feedback.values()} == {"model"}


def test_a_receiver_without_a_place_for_scores_is_refused(world):
    with pytest.raises(RecipeError, match="no place for scores"):
        world.sender(to="otlp")


def test_without_traces_there_is_nothing_to_attach_scores_to(world, tmp_path):
    project = open_project(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"serve\.traces sends none"):
        ScoreSender(*project)
    project.ledger.close()


def test_people_and_machines_are_told_what_became_of_scores(world, tools):
    tools.runs = set()
    world.writers.say(opinion(response_id()), opinion(response_id(days_ago=2)))
    report = world.send(to="langsmith")
    assert summary(report) == {
        "to": "langsmith",
        "sent": 0,
        "waiting_responses": 1,
        "untraced": 0,
        "given_up": {NOT_THERE: 1},
    }
    assert headline(report) == (
        "0 scores are attached to traces in LangSmith; 1 response waits for its trace; "
        "1 score is given up: its trace is not there yet."
    )
