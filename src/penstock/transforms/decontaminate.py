"""Rows that hold a text of the evaluation are removed, each with the words they share.

A model that was trained on the answers scores well and knows nothing. A row is
contaminated if it has a run of 13 words in common with a text of some item
(Brown et al. 2020, appendix C); a text shorter than that must occur as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from penstock.sources.base import AnyOptions, Options
from penstock.transforms.base import (
    REMOVED_SCHEMA,
    ROW_ID,
    Outcome,
    removed_rows,
    require_columns,
)
from penstock.transforms.words import Numbers, Places, Words, joined, pieces, words_of

if TYPE_CHECKING:
    import polars as pl

# Enough to recognise an item by; a passage of pages would fill the ledger.
EVIDENCE_CHARACTERS = 300


@dataclass(frozen=True)
class Item:
    """One thing that an evaluation asks.

    Attributes:
        name: To find it by: "mmlu_law item 12".
        texts: What it is made of: question, passage, choices.
    """

    name: str
    texts: tuple[str, ...]


class DecontaminateOptions(Options):
    """When a row holds a text of the evaluation."""

    columns: tuple[str, ...] = Field(
        ("instruction", "response"), min_length=1, description="Read as one text."
    )
    ngram: int = Field(13, ge=1, le=64, description="A run of so many words in common is too much.")
    shortest: int = Field(
        8,
        ge=1,
        description="A text of the evaluation with fewer words is not looked for: it may stand "
        "anywhere. One with at least as many, but fewer than `ngram`, must occur as a whole.",
    )


class Decontaminate:
    """Remove rows that hold a text of the evaluation's items.

    Args:
        options: What counts.
        items: Of the recipe's own evaluation tasks.
    """

    name: ClassVar[str] = "decontaminate"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = DecontaminateOptions
    # Says that it is built with the items, and depends on them.
    reads_items: ClassVar[bool] = True

    def __init__(self, options: DecontaminateOptions, items: Iterable[Item] = ()) -> None:
        self._options = options
        self._names, self._indices, self.num_skipped = _indexed(items, options)

    def open(self) -> None:
        """There is nothing to load."""

    def __call__(self, rows: pa.Table) -> Outcome:
        """Keep the rows that share nothing with the evaluation."""
        columns = self._options.columns
        require_columns(rows.schema, columns, self.name)
        shared: list[str | None] = []
        for texts in pieces(joined(rows, columns)):
            shared += self._shared(words_of(texts))
        evidence = pa.array(shared, pa.string())
        bad = evidence.is_valid()
        ids = rows[ROW_ID].filter(bad)
        removed = removed_rows(ids, self.name, "holds an evaluation item", evidence.filter(bad))
        return Outcome(rows.filter(pc.invert(bad)), removed.cast(REMOVED_SCHEMA))

    def _shared(self, words: Words) -> list[str | None]:
        """For each text the first passage it has in common with an item, if any."""
        import polars as pl

        out: list[str | None] = [None] * len(words.counts)
        hits = [index.hits(words) for index in self._indices]
        if not hits:
            return out
        found = pl.concat(hits).sort("place", "length", descending=[False, True])
        for (row,), run in found.group_by("row", maintain_order=True):
            out[int(str(row))] = self._evidence(words, run)
        return out

    def _evidence(self, words: Words, run: pl.DataFrame) -> str:
        """The first common passage of one text, as long as it goes on."""
        item, first = int(run["item"][0]), int(run["place"][0])
        last = first
        for place, length in run.select("place", "length").iter_rows():
            if place > last + 1:
                break
            last = max(last, place + length - 1)
        passage = " ".join(words.passage(first, last).split())
        if len(passage) > EVIDENCE_CHARACTERS:
            passage = passage[:EVIDENCE_CHARACTERS] + "…"
        return f"{self._names[item]}: {passage}"


@dataclass(frozen=True)
class _Index:
    """Runs of ``length`` words of all items, by their numbers.

    Attributes:
        length: In words.
        grams: Ascending, each once.
        items: For each of them the first item that has it.
        owners: All items that have any.
    """

    length: int
    grams: Numbers
    items: Places
    owners: Places

    def hits(self, words: Words) -> pl.DataFrame:
        """Where the texts have one of the runs."""
        import polars as pl

        grams, places = words.grams(self.length)
        near = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        same = self.grams[near] == grams
        return pl.DataFrame(
            {
                "row": words.rows[places[same]],
                "place": places[same],
                "length": np.full(int(same.sum()), self.length),
                "item": self.items[near[same]],
            }
        )


def _indexed(
    items: Iterable[Item], options: DecontaminateOptions
) -> tuple[list[str], list[_Index], int]:
    """The items' names, their runs of words by length, and how many are too short to have any."""
    import polars as pl

    listed = list(items)
    texts = pl.Series([text for item in listed for text in item.texts], dtype=pl.String)
    owners = np.repeat(np.arange(len(listed)), [len(item.texts) for item in listed])
    runs: dict[int, list[tuple[Numbers, Places]]] = {}
    start = 0
    for part in pieces(texts):
        words = words_of(part)
        lengths = np.minimum(words.counts, options.ngram)
        for length in np.unique(lengths[lengths >= min(options.shortest, options.ngram)]):
            grams, places = words.grams(int(length))
            rows = words.rows[places]
            mine = lengths[rows] == length
            runs.setdefault(int(length), []).append((grams[mine], owners[start:][rows[mine]]))
        start += len(part)
    indices = [_index(length, parts) for length, parts in sorted(runs.items())]
    known = np.unique(np.concatenate([owners[:0], *(index.owners for index in indices)]))
    return [item.name for item in listed], indices, len(listed) - len(known)


def _index(length: int, parts: list[tuple[Numbers, Places]]) -> _Index:
    grams, owners = (np.concatenate(column) for column in zip(*parts, strict=True))
    unique, first = np.unique(grams, return_index=True)
    return _Index(length, unique, owners[first], np.unique(owners))
