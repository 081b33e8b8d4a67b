"""Personal data and secrets out of text that is kept or sent away, by the rules of `redact`."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.transforms import pii

_PLACEHOLDER = "[{kind}]"


def redacted(text: str) -> str:
    """The text with placeholders such as ``[EMAIL]`` in place of personal data and secrets.

    Takes milliseconds whatever the length, for the patterns are compiled each time: never
    call it on an event loop, and give many texts to ``redacted_all``. In return the time
    grows with the text and no faster, also for texts made to be slow.
    """
    return redacted_all([text])[0]


def redacted_all(texts: Sequence[str]) -> list[str]:
    """Many texts at once, for little more than the cost of one.

    Args:
        texts: Any text; halves of surrogate pairs, which nothing can store, become ``?``.

    Returns:
        As many texts in the same order. Redacting them again changes nothing.
    """
    import polars as pl

    column = pl.Series([storable(text) for text in texts], dtype=pl.String)
    clean, _ = pii.redact(column, pii.KINDS, _PLACEHOLDER)
    return clean.to_list()


def storable(text: str) -> str:
    """The text with ``?`` for halves of surrogate pairs: JSON may hold them, UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
