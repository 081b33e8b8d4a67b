"""Judged requests as training rows; the law of all sources is in the conformance suite."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from ingest_project import IngestProject
from penstock.day_tables import RESPONSE_ID, day_of, id_ms
from penstock.errors import SourceError, SourceUnavailable
from penstock.sources.base import ORIGIN, ROW_KEY, DeadLetter
from penstock.sources.requests import RequestsSource
from traffic_rows import Writers, asked, correction, opinion, response_id


class Project:
    """A store with traffic, and the source that reads it."""

    def __init__(self, folder):
        self.folder = folder
        self.writers = Writers(folder / ".penstock")
        self.log, self.say = self.writers.log, self.writers.say
        self.position = -1

    def source(self, **options):
        return RequestsSource(RequestsSource.Options(**options), self.folder)

    def pieces(self, **options):
        """What is new since the last call."""
        (unit,) = self.source(**options).snapshot()
        found = list(self.source(**options).read(replace(unit, after=self.position)))
        self.position = unit.position
        return found

    def rows(self, **options):
        batches = [one for one in self.pieces(**options) if isinstance(one, pa.RecordBatch)]
        return [row for batch in batches for row in batch.to_pylist()]

    def letters(self, **options):
        return [one for one in self.pieces(**options) if isinstance(one, DeadLetter)]


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_a_praised_answer_is_a_row(project):
    name, other = response_id(), response_id(number=1)
    project.log(asked(name), asked(other))
    project.say(opinion(name))
    (row,) = project.rows()
    assert row["instruction"] == "How do I sign in?"
    assert row["response"] == "With your key."
    assert json.loads(row["messages"])[-1] == {"role": "assistant", "content": "With your key."}
    assert (row["response_id"], row["score"], row["origin"]) == (name, 1.0, "answer")
    assert row["model"] == "penny"
    assert row[ORIGIN] == f"requests:{name}"


def test_a_correction_is_the_response_whatever_the_score(project):
    name = response_id()
    project.log(asked(name, finish_reason="length"))
    project.say(opinion(name, score=0.0), correction(name, "With your passkey."))
    (row,) = project.rows()
    assert (row["response"], row["origin"]) == ("With your passkey.", "correction")
    assert row["score"] == 0.0


def test_one_rater_s_flood_brings_no_more_rows_than_the_recipe_allows(project):
    names = [response_id(number=i) for i in range(12)]
    project.log(*map(asked, names))
    project.say(*(correction(name, "Buy here.", rater="flood") for name in names[:8]))
    project.say(*(opinion(name, rater="flood") for name in names[8:]))
    project.say(opinion(names[8], rater="ann"), correction(names[11], "By key.", rater="bob"))
    found = project.pieces(max_rows_per_rater=3)
    rows = [row for one in found if isinstance(one, pa.RecordBatch) for row in one.to_pylist()]
    # Three of the flood's own, one that ann agrees with, and bob's.
    assert sorted(row["response"] for row in rows) == [
        *["Buy here."] * 3,
        "By key.",
        "With your key.",
    ]
    reasons = [one.reason for one in found if isinstance(one, DeadLetter)]
    assert reasons == ["more than 3 rows on the word of one rater"] * 7
    assert project.source().snapshot() == project.source(max_rows_per_rater=3).snapshot()


def test_corrections_can_be_left_out(project):
    name = response_id()
    project.log(asked(name))
    project.say(correction(name, "With your passkey."))
    assert project.rows(corrections=False) == []


@pytest.mark.parametrize(("scores", "is_row"), [((1.0, 0.6), True), ((1.0, 0.4), False)])
def test_the_mean_of_all_raters_decides(project, scores, is_row):
    name = response_id()
    project.log(asked(name))
    project.say(*(opinion(name, "score", one, rater=f"r{i}") for i, one in enumerate(scores)))
    assert bool(project.rows(min_score=0.8)) is is_row


def test_only_models_that_are_named_are_taken(project):
    name = response_id()
    project.log(asked(name))
    project.say(opinion(name))
    assert project.source(models=["other"]).snapshot()
    assert not project.rows(models=["other"])


def test_praise_that_comes_before_the_request_is_logged_is_not_lost(project):
    name, other = response_id(), response_id(number=1)
    project.log(asked(other))
    project.say(opinion(name))
    assert project.rows() == []
    project.log(asked(name))
    project.say(opinion(other, score=0.0))
    assert [row["response_id"] for row in project.rows()] == [name]


@pytest.mark.slow
def test_each_answer_and_each_correction_is_a_row_once_wherever_units_end(project):
    name = response_id()
    project.log(asked(name))
    keys = []
    for said in (
        opinion(name),
        opinion(name, rater="bob"),
        opinion(name, score=0.0),
        opinion(name),  # ann has taken her word back, and given it again
        correction(name, "one"),
        correction(name, "two"),
        opinion(name, rater="eve"),
    ):
        project.say(said)
        keys.append([row[ROW_KEY] for row in project.rows()])
    assert [len(some) for some in keys] == [1, 0, 0, 0, 1, 1, 0]
    flat = [key for some in keys for key in some]
    assert len(set(flat)) == 3


def test_feedback_of_other_tenants_counts_only_if_they_are_reviewers(project):
    name = response_id()
    project.log(asked(name, tenant="acme"))
    project.say(opinion(name, tenant="evil"), correction(name, "poison", tenant="evil"))
    assert project.rows() == []
    project.position = -1
    assert len(project.rows(reviewers=["evil"])) == 1


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"prompt": None, "answer": None}, "serve.log.content"),
        ({"finish_reason": "length"}, "ended early: length"),
        ({"prompt": [{"role": "user", "content": text} for text in "ab"]}, "2 user turns"),
        ({"prompt": [{"role": "system", "content": "x"}]}, "no user"),
    ],
)
def test_what_cannot_be_a_row_says_why(project, request_, reason):
    name = response_id()
    project.log(asked(name, **request_))
    project.say(opinion(name))
    (letter,) = project.letters()
    assert reason in letter.reason
    assert letter.origin == f"requests:{name}"


def test_a_long_chat_can_give_its_last_turn(project):
    name = response_id()
    turns = [("user", "Hello"), ("assistant", "Hi"), ("user", "How?")]
    project.log(asked(name, prompt=[{"role": who, "content": text} for who, text in turns]))
    project.say(opinion(name))
    (row,) = project.rows(long_chats="last_turn")
    assert row["instruction"] == "How?"
    assert len(json.loads(row["messages"])) == 4


def test_personal_data_is_taken_out_unless_it_is_to_stay(project):
    name = response_id()
    project.log(asked(name, prompt="I am ann@example.org", answer="Hello ann@example.org"))
    project.say(opinion(name))
    (row,) = project.rows()
    assert row["instruction"] == "I am [EMAIL]"
    assert row["response"] == "Hello [EMAIL]"
    assert "example.org" not in row["messages"]
    project.position = -1
    (row,) = project.rows(redact=False)
    assert row["instruction"] == "I am ann@example.org"


def test_a_pin_reads_the_same_after_tables_were_compacted_and_have_grown(project):
    names = [response_id(number=i) for i in range(3)]
    for name in names:
        project.log(asked(name))
        project.say(opinion(name))
    (unit,) = project.source().snapshot()
    before = [batch.to_pylist() for batch in project.source().read(unit)]
    for table in (project.writers.traffic.log, project.writers.traffic.feedback):
        table.compact(day_of(id_ms(names[0])))
    later = response_id(number=9)
    project.log(asked(later))
    project.say(opinion(later))
    assert [batch.to_pylist() for batch in project.source().read(unit)] == before


def test_requests_without_a_new_word_are_no_news(project):
    name = response_id()
    project.log(asked(name))
    project.say(opinion(name))
    pinned = project.source().snapshot()
    project.log(asked(response_id(number=1)))
    again = project.source()
    again.recall(pinned)
    assert again.snapshot() == pinned
    project.say(opinion(name, rater="bob"))
    again.recall(pinned)
    assert again.snapshot()[0].position > pinned[0].position


def test_before_the_first_word_there_is_nothing_to_read(project):
    (project.folder / ".penstock").mkdir()
    assert project.source().snapshot() == ()
    project.log(asked(response_id()))
    assert project.source().snapshot() == ()


def test_a_store_that_is_not_there_is_an_error(tmp_path):
    source = RequestsSource(RequestsSource.Options(store="elsewhere"), tmp_path)
    with pytest.raises(SourceError, match="no store at 'elsewhere'"):
        source.snapshot()


def test_a_log_that_was_made_anew_is_not_taken_for_the_old_one(project, tmp_path):
    name = response_id()
    project.log(asked(name))
    project.say(opinion(name))
    (unit,) = project.source().snapshot()
    (tmp_path / ".penstock" / "requests").rename(tmp_path / "away")
    fresh = Project(tmp_path)
    fresh.log(asked(name))
    fresh.say(opinion(name))
    with pytest.raises(SourceUnavailable, match="made anew"):
        list(fresh.source().read(unit))


@pytest.mark.slow
def test_a_project_ingests_its_own_traffic_each_row_once(tmp_path):
    project = IngestProject(tmp_path, type="requests")
    writers = Writers(tmp_path / ".penstock")
    (tmp_path / ".penstock").mkdir()
    assert list(project.ingest()[1]["raw_rows"].values()) == [0]
    name = response_id()
    writers.log(asked(name))
    writers.say(opinion(name))
    _, summary = project.ingest()
    assert list(summary["raw_rows"].values()) == [1]
    assert project.ingest()[0] == "hit"
    writers.log(asked(response_id(number=1)))
    assert project.ingest()[0] == "hit"
    writers.say(correction(name, "With your passkey."))
    assert list(project.ingest()[1]["raw_rows"].values()) == [2]


@pytest.mark.slow
def test_a_review_says_what_reading_does(project):
    names = [response_id(number=i) for i in range(6)]
    project.log(
        *(asked(name) for name in names[:3]),
        asked(names[3], finish_reason="length"),
        asked(names[4], status=500),
    )
    scores = (1.0, 0.0, None, 1.0, 1.0, 1.0)
    project.say(
        *(
            correction(name, "Like this.") if score is None else opinion(name, score=score)
            for name, score in zip(names, scores, strict=True)
        )
    )
    for options in ({}, {"corrections": False}, {"min_score": 0.0}, {"models": ["other"]}):
        project.position = -1
        source = project.source(**options)
        fates = source.review(names, -1)
        taken = {name for name, fate in fates.items() if fate.is_taken}
        assert taken == {row[RESPONSE_ID] for row in project.rows(**options)}
        (unit,) = source.snapshot()
        assert not any(one.is_taken for one in source.review(names, unit.position).values())
    assert fates[names[0]].why == "answers of penny are not taken"
    assert fates[names[4]].why == "its request ended with status 500"
