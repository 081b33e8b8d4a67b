"""Alarms in the console: what each led to or why to nothing, and what a person says to them."""

import re

import pytest

from console_browser import Browser
from console_project import ConsoleProject
from penstock.console import create_console
from penstock.ledger.alarms import Alarm, Alarms, AlarmState
from penstock.ledger.retrain_log import Line, RetrainLog
from penstock.orchestrators.news import news_of
from penstock.pipeline import open_pipeline
from rollout_world import MODEL


def words(html):
    """A page's text."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.fixture
def alarms(project):
    return Alarms(project.ledger)


def last_line(project):
    return RetrainLog(project.ledger, MODEL).newest(1)[0]


def row(browser, number, path="/alarms"):
    """What the list says of one alarm."""
    found = re.search(rf'<tr><th[^>]*><a href="/console/alarms/{number}">.*?</tr>',
                      browser.get(path).text, re.DOTALL)  # fmt: skip
    return words(found[0])


@pytest.mark.slow
def test_an_alarm_leads_to_the_run_that_answers_it(project, browser):
    assert "answered" in row(browser, 1)
    assert f"a run, BLOCKED: sums fell {project.alarm_run}" in row(browser, 1)
    assert f'href="/console/runs/{project.alarm_run}"' in browser.get("/alarms/1").text


def test_the_first_page_leads_to_open_alarms(browser):
    assert '<a href="/console/alarms">2 open alarms</a>' in browser.get("/").text


def test_an_alarm_that_led_to_nothing_says_why(browser):
    assert "nothing: a person forbids it: a test of ours" in row(browser, 2)
    assert "nothing: alert alarms of severity critical start no run" in row(browser, 3)
    assert "nothing yet: refuse: too soon after the last run, until" in row(browser, 4)


def test_what_is_not_decided_yet_says_whether_anybody_watches(project, browser, alarms):
    alarms.decide(4, AlarmState.CLOSED, "over")
    late = alarms.raise_(Alarm(MODEL, "drift", "later", 1.8e9)).number
    log = RetrainLog(project.ledger, MODEL)
    assert log.newest(1)[0].action is Line.REFUSE
    with project.ledger.try_claim(f"watch/{MODEL}"):
        assert "A watcher decides" in words(browser.get("/alarms").text)
    assert "Nobody decides about alarms now" in words(browser.get("/alarms").text)
    assert "nothing yet" in row(browser, late)


@pytest.mark.slow
def test_without_a_loop_an_orchestrator_may_ask_and_its_run_is_named(tmp_path):
    project = ConsoleProject(tmp_path)
    pipeline = open_pipeline(project.recipe, {"observe.retrain": None})
    browser = Browser(create_console(pipeline, production=project.production))
    assert "only who asks `penstock news` starts a run" in row(browser, 4)
    (key,) = (one for one in news_of(pipeline).starts if one.startswith("alarm:"))
    run = project.ledger.start_run(MODEL, "", "", {}, key=key)
    news_of(pipeline)
    assert f"a run, RUNNING {run.id}" in row(browser, 4)
    project.ledger.end_run(run.id, "FAILED", "no disk")
    assert f"a run, FAILED: no disk {run.id}" in row(browser, 4)
    answer = browser.get("/alarms/pause")
    assert answer.status_code == 404
    assert "no observe.retrain" in answer.text


@pytest.mark.slow
def test_an_alarm_is_acknowledged_and_may_still_start_a_run(browser, alarms):
    done = browser.confirm("/alarms/4/acknowledge", "I look at it")
    assert done.headers["location"] == "/console/alarms/4?done=acknowledged"
    assert alarms.find(4).state is AlarmState.ACKNOWLEDGED
    event = alarms.events(4)[-1]
    assert (event.reason, event.actor.startswith("console by ")) == ("I look at it", True)
    assert "Acknowledge…" not in browser.get("/alarms/4").text
    assert browser.confirm("/alarms/4/veto", "it was us").status_code == 303
    assert alarms.find(4).state is AlarmState.VETOED


@pytest.mark.slow
def test_an_alarm_that_changed_meanwhile_is_looked_at_again(browser, alarms):
    fields = {**browser.fields("/alarms/4/veto"), "reason": "no"}
    alarms.decide(4, AlarmState.ACKNOWLEDGED, "seen")
    answer = browser.post("/alarms/4/veto", fields)
    assert answer.status_code == 409
    assert "Alarm 4 is acknowledged now" in answer.text
    alarms.decide(4, AlarmState.VETOED, "enough")
    assert "Alarm 4 is vetoed already" in browser.post("/alarms/4/veto", fields).text
    assert alarms.events(4)[-1].reason == "enough"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["acknowledge", "veto"])
def test_an_alarm_of_another_recipe_is_neither_shown_nor_decided(project, browser, alarms, what):
    other = alarms.raise_(Alarm("another", "drift", "secret", 1.8e9)).number
    fields = {**browser.fields("/alarms/4/veto"), "reason": "no"}
    assert browser.get(f"/alarms/{other}").status_code == 404
    answer = browser.post(f"/alarms/{other}/{what}", fields)
    assert answer.status_code == 409
    assert "secret" not in answer.text
    assert alarms.find(other).is_open


@pytest.mark.slow
def test_nothing_is_vetoed_without_a_reason_or_from_elsewhere(browser, alarms):
    assert browser.confirm("/alarms/4/veto", " ").status_code == 409
    fields = {**browser.fields("/alarms/4/veto"), "reason": "no"}
    assert browser.post("/alarms/4/veto", fields, origin="http://evil.test").status_code == 403
    assert browser.post("/alarms/4/veto", {**fields, "csrf": "B" * 43}).status_code == 403
    assert alarms.find(4).is_open


@pytest.mark.slow
def test_the_loop_is_paused_and_goes_on(project, browser):
    assert browser.confirm("/alarms/pause", "holidays").status_code == 303
    line = last_line(project)
    assert (line.action, line.reason) == (Line.PAUSE, "holidays")
    assert line.actor.startswith("console by ")
    assert "nothing yet: the loop is paused: holidays" in row(browser, 4)
    assert browser.get("/alarms/pause").status_code == 404
    fields = {**browser.fields("/alarms/resume"), "reason": "back"}
    assert browser.post("/alarms/resume", fields).status_code == 303
    assert browser.post("/alarms/resume", fields).status_code == 409
    assert (last_line(project).action, last_line(project).reason) == (Line.RESUME, "back")


@pytest.mark.slow
def test_a_person_agrees_to_the_alarms_they_saw_and_to_no_later_one(project, browser, alarms):
    fields = {**browser.fields("/alarms/approve"), "reason": "go"}
    alarms.raise_(Alarm(MODEL, "drift", "later", 1.8e9))
    assert browser.post("/alarms/approve", fields).status_code == 303
    assert last_line(project).evidence == {"up_to": 4}
    assert browser.post("/alarms/approve", {**fields, "up_to": "999"}).status_code == 409


@pytest.mark.slow
def test_a_thousand_alarms_are_shown_a_page_at_a_time(project, browser, alarms):
    for number in range(120):
        alarms.raise_(Alarm(MODEL, "alert", f"open {number}", 1.8e9))
        over = alarms.raise_(Alarm(MODEL, "alert", f"past {number}", 1.8e9)).number
        alarms.decide(over, AlarmState.CLOSED, "over")
    page = browser.get("/alarms").text
    assert page.count("/console/alarms/") < 120
    assert "The newest 50 of 122." in words(page)
    before = re.search(r"/alarms\?before=(\d+)", page)[1]
    assert f"past {119 - 50}" in row(browser, int(before) - 2, f"/alarms?before={before}")
    assert browser.get("/alarms?before=x").status_code == 404
