"""What the watcher looks at itself."""

import pytest
import yaml

from penstock.ledger.alarms import Alarms
from penstock.pipeline import open_pipeline
from penstock.retrain_sensors import DriftSensor, Every, sensors
from traffic_rows import Writers, asked, opinion, response_id

pytestmark = pytest.mark.slow


class Project:
    def __init__(self, folder, **retrain):
        recipe = {
            "name": "support",
            "store": "store",
            "sources": {"rows": {"type": "files", "paths": ["*.jsonl"]}},
            "evaluate": {"tasks": ["held_out"]},
            "gate": {"max": {"held_out": 8.0}},
            "observe": {"retrain": retrain, "drift": {}},
        }
        self.folder = folder
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        self.write("one")
        self.pipeline = open_pipeline(folder / "recipe.yaml")
        self.writers = Writers(folder / "store")
        observe = self.pipeline.recipe.observe
        self.drift, *self.sensors = sensors(self.pipeline, observe.retrain)

    def write(self, name):
        (self.folder / f"{name}.jsonl").write_text(
            f'{{"instruction": "What does {name} give?", "response": "A list."}}\n'
        )

    def alarms(self):
        """All that were raised, after a look."""
        for sensor in self.sensors:
            sensor.look()
        return [one.alarm for one in Alarms(self.pipeline.ledger).of("support")]

    def say(self, *raters):
        for rater in raters:
            self.number = getattr(self, "number", 0) + 1
            name = response_id(number=self.number)
            self.writers.log(asked(name))
            self.writers.say(opinion(name, rater=rater))


@pytest.fixture
def new_data(tmp_path):
    return Project(tmp_path, new_data={"every_s": 1e-9})


@pytest.fixture
def feedback(tmp_path):
    return Project(tmp_path, new_feedback={"every_s": 1e-9, "min_new": 6, "max_per_rater": 3})


def test_new_data_are_one_event_until_there_are_others(new_data):
    assert [one.evidence for one in new_data.alarms()] == [{"sources": ["rows"]}]
    assert len(new_data.alarms()) == 1
    new_data.pipeline.run(until="ingest")
    assert len(new_data.alarms()) == 1
    new_data.write("two")
    assert [one.kind for one in new_data.alarms()] == ["schedule", "schedule"]
    assert len(new_data.alarms()) == 2


def test_enough_opinions_are_an_event_and_are_counted_from_there_on(feedback):
    assert feedback.alarms() == []
    feedback.say("ann", "bob", "cat", "dan", "eve")
    assert feedback.alarms() == []
    feedback.say("fay")
    (alarm,) = feedback.alarms()
    assert (alarm.kind, alarm.evidence["counted"], alarm.evidence["raters"]) == ("feedback", 6, 6)
    feedback.say("ann", "bob", "cat", "dan", "eve")
    assert len(feedback.alarms()) == 1
    feedback.say("ann")
    assert len(feedback.alarms()) == 2


def test_a_flood_by_one_rater_is_no_event(feedback):
    feedback.say(*["flood"] * 30)
    assert feedback.alarms() == []
    feedback.say("ann", "bob", "cat")
    (alarm,) = feedback.alarms()
    assert (alarm.evidence["opinions"], alarm.evidence["counted"]) == (33, 6)


def test_drift_is_not_looked_for_before_something_serves(new_data):
    assert isinstance(new_data.drift, DriftSensor)
    new_data.drift.look()
    assert Alarms(new_data.pipeline.ledger).of("support") == []


def test_it_is_time_at_first_and_then_after_a_while():
    seldom, often = Every(1000), Every(1e-9)
    assert [seldom.is_due(), seldom.is_due()] == [True, False]
    assert [often.is_due(), often.is_due()] == [True, True]
