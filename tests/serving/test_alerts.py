"""``POST /v1/alerts``: who is let in, what becomes an alarm, and what is refused."""

import hashlib
import hmac
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
import pytest
import yaml
from doubles import wait_until

from penstock.errors import LedgerError, RecipeError
from penstock.ledger import Ledger
from penstock.ledger.accounts import Accounts
from penstock.ledger.alarms import Alarms, AlarmState
from penstock.ledger.api_keys import ApiKeys
from penstock.project import open_project
from penstock.recipe import Recipe
from penstock.serving import production
from penstock.serving.alerts import AlertDesk

SECRET = "a secret that is long enough"
BEARER = {"authorization": f"Bearer {SECRET}"}
# As Go writes it: nanoseconds, and an offset.
STARTED = "2026-11-27T23:09:52.739266876+02:00"


@pytest.fixture
def ledger(tmp_path):
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.fixture
def server(gateway, ledger):
    return gateway(alerts=AlertDesk(SECRET, "demo", ledger))


def alert(number=1, status="firing", **changed):
    labels = {"alertname": "SloBurnsFast", "recipe": "demo", "severity": "page", "model": "penny"}
    return {
        "status": status,
        "labels": labels | changed.pop("labels", {}),
        "annotations": {"summary": "It burns"},
        "startsAt": STARTED,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph?g0.expr=x",
        "fingerprint": f"{number:016x}",
    } | changed


def message(*alerts):
    return {
        "version": "4",
        "groupKey": '{}:{alertname="SloBurnsFast"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "penstock",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager",
        "alerts": list(alerts),
    }


def post(server, *alerts, headers=BEARER, client=httpx):
    return client.post(
        f"{server.url}/v1/alerts", json=message(*alerts), headers=headers, timeout=60
    )


def signed(body, at_s=None, secret=SECRET):
    at = str(int(time.time() if at_s is None else at_s))
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"x-penstock-timestamp": at, "x-penstock-signature": f"sha256={digest}"}


def raised(ledger):
    return Alarms(ledger).of("demo")


@pytest.mark.slow
def test_an_alert_becomes_an_alarm_that_says_what_it_rests_on(server, ledger):
    answer = post(server, alert())
    assert answer.status_code == 200
    assert answer.json() == {"object": "alerts", "firing": 1}
    (record,) = raised(ledger)
    assert record.alarm.kind == "alert"
    assert record.alarm.severity == "critical"
    assert record.alarm.evidence["alert"] == "SloBurnsFast"
    assert record.alarm.evidence["labels"]["model"] == "penny"
    assert record.alarm.raised_s == pytest.approx(
        datetime.fromisoformat("2026-11-27T21:09:52.739266").replace(tzinfo=UTC).timestamp()
    )


def test_the_same_alert_raises_one_alarm_however_often_and_from_wherever_it_comes(server, ledger):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(server, alert()), range(12)))
    assert {one.status_code for one in answers} == {200}
    assert len(raised(ledger)) == 1


def test_an_alert_that_begins_again_is_another_alarm(server, ledger):
    post(server, alert())
    post(server, alert(startsAt="2026-11-28T00:00:00Z"))
    assert len(raised(ledger)) == 2


def test_an_alert_that_is_over_closes_its_alarm_and_a_replay_does_not_open_it(server, ledger):
    post(server, alert())
    assert post(server, alert(status="resolved")).json()["resolved"] == 1
    post(server, alert())
    (record,) = raised(ledger)
    assert record.state == AlarmState.CLOSED
    assert [one.reason for one in Alarms(ledger).events(record.number)] == ["raised", "resolved"]


def test_the_end_of_an_alert_that_was_never_heard_of_raises_nothing(server, ledger):
    assert post(server, alert(status="resolved")).status_code == 200
    assert raised(ledger) == []


def test_alerts_about_another_recipe_are_left_alone(server, ledger):
    answer = post(server, alert(labels={"recipe": "other"}), alert(2))
    assert answer.json() == {"object": "alerts", "another": 1, "firing": 1}
    assert len(raised(ledger)) == 1
    assert Alarms(ledger).of("other") == []


def test_an_alert_about_an_alarm_raises_no_second_one(server, ledger):
    answer = post(server, alert(labels={"alertname": "AlarmRaised", "alarm": "drift"}))
    assert answer.json() == {"object": "alerts", "echo": 1}
    assert raised(ledger) == []


def test_who_can_sign_needs_to_show_no_secret(server, ledger):
    body = json.dumps(message(alert())).encode()
    answer = httpx.post(f"{server.url}/v1/alerts", content=body, headers=signed(body))
    assert answer.status_code == 200
    assert len(raised(ledger)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {SECRET}"},
        {"authorization": f"Bearer {SECRET}x"},
        {"authorization": "Bearer"},
        signed(b"another body"),
        signed(json.dumps(message()).encode(), at_s=time.time() - 3600),
        signed(json.dumps(message()).encode(), at_s=time.time() + 3600),
        signed(json.dumps(message()).encode(), secret="another secret of mine"),
        {"x-penstock-signature": "sha256=", "x-penstock-timestamp": "now"},
        {**BEARER, "x-penstock-signature": "sha256=0"},
    ],
    ids=[
        "none", "wrong", "scheme", "longer", "empty", "another body", "too old", "too new",
        "another secret", "no time", "wrong signature beside the secret",
    ],
)  # fmt: skip
def test_forged_and_replayed_messages_are_refused(server, ledger, headers):
    body = json.dumps(message()).encode()
    answer = httpx.post(f"{server.url}/v1/alerts", content=body, headers=headers)
    assert answer.status_code == 401
    assert SECRET not in answer.text
    assert raised(ledger) == []


def test_a_signature_is_of_that_body_at_that_time(server, ledger):
    body = json.dumps(message(alert())).encode()
    headers = signed(body)
    headers["x-penstock-timestamp"] = str(int(headers["x-penstock-timestamp"]) + 1)
    answer = httpx.post(f"{server.url}/v1/alerts", content=body, headers=headers)
    assert answer.status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        json.dumps(message(alert())).encode()[:-20],
        b"[" * 100_000,
        b'{"version": "4"}',
        json.dumps({**message(), "version": "5"}).encode(),
        json.dumps(message(alert(startsAt="yesterday"))).encode(),
        json.dumps(message(alert(startsAt="2026-11-27T23:09:52"))).encode(),
        json.dumps(message(alert(fingerprint="../x"))).encode(),
        json.dumps(message(alert(status="maybe"))).encode(),
        json.dumps(message(alert(labels={"a": ["b"]}))).encode(),
        b"\xff\xfe" + json.dumps(message()).encode(),
    ],
    ids=[
        "empty", "brace", "half", "deep", "no alerts", "version", "no time", "no zone",
        "fingerprint", "status", "labels", "bytes",
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_and_kept_nowhere(server, ledger, body):
    answer = httpx.post(f"{server.url}/v1/alerts", content=body, headers=BEARER)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"
    assert raised(ledger) == []


def test_a_body_without_end_is_cut_off(gateway, ledger):
    server = gateway(alerts=AlertDesk(SECRET, "demo", ledger), max_body_bytes=4096)
    answer = post(server, *(alert(number) for number in range(100)))
    assert answer.status_code == 413


@pytest.mark.slow
def test_a_thousand_alerts_at_once_are_a_thousand_alarms_and_more_are_refused(server, ledger):
    answer = post(server, *(alert(number, annotations={}) for number in range(1_000)))
    assert answer.json() == {"object": "alerts", "firing": 1_000}
    assert len(Alarms(ledger).of("demo", limit=2_000)) == 1_000
    tiny = {"labels": {}, "annotations": {}}
    assert post(server, *(alert(number, **tiny) for number in range(1_001))).status_code == 400


def test_a_label_that_is_a_book_still_makes_an_alarm(server, ledger):
    labels = {f"{number}" * 50: "\u20ac" * 3_000 for number in range(60)}
    assert post(server, alert(labels=labels)).status_code == 200
    (record,) = raised(ledger)
    assert record.alarm.evidence["alert"] == "SloBurnsFast"


@pytest.mark.slow
def test_a_flood_is_told_to_come_again_while_the_gateway_serves(server, ledger, monkeypatch):
    stuck, go = threading.Event(), threading.Event()
    keep = server.gateway.alerts._keep

    def slow(alerts):
        stuck.set()
        go.wait(30)
        return keep(alerts)

    monkeypatch.setattr(server.gateway.alerts, "_keep", slow)
    with httpx.Client() as client, ThreadPoolExecutor(40) as pool:
        waiting = [pool.submit(post, server, alert(number), client=client) for number in range(40)]
        wait_until(lambda: sum(one.done() for one in waiting) >= 40 - 16)
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        go.set()
        statuses = [one.result().status_code for one in waiting]
    assert statuses.count(200) == 16
    assert statuses.count(503) == 24  # which Alertmanager sends again
    assert len(raised(ledger)) == 16


def test_a_ledger_that_is_away_is_tried_again_by_who_sends(server, ledger, monkeypatch):
    def away(alarm):
        raise LedgerError("It is away.")

    monkeypatch.setattr(server.gateway.alerts._alarms, "raise_", away)
    answer = post(server, alert())
    assert answer.status_code == 503
    monkeypatch.undo()
    assert post(server, alert()).status_code == 200
    assert len(raised(ledger)) == 1


def test_without_a_secret_there_is_no_such_place(gateway):
    assert post(gateway(), alert()).status_code == 404


def test_an_api_key_opens_nothing_here_and_the_secret_nothing_else(gateway, ledger):
    server = gateway(
        alerts=AlertDesk(SECRET, "demo", ledger),
        api_keys=ApiKeys(ledger.database),
        accounts=Accounts(ledger.database),
    )
    assert post(server, alert()).status_code == 200
    answer = httpx.get(f"{server.url}/v1/models", headers=BEARER)
    assert answer.status_code == 401


_WRITTEN = {"name", "sources", "evaluate", "gate"}


def recipe(slo):
    return Recipe.model_validate(
        {
            "name": "demo",
            "sources": {"files": {"type": "files", "paths": "a"}},
            "evaluate": {"tasks": ["t"]},
            "gate": {"min": {"t": 0.5}},
            "observe": {"slo": slo},
        }
    )


def test_the_secret_is_the_environments_and_long_enough(monkeypatch, ledger):
    assert AlertDesk.of(recipe({}), ledger) is None
    monkeypatch.setenv("MY_SECRET", SECRET)
    assert AlertDesk.of(recipe({}), ledger) is None
    assert AlertDesk.of(recipe({"secret_env": "MY_SECRET"}), ledger) is not None
    monkeypatch.setenv("MY_SECRET", "short")
    with pytest.raises(RecipeError, match="5 characters") as caught:
        AlertDesk.of(recipe({"secret_env": "MY_SECRET"}), ledger)
    assert "short" not in str(caught.value)


def test_a_project_that_is_served_shows_its_ledger_and_takes_alerts_with_a_secret(
    tmp_path, monkeypatch
):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe({}).model_dump(mode="json", include=_WRITTEN)))
    project = open_project(path)
    _, around = production.served(*project)
    assert around.alerts is None
    assert around.metrics.registry.get_sample_value("penstock_ledger_up") == 1
    monkeypatch.setenv("PENSTOCK_ALERTS_SECRET", SECRET)
    _, around = production.served(*project)
    around.alerts.authenticate(BEARER, b"")
    project.ledger.close()


def test_what_was_taken_is_counted(server):
    post(server, alert(), alert(2, status="resolved"))
    text = httpx.get(server.metrics_url).text
    assert 'penstock_alerts_taken_total{outcome="firing"} 1.0' in text
    assert 'llm_requests_total{endpoint="/v1/alerts",model="unknown",status="200"} 1.0' in text
