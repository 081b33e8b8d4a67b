import time
from datetime import UTC, datetime

import pytest

from penstock.errors import InvalidRequest
from penstock.serving.response_id import new_response_id, parse_response_id, uuid7_hex

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("kind", ["chatcmpl", "cmpl", "emb"])
def test_an_id_says_kind_model_and_time(kind):
    before = time.time() - 0.001
    parsed = parse_response_id(new_response_id(kind, DIGEST))
    assert (parsed.kind, parsed.digest_prefix) == (kind, "0123456789abcdef")
    assert before <= parsed.time.timestamp() <= time.time()


def test_ids_are_ordered_by_time_and_unique():
    first = uuid7_hex()
    time.sleep(0.002)
    assert first < uuid7_hex()
    assert len({uuid7_hex() for _ in range(10_000)}) == 10_000


def test_version_and_variant_are_those_of_rfc_9562():
    for _ in range(100):
        unique = uuid7_hex()
        assert len(unique) == 32
        assert unique[12] == "7"
        assert unique[16] in "89ab"


def test_the_example_of_rfc_9562_is_read():
    # Appendix A.6: 2022-02-22 14:22:22.00 -05:00
    parsed = parse_response_id("cmpl-0123456789abcdef-017f22e279b07cc398c4dc0c0c07398f")
    assert parsed.time == datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a response id"),
        ("chatcmpl-123", "not a response id"),
        ("chatcmpl-0123456789abcdef-017f22e279b07cc398c4dc0c0c07398f\n", "not a response id"),
        ("CHATCMPL-0123456789abcdef-017f22e279b07cc398c4dc0c0c07398f", "not a response id"),
        ("resp-0123456789abcdef-017f22e279b07cc398c4dc0c0c07398f", "'resp' is none of"),
        ("cmpl-0123456789abcdef-017f22e279b04cc398c4dc0c0c07398f", "no UUID version 7"),
        ("cmpl-0123456789abcdef-017f22e279b07cc308c4dc0c0c07398f", "no UUID version 7"),
        ("cmpl-0123456789abcdef-ffffffffffff7cc398c4dc0c0c07398f", "out of range"),
    ],
)
def test_what_is_no_id_is_refused_with_the_reason(text, why):
    with pytest.raises(InvalidRequest, match=why):
        parse_response_id(text)
