from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.sticky import place, weighted


@given(st.text(), st.text())
def test_a_conversation_has_one_place_in_each_share_out(conversation, salt):
    assert place(conversation, salt) == place(conversation, salt)
    assert 0 <= place(conversation, salt) < 1


def test_conversations_fall_evenly_and_elsewhere_under_another_salt():
    names = [f"c{number}" for number in range(4_000)]
    halves = [[place(name, salt) < 0.5 for name in names] for salt in ("a", "b")]
    for half in halves:
        assert sum(half) == pytest.approx(2_000, abs=150)
    both = sum(one and other for one, other in zip(*halves, strict=True))
    assert both == pytest.approx(1_000, abs=150)


def test_without_a_conversation_every_request_has_a_place_of_its_own():
    assert len({place(None, "") for _ in range(50)}) == 50


def test_weights_share_in_proportion():
    counts = Counter(weighted({"a": 3, "b": 1}, number / 1_000) for number in range(1_000))
    assert counts == {"a": 750, "b": 250}


@given(
    st.dictionaries(st.text(), st.floats(1e-6, 1e6), min_size=1),
    st.floats(0, 1, exclude_max=True),
)
def test_somebody_is_always_chosen(weights, at):
    assert weighted(weights, at) in weights
