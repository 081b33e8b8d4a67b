import asyncio
import contextlib
import json
import logging
import time

import pytest

from penstock.errors import (
    InsufficientQuota,
    InvalidKey,
    LedgerError,
    NotReady,
    RateLimited,
    RecipeError,
    UnknownModel,
)
from penstock.ledger.api_keys import ApiKey, ApiKeys
from penstock.serving.http_errors import error_body, error_headers
from penstock.serving.keys import KeyRing, check_model, require_keys, visible_models


class Kept(ApiKeys):
    """Keys that count how often they are read, and are away when told so."""

    def __init__(self, database):
        super().__init__(database)
        self.num_reads = 0
        self.is_away = False

    def state(self):
        if self.is_away:
            raise LedgerError("The ledger is away.")
        return super().state()

    def by_digest(self):
        self.num_reads += 1
        return super().by_digest()


@pytest.fixture
def keys(ledger):
    return Kept(ledger.database)


@contextlib.asynccontextmanager
async def ring_of(keys, **settings):
    ring = KeyRing(keys, **{"refresh_s": 0.01, **settings})
    await ring.start()
    try:
        yield ring
    finally:
        await ring.stop()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def is_known(ring, secret):
    try:
        return ring.authenticate(f"Bearer {secret}").name == "bot"
    except InvalidKey:
        return False


def test_a_key_is_known_by_its_secret_whatever_the_case_of_bearer(keys):
    made, secret = keys.create(ApiKey("", "bot"))

    async def main():
        async with ring_of(keys) as ring:
            return [ring.authenticate(f"{word} {secret}") for word in ("Bearer", "bearer")]

    assert asyncio.run(main()) == [made, made]


@pytest.mark.parametrize(
    "shown",
    [
        None,
        "",
        "Bearer",
        "Bearer sk-something",
        "Bearer psk_" + "x" * 43,
        "Bearer psk_" + "x" * 10_000,
        "Bearer psk_\N{LATIN SMALL LETTER A WITH DIAERESIS}" + "x" * 42,
        "Basic {secret}",
        "{secret}",
        "Bearer {secret}\n",
        "Bearer {secret}x",
        "Bearer {id}",
    ],
    ids=range(12),
)
def test_anything_else_is_refused_and_not_repeated(keys, shown, caplog):
    made, secret = keys.create(ApiKey("", "bot"))
    shown = shown and shown.format(secret=secret, id=made.id)

    async def main():
        async with ring_of(keys) as ring:
            with pytest.raises(InvalidKey) as caught:
                ring.authenticate(shown)
            return caught.value

    with caplog.at_level(logging.DEBUG):
        error = asyncio.run(main())
    body = json.loads(error_body(error))["error"]
    assert (error.status, body["code"]) == (401, "invalid_api_key")
    assert error_headers(error)["www-authenticate"] == "Bearer"
    assert not shown or len(shown) < 11 or shown[7:] not in body["message"] + caplog.text
    assert secret not in body["message"] + caplog.text


def test_a_key_works_from_its_making_until_it_is_revoked(keys):
    async def main():
        async with ring_of(keys) as ring:
            made, secret = await asyncio.to_thread(keys.create, ApiKey("", "bot"))
            await until(lambda: is_known(ring, secret))
            await asyncio.to_thread(keys.revoke, made.id)
            await until(lambda: not is_known(ring, secret))

    asyncio.run(main())


def test_an_expired_key_is_refused_like_one_that_never_was(keys):
    _, secret = keys.create(ApiKey("", "bot", expires_s=time.time() - 1))

    async def main():
        async with ring_of(keys) as ring:
            for shown in (secret, "psk_" + "x" * 43):
                with pytest.raises(InvalidKey) as caught:
                    ring.authenticate(f"Bearer {shown}")
                said.append(str(caught.value))

    said = []
    asyncio.run(main())
    assert said[0] == said[1]


def test_keys_that_did_not_change_are_not_read_again(keys):
    keys.create(ApiKey("", "bot"))

    async def main():
        async with ring_of(keys) as ring:
            before_s = ring._read_s
            await until(lambda: ring._read_s > before_s)
            await until(lambda: ring._read_s > before_s + 0.02)

    asyncio.run(main())
    assert keys.num_reads == 1


def test_while_the_ledger_is_away_known_keys_are_let_in_but_not_for_ever(keys, caplog):
    _, secret = keys.create(ApiKey("", "bot"))

    async def main():
        async with ring_of(keys) as ring:
            keys.is_away = True
            await until(lambda: "cannot be read" in caplog.text)
            assert is_known(ring, secret)
        async with ring_of_old(keys) as ring:
            with pytest.raises(NotReady):
                ring.authenticate(f"Bearer {secret}")
            keys.is_away = False
            ring._oldest_s = 30.0
            await until(lambda: "can be read again" in caplog.text)
            assert is_known(ring, secret)

    @contextlib.asynccontextmanager
    async def ring_of_old(keys):
        keys.is_away = False
        async with ring_of(keys, oldest_s=0.0) as ring:
            keys.is_away = True
            caplog.clear()
            await until(lambda: "cannot be read" in caplog.text)
            yield ring

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert caplog.text.count("cannot be read") == 1


def test_a_gateway_does_not_start_without_its_keys(keys):
    keys.is_away = True

    async def main():
        async with ring_of(keys):
            pass

    with pytest.raises(LedgerError):
        asyncio.run(main())


# -- models ---------------------------------------------------------------------


def test_a_model_that_a_key_may_not_ask_looks_like_one_that_is_not_there():
    key = ApiKey("", "bot", models=frozenset({"mine", "not served"}))
    served = ["mine", "others"]
    check_model(key, "mine", served)
    assert visible_models(key, served) == ["mine"]
    answers = []
    for model in ("others", "nobodys"):
        with pytest.raises(UnknownModel) as caught:
            check_model(key, model, served)
        answers.append(str(error_body(caught.value)).replace(model, "MODEL"))
        assert caught.value.status == 404
    assert answers[0] == answers[1]
    assert "others" not in answers[1]


def test_without_keys_or_without_models_everything_is_visible():
    assert visible_models(None, ["a", "b"]) == ["a", "b"]
    assert visible_models(ApiKey("", "bot"), ["a", "b"]) == ["a", "b"]


# -- beyond loopback --------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_on_this_machine_keys_are_optional(host):
    require_keys(host, keys_enabled=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "gateway.local", "", "[::]"])
def test_beyond_this_machine_keys_are_required(host):
    require_keys(host, keys_enabled=True)
    with pytest.raises(RecipeError) as caught:
        require_keys(host, keys_enabled=False)
    assert repr(host) in caught.value.message
    assert "penstock keys create" in caught.value.hint


# -- answers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "headers"),
    [
        (RateLimited("m", "", 2.1), "rate_limit_error", {"retry-after": "3"}),
        (RateLimited("m", "", 0.01), "rate_limit_error", {"retry-after": "1"}),
        (RateLimited("m"), "rate_limit_error", {"x-should-retry": "false"}),
        (
            InsufficientQuota("m", "", 86_000.0),
            "insufficient_quota",
            {"retry-after": "86000", "x-should-retry": "false"},
        ),
        (InsufficientQuota("m"), "insufficient_quota", {"x-should-retry": "false"}),
    ],
)
def test_a_refusal_says_whether_and_when_to_try_again(error, kind, headers):
    assert json.loads(error_body(error))["error"]["type"] == kind
    assert error.status == 429
    assert error_headers(error) == {"content-type": "application/json", **headers}
