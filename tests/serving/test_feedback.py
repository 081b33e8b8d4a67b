"""``POST /v1/feedback``: what is kept, and what is refused."""

import asyncio
import json

import httpx
import pytest

from penstock.day_tables import DayTable
from penstock.errors import StoreError
from penstock.ledger import Ledger
from penstock.ledger.accounts import Accounts
from penstock.ledger.api_keys import ApiKey, ApiKeys
from penstock.monitoring.feedback import FeedbackBook
from penstock.monitoring.metrics import ServingMetrics
from penstock.opinions import Opinion, judged
from penstock.serving.feedback import FeedbackDesk
from penstock.serving.response_id import new_response_id
from traffic_rows import opinion

SERVED = "01" * 32  # the digest of version 1, see doubles.served
OLDER = "77" * 32


class Table(DayTable):
    """A table that can be away."""

    is_away = False

    def append(self, *args):
        if self.is_away:
            raise StoreError("The disk is full.")
        super().append(*args)


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "feedback")


@pytest.fixture
def server(gateway, table):
    book = FeedbackBook(table, redact=True, retention_days=None)
    desk = FeedbackDesk(book, {OLDER[:16]: "older"}.get)
    return gateway(feedback=desk)


def send(server, response_id=None, **said):
    response_id = response_id or new_response_id("chatcmpl", SERVED)
    return httpx.post(f"{server.url}/v1/feedback", json={"response_id": response_id, **said})


def rows(table):
    return [row for batch in table.scan() for row in batch.to_pylist()]


def count(server, **labels):
    value = server.gateway.metrics.registry.get_sample_value("penstock_feedback_total", labels)
    return value or 0


def test_feedback_on_an_answer_is_kept_before_it_is_confirmed(server, table):
    body = {"model": "penny", "prompt": "say hello"}
    answer = httpx.post(f"{server.url}/v1/completions", json=body).json()
    told = send(server, answer["id"], thumb="up", correction="hello you", rater="ann", comment="!")
    assert told.json() == {
        "object": "feedback",
        "response_id": answer["id"],
        "rater": "ann",
        "kinds": ["thumb", "correction"],
    }
    thumb, correction = rows(table)
    assert (thumb["kind"], thumb["score"], thumb["text"]) == ("thumb", 1.0, None)
    assert (correction["kind"], correction["score"]) == ("correction", None)
    assert correction["text"] == "hello you"
    for row in (thumb, correction):
        assert (row["rater"], row["comment"], row["model"]) == ("ann", "!", "penny")
        assert row["response_id"] == answer["id"]


@pytest.mark.slow
def test_saying_it_again_changes_nothing_and_the_last_word_holds(server, table):
    name = new_response_id("chatcmpl", SERVED)
    for score in (0.2, 0.9, 0.9):
        assert send(server, name, score=score).status_code == 200
    assert judged(map(Opinion.of, rows(table))).score == 0.9


def test_what_comes_at_once_is_committed_together(table):
    book = FeedbackBook(table, redact=True, retention_days=None)
    book.start(ServingMetrics())
    name = new_response_id("cmpl", SERVED)

    async def keep_many():
        await asyncio.gather(*(book.keep([opinion(name, rater=f"r{i}")]) for i in range(20)))

    asyncio.run(keep_many())
    book.stop()
    assert len({row["rater"] for row in rows(table)}) == 20
    assert len({row["_version"] for row in rows(table)}) <= 2


def test_feedback_is_counted_by_model_and_kind(server):
    send(server, thumb="down")
    send(server, new_response_id("cmpl", OLDER), score=1)
    assert count(server, model="penny", kind="thumb", thumb="down") == 1
    assert count(server, model="older", kind="score", thumb="") == 1


def test_what_people_write_is_kept_without_personal_data(server, table):
    for rater in ("ann@example.org", "bob@example.org"):
        send(server, correction="Ask ann@example.org", comment="ann@example.org", rater=rater)
    first, second = rows(table)
    assert "example.org" not in json.dumps([first, second], default=str)
    assert first["text"] == "Ask [EMAIL]"
    assert first["rater"] != second["rater"]


def test_where_keys_are_asked_for_feedback_says_whose_it_came_with(gateway, table, tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    keys = ApiKeys(ledger.database)
    _, secret = keys.create(ApiKey("", "bot", tenant="acme"))
    desk = FeedbackDesk(FeedbackBook(table, redact=True, retention_days=None), {}.get)
    server = gateway(feedback=desk, api_keys=keys, accounts=Accounts(ledger.database))
    body = {"response_id": new_response_id("cmpl", SERVED), "thumb": "up"}
    assert httpx.post(f"{server.url}/v1/feedback", json=body).status_code == 401
    headers = {"authorization": f"Bearer {secret}"}
    assert httpx.post(f"{server.url}/v1/feedback", json=body, headers=headers).status_code == 200
    (row,) = rows(table)
    assert row["tenant"] == "acme"
    assert row["key_id"]
    ledger.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "status", "param"),
    [
        ({"response_id": "chatcmpl-1", "thumb": "up"}, 400, "response_id"),
        ({"response_id": "../../etc", "thumb": "up"}, 400, "response_id"),
        ({"response_id": "x" * 201, "thumb": "up"}, 400, "response_id"),
        ({"response_id": new_response_id("cmpl", "ef" * 32), "thumb": "up"}, 404, "response_id"),
        ({"response_id": f"cmpl-{'01' * 8}-020000000000700080000000000000a1", "thumb": "up"}, 404,
         "response_id"),
        ({}, 400, "thumb"),
        ({"thumb": "sideways"}, 400, "thumb"),
        ({"score": 1.01}, 400, "score"),
        ({"score": "1"}, 400, "score"),
        ({"correction": ""}, 400, "correction"),
        ({"correction": "x" * 65_537}, 400, "correction"),
        ({"thumb": "up", "comment": "x" * 4_097}, 400, "comment"),
        ({"thumb": "up", "rater": "x" * 201}, 400, "rater"),
        ({"thumb": "up", "tenant": "acme"}, 400, "tenant"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_and_not_kept(server, table, said, status, param):
    answer = send(server, **said)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    assert table.version() == -1


def test_while_the_store_is_away_feedback_is_refused_and_the_gateway_serves_on(server, table):
    table.is_away = True
    answer = send(server, thumb="up")
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert count(server, model="penny", kind="thumb", thumb="up") == 0
    body = {"model": "penny", "prompt": "say hello"}
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
    table.is_away = False
    assert send(server, thumb="up").status_code == 200


def test_without_a_project_there_is_nowhere_to_keep_feedback(gateway):
    assert send(gateway(), thumb="up").status_code == 404
