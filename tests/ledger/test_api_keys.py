import json
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from penstock.errors import LedgerError
from penstock.ledger import schema
from penstock.ledger.api_keys import ApiKey, ApiKeys, digest_of


@pytest.fixture
def keys(ledger):
    return ApiKeys(ledger.database)


def rows(ledger):
    with ledger.database.read() as connection:
        return connection.execute(sa.select(schema.api_keys)).mappings().all()


def test_a_key_comes_back_with_its_limits_and_without_its_secret(keys, ledger):
    asked = ApiKey(
        id="",
        name="support bot",
        tenant="acme",
        models=frozenset({"support", "vectors"}),
        requests_per_min=60,
        tokens_per_min=10_000,
        budget_tokens=10**12,
        budget_nanousd=25 * 10**9,
        period="week",
        expires_s=2_000_000_000.0,
    )
    made, secret = keys.create(asked)
    assert keys.list() == [made]
    assert keys.by_digest() == {digest_of(secret): made}
    assert vars(made) == {**vars(asked), "id": made.id, "created_s": made.created_s}
    assert abs(made.created_s - time.time()) < 60
    assert secret not in str(rows(ledger))
    assert secret.removeprefix("psk_") not in str(rows(ledger))
    assert secret not in repr(made)


def test_two_keys_of_one_name_are_two_keys(keys):
    first, second = (keys.create(ApiKey("", "bot")) for _ in range(2))
    assert first[0].id != second[0].id
    assert first[1] != second[1]
    assert len(first[1]) == len("psk_") + 43  # 256 bits


def test_the_id_of_a_found_secret_can_be_computed(keys):
    made, secret = keys.create(ApiKey("", "bot"))
    assert made.id == "key_" + digest_of(secret)[:12]


def test_a_change_is_seen_by_gateways_and_written_down(keys, ledger):
    made, secret = keys.create(ApiKey("", "bot", budget_tokens=100, models=frozenset({"small"})))
    before = keys.state()
    changed = keys.change(made.id, {"budget_tokens": 7, "models": None})
    assert changed == replace(made, budget_tokens=7, models=None)
    assert keys.by_digest() == {digest_of(secret): changed}
    assert keys.state() != before
    with ledger.database.read() as connection:
        (row,) = connection.execute(sa.select(schema.key_changes)).mappings().all()
    assert json.loads(row["limits"])["budget_tokens"] == 7
    assert [row["key_id"], bool(row["actor"])] == [made.id, True]


def test_a_key_that_is_not_there_or_was_revoked_is_not_changed(keys):
    made, secret = keys.create(ApiKey("", "bot"))
    keys.revoke(made.id)
    with pytest.raises(LedgerError, match=f"{made.id} was revoked"):
        keys.change(made.id, {"budget_tokens": 7})
    with pytest.raises(LedgerError, match="There is no key") as refused:
        keys.change(secret, {"budget_tokens": 7})
    assert secret not in str(refused.value)


def test_a_revoked_key_is_no_longer_offered_but_still_listed(keys):
    made, _ = keys.create(ApiKey("", "bot"))
    before = keys.state()
    revoked = keys.revoke(made.id)
    assert keys.by_digest() == {}
    assert keys.list() == [revoked]
    assert revoked.ended(0.0) == "revoked"
    assert keys.state() != before
    assert keys.revoke(made.id) == revoked  # again: its time stays


def test_an_expired_key_has_ended():
    key = ApiKey("", "bot", expires_s=100.0)
    assert key.ended(99.9) is None
    assert key.ended(100.0) == "expired"


def test_revoking_what_is_not_there_never_repeats_a_secret(keys):
    with pytest.raises(LedgerError, match="no key 'key_nothing'"):
        keys.revoke("key_nothing")
    _, secret = keys.create(ApiKey("", "bot"))
    with pytest.raises(LedgerError) as caught:
        keys.revoke(secret)
    assert secret not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": " "},
        {"name": "x" * 101},
        {"tenant": "x" * 101},
        {"name": "psk_" + "x" * 43},
        {"models": frozenset()},
        {"requests_per_min": 0},
        {"budget_tokens": -1},
        {"budget_nanousd": 2**63},
        {"period": "year"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_limits_that_are_none_are_refused(keys, wrong):
    with pytest.raises(LedgerError):
        keys.create(ApiKey(**{"id": "", "name": "bot", **wrong}))
    assert keys.list() == []
