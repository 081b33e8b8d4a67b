"""What would start a run: one for new data, one for however many alarms, and none twice."""

import time

import pytest
import yaml

from penstock.ledger.alarms import Alarm, Alarms
from penstock.orchestrators.news import news_of
from penstock.pipeline import open_pipeline
from tiny_project import write_project, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path):
    return write_project(tmp_path / "project", rows=40)


def starts(recipe):
    return list(news_of(open_pipeline(recipe)).starts)


def raise_alarms(recipe, *keys):
    alarms = Alarms(open_pipeline(recipe).ledger)
    for key in keys:
        alarms.raise_(Alarm("tiny", "drift", key, time.time()))
    return alarms


def ingest(recipe, key):
    pipeline = open_pipeline(recipe)
    return pipeline.step("ingest", pipeline.start(key=key).id)


def test_new_data_have_one_key_until_they_are_ingested(recipe):
    (first,) = starts(recipe)
    assert starts(recipe) == [first]
    ingest(recipe, first)
    assert starts(recipe) == []
    write_rows(recipe.parent / "data" / "later.jsonl", 5, seed=2)
    (second,) = starts(recipe)
    assert second != first


def test_a_thousand_alarms_are_one_run(recipe):
    ingest(recipe, "before")
    alarms = raise_alarms(recipe, *(f"window {number}" for number in range(1000)))
    (key,) = starts(recipe)
    assert starts(recipe) == [key]
    ingest(recipe, key)
    assert starts(recipe) == []
    assert alarms.open("tiny") == []


def test_an_alarm_that_came_after_the_run_began_starts_the_next(recipe):
    ingest(recipe, "before")
    alarms = raise_alarms(recipe, "first")
    (key,) = starts(recipe)
    ingest(recipe, key)
    raise_alarms(recipe, "second")
    (later,) = starts(recipe)
    assert later != key
    assert [one.start_key for one in alarms.of("tiny")] == [None, key]


def test_where_the_watcher_decides_nothing_is_said(recipe):
    tree = yaml.safe_load(recipe.read_text()) | {"observe": {"retrain": {}}}
    recipe.write_text(yaml.safe_dump(tree))
    raise_alarms(recipe, "first")
    assert starts(recipe) == []
