"""How much of a text is a repetition of itself: lines, paragraphs and phrases.

Measured as in Rae et al. 2021 (https://arxiv.org/abs/2112.11446, A1.1), with
characters counted without white space. Words of many texts are one long array
here, so that no text costs a loop in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

# n -> the share of characters that may be in the most frequent n-gram, or in n-grams
# that stood there before: table A1 of the paper.
TOP_NGRAMS: Mapping[int, float] = {2: 0.2, 3: 0.18, 4: 0.16}
DUPLICATE_NGRAMS: Mapping[int, float] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}

Numbers: TypeAlias = npt.NDArray[np.int64]
Shares: TypeAlias = npt.NDArray[np.float64]

# Odd, so that multiplying by it loses nothing (Knuth's multiplicative hashing).
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def lines(text: pl.Series) -> pl.Series:
    """Share of a text's lines that stood there before; null where it has none."""
    return _share_repeated(_lines(text))


def line_characters(text: pl.Series) -> pl.Series:
    """The same, counted in characters."""
    return _share_of_characters(_lines(text))


def paragraphs(text: pl.Series) -> pl.Series:
    """Share of a text's paragraphs that stood there before; null where it has none."""
    return _share_repeated(_paragraphs(text))


def paragraph_characters(text: pl.Series) -> pl.Series:
    """The same, counted in characters."""
    return _share_of_characters(_paragraphs(text))


def _lines(text: pl.Series) -> pl.Series:
    return _not_blank(text.str.split("\n"))


def _paragraphs(text: pl.Series) -> pl.Series:
    return _not_blank(text.str.replace_all(r"\n\s*\n", "\n\n").str.split("\n\n"))


def _not_blank(pieces: pl.Series) -> pl.Series:
    piece = pl.element().str.strip_chars()
    return pieces.list.eval(piece.filter(piece != ""))


def _share_repeated(pieces: pl.Series) -> pl.Series:
    num = pieces.list.len().cast(pl.Float64)
    return (num - pieces.list.n_unique()) / num.set(num == 0, None)


def _share_of_characters(pieces: pl.Series) -> pl.Series:
    total = _characters(pieces)
    return (total - _characters(pieces.list.unique())) / total.set(total == 0, None)


def _characters(pieces: pl.Series) -> pl.Series:
    return pieces.list.eval(pl.element().str.len_chars().sum()).list.first().cast(pl.Float64)


@dataclass(frozen=True)
class _Words:
    """The words of many texts, one after the other.

    Attributes:
        text: Shape (num_words,): which text a word is of, ascending.
        hashes: Shape (num_words,), uint64.
        lengths: Shape (num_words,), characters.
        totals: Shape (num_texts,), characters in words.
    """

    text: Numbers
    hashes: npt.NDArray[np.uint64]
    lengths: Numbers
    totals: Shares

    @classmethod
    def of(cls, text: pl.Series) -> _Words:
        words = text.str.extract_all(r"\S+")
        counts = words.list.len().to_numpy()
        flat = words.filter(words.list.len() > 0).explode()
        owner = np.repeat(np.arange(len(text)), counts)
        lengths = flat.str.len_chars().to_numpy().astype(np.int64)
        totals = np.bincount(owner, weights=lengths, minlength=len(text))
        return cls(owner, flat.hash().to_numpy(), lengths, np.maximum(totals, 1))

    def of_texts(self, wanted: npt.NDArray[np.bool_]) -> _Words:
        """Only the words of some texts."""
        mine = wanted[self.text]
        return _Words(self.text[mine], self.hashes[mine], self.lengths[mine], self.totals)

    def ngrams(self, n: int) -> tuple[Numbers, pl.Series]:
        """Where n-grams begin, and a key for each: equal for equal ones of one text."""
        num = max(0, len(self.text) - n + 1)
        starts = np.flatnonzero(self.text[:num] == self.text[n - 1 :][:num])
        keys = self.text[starts].astype(np.uint64)
        for place in range(n):
            # Wraps around; the shift brings the high bits back into play.
            keys = (keys ^ (keys >> np.uint64(29))) * _MULTIPLIER + self.hashes[starts + place]
        return starts, pl.Series(keys)

    def shares(self, characters: Numbers, starts: Numbers) -> Shares:
        """Characters counted at words, as a share of each text."""
        counted = np.bincount(self.text[starts], weights=characters, minlength=len(self.totals))
        return np.asarray(counted / self.totals)


def top_ngrams(text: pl.Series) -> pl.Series:
    """Texts of which one 2-, 3- or 4-gram, said more than once, makes up too much.

    Returns:
        What was measured, such as "2-grams: 0.31"; null for a text that is right.
    """
    return _faults(text, TOP_NGRAMS, _top_shares)


def duplicate_ngrams(text: pl.Series) -> pl.Series:
    """Texts in which too much stands in 5- to 10-grams that stood there before.

    Returns:
        What was measured, such as "5-grams: 0.31"; null for a text that is right.
    """
    return _faults(text, DUPLICATE_NGRAMS, _duplicate_shares)


def _faults(
    text: pl.Series, limits: Mapping[int, float], measure: Callable[[_Words, int], Shares]
) -> pl.Series:
    words = _Words.of(text)
    out: list[str | None] = [None] * len(text)
    open_ = np.ones(len(text), bool)
    for n, limit in limits.items():
        shares = measure(words, n)
        for i in np.flatnonzero((shares > limit) & open_):
            out[i] = f"{n}-grams: {shares[i]:.3f}"
        open_ &= shares <= limit
        if measure is _duplicate_shares:
            # What is repeated in long phrases is in short ones too, so few texts go on.
            open_ &= shares > min(limits.values())
        words = words.of_texts(open_)
    return pl.Series(out, dtype=pl.String)


def _top_shares(words: _Words, n: int) -> Shares:
    """Characters in the most frequent n-gram; of equally frequent ones, in the longest."""
    starts, keys = words.ngrams(n)
    ends = np.concatenate([[0], np.cumsum(words.lengths)])
    frame = pl.DataFrame(
        {"key": keys, "text": words.text[starts], "length": ends[starts + n] - ends[starts]}
    )
    repeated = frame.group_by("key").agg(pl.len(), pl.first("text", "length"))
    repeated = repeated.filter(pl.col("len") > 1).sort("len", "length", descending=True)
    best = repeated.unique("text", keep="first", maintain_order=True)
    shares = np.zeros(len(words.totals))
    owner = best["text"].to_numpy()
    shares[owner] = (best["len"] * best["length"]).to_numpy() / words.totals[owner]
    return shares


def _duplicate_shares(words: _Words, n: int) -> Shares:
    """Characters of the words that are in an n-gram its text has had before, each once."""
    starts, keys = words.ngrams(n)
    again = starts[~keys.is_first_distinct().to_numpy()]
    depth = np.zeros(len(words.text) + 1, np.int64)
    np.add.at(depth, again, 1)
    np.add.at(depth, again + n, -1)
    covered = np.flatnonzero(np.cumsum(depth)[:-1] > 0)
    return words.shares(words.lengths[covered], covered)
