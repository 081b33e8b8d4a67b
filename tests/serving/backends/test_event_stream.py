from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ServingError
from penstock.serving.backends.event_stream import EventReader

STREAM = (
    b": a comment\r\n\r\n"
    b"event: message\ndata: one\n\n"
    b"data:two\r\nid: 7\r\n\r\n"
    b"data: three\ndata:  lines\ndata\n\n\n"
    b"data: \xe6\xbc\xa2\n\n"
    b"data: never ended"
)
EVENTS = [b"one", b"two", b"three\n lines", b"\xe6\xbc\xa2"]


@given(st.lists(st.integers(0, len(STREAM))))
def test_the_same_events_come_out_wherever_the_bytes_are_cut(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 4096, b"data: " + b"x" * 4096 + b"\n"])
def test_an_event_without_end_is_given_up_before_it_fills_the_memory(piece):
    reader = EventReader()
    with pytest.raises(ServingError, match="without end"):
        all(reader.feed(piece) == [] for _ in range(1_000))
