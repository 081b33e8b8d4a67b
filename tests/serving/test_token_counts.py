import pytest

from penstock.serving.backends.base import Chunk, Generation, Usage
from penstock.serving.token_counts import TokenCounts, believed, believed_read

PROMPT = "x" * 160


def counted(chunks, exact=False, **asked):
    generation = Generation((1, 2, 3) if exact else (), text=PROMPT, **{"max_tokens": 50, **asked})
    counts = TokenCounts(generation, exact)
    for chunk in chunks:
        counts.add(chunk)
    return counts.read, counts.written


@pytest.mark.parametrize("claimed", [10, 40, 160, 160 + 1_000])
def test_what_a_server_read_is_believed_within_the_bounds(claimed):
    assert believed_read(claimed, [PROMPT]) == claimed


@pytest.mark.parametrize("claimed", [None, -5, 0, 9, 1_161, 10**30])
def test_beyond_them_our_own_count_holds(claimed):
    assert believed_read(claimed, [PROMPT]) == 40


@pytest.mark.parametrize(("claimed", "held"), [(0, 8), (1, 1), (8, 8), (-1, 8), (9, 8), (10**9, 8)])
def test_an_answer_never_has_more_tokens_than_were_asked_for(claimed, held):
    assert believed(claimed, num_bytes=16, most=8, least_estimate=100) == held


def test_pieces_of_a_stream_are_counted_until_the_server_says_better():
    pieces = [Chunk("ab "), Chunk("cd "), Chunk("ef ")]
    assert counted(pieces) == (40, 3)
    assert counted([*pieces, Chunk("", (), "stop", Usage(33, 5))]) == (33, 5)
    # A server that cuts the text finer than tokens counts less than we did meanwhile.
    assert counted([*pieces, Chunk("", (), "stop", Usage(33, 1))]) == (33, 1)


def test_an_answer_in_one_piece_is_estimated_by_its_length():
    assert counted([Chunk("y" * 100, (), "stop")]) == (40, 25)


@pytest.mark.parametrize("claimed", [-7, 0, 6, 51, 10**12])
def test_a_lie_about_the_answer_changes_nothing(claimed):
    assert counted([Chunk("y" * 100), Chunk("", (), "stop", Usage(-1, claimed))]) == (40, 25)


def test_thoughts_that_are_not_shown_count_up_to_what_was_asked_for():
    assert counted([Chunk("yes", (), "stop", Usage(40, 50))]) == (40, 50)


def test_an_open_ended_answer_may_be_longer_than_what_was_set_aside():
    chunks = [Chunk("y" * 100, (), "stop", Usage(40, 90))]
    assert counted(chunks, open_ended=True) == (40, 90)
    chunks = [Chunk("y" * 100, (), "stop", Usage(40, 101))]
    assert counted(chunks, open_ended=True) == (40, 25)


def test_token_ids_are_counted_and_nobody_asked():
    chunks = [Chunk("ab", (7, 8)), Chunk("", (9,)), Chunk("c", (), "stop", Usage(999, 999))]
    assert counted(chunks, exact=True) == (3, 3)
