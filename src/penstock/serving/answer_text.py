"""Token ids of a growing answer -> text that may be shown.

Two things must be held back while an answer grows: bytes that are not yet a
whole character, and text that may turn out to be the start of a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Tokens of the prompt that are decoded with the answer's first ones, because a
# token's text can depend on its neighbours (SentencePiece drops a leading space).
_MIN_TAIL = 6
_MAX_TAIL = 12
# A character has at most four bytes, so after this many tokens without a whole
# one the bytes are garbage, and waiting longer would make decoding quadratic.
_MAX_UNCLEAR = 8


class Decoder(Protocol):
    """Turns token ids into text."""

    def decode(self, token_ids: Sequence[int]) -> str: ...  # noqa: D102


class Detokenizer:
    """Decodes a growing list of tokens and never emits half a character.

    Args:
        decoder: The model's tokenizer.
        prompt_ids: What the answer continues.
    """

    def __init__(self, decoder: Decoder, prompt_ids: Sequence[int]) -> None:
        self._decoder = decoder
        self._ids = _tail(decoder, prompt_ids)
        self._num_clear = len(self._ids)
        self._shown = len(decoder.decode(self._ids))

    def feed(self, token_ids: Sequence[int]) -> str:
        """Add tokens; returns the characters that are certain now."""
        if not token_ids:
            return ""
        self._ids.extend(token_ids)
        text = self._decoder.decode(self._ids)
        unsure = len(text) - len(text.rstrip(_REPLACEMENT))
        give_up = len(self._ids) - self._num_clear > _MAX_UNCLEAR
        if unsure and give_up:
            # Only the last unfinished character can still change.
            unsure = 1
        new = text[self._shown : len(text) - unsure]
        self._shown = max(self._shown, len(text) - unsure)
        if not unsure or give_up:
            self._move_window(unsure)
        return new

    def flush(self) -> str:
        """What is left when no more tokens come."""
        return self._decoder.decode(self._ids)[self._shown :]

    def _move_window(self, unsure: int) -> None:
        """Forget what was clear before the last step.

        The window thus begins at a character's first byte. One that begins
        within a character would spoil the next one where bytes are decoded in
        runs (SentencePiece's byte fallback).
        """
        self._ids = self._ids[self._num_clear :]
        self._num_clear = len(self._ids)
        self._shown = len(self._decoder.decode(self._ids)) - unsure


def _tail(decoder: Decoder, prompt_ids: Sequence[int]) -> list[int]:
    """The prompt's last tokens, beginning with a whole character if there is one."""
    for width in range(_MIN_TAIL, _MAX_TAIL):
        tail = list(prompt_ids[-width:])
        if not decoder.decode(tail).startswith(_REPLACEMENT):
            return tail
    return list(prompt_ids[-_MIN_TAIL:])


class StopMatcher:
    """Finds the first stop string in text that comes in pieces.

    Args:
        stop: The strings; with none, all text passes at once.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.matched = False

    def feed(self, text: str) -> str:
        """Add text; returns what can be shown. After a match, nothing more is."""
        if not self._stop:
            return text
        self._held += text
        starts = [self._held.find(stop) for stop in self._stop]
        found = min((start for start in starts if start >= 0), default=-1)
        if found >= 0:
            self.matched = True
            return self._held[:found]
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class AnswerText:
    """The text of one answer: detokenised, cut at the first stop string."""

    def __init__(self, decoder: Decoder, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(decoder, prompt_ids)
        self._matcher = StopMatcher(stop)
        self._one_by_one = bool(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._matcher.matched

    def feed(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """Add tokens; returns new text and how many of the tokens were used.

        Tokens behind a stop string are not used: they are no part of the answer.
        """
        if not self._one_by_one:
            return self._detokenizer.feed(token_ids), len(token_ids)
        text = ""
        for used, token_id in enumerate(token_ids, start=1):
            text += self._matcher.feed(self._detokenizer.feed([token_id]))
            if self.stopped:
                return text, used
        return text, len(token_ids)

    def flush(self) -> str:
        """The rest, when the model is done."""
        if self.stopped:
            return ""
        text = self._matcher.feed(self._detokenizer.flush())
        return text if self.stopped else text + self._matcher.flush()
