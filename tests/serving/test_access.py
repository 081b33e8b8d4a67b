"""Keys and budgets over HTTP, as clients meet them."""

import logging
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from doubles import model, wait_until

from penstock.ledger import Ledger
from penstock.ledger.accounts import Accounts, Balance
from penstock.ledger.api_keys import ApiKey, ApiKeys

pytestmark = pytest.mark.slow


@pytest.fixture
def own(tmp_path):
    """A ledger on SQLite: what is common to both databases is tested elsewhere."""
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield opened
    opened.close()


@pytest.fixture
def accounts(own):
    return Accounts(own.database)


@pytest.fixture
def guarded(gateway, own, accounts):
    """Starts a gateway that asks for keys."""

    def start(**settings):
        return gateway(api_keys=ApiKeys(own.database), accounts=accounts, **settings)

    return start


@pytest.fixture
def key_of(own):
    def make(**limits):
        return ApiKeys(own.database).create(ApiKey("", "bot", period="total", **limits))

    return make


def client_of(server, secret):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)


def complete(client, prompt, max_tokens=10, **more):
    return client.completions.create(model="penny", prompt=prompt, max_tokens=max_tokens, **more)


def test_without_a_key_there_are_no_answers_but_to_probes(guarded, key_of):
    key_of()
    server = guarded()
    for path in ("/v1/models", "/v1/models/penny", "/nowhere"):
        answer = httpx.get(f"{server.url}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    body = b"x" * 2_000_000
    assert httpx.post(f"{server.url}/v1/completions", content=body).status_code == 401
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    with pytest.raises(openai.AuthenticationError) as caught:
        complete(client_of(server, "psk_" + "x" * 43), "say hello")
    assert caught.value.code == "invalid_api_key"


def test_a_key_is_answered_until_it_is_revoked(guarded, key_of, own, caplog):
    made, secret = key_of()
    with caplog.at_level(logging.DEBUG):
        client = client_of(guarded(), secret)
        assert complete(client, "say hello").choices[0].text == "hello"
        ApiKeys(own.database).revoke(made.id)

        def is_refused():
            try:
                complete(client, "say hello")
            except openai.AuthenticationError:
                return True
            return False

        wait_until(is_refused)
    # The client's own log may name its header; ours must not.
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("penstock")]
    assert secret not in "\n".join(ours)


def test_a_key_sees_its_own_models_and_nothing_of_others(guarded, key_of):
    _, secret = key_of(models=frozenset({"vectors"}))
    server = guarded()
    client = client_of(server, secret)
    assert [one.id for one in client.models.list()] == ["vectors"]
    messages = []
    for name in ("penny", "nobody"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.completions.create(model=name, prompt="say hello")
        messages.append(caught.value.message.replace(name, "NAME"))
        assert httpx.get(
            f"{server.url}/v1/models/{name}", headers={"authorization": f"Bearer {secret}"}
        ).is_client_error
    assert messages[0] == messages[1]


def test_the_short_form_takes_a_model_that_the_key_may_ask(guarded, key_of, fake_folders):
    _, secret = key_of(models=frozenset({"other"}))
    server = guarded(more={"other": model(task="embed", source=str(fake_folders[2]))})
    answer = httpx.post(
        server.url,
        json={"endpoint": "embed", "texts": ["four"]},
        headers={"authorization": f"Bearer {secret}"},
    )
    assert answer.headers["x-penstock-model"] == "other"


def test_64_at_once_at_the_limit_overspend_nothing(guarded, key_of, accounts):
    (_, free), (key, secret) = key_of(), key_of(budget_tokens=500)
    server = guarded(max_concurrency=64, max_queue=64)
    each = complete(client_of(server, free), "count 10").usage.total_tokens
    served = 500 // each
    client = client_of(server, secret)

    def ask(_):
        try:
            return complete(client, "count 10").usage.total_tokens
        except openai.RateLimitError as error:
            return error.code

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    assert answers.count(each) == served < 64
    assert answers.count("insufficient_quota") == 64 - served
    wait_until(lambda: accounts.balance(key) == Balance(tokens_spent=served * each))


def test_a_client_that_leaves_a_stream_pays_for_what_it_got(guarded, key_of, accounts, events):
    key, secret = key_of(budget_tokens=50)
    client = client_of(guarded(), secret)
    with complete(client, "hang", max_tokens=40, stream=True) as stream:
        next(iter(stream))
    wait_until(lambda: events["cancelled"] == 1)
    wait_until(lambda: accounts.balance(key).tokens_spent > 0 == accounts.balance(key).tokens_held)
    assert 2 <= accounts.balance(key).tokens_spent <= len("hang") + 1
    assert complete(client, "say x", max_tokens=40).choices[0].text == "x"


def test_embeddings_are_charged_by_what_was_read(guarded, key_of, accounts):
    key, secret = key_of(budget_tokens=1_000)
    client = client_of(guarded(), secret)
    client.embeddings.create(model="vectors", input=["four", "four"])
    wait_until(lambda: accounts.balance(key) == Balance(tokens_spent=8))


def test_a_model_that_fails_costs_what_it_read_and_no_more(guarded, key_of, accounts):
    key, secret = key_of(budget_tokens=100)
    client = client_of(guarded(), secret)
    with pytest.raises(openai.InternalServerError):
        complete(client, "break", max_tokens=50)
    wait_until(lambda: accounts.balance(key).tokens_spent > 0 == accounts.balance(key).tokens_held)
    assert accounts.balance(key).tokens_spent <= 2 * len("break")  # it was tried twice


def test_a_gateway_without_keys_reports_what_is_used(gateway, accounts):
    server = gateway(accounts=accounts)
    complete(client_of(server, "anything"), "say hello")
    wait_until(lambda: accounts.usage("model") != {})
    assert accounts.usage("key_id")[""].requests == 1
