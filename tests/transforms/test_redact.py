import re

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.errors import RecipeError
from penstock.transforms import pii
from penstock.transforms.redact import Redact

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
# Put together here, so that no scanner takes this file for a leak.
GITHUB = "ghp_" + "a1B2" * 9
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
SLACK = "xoxb-" + "123456789012-abcdefABCDEF"


def found(text):
    """Kind -> how often, in one text."""
    _, counts = pii.redact(pl.Series([text], dtype=pl.String), pii.KINDS, "*")
    return {name: count[0] for name, count in counts.items()}


def redacted(text):
    return pii.redact(pl.Series([text], dtype=pl.String), pii.KINDS, "*")[0][0]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("private_key", PEM),
        ("private_key", "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7"),
        ("private_key", "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQHYBFQ6mZ4BBADIxy3T"),
        ("jwt", JWT),
        ("aws_key", AWS),
        ("aws_key", "AWS_SECRET_ACCESS_KEY=" + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        ("github_token", GITHUB),
        ("github_token", "github_pat_" + "11AAAAAAA0" * 3),
        ("slack_token", SLACK),
        ("slack_token", "hooks.slack.com/services/" + "T00000000/B00000000/XXXXXXXXXXXX"),
        ("api_key", "AIza" + "SyA1234567890abcdefghijklmnopqrstuv"),
        ("api_key", "sk-proj-" + "abcdefghij1234567890ABCD"),
        ("api_key", "sk_live_" + "abcdefghij1234567890"),
        ("email", "anna.müller+news@mail.example.co.uk"),
        ("iban", "DE89370400440532013000"),
        ("iban", "GB82 WEST 1234 5698 7654 32"),
        ("iban", "NO93 8601 1117 947"),
        ("credit_card", "4111 1111 1111 1111"),
        ("credit_card", "5500-0000-0000-0004"),
        ("credit_card", "340000000000009"),
        ("credit_card", "3782 822463 10005"),
        ("us_ssn", "078-05-1120"),
        ("ipv6", "2001:4860:4860::8888"),
        ("ipv6", "2a00:1450:4001:0830:0000:0000:0000:200e"),
        ("ipv4", "8.8.8.8"),
        ("phone", "+49 30 901820"),
        ("phone", "+442079460958"),
        ("phone", "+1 (415) 555-2671"),
        ("phone", "(415) 555-2671"),
        ("phone", "415.555.2671"),
    ],
)
@pytest.mark.parametrize("around", ["{}", "Is it {}?", "from {}, or not", "«{}»", "a\n{}\nb"])
def test_a_kind_is_found_wherever_it_stands_and_all_of_it_goes(kind, text, around):
    assert found(around.format(text)) == {kind: 1}
    assert redacted(around.format(text)) == around.format("*")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@app.route('/') and a@b and user@localhost",
        "version 1.2.3.4.5, 256.1.1.1, 10.0.0.1, 127.0.0.1, 192.168.1.1 and 203.0.113.9",
        "std::vector, a::b, ::1, fe80::1, 2001:db8::1, at 12:34:56 and 2001:11:30",
        "4111 1111 1111 1112 fails Luhn; 1234567890123452 is of no scheme",
        "0.4111111111111111 is a number and 41111111111111110000000 a longer one",
        "DE88370400440532013000 has wrong digits and ZZ68370400440532013000 no country",
        "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567, 123-45-0000, 1-078-05-1120-1",
        "eyJhbGciOiJIUzI1NiJ9 alone, AKIA alone, sk-learn, task-scheduler-implementation-notes",
        "2026-11-24T12:00:00+01:00, 1,234,567.89, 3.14159265358979, x+12345678901, 555-2671",
        "-----BEGIN PUBLIC KEY-----\nMIIBIjANBg\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----\nMIIBIjANBg\n-----END CERTIFICATE-----",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert found(text) == {}
    assert redacted(text) == text


def test_several_in_one_text_are_each_found():
    text = f"{AWS} a@b.org, c@d.org; 8.8.8.8 8.8.4.4 4111111111111111 {GITHUB}"
    assert found(text) == {
        "aws_key": 1, "email": 2, "ipv4": 2, "credit_card": 1, "github_token": 1,
    }  # fmt: skip


def test_an_iban_ends_where_its_country_says_and_the_next_one_begins():
    text = "AT61 1904 3002 3457 3201 BANK DE89 3704 0044 0532 0130 00 GB82 WEST 1234 5698 7654 32"
    assert redacted(text) == "* BANK * *"


def test_a_card_number_after_another_number_is_found():
    assert redacted("order 5134 4111 1111 1111 1111") == "order 5134 *"


def test_text_after_a_cut_off_key_stays():
    key = "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7bq9\n"
    assert redacted(key + "(the rest is missing)") == "*\n(the rest is missing)"


SLOW = [
    *("9" * 50_000, "+1" * 25_000, "AA11" * 12_500, "1 " * 25_000, "a.a" * 20_000),
    *("2001:" * 12_000, "4111 " * 12_000, "1.1." * 12_000, "a@" * 30_000),
    "-----BEGIN PRIVATE KEY-----" * 500,
]


@pytest.mark.parametrize("text", SLOW, ids=lambda text: text[:12])
@pytest.mark.timeout(20)
def test_text_made_to_be_slow_is_not(text):
    assert isinstance(redacted(text), str)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(st.none() | st.text(st.sampled_from("a@.b:1+-4 \né"), max_size=40), max_size=5))
def test_redacting_twice_changes_nothing(texts):
    kinds = pii.KINDS
    once, _ = pii.redact(pl.Series(texts, dtype=pl.String), kinds, "[{kind}]")
    twice, counts = pii.redact(once, kinds, "[{kind}]")
    assert counts == {}
    assert twice.to_list() == once.to_list()


# -- the transform -----------------------------------------------------------------


def table(*pairs):
    return pa.table(
        {
            "_row_id": [f"{i:032x}" for i in range(len(pairs))],
            "instruction": pa.array([one for one, _ in pairs], pa.string()),
            "response": pa.array([two for _, two in pairs], pa.string()),
        }
    )


def run(rows, **options):
    return Redact(Redact.Options(**options))(rows)


def test_a_changed_row_keeps_its_id_and_says_how_many_of_which_kind_it_held():
    outcome = run(table(("Ask a@b.org or c@d.org", "Call +49 30 901820"), ("Hello", None)))
    assert outcome.kept.select(["_row_id", "instruction", "response"]).to_pylist() == [
        {
            "_row_id": f"{0:032x}",
            "instruction": "Ask [EMAIL] or [EMAIL]",
            "response": "Call [PHONE]",
        },
        {"_row_id": f"{1:032x}", "instruction": "Hello", "response": None},
    ]
    counts = [{k: n for k, n in row.items() if n} for row in outcome.kept["redacted"].to_pylist()]
    assert counts == [{"email": 2, "phone": 1}, {}]
    assert outcome.removed.num_rows == 0


def test_other_columns_and_kinds_are_left_alone():
    rows = table(("a@b.org", "8.8.8.8"))
    assert run(rows, columns=("response",)).kept["instruction"].to_pylist() == ["a@b.org"]
    assert run(rows, kinds=("email",)).kept["response"].to_pylist() == ["8.8.8.8"]


def test_rows_can_be_removed_by_kind_and_the_ledger_does_not_repeat_the_find():
    outcome = run(table((AWS, "a@b.org"), ("a@b.org", "b")), remove=("aws_key",))
    assert outcome.kept["instruction"].to_pylist() == ["[EMAIL]"]
    (entry,) = outcome.removed.to_pylist()
    assert entry["_row_id"] == f"{0:032x}"
    assert entry["reason"].startswith("holds an AWS access key id")
    assert entry["evidence"] == "1 in instruction"


def test_a_row_with_two_faults_is_removed_once():
    outcome = run(table((AWS, AWS + " a@b.org")), remove=("email", "aws_key"))
    assert outcome.removed["evidence"].to_pylist() == ["1 in instruction"]


def test_a_placeholder_of_ones_own_is_taken_as_it_is():
    kept = run(table(("a@b.org", "x")), placeholder="<$1{kind}>").kept
    assert kept["instruction"].to_pylist() == ["<$1EMAIL>"]


def test_a_second_step_counts_on():
    first = run(table(("a@b.org", "c@d.org")), columns=("instruction",)).kept
    second = run(first, columns=("response",)).kept
    assert second["redacted"][0].as_py()["email"] == 2
    assert second.schema == first.schema


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("e-mail",)}, "Did you mean 'email'"),
        ({"kinds": ("email",), "remove": ("iban",)}, "not among kinds"),
        ({"placeholder": "{name}"}, "no other braces"),
        ({"placeholder": "{kind.x}"}, "no other braces"),
        ({"placeholder": "{"}, "no other braces"),
        ({"placeholder": "{kind}@example.com"}, "looks like email"),
        ({"columns": ()}, "at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        Redact.Options(**options)


def test_columns_that_cannot_be_searched_are_errors_that_say_what_to_do():
    with pytest.raises(RecipeError, match="no column 'reponse'"):
        run(table(("a", "b")), columns=("reponse",))
    with pytest.raises(RecipeError, match="not text"):
        run(pa.table({"_row_id": ["1"], "n": [1]}), columns=("n",))
    with pytest.raises(RecipeError, match="'redacted' already"):
        run(table(("a", "b")).append_column("redacted", pa.array(["yes"])))
