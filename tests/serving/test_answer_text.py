import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.serving.answer_text import AnswerText, Detokenizer, StopMatcher


class Bytes:
    """One token is one byte, as the worst tokenizer would have it."""

    def decode(self, token_ids):
        return bytes(token_ids).decode("utf-8", errors="replace")


class ByteFallback:
    """SentencePiece's way: bytes that are no text yet become one mark each."""

    def decode(self, token_ids):
        try:
            return bytes(token_ids).decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(token_ids)


def stream(ids, decoder=None, prompt=b"", stop=()):
    answer = AnswerText(decoder or Bytes(), list(prompt), stop)
    pieces = []
    for token_id in ids:
        pieces.append(answer.feed([token_id])[0])
        if answer.stopped:
            break
    return [*pieces, answer.flush()]


@pytest.mark.parametrize("decoder", [Bytes(), ByteFallback()])
def test_no_half_character_is_ever_shown(decoder):
    text = "aé漢😀z"
    pieces = stream(text.encode(), decoder)
    assert [piece for piece in pieces if piece] == ["a", "é", "漢", "😀", "z"]


@given(st.text(), st.text(max_size=20))
def test_any_text_comes_out_as_it_went_in(prompt, text):
    assert "".join(stream(text.encode(), prompt=prompt.encode())) == text


@pytest.mark.slow
@given(st.binary(max_size=80))
@settings(max_examples=300)
def test_garbage_bytes_come_out_as_the_whole_decoded_at_once(garbage):
    assert "".join(stream(garbage)) == garbage.decode("utf-8", errors="replace")


@given(st.binary(max_size=60), st.integers(1, 7))
def test_the_size_of_the_steps_does_not_matter(ids, step):
    detokenizer = Detokenizer(Bytes(), [])
    steps = [list(ids[i : i + step]) for i in range(0, len(ids), step)]
    text = "".join(detokenizer.feed(part) for part in steps) + detokenizer.flush()
    assert text == ids.decode("utf-8", errors="replace")


def test_long_garbage_does_not_make_decoding_quadratic():
    longest = 0

    class Watched(Bytes):
        def decode(self, token_ids):
            nonlocal longest
            longest = max(longest, len(token_ids))
            return super().decode(token_ids)

    stream(b"\xf0" * 2_000, Watched())
    assert longest < 40


def cut(text, stop):
    """What the answer must be: everything before the first stop string to be completed."""
    for end in range(1, len(text) + 1):
        starts = [text[:end].find(one) for one in stop if one in text[:end]]
        if starts:
            return text[: min(starts)]
    return text


@pytest.mark.slow
@given(st.text("ab c", max_size=30), st.lists(st.text("ab c", min_size=1, max_size=4), max_size=4))
@settings(max_examples=500)
def test_the_text_ends_before_the_first_stop_string(text, stop):
    assert "".join(stream(text.encode(), stop=stop)) == cut(text, stop)


def test_text_that_might_become_a_stop_string_is_held_back_and_then_shown():
    matcher = StopMatcher(["STOP"])
    assert [matcher.feed(piece) for piece in ("aS", "TO", "x", "ST")] == ["a", "", "STOx", ""]
    assert matcher.flush() == "ST"
    assert not matcher.matched


def test_tokens_behind_a_stop_string_are_not_part_of_the_answer():
    answer = AnswerText(Bytes(), [], ["b"])
    assert answer.feed(list(b"aabaa")) == ("aa", 3)


def test_a_stop_string_that_only_the_end_completes_still_stops():
    answer = AnswerText(Bytes(), [], ["\N{REPLACEMENT CHARACTER}"])
    assert answer.feed(list(b"a\xf0")) == ("a", 2)
    assert answer.flush() == ""
    assert answer.stopped
