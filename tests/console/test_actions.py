"""What the console does: after a confirmation, if it still holds, and with a line in the audit."""

import pytest

from console_browser import Browser
from penstock import quarantine
from penstock.console import create_console
from penstock.errors import RegistryError
from penstock.ledger import ModelVersion
from penstock.promotion import Production
from penstock.quarantine import decide, held, rows
from penstock.rollout import Opening
from penstock.rollout_section import RolloutSection
from rollout_world import MODEL

KEY = "k" * 32


def last_move(project):
    return project.ledger.history(MODEL)[-1]


@pytest.mark.slow
def test_a_promotion_is_asked_once_more_and_then_written_down(project, browser):
    asked = browser.get("/versions/2/promote")
    assert "penstock promote --version 2 --expect 1" in asked.text
    assert project.serving == 1
    done = browser.confirm("/versions/2/promote", "better  on\nthe new topic")
    assert (done.status_code, done.headers["location"]) == (303, "/console/versions?done=promoted")
    assert project.serving == 2
    assert project.registry.alias(MODEL, "production") == 2
    move = last_move(project)
    assert (move.action, move.reason) == ("promote", "better on the new topic")
    assert move.actor.startswith("console by ")


def test_a_promotion_over_what_was_not_seen_is_refused(project, browser):
    fields = browser.fields("/versions/2/promote")
    project.production().promote(3, "meanwhile")
    answer = browser.post("/versions/2/promote", {**fields, "reason": "why not"})
    assert answer.status_code == 409
    assert "version 3 serves now" in answer.text
    assert project.serving == 3


def test_a_rollback_that_is_sent_twice_goes_back_once(project, browser):
    project.production().promote(2, "second")
    project.production().promote(3, "third")
    fields = {**browser.fields("/rollback"), "reason": "it is rude"}
    assert browser.post("/rollback", fields).status_code == 303
    answer = browser.post("/rollback", fields)
    assert answer.status_code == 409
    assert "has moved since" in answer.text
    assert project.serving == 2
    assert last_move(project).reason == "it is rude"


def away(*_):
    raise RegistryError("MLflow does not answer.", "Start it.")


@pytest.mark.slow
def test_a_move_that_mlflow_has_not_followed_is_done_and_said_to_be_followed_later(
    project, browser, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(project.registry, "set_alias", away)
        done = browser.confirm("/versions/2/promote", "new")
        assert done.status_code == 303
        page = browser.get(done.headers["location"].removeprefix("/console")).text
        assert "The pointer has moved." in page
        assert "its alias has not followed yet; the next run or promotion makes it follow" in page
        assert (project.serving, project.registry.alias(MODEL, "production")) == (2, 1)
        done = browser.confirm("/rollback", "old")
        assert done.headers["location"] == "/console/versions?done=rolled-back-alone"
        assert project.serving == 1
    assert browser.confirm("/versions/3/promote", "newest").status_code == 303
    assert (project.serving, project.registry.alias(MODEL, "production")) == (3, 3)


def test_a_trial_is_stopped_or_promoted_by_a_person(project, browser):
    first = project.start_trial(2)
    assert browser.confirm(f"/rollouts/{first.id}/stop", "a bad feeling").status_code == 303
    assert project.rollouts.find(first.id).reason == "a bad feeling"
    assert browser.get(f"/rollouts/{first.id}/stop").status_code == 404
    second = project.start_trial(3)
    assert browser.confirm(f"/rollouts/{second.id}/promote").status_code == 303
    assert project.serving == 3
    assert project.rollouts.events(second.id)[1].actor.startswith("console by ")


def test_a_trial_that_went_on_is_looked_at_again(project, browser):
    trial = project.start_trial(2)
    path = f"/rollouts/{trial.id}/stop"
    assert browser.confirm(path, epoch="7").status_code == 409
    assert project.rollouts.find(trial.id).is_open


class Beaten(Production):
    """Somebody else is always a moment earlier."""

    def promote(self, *args, **options):
        super().promote(3, "meanwhile")
        return super().promote(*args, **options)


@pytest.mark.slow
def test_a_trial_that_another_promotion_ends_is_not_called_promoted(project):
    trial = project.start_trial(2)
    there = project.production()
    app = create_console(project.pipeline, production=lambda: Beaten(**vars(there)))
    answer = Browser(app).confirm(f"/rollouts/{trial.id}/promote")
    assert answer.status_code == 409
    assert "It is stopped" in answer.text
    assert project.serving == 3


def test_a_trial_of_another_model_is_neither_shown_nor_promoted(project, browser):
    for number in (1, 2):
        version = ModelVersion("other", number, "f", f"other{number}", "models/1", "run", "")
        project.ledger.add_model(version)
    project.ledger.move_pointer("other", "production", 1, None, "promote", "first")
    section = RolloutSection()
    opening = Opening("other", "production", 1, 2, section.terms(), section.steps)
    trial = project.rollouts.start(opening.rollout(), 60.0)
    fields = {**browser.fields("/versions/2/promote"), "reason": "why", "epoch": str(trial.epoch)}
    assert browser.get(f"/rollouts/{trial.id}").status_code == 404
    for what in ("promote", "stop"):
        assert browser.post(f"/rollouts/{trial.id}/{what}", fields).status_code == 409
    assert project.rollouts.find(trial.id) == trial
    assert project.serving == 1


def test_rows_are_released_and_dropped_one_by_one_or_by_rule(project, browser):
    first = project.row_ids[0]
    assert browser.confirm(f"/quarantine/release?row={first}", "fine").status_code == 303
    (row,) = rows(project.pipeline, first)
    assert (row.decision.action, row.decision.reason) == ("release", "fine")
    assert row.decision.by.startswith("console by ")
    rule = "source=tickets&rule=length"
    assert "Drop 2 rows" in browser.get(f"/quarantine/drop?{rule}").text
    assert browser.confirm(f"/quarantine/drop?{rule}", "too short").status_code == 303
    counts = {one.rule: (one.num_dropped, one.num_open) for one in held(project.pipeline)}
    assert sorted(counts.values()) == [(0, 1), (2, 0)]


def test_what_another_person_decided_meanwhile_is_not_undone_unseen(project, browser):
    rule = "/quarantine/drop?source=tickets&rule=length"
    fields = {**browser.fields(rule), "reason": "too short"}
    decide(project.pipeline, "release", [project.row_ids[0]], reason="fine")
    answer = browser.post("/quarantine/drop", fields)
    assert answer.status_code == 409
    assert "have changed since" in answer.text
    assert all(one.num_dropped == 0 for one in held(project.pipeline))
    assert browser.confirm(rule, "too short").status_code == 303


def test_a_rule_is_quoted_in_the_command_that_does_the_same(browser):
    page = browser.get("/quarantine/drop?rule=length of response").text
    assert "penstock quarantine drop &#39;--rule=length of response&#39;" in page


@pytest.mark.slow
def test_a_bulk_decision_reads_the_rows_twice_and_not_once_for_each(project, browser, monkeypatch):
    scans = []
    matching = quarantine._matching
    monkeypatch.setattr(quarantine, "_matching", lambda *said: scans.append(1) or matching(*said))
    assert browser.confirm("/quarantine/drop?source=tickets", "all of them").status_code == 303
    assert len(scans) == 2


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501])
def test_nothing_is_done_without_a_reason(project, browser, reason):
    assert browser.confirm("/versions/2/promote", reason).status_code == 409
    assert project.serving == 1


@pytest.mark.parametrize("expect", ["", "x", "-1", "1" * 30, "²"])
def test_a_form_that_was_tampered_with_does_nothing(project, browser, expect):
    assert browser.confirm("/versions/2/promote", expect=expect).status_code == 409
    assert project.serving == 1


@pytest.mark.slow
def test_what_promote_refuses_is_told(project, browser):
    project.registry.set_alias(MODEL, "production", 3)
    answer = browser.confirm("/versions/2/promote")
    assert answer.status_code == 409
    assert "moved by hand" in answer.text


# -- who may ask, and from where ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_only_a_post_does_something(project, browser, method):
    fields = {**browser.fields("/versions/2/promote"), "reason": "why"}
    browser.ask(method, "/console/versions/2/promote", fields, origin=browser.url)
    assert project.serving == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.test"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://["},
        {"origin": "http://127.0.0.1:8010.evil.test"},
        {"origin": "http://127.0.0.1:8010@evil.test"},
        {"origin": "file://127.0.0.1:8010"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"content-type": "text/plain"},
        {"cookie": "penstock_console=" + "A" * 43},
    ],
    ids=lambda headers: "{} {}".format(*next(iter(headers.items()))),
)
def test_a_form_of_another_site_is_refused(project, browser, headers):
    fields = {**browser.fields("/versions/2/promote"), "reason": "why"}
    answer = browser.post("/versions/2/promote", fields, **headers)
    assert answer.status_code in (403, 415)
    assert project.serving == 1


def test_a_form_without_its_token_is_refused(project, browser):
    fields = {**browser.fields("/versions/2/promote"), "reason": "why"}
    for token in ("", "B" * 43, "é"):
        assert browser.post("/versions/2/promote", {**fields, "csrf": token}).status_code == 403
    del fields["csrf"]
    assert browser.post("/versions/2/promote", fields).status_code == 403
    assert project.serving == 1


def test_the_token_of_another_browser_is_refused(project, console, browser):
    fields = {**browser.fields("/versions/2/promote"), "reason": "why"}
    other = Browser(console)
    other.get("/")
    assert other.post("/versions/2/promote", fields).status_code == 403
    assert project.serving == 1


@pytest.mark.slow
def test_a_reason_keeps_nothing_that_a_terminal_obeys(project, browser):
    assert browser.confirm("/versions/2/promote", "\x1b[2Jfine\x00\u202e").status_code == 303
    assert last_move(project).reason == "[2Jfine"


def test_a_path_that_is_too_long_is_refused(browser):
    assert browser.get(f"/versions/{'9' * 5000}").status_code == 414


def test_a_form_that_is_too_long_is_refused(project, browser):
    assert browser.confirm("/versions/2/promote", "x" * 70_000).status_code == 413


@pytest.mark.slow
def test_the_cookie_stays_in_this_browser_and_on_this_site(browser):
    cookie = browser.get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "set-cookie" not in browser.get("/").headers


@pytest.mark.parametrize(
    "host", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test:8010", "evil.test:8010", "["]
)
def test_another_hosts_name_is_refused_though_it_points_here(browser, host):
    answer = browser.get("/", host=host)
    assert answer.status_code == 421
    assert "Penstock" not in answer.text


@pytest.mark.parametrize("url", ["http://localhost:8010", "http://[::1]:8010"])
def test_this_machines_own_names_are_answered(console, url):
    assert Browser(console, url).get("/").status_code == 200


@pytest.fixture
def guarded(project):
    return create_console(project.pipeline, KEY, project.production)


@pytest.mark.parametrize("auth", [None, ("ann", ""), ("ann", "wrong"), (KEY, "ann")])
def test_beyond_this_machine_the_admin_key_is_needed(guarded, auth):
    answer = Browser(guarded, "http://models.test", auth).get("/")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert MODEL not in answer.text


@pytest.mark.slow
def test_with_the_key_the_name_that_was_given_is_written_down(project, guarded):
    browser = Browser(guarded, "http://models.test", ("ann\x1b[1m", KEY))
    assert browser.confirm("/versions/2/promote").status_code == 303
    assert last_move(project).actor.startswith("ann[1m in the console by ")


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Basic /w==", "Bearer x", "basic YQ=="])
def test_credentials_that_are_none_are_refused(guarded, header):
    browser = Browser(guarded, "http://models.test")
    assert browser.get("/", authorization=header).status_code == 401
