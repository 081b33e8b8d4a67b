"""Texts as sequences of word numbers, many texts at once.

Two texts that differ only in case, spacing or punctuation have the same words.
A script that is written without spaces (Chinese, Japanese, Thai) counts
each of its characters as a word. The numbers are a matter of the text alone:
no library's hash is in them, so they stay the same over versions and hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    import polars as pl

Numbers = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

# Below this much text at once the arrays stay in the processor's cache.
PIECE_BYTES = 1 << 20

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\p{M}*"
_NOT_IN_WORDS = r"[^\p{L}\p{M}\p{N}]+"
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2**64


@dataclass(frozen=True)
class Words:
    """The words of some texts.

    Attributes:
        numbers: Shape (num_words,): equal words have equal numbers.
        rows: Shape (num_words,): which text each word is in; ascending.
        counts: Shape (num_texts,): how many words each text has.
        starts: Shape (num_words,): the word's first byte in ``text``.
        ends: Shape (num_words,): the byte after its last.
        text: All the texts, as the words were read from them.
    """

    numbers: Numbers
    rows: Places
    counts: Places
    starts: Places
    ends: Places
    text: bytes

    @property
    def firsts(self) -> Places:
        """Shape (num_texts + 1,): where each text's words begin."""
        return np.concatenate(([0], np.cumsum(self.counts)))

    def grams(self, length: int, shorter: bool = False) -> tuple[Numbers, Places]:
        """Every run of ``length`` words within one text.

        Args:
            length: In words.
            shorter: A text with fewer words gives one run, of all it has.

        Returns:
            A number for each run, and the place of its first word.
        """
        count = len(self.numbers)
        total = np.zeros(count, np.uint64)
        whole = np.arange(count) + length <= self.firsts[self.rows + 1]
        for step in range(min(length, count)):
            inside = self.rows[step:] == self.rows[: count - step]
            part = self.numbers[step:] * _constant(step)
            total[: count - step] += np.where(inside, part, np.uint64(0))
        if shorter:
            few = np.flatnonzero((self.counts > 0) & (self.counts < length))
            whole[self.firsts[few]] = True
        places = np.flatnonzero(whole)
        return mixed(total[places]), places

    def passage(self, first: int, last: int) -> str:
        """The text from one word to another, both included."""
        return self.text[self.starts[first] : self.ends[last]].decode("utf-8", "replace")


def joined(rows: pa.Table, columns: tuple[str, ...]) -> pl.Series:
    """The text of several columns; null has none."""
    import polars as pl

    frame = pl.DataFrame({name: pl.Series(rows[name], dtype=pl.String) for name in columns})
    return frame.select(pl.concat_str(pl.all(), separator="\n", ignore_nulls=True)).to_series()


def pieces(texts: pl.Series) -> Iterator[pl.Series]:
    """The texts in runs of about ``PIECE_BYTES``, none empty."""
    ends = np.cumsum(texts.str.len_bytes().fill_null(0).to_numpy())
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + PIECE_BYTES, "right")))
        yield texts[start:end]
        start = end


def words_of(texts: pl.Series) -> Words:
    """Read the words of ``texts``, shape (num_texts,); null has none."""
    import polars as pl

    plain = _plain(texts.fill_null("")) + "\n"
    lengths = plain.str.len_bytes().to_numpy().astype(np.int64)
    text = b"".join(plain.cast(pl.Binary).to_list())
    data = np.frombuffer(text, np.uint8)
    inside = np.concatenate(([False], _table("word")[data].astype(bool), [False]))
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    rows = np.searchsorted(np.cumsum(lengths), starts, "right")
    counts = np.bincount(rows, minlength=len(texts)).astype(np.int64)
    return Words(_numbers(data, starts, ends), rows, counts, starts, ends, text)


def mixed(numbers: Numbers) -> Numbers:
    """Numbers whose every bit depends on every bit of the given ones (splitmix64)."""
    out = numbers + np.uint64(_BASE)
    out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return out ^ (out >> np.uint64(31))


def _plain(texts: pl.Series) -> pl.Series:
    """Texts in which every byte from 0x80 on belongs to a word.

    ASCII is so already, and looking first makes English several times faster.
    """
    rare = texts.str.contains(r"[^\x00-\x7f]")
    if not rare.any():
        return texts
    spaced = texts.filter(rare).str.to_lowercase().str.replace_all(f"({_UNSPACED})", " $1 ")
    return texts.scatter(rare.arg_true(), spaced.str.replace_all(_NOT_IN_WORDS, " "))


def _numbers(data: npt.NDArray[np.uint8], starts: Places, ends: Places) -> Numbers:
    """A polynomial of each word's bytes, wherever the word stands."""
    powers, inverses = _powers(1 << max(20, len(data).bit_length()))
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(_table("mix")[data] * powers[: len(data)], out=sums[1:])
    return mixed((sums[ends] - sums[starts]) * inverses[starts])


@lru_cache(maxsize=2)
def _powers(count: int) -> tuple[Numbers, Numbers]:
    """The base's powers and their inverses, modulo 2**64."""
    found = []
    for factor in (_BASE, pow(_BASE, -1, 2**64)):
        row = np.full(count, factor, np.uint64)
        row[0] = 1
        found.append(np.cumprod(row, dtype=np.uint64))
    return found[0], found[1]


@lru_cache
def _table(what: str) -> Numbers:
    """For each byte: whether it belongs to a word, or its share in a word's number."""
    folded = np.frombuffer(bytes(range(256)).lower(), np.uint8).astype(np.uint64)
    if what == "mix":
        return mixed(folded + np.uint64(1))
    return np.array([chr(byte).isalnum() if byte < 128 else True for byte in range(256)], np.uint64)


def _constant(step: int) -> np.uint64:
    return np.uint64(int(mixed(np.array([step], np.uint64))[0]) | 1)
