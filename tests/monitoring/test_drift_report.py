"""What people and Prometheus are shown of drift."""

import json
import re
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from drift_world import TOPICS, HashedWords, World
from penstock.cli import app
from penstock.day_tables import day_of
from penstock.errors import RecipeError
from penstock.monitoring import text_samples
from penstock.monitoring.drift import DriftWatch
from penstock.monitoring.drift_metrics import DriftMetrics
from penstock.monitoring.drift_page import to_html
from penstock.monitoring.drift_report import chosen_window, rows, summary, topics_of
from penstock.stages.base import Silent

EVEN = {"money": 1, "access": 1}
NEWS = {"money": 1, "access": 1, "travel": 6}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("told") / "project")
    made.serve(1)
    made.talk(12, EVEN)
    made.talk(7, NEWS)
    made.talk(1, NEWS, rows=3)
    made.status = made.check()
    yield made
    made.close()


@pytest.fixture(scope="module")
def topics(world):
    return topics_of(world.watch(), chosen_window(world.status, None))


@pytest.mark.slow
def test_the_topic_that_grew_is_shown_by_examples_of_the_new_one(topics):
    assert [one.against for one in topics] == ["training", "since_promotion"]
    for found in topics:
        grown = max(found.topics, key=lambda one: one.share.after - one.share.before)
        assert grown.share.after > grown.share.before + 0.15
        words = " ".join(grown.after).split()
        assert sum(word in TOPICS["travel"] for word in words) > len(words) * 0.8


@pytest.mark.slow
def test_examples_are_shown_without_personal_data(tmp_path):
    world = World(tmp_path / "project")
    world.serve(1)
    world.talk(1, EVEN)
    world.talk(1, EVEN, prompt="write to jane.doe@example.com about my invoice")
    one = world.check().windows[-1]
    page = to_html(world.check(), one, topics_of(world.watch(), one))
    assert "[EMAIL]" in page
    assert "jane.doe" not in page
    world.close()


@pytest.mark.slow
def test_examples_that_have_left_the_log_are_said_to_be_gone(tmp_path):
    world = World(tmp_path / "project")
    world.serve(1)
    world.talk(2, EVEN)
    one = world.check().windows[-1]
    world.writers.traffic.log.expire(day_of(one.record.end_ms) + timedelta(days=1))
    (found,) = [
        found for found in topics_of(world.watch(), one) if found.against == "since_promotion"
    ]
    told = {text for topic in found.topics for text in topic.before + topic.after}
    assert told == {"(no longer in the log)"}
    world.close()


def test_the_page_needs_nothing_else_and_names_the_alarm(world, topics):
    page = to_html(world.status, chosen_window(world.status, None), topics)
    assert "traffic has changed; alarm in window" in page
    assert "ALARM" in page
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href)=|@import|url\(", page)


@pytest.mark.slow
def test_the_page_escapes_what_users_wrote(tmp_path):
    world = World(tmp_path / "project")
    world.serve(1)
    world.talk(1, EVEN)
    world.talk(1, EVEN, prompt="<script>alert(1)</script> my invoice")
    one = world.check().windows[-1]
    page = to_html(world.check(), one, topics_of(world.watch(), one))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    world.close()


def test_a_page_without_any_window_says_so(tmp_path):
    world = World(tmp_path / "project")
    world.serve(1)
    status = world.check()
    assert chosen_window(status, None) is None
    page = to_html(status, None, [])
    assert "No window was judged yet." in page
    assert "No window of 3600 s has ended" in page
    world.close()


def test_rows_say_where_it_differs_and_why_a_window_was_not_judged(world):
    shown = rows(world.status)
    assert len(shown) == 20
    assert "input from training rows" in shown[-2][2]
    assert shown[-1][-1] == "3 conversations, 20 needed"
    assert sum(row[-1] == "ALARM" for row in shown) == 1


def test_machines_get_everything_but_vectors(world):
    told = json.loads(json.dumps(summary(world.status)))
    assert told["alarms"] == [world.status.alarms[0].name]
    assert told["windows"][5]["columns"]["input"]["training"]["kernel_p"] > 0
    assert "vector" not in json.dumps(told)


def test_a_window_that_is_not_there_is_refused(world):
    with pytest.raises(RecipeError, match="--window 'yesterday' is no window"):
        chosen_window(world.status, "yesterday")
    name = world.status.windows[3].name
    assert chosen_window(world.status, name).name == name


def test_prometheus_is_shown_the_statistic_and_the_last_p_values(world):
    metrics = DriftMetrics()
    metrics.show(world.status, now_s=5.0)

    def value(name, **labels):
        return metrics.registry.get_sample_value(f"penstock_drift_{name}", labels)

    assert value("threshold", recipe="penny") == 200
    assert value("statistic", recipe="penny") == world.status.windows[-2].moment.statistic
    assert value("alarms", recipe="penny") == 1
    assert value("windows", recipe="penny") == 20
    assert value("last_check_timestamp_seconds", recipe="penny") == 5
    found = world.status.windows[-2].record.found["columns"]["input"]["training"]
    labels = {"recipe": "penny", "column": "input", "against": "training"}
    assert value("window_p", **labels, test="kernel") == found["kernel_p"]
    assert value("window_p", **labels, test="classifier") == found["classifier_p"]


@pytest.fixture
def penstock(world, monkeypatch):
    monkeypatch.setattr("penstock.monitoring.drift.Embedding", lambda name, base: HashedWords())
    check = DriftWatch.check
    monkeypatch.setattr(
        DriftWatch, "check", lambda self, progress: check(self, world.now_s, progress)
    )

    def call(*words, code=0):
        done = CliRunner().invoke(app, ["drift", "--recipe", str(world.path), *words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code
        return done.output

    return call


@pytest.mark.slow
def test_the_command_shows_windows_and_writes_the_page(penstock, world, tmp_path):
    page = tmp_path / "drift.html"
    said = penstock("--report", str(page))
    assert "ALARM" in said
    assert "traffic has changed" in " ".join(said.split())
    assert "</html>" in page.read_text()
    assert json.loads(penstock("--json"))["version"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metrics-port", "0"), "--metrics-port is for a check that goes on"),
        (("--report", "drift.html", "--every-s", "60"), "--report is for a check that ends"),
        (("--window", "2026-11-27T00:00Z"), "--window chooses what a page tells"),
    ],
)
def test_options_that_would_do_nothing_are_refused(penstock, words, message):
    with pytest.raises(RecipeError, match=message):
        penstock(*words)


@pytest.mark.slow
def test_how_many_windows_were_looked_at_is_shown_while_it_goes_on(tmp_path):
    class Told(Silent):
        def __init__(self):
            self.totals, self.done = [], 0

        def track(self, label, total=None):
            self.totals.append(total)
            return super().track(label, total)

        def __call__(self, count):
            self.done += count

    world, told = World(tmp_path / "project"), Told()
    world.serve(1)
    world.talk(3, EVEN)
    for _ in range(2):
        world.watch().check(world.now_s, told)
    assert (told.totals, told.done) == ([3], 3)
    world.close()


@pytest.mark.slow
def test_the_packaged_model_sees_another_topic_by_itself(tmp_path):
    world = World(tmp_path / "project", embedding="all-MiniLM-L6-v2", min_rows=20)
    world.serve(1)
    world.talk(2, EVEN, rows=40)
    world.talk(1, {"travel": 1}, rows=40)
    embedding = text_samples.Embedding("all-MiniLM-L6-v2", tmp_path)
    windows = world.check(embedding).windows
    told = [one.record.found["columns"]["input"]["training"] for one in windows]
    assert [one["differs"] for one in told][1:] == [False, True]
    assert told[2]["distance"] > 3 * told[1]["distance"]
    world.close()
