"""`penstock keys` and `penstock cost`, as people and scripts call them."""

import json
import logging

import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import LedgerError, RecipeError
from penstock.ledger import Ledger
from penstock.ledger.accounts import Accounts, Batch, Usage, UsageId, new_holder
from penstock.ledger.api_keys import ApiKeys, digest_of


@pytest.fixture
def call(tmp_path):
    """``call("keys", "list")``: what the command did, on a store of its own."""

    def run(*words):
        return CliRunner().invoke(app, [*words, "--store", str(tmp_path)])

    return run


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield opened
    opened.close()


def created(call, *words):
    return json.loads(call("keys", "create", *words, "--json").stdout)


def test_a_new_key_is_printed_alone_on_standard_output(call, ledger):
    done = call("keys", "create", "bot")
    secret = done.stdout.strip()
    assert done.exit_code == 0
    assert digest_of(secret) in ApiKeys(ledger.database).by_digest()
    assert "not shown again" in done.stderr
    assert secret not in done.stderr


def test_the_secret_is_never_shown_again(call, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        made = created(call, "bot", "--tenant", "acme", "--budget-tokens", "100")
        shown = [call("keys", "list"), call("keys", "list", "--json"), call("cost", "--by", "key")]
        shown.append(call("keys", "revoke", made["id"]))
    random_part = made["secret"].removeprefix("psk_")
    assert made["id"] in shown[0].stdout
    assert not any(random_part in one.output for one in shown)
    assert random_part not in caplog.text
    files = [path.read_bytes() for path in tmp_path.iterdir() if path.is_file()]
    assert not any(random_part.encode() in content for content in files)


def test_a_changed_key_keeps_what_was_not_said_and_loses_what_was_lifted(call):
    made = created(call, "bot", "--requests-per-min", "60", "--budget-usd", "5", "--model", "small")
    words = ("--requests-per-min", "none", "--tokens-per-min", "900", "--model", "all")
    done = call("keys", "change", made["id"], *words)
    assert done.exit_code == 0, done.output
    assert f"{made['id']} (bot) may use: 900 tokens a minute; $5.00 a month." in done.stdout
    (listed,) = json.loads(call("keys", "list", "--json").stdout)
    assert [listed["requests_per_min"], listed["tokens_per_min"]] == [None, 900]
    assert [listed["models"], listed["budget_nanousd"]] == [None, 5 * 10**9]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Nothing is to be changed"),
        (("--budget-tokens", "-3"), "'-3' is no limit"),
        (("--budget-tokens", "0"), "budget_tokens 0 is no limit"),
        (("--budget-usd", "much"), "'much' is no amount"),
        (("--period", "year"), "'year' is no period"),
        (("--expires", "soon"), "'soon' is no day"),
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing(call, words, message):
    made = created(call, "bot", "--budget-tokens", "100")
    before = call("keys", "list", "--json").stdout
    done = call("keys", "change", made["id"], *words)
    assert message in str(done.exception)
    assert isinstance(done.exception, LedgerError | RecipeError)
    assert call("keys", "list", "--json").stdout == before


def test_limits_are_stored_as_they_were_given(call):
    made = created(
        call, "bot", "--model", "small", "--model", "large", "--requests-per-min", "60",
        "--tokens-per-min", "1000", "--budget-tokens", "5000", "--budget-usd", "12.345678",
        "--period", "week", "--expires", "2099-12-31",
    )  # fmt: skip
    (listed,) = json.loads(call("keys", "list", "--json").stdout)
    expected = {
        "id": made["id"],
        "models": ["large", "small"],
        "requests_per_min": 60,
        "tokens_per_min": 1000,
        "budget_tokens": 5000,
        "budget_nanousd": 12_345_678_000,
        "period": "week",
        "expires_s": 4_102_444_800.0,  # the first second of 2100
        "state": "valid",
        "tokens_spent": 0,
    }
    assert {name: listed[name] for name in expected} == expected


def test_a_revoked_key_is_listed_as_revoked(call):
    made = created(call, "bot")
    assert call("keys", "revoke", made["id"]).exit_code == 0
    assert "revoked" in call("keys", "list").stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--budget-usd", "much"),
        ("--budget-usd", "nan"),
        ("--budget-usd", "-1"),
        ("--expires", "soon"),
        ("--period", "year"),
        ("--requests-per-min", "0"),
    ],
)
def test_what_is_no_limit_makes_no_key(call, words):
    done = call("keys", "create", "bot", *words)
    assert isinstance(done.exception, RecipeError | LedgerError)
    assert json.loads(call("keys", "list", "--json").stdout) == []


def test_costs_are_summed_exactly_by_whatever_is_asked_for(call, ledger):
    made = created(call, "bot", "--tenant", "acme")
    usage = {
        UsageId("2026-11-26", made["id"], "small", 3, "run-a"): Usage(1, 10, 1, 100_000_000),
        UsageId("2026-11-27", made["id"], "large"): Usage(2, 1_000, 2, 1_000_000_001),
        UsageId("2026-11-27", "", "small", 3, "run-a"): Usage(4, 40, 4, 150_000_000),
        UsageId("2026-11-27", "", "small", 4, "run-b"): Usage(0, 0, 0, 50_000_000),
    }
    Accounts(ledger.database).visit(new_holder(), Batch(1, usage))

    def costs(*words):
        lines = json.loads(call("cost", *words, "--json").stdout)
        return {next(iter(line.values())): line["usd"] for line in lines}

    assert costs() == {"small": "0.30", "large": "1.000000001"}
    assert costs("--by", "key") == {"": "0.20", made["id"]: "1.100000001"}
    assert costs("--by", "tenant") == {"": "0.20", "acme": "1.100000001"}
    assert costs("--by", "version") == {
        "large 0": "1.000000001",
        "small 3": "0.25",
        "small 4": "0.05",
    }
    assert costs("--by", "run") == {"": "1.000000001", "run-a": "0.25", "run-b": "0.05"}
    assert costs("--by", "day") == {"2026-11-26": "0.10", "2026-11-27": "1.200000001"}
    assert costs("--since", "2026-11-27") == {"small": "0.20", "large": "1.000000001"}
    table = call("cost", "--by", "key").stdout
    assert "1.300000001" in table
    assert "(no key)" in table
    assert "(no tenant)" in call("cost", "--by", "tenant").stdout


def test_a_misspelt_column_or_day_of_costs_is_refused(call):
    assert "Did you mean 'model'" in call("cost", "--by", "modell").exception.message
    assert "'yesterday' is no day" in call("cost", "--since", "yesterday").exception.message
    assert call("cost", "--since", "30d").exit_code == 0
