"""Drift and quality in the console: what was found, with examples, and nothing measured there."""

import re

import pytest

from console_browser import Browser
from drift_world import HashedWords, World
from judge_world import BAD, GOOD, fair, judging
from judge_world import World as JudgedWorld
from penstock.console import create_console
from penstock.console.drift_desk import DriftDesk
from penstock.errors import StoreError
from penstock.monitoring.drift import DriftWatch
from penstock.pipeline import open_pipeline
from penstock.serving.response_id import new_response_id
from traffic_rows import asked, correction, opinion

pytestmark = pytest.mark.slow

EVEN = {"money": 1, "access": 1}
NEWS = {"money": 1, "access": 1, "travel": 6}
HOSTILE = "<script>alert(1)</script>"


class Measured(HashedWords):
    """What has measured the test's windows, and measures no more."""

    def __init__(self, name, folder):
        super().__init__()

    def __call__(self, texts):
        raise StoreError("not measured here")


def words(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("drift") / "project")
    made.serve(1)
    made.talk(12, EVEN)
    made.talk(7, NEWS, answer=f"ann@example.com {HOSTILE}")
    made.check()
    yield made
    made.close()


def console_of(world):
    return Browser(create_console(open_pipeline(world.path)))


@pytest.fixture
def browser(world, monkeypatch):
    monkeypatch.setattr("penstock.console.drift_desk._Measured", Measured)
    return console_of(world)


def test_the_stream_is_drawn_beside_its_threshold(world, browser):
    page = browser.get("/drift").text
    status = world.watch().status()
    assert page.count("<circle") == len(status.windows)
    assert "raises an alarm (200)" in words(page)
    (alarm,) = status.alarms
    assert f"traffic has changed; alarm in window {alarm.name}" in words(page)


def test_the_last_window_with_an_alarm_is_told_in_p_values_or_the_one_that_is_asked_for(
    world, browser
):
    (alarm,) = world.watch().status().alarms
    page = browser.get("/drift").text
    assert f"Window {alarm.name}" in page
    (test,) = re.findall(r"input against training rows</td>(.*?)</tr>", page)
    p = alarm.record.found["columns"]["input"]["training"]
    assert f"<td>{p['kernel_p']:.3f}</td><td>{p['classifier_p']:.3f}</td>" in test
    first = world.watch().status().windows[0].name
    assert f"Window {first}" in browser.get(f"/drift?window={first}").text
    answer = browser.get("/drift?window=never")
    assert answer.status_code == 404
    assert "is no window" in answer.text


def test_topics_that_moved_are_shown_with_examples_that_are_redacted_and_escaped(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("penstock.console.drift_desk._Measured", Measured)
    world = World(tmp_path / "project", columns=["output"])
    world.serve(1)
    world.talk(3, EVEN)
    world.talk(1, NEWS, answer=f"ann@example.com train hotel {HOSTILE}")
    world.check()
    page = console_of(world).get("/drift/topics?window=2030-01-01T03:00Z").text
    world.close()
    assert "Topics of the output, against training rows" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "[EMAIL]" in page
    assert "ann@example.com" not in page
    assert HOSTILE not in page


def test_topics_that_were_not_measured_here_are_not_measured_by_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.console.drift_desk._Measured", Measured)
    world = World(tmp_path / "project")
    world.serve(1)
    world.talk(2, EVEN)
    world.check()
    for path in (world.store.root / "drift").rglob("*.parquet"):
        path.unlink()
    answer = console_of(world).get("/drift/topics")
    world.close()
    assert answer.status_code == 404
    assert "not measured here" in answer.text


def test_a_stream_is_followed_once_for_each_new_window(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.console.drift_desk._Measured", Measured)
    followed = []
    status = DriftWatch.status
    monkeypatch.setattr(DriftWatch, "status", lambda self: followed.append(1) or status(self))
    world = World(tmp_path / "project")
    world.serve(1)
    world.talk(2, EVEN)
    world.check()
    followed.clear()
    desk = DriftDesk(open_pipeline(world.path))
    assert len(desk.drift().status.windows) == 2
    desk.drift()
    assert len(followed) == 1
    world.talk(1, EVEN)
    world.check()
    followed.clear()
    assert len(desk.drift().status.windows) == 3
    assert len(followed) == 1
    monkeypatch.setattr("penstock.console.drift_desk.MAX_WINDOWS", 2)
    assert "too many to follow" in words(console_of(world).get("/drift").text)
    world.close()


def test_windows_that_nobody_looked_at_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.console.drift_desk._Measured", Measured)
    world = World(tmp_path / "project")
    world.serve(1)
    world.talk(1, EVEN)
    world.check()
    world.talk(2, EVEN)
    monkeypatch.setattr("penstock.console.drift_desk.time.time", lambda: world.now_s)
    page = words(console_of(world).get("/drift").text)
    world.close()
    assert "2 windows are over, and nobody has looked at them" in page


def test_without_anything_that_serves_there_is_no_drift_and_quality_is_still_shown(tmp_path):
    world = World(tmp_path / "project")
    page = words(console_of(world).get("/drift").text)
    world.close()
    assert "Nothing serves as penny@production" in page
    assert "Nobody has said anything of a version" in page


def test_quality_is_told_by_version_with_an_interval_and_the_number_of_answers(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("penstock.console.drift_desk._Measured", Measured)
    world = World(tmp_path / "project")
    said = []
    for version, scores in ((1, [0.0, 0.0, 1.0, 1.0]), (2, [1.0] * 10)):
        world.serve(version)
        names = [new_response_id("chatcmpl", world.digest) for _ in scores]
        world.writers.log(*(asked(name) for name in names))
        said += [opinion(name, score=score) for name, score in zip(names, scores, strict=True)]
    said.append(correction(names[0], "Like this."))
    said.append(opinion(names[1], score=0.0, tenant="stranger"))  # does not count
    said.append(opinion(names[2], score=0.0))  # ann has thought again
    other = new_response_id("chatcmpl", "ee" * 32)
    world.writers.log(asked(other))
    said.append(opinion(other))
    said.append(opinion(new_response_id("chatcmpl", world.digest)))  # was not logged
    world.writers.say(*said)
    page = words(console_of(world).get("/drift").text)
    world.close()
    assert "2 90.0 % 59.6 to 98.2 % 0.900 10 1 1 50.0 % 15.0 to 85.0 % 0.500 4 0" in page
    assert "2 answers are left out" in page


def test_the_judges_word_on_each_version_is_told_with_whether_it_counts(tmp_path):
    with judging() as server:
        server.fail = fair
        world = JudgedWorld(tmp_path / "project", server.url)
        world.serve(1)
        world.answer([GOOD, GOOD, BAD])
        world.run()
        browser = console_of(world)
        assert 'href="/console/drift/judge"' in browser.get("/drift").text
        page = words(browser.get("/drift/judge").text)
        assert "the-judge has judged 3 answers." in page
        assert "It does not count yet" in page
        assert "1 3 66.7%" in page
        world.answer([GOOD])
        world.run()
        assert "the-judge has judged 4 answers." in words(browser.get("/drift/judge").text)
        world.close()


def test_without_a_judge_there_is_no_word_of_one(world, browser):
    assert "/drift/judge" not in browser.get("/drift").text
    answer = browser.get("/drift/judge")
    assert answer.status_code == 404
    assert "names no judge" in answer.text
