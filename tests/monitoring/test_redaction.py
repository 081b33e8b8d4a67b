import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.monitoring.redaction import redacted, redacted_all

TEXT = "Mail ann@example.org, card 4111 1111 1111 1111, key sk-" + "Aa1" * 10


def test_personal_data_and_secrets_give_way_to_placeholders():
    assert redacted(TEXT) == "Mail [EMAIL], card [CREDIT_CARD], key [API_KEY]"


def test_many_texts_keep_their_order_and_number():
    assert redacted_all([TEXT, "", "plain", "a@b.org"])[1:] == ["", "plain", "[EMAIL]"]
    assert redacted_all([]) == []


def test_halves_of_surrogate_pairs_are_replaced():
    assert redacted("a\ud800 ü 😀") == "a? ü 😀"


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=50))
def test_redacting_again_changes_nothing_and_the_results_can_be_stored(texts):
    once = redacted_all([text + " ann@example.org" for text in texts])
    assert redacted_all(once) == once
    assert not any("ann@example.org" in text for text in once)
    "".join(once).encode()
