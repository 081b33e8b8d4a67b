"""The stories of rows of a project whose loop has turned twice."""

import json
import os
import re

import pytest
import yaml
from typer.testing import CliRunner

import tiny_project
from penstock import quarantine
from penstock.cli import app
from penstock.errors import InvalidRequest, LedgerError
from penstock.explain import explain
from penstock.lineage import trace
from penstock.pipeline import open_pipeline
from penstock.serving.response_id import new_response_id
from traffic_rows import Writers, asked, correction, opinion

pytestmark = pytest.mark.slow  # trains

MAIL = {"instruction": "Whom do I ask about the list? (x)", "response": "Ask anna@example.org."}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """First run: 60 rows and some strange ones. Second run: new rows only, packed."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "GX_ANALYTICS_ENABLED": "false"}
    folder = tmp_path_factory.mktemp("story") / "project"
    path = tiny_project.write_project(folder)
    recipe = yaml.safe_load(path.read_text())
    recipe["prepare"]["transforms"].insert(1, "redact")
    path.write_text(yaml.safe_dump(recipe))
    with (folder / "data" / "first.jsonl").open("a") as file:
        file.write("this is not JSON\n" + json.dumps(MAIL) + "\n" + json.dumps(MAIL) + "\n")
    run(path)
    tiny_project.write_rows(folder / "data" / "second.jsonl", 40, seed=2)
    recipe["train"] |= {"rows": "new", "replay": 0.0, "packing": "whole"}
    path.write_text(yaml.safe_dump(recipe))
    run(path)
    return path


def run(path):
    pipeline = open_pipeline(path, {"ingest.min_new_examples": 0})
    try:
        assert pipeline.run().status == "SUCCEEDED"
    finally:
        pipeline.ledger.close()


@pytest.fixture
def pipeline(project):
    opened = open_pipeline(project)
    yield opened
    opened.ledger.close()


def one(pipeline, what):
    (story,) = explain(pipeline, what)
    return story


def test_a_kept_row_is_followed_from_its_line_to_the_models_that_learned_from_it(pipeline):
    stories = [one(pipeline, f"first.jsonl:{line}") for line in range(1, 12)]
    story = next(story for story in stories if story.state == "kept in train")
    assert story.origin == "data/first.jsonl:" + story.origin.rpartition(":")[2]
    assert set(story.row) == {"instruction", "response"}
    newest, oldest = story.prepared
    assert len(newest.runs) == len(oldest.runs) == 1
    (first,) = oldest.trainings
    assert first.is_in
    assert first.models == ("tiny version 1",)
    assert first.descendants == ("tiny version 2",)
    (second,) = newest.trainings
    assert not second.is_in, "the second training takes new rows only"
    assert (second.models, second.pieces) == (("tiny version 2",), ())


def test_a_row_that_was_packed_says_where_its_tokens_are(pipeline):
    stories = [one(pipeline, f"second.jsonl:{line}") for line in range(1, 12)]
    story = next(story for story in stories if story.state == "kept in train")
    newest, oldest = story.prepared
    assert oldest.outcome == "not in it"
    (training,) = newest.trainings
    (piece,) = training.pieces
    assert piece["length"] == newest.num_tokens
    assert piece["first"] == 0


def test_a_row_for_validation_has_no_training(pipeline):
    stories = [one(pipeline, f"first.jsonl:{line}") for line in range(1, 60) if line % 30]
    story = next(story for story in stories if story.state == "kept in validation")
    assert all(prepared.trainings == () for prepared in story.prepared)


def test_a_removed_row_says_by_which_step_and_why(pipeline):
    story = one(pipeline, "first.jsonl:63")
    assert story.state == "removed by dedupe"
    kept = one(pipeline, "first.jsonl:62")
    assert story.prepared[0].evidence == f"the same as {kept.row_id}"
    assert kept.prepared[0].redacted == {"email": 1}


def test_a_row_in_quarantine_says_which_rule_it_broke_and_what_was_decided(project, pipeline):
    story = one(pipeline, "first.jsonl:30")
    assert story.state == "in quarantine"
    (held,) = story.held
    assert "length" in held.rule
    assert held.value == "no"
    quarantine.decide(pipeline, "drop", [story.row_id], reason="too short")
    again = one(pipeline, "first.jsonl:30")
    assert again.state.startswith("dropped by ")
    assert again.held[0].decision.reason == "too short"


def test_input_that_never_became_a_row_is_found_by_its_line(pipeline):
    story = one(pipeline, "data/first.jsonl:61")
    assert story.state == "never became a row"
    assert story.row_id is None
    assert story.dead_letter
    assert story.row["begins"].startswith("this is not JSON")


def test_the_start_of_an_id_is_enough_if_no_other_row_has_it(pipeline):
    story = one(pipeline, "first.jsonl:1")
    assert one(pipeline, story.row_id) == story
    assert one(pipeline, story.row_id[:12]) == story
    with pytest.raises(LedgerError, match="rows have an id that starts with"):
        explain(pipeline, story.row_id[:1])


@pytest.mark.parametrize(
    "what", ["", "ffffffffffff", "nowhere.jsonl:1", "first.jsonl", "irst.jsonl:1"]
)
def test_what_is_not_there_is_an_error_that_says_what_to_give(pipeline, what):
    with pytest.raises(LedgerError, match="There is no row") as caught:
        explain(pipeline, what)
    assert "rows.jsonl:17" in caught.value.hint


def test_the_command_prints_for_people_and_for_machines(project):
    runner = CliRunner()
    shown = runner.invoke(app, ["explain", "first.jsonl:63", "--recipe", str(project)])
    assert shown.exit_code == 0, shown.output
    assert "removed by dedupe" in shown.output
    printed = runner.invoke(app, ["explain", "first.jsonl:63", "--json", "--recipe", str(project)])
    (story,) = json.loads(printed.output)
    assert story["state"] == "removed by dedupe"
    assert story["prepared"][0]["step"] == "dedupe"


def test_the_lineage_of_a_logged_response_shows_the_request_and_what_was_said(pipeline):
    digest = pipeline.ledger.model("tiny", 1).digest
    name, other = new_response_id("chatcmpl", digest), new_response_id("chatcmpl", digest)
    writers = Writers(pipeline.store.root)
    writers.log(asked(name, prompt="Where is the list?", error="late"), asked(other))
    writers.say(opinion(name, score=0.0, comment="wrong"), correction(name, "On the\x1b[31m disk."))
    found = trace(name, pipeline.ledger, pipeline.store)
    assert found.request["response_id"] == name
    assert [one.kind for one in found.opinions] == ["thumb", "correction"]
    said = CliRunner().invoke(app, ["lineage", name, "--recipe", str(pipeline.path)])
    text = " ".join(re.sub("[│├└─]", "", said.stdout).split())
    for part in ("status 200 (late)", "Where is the list?", "thumb by ann: 0 wrong"):
        assert part in text
    assert "On the\\x1b[31m disk." in text
    assert "first.jsonl" in text


def test_the_lineage_of_a_response_that_was_not_logged_is_that_of_its_model(pipeline):
    digest = pipeline.ledger.model("tiny", 1).digest
    found = trace(new_response_id("cmpl", digest), pipeline.ledger, pipeline.store)
    assert (found.request, found.opinions) == (None, ())
    assert found.sources


@pytest.mark.parametrize("what", ["", "x", "chatcmpl-123", "chatcmpl-0123456789abcdef-" + "g" * 32])
def test_the_lineage_of_what_is_no_response_id_is_refused_in_words(pipeline, what):
    with pytest.raises(InvalidRequest, match="is not a response id"):
        trace(what, pipeline.ledger, pipeline.store)
