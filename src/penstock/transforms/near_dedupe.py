"""Rows that say nearly the same thing are kept once, or kept together.

Two rows are near-duplicates when the Jaccard similarity of their sets of word
n-grams reaches a threshold. Pairs that may are found by MinHash and banding
(Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
chapter 3), and each is checked on a bottom-k sketch (Cohen and Kaplan 2007):
the smallest hashes of either text, which is exact while both texts together
have no more n-grams than that.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from penstock.errors import RecipeError
from penstock.registry import require
from penstock.sources.base import AnyOptions, Options
from penstock.transforms.base import (
    ALSO,
    BUCKETS,
    EQUAL,
    LIKE,
    REMOVED_SCHEMA,
    ROW_ID,
    SIMILARITY,
    SKETCH,
    Found,
    Outcome,
    removed_rows,
    require_text,
)
from penstock.transforms.words import Words, joined, mixed, pieces, words_of

CLUSTER = "_cluster"  # string: the id of the first row of a row's cluster

# Of 112 permutations: 14 bands of 8, 16 of 7 and 28 of 4 can be made of them.
NUM_PERMUTATIONS = 112
SEED = 1
SKETCH_SIZE = 128
# Of pairs exactly at the threshold, the share that must meet in some bucket.
RECALL = 0.95

_SCHEMA = pa.schema(
    [(EQUAL, pa.binary()), (BUCKETS, pa.list_(pa.int64())), (SKETCH, pa.list_(pa.uint32()))]
)
_Sketch = npt.NDArray[np.uint32]
_Places = npt.NDArray[np.int64]


class NearDedupeOptions(Options):
    """When two rows are nearly the same, and what becomes of them."""

    columns: tuple[str, ...] = Field(
        ("instruction", "response"), min_length=1, description="Compared as one text."
    )
    threshold: float = Field(
        0.8, ge=0.4, le=1, description="Jaccard similarity of the texts' n-grams."
    )
    ngram: int = Field(3, ge=1, le=32, description="In words; a shorter text is one n-gram.")
    keep: Literal["first", "all"] = Field(
        "first",
        description="`all` keeps near-duplicates and adds the column `_cluster`, so that "
        "`split: {by: [_cluster]}` puts them on one side.",
    )


class NearDedupe:
    """Keep the first of rows that are nearly the same, in ingest order.

    First come, first kept: what becomes of a row depends on the rows before it
    alone. A row is removed if it resembles an earlier row that was kept, so
    a chain of small changes is not followed to where nothing is alike.

    With ``keep="all"`` a row joins the cluster of the earlier rows it resembles,
    for good. One that resembles rows of two clusters is removed: wherever it
    went, it would stand on the other side of a split from its like.
    """

    name: ClassVar[str] = "near_dedupe"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = NearDedupeOptions

    def __init__(self, options: NearDedupeOptions) -> None:
        self._options = options
        self._band = _band_size(options.threshold)

    def open(self) -> None:
        """Check that the library is there."""
        require("rensa", "text")

    def sketch(self, rows: pa.Table) -> pa.Table:
        """What the rows are compared by."""
        columns = self._options.columns
        require_text(rows.schema, columns, self.name)
        texts = pieces(joined(rows, columns))
        parts = [_SCHEMA.empty_table(), *(self._sketched(words_of(text)) for text in texts)]
        return pa.concat_tables(parts).combine_chunks()

    def judge(self, num_rows: int) -> NearJudge:
        """A judge of so many rows."""
        return NearJudge(num_rows, self._options.threshold, self._options.keep == "all")

    def act(self, rows: pa.Table) -> Outcome:
        """Remove the rows that are like another, or give each its cluster."""
        plain = rows.drop_columns([LIKE, SIMILARITY, ALSO])
        if self._options.keep == "first":
            gone = pc.is_valid(rows[LIKE])
            evidence = _join("like ", rows[LIKE], ", similarity ", _rounded(rows[SIMILARITY]))
            reason = f"nearly the same {', '.join(self._options.columns)} as an earlier row"
        else:
            if CLUSTER in plain.column_names:
                raise RecipeError(
                    f"near_dedupe: the rows have a column {CLUSTER!r} already.",
                    "Only one step `near_dedupe` can have `keep: all`.",
                )
            gone = pc.is_valid(rows[ALSO])
            evidence = _join("like rows of ", rows[LIKE], " and of ", rows[ALSO])
            reason = "nearly the same as rows of two clusters"
            plain = plain.append_column(CLUSTER, pc.coalesce(rows[LIKE], rows[ROW_ID]))
        removed = removed_rows(plain[ROW_ID].filter(gone), self.name, reason, evidence.filter(gone))
        return Outcome(plain.filter(pc.invert(gone)), removed.cast(REMOVED_SCHEMA))

    def _sketched(self, words: Words) -> pa.Table:
        hashes, places = words.grams(self._options.ngram, shorter=True)
        counts = np.bincount(words.rows[places], minlength=len(words.counts))
        return pa.table(
            [_digests(words), self._buckets(hashes, counts), _smallest(hashes, counts)],
            schema=_SCHEMA,
        )

    def _buckets(self, hashes: npt.NDArray[np.uint64], counts: _Places) -> pa.Array:
        """A bucket for each band of each text's MinHash signature; none without n-grams."""
        ends = np.concatenate(([0], np.cumsum(counts)))
        matrix = require("rensa", "text").RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, ends.astype(np.uint64), NUM_PERMUTATIONS, SEED
        )
        num_bands = NUM_PERMUTATIONS // self._band
        signatures = np.array(matrix.to_rows(), np.uint64).reshape(-1, num_bands, self._band)
        keys = np.broadcast_to(np.arange(num_bands, dtype=np.uint64), signatures.shape[:2])
        for step in range(self._band):
            keys = mixed(keys ^ signatures[:, :, step])
        has = counts > 0
        offsets = np.concatenate(([0], np.cumsum(has * num_bands))).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, keys[has].ravel().view(np.int64))


class NearJudge:
    """Decides row after row, so that later rows cannot change what was decided.

    Args:
        num_rows: How many rows there are.
        threshold: Of near-duplicates.
        clusters: Whether rows join clusters, instead of being removed.
    """

    def __init__(self, num_rows: int, threshold: float, clusters: bool) -> None:
        self._threshold = threshold
        self._clusters = clusters
        self._like = np.arange(num_rows, dtype=np.int64)
        self._similarity = np.ones(num_rows, np.float32)
        self._also = np.full(num_rows, -1, np.int64)
        self._sketches: dict[int, _Sketch] = {}  # of rows that later ones are compared with

    def compare(
        self,
        places: _Places,
        sketches: pa.ChunkedArray,
        candidates: Sequence[_Places],
        is_candidate: npt.NDArray[np.bool_],
    ) -> None:
        """Judge some rows, in ingest order."""
        lists = sketches.combine_chunks()
        values, ends = lists.flatten().to_numpy(), lists.value_lengths().to_numpy().cumsum()
        for index, place in enumerate(places.tolist()):
            start = ends[index - 1] if index else 0
            sketch = values[start : ends[index]].copy()
            self._compare_one(place, sketch, candidates[index])
            if is_candidate[index] and self._stands_for_others(place):
                self._sketches[place] = sketch

    def found(self) -> Found:
        """Everything that was found out."""
        return Found(self._like, self._similarity, self._also)

    def _compare_one(self, place: int, sketch: _Sketch, candidates: _Places) -> None:
        rivals = {self._rival(other) for other in candidates.tolist()}
        alike = sorted(
            (-similarity, other)
            for other in rivals
            if (similarity := jaccard(self._sketches[other], sketch)) >= self._threshold
        )
        if not alike:
            return
        groups = list(dict.fromkeys(int(self._like[other]) for _, other in alike))
        self._like[place], self._similarity[place] = groups[0], -alike[0][0]
        if self._clusters and len(groups) > 1:
            self._also[place] = groups[1]

    def _rival(self, other: int) -> int:
        """The row that speaks for ``other``: itself, or if it was removed the one it is like."""
        return other if self._stands_for_others(other) else int(self._like[other])

    def _stands_for_others(self, place: int) -> bool:
        if self._clusters:
            return bool(self._also[place] < 0)
        return bool(self._like[place] == place)


def jaccard(one: _Sketch, other: _Sketch, size: int = SKETCH_SIZE) -> float:
    """The Jaccard similarity of two sets, from the smallest hashes of each.

    Exact if both sets are whole, that is smaller than ``size``; otherwise the
    share of common ones among the ``size`` smallest of both, whose standard
    error is below ``0.5 / sqrt(size)``.
    """
    both = np.concatenate((one, other))
    both.sort()
    twice = both[1:][both[1:] == both[:-1]]
    num_union = len(both) - len(twice)
    if num_union == 0:
        return 0.0
    if (len(one) < size and len(other) < size) or num_union <= size:
        return len(twice) / num_union
    union = np.unique(both)
    return int(np.searchsorted(twice, union[size - 1], "right")) / size


def _band_size(threshold: float) -> int:
    """The longest band under which enough pairs at the threshold share a bucket."""
    sizes = [size for size in range(1, NUM_PERMUTATIONS) if NUM_PERMUTATIONS % size == 0]
    return max(
        size
        for size in sizes
        if size == 1 or 1 - (1 - threshold**size) ** (NUM_PERMUTATIONS / size) >= RECALL
    )


def _digests(words: Words) -> pa.Array:
    """The same for texts of the same words; null for those that have none."""
    data, ends = words.numbers.tobytes(), (words.firsts * 8).tolist()
    digests: list[Any] = [
        hashlib.blake2b(data[start:end], digest_size=16).digest() if end > start else None
        for start, end in itertools.pairwise(ends)
    ]
    return pa.array(digests, pa.binary())


def _smallest(hashes: npt.NDArray[np.uint64], counts: _Places) -> pa.Array:
    """The ``SKETCH_SIZE`` smallest different hashes of each text, ascending, as 32 bits."""
    rows = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    both = np.sort(rows << np.uint64(32) | hashes >> np.uint64(32))
    both = both[np.concatenate(([True], both[1:] != both[:-1]))] if len(both) else both
    rows = (both >> np.uint64(32)).astype(np.int64)
    sizes = np.bincount(rows, minlength=len(counts))
    rank = np.arange(len(both)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = both[rank < SKETCH_SIZE].astype(np.uint32)
    offsets = np.concatenate(([0], np.cumsum(np.minimum(sizes, SKETCH_SIZE)))).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, kept)


def _rounded(similarity: pa.ChunkedArray) -> pa.ChunkedArray:
    import polars as pl

    return pl.Series(similarity).round(2).cast(pl.String).to_arrow()


def _join(*parts: Any) -> Any:
    columns = [pa.scalar(part) if isinstance(part, str) else part.cast("string") for part in parts]
    return pc.binary_join_element_wise(*columns, "")
