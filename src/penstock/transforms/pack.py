"""Pack: rows of token ids become blocks of one length, so that no step trains on padding.

Two ways. ``whole`` fits rows into blocks by best-fit decreasing, as bins are packed, and
cuts only a row that is longer than a block (Ding et al. 2024,
https://arxiv.org/abs/2404.10830). ``split`` writes all rows one after the other and
cuts at every block's end: no token of padding, but rows lose their beginnings.

What came where is written down piece by piece, so that any row's place can be found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.tokenizer import IGNORED
from penstock.transforms.base import ROW_ID

How: TypeAlias = Literal["whole", "split"]
Numbers: TypeAlias = npt.NDArray[np.int64]

# Lengths of the rows in a block, by TRL's name for it; there is none where rows see each other.
LENGTHS = "seq_lengths"
# One row for each piece of a row: which block, from which token of it, from which token
# of the row, and how many.
PIECES = pa.schema(
    [
        ("block", pa.int64()),
        (ROW_ID, pa.string()),
        ("start", pa.int64()),
        ("first", pa.int64()),
        ("length", pa.int64()),
    ]
)
# Rows are packed so many tokens at a time: enough for good fits, and bounded memory.
WINDOW_TOKENS = 1 << 22


@dataclass(frozen=True)
class Packed:
    """Some blocks.

    Attributes:
        blocks: ``input_ids`` and ``labels``; and ``seq_lengths``, if rows are kept apart.
        pieces: ``PIECES``, block after block.
    """

    blocks: pa.Table
    pieces: pa.Table


@dataclass(frozen=True)
class _Stretch:
    """Rows one after the other.

    Attributes:
        ids: Shape (num_tokens,).
        labels: Shape (num_tokens,).
        row_ids: Shape (num_rows,).
        starts: Shape (num_rows + 1,): where each row begins, and where the last ends.
        first: Shape (num_rows,): the token of the row that it begins with.
    """

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    row_ids: list[str]
    starts: Numbers
    first: Numbers

    def cut(self, starts: Numbers, blocks: Numbers) -> _Pieces:
        """The pieces that begin at ``starts``, which every row's beginning is among."""
        rows = np.searchsorted(self.starts, starts, "right") - 1
        ends = np.append(starts[1:], len(self.ids))
        first = self.first[rows] + starts - self.starts[rows]
        return _Pieces(starts, ends - starts, rows, first, blocks)

    def after(self, start: int) -> _Stretch:
        """What is left from a token on."""
        row = int(np.searchsorted(self.starts, start, "right")) - 1
        if row == len(self.row_ids):
            return _empty()
        first = self.first[row:].copy()
        first[0] += start - self.starts[row]
        return _Stretch(
            self.ids[start:],
            self.labels[start:],
            self.row_ids[row:],
            np.append(0, self.starts[row + 1 :] - start),
            first,
        )


@dataclass(frozen=True)
class _Pieces:
    """Where the pieces of a stretch begin, how long they are, and which block is theirs."""

    starts: Numbers
    lengths: Numbers
    rows: Numbers
    first: Numbers
    blocks: Numbers

    def take(self, chosen: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> _Pieces:
        """Some of them, in an order of their own."""
        return _Pieces(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


class Packer:
    """Packs rows that come a batch at a time; how they are cut into batches changes nothing.

    Args:
        max_length: Tokens in a block.
        how: ``whole`` or ``split``.
        apart: Rows of a block are to be kept apart: no row's first token is learned as
            the continuation of another, and lengths are given.
        window: Tokens that are packed at once.
    """

    def __init__(self, max_length: int, how: How, apart: bool, window: int = WINDOW_TOKENS) -> None:
        self._max_length = max_length
        self._how = how
        self.apart = apart
        self._window = window
        self._waiting: list[_Stretch] = []
        self._num_waiting = 0
        self._num_blocks = 0

    def add(self, rows: pa.Table) -> Iterator[Packed]:
        """Take rows with ``_row_id``, ``input_ids`` and ``labels``; yields blocks that are full."""
        lengths = pc.list_value_length(rows["input_ids"]).to_numpy()
        begin = 0
        while begin < rows.num_rows:
            room = self._window - self._num_waiting
            end = begin + int(np.searchsorted(np.cumsum(lengths[begin:]), room)) + 1
            some = _stretch(rows.slice(begin, end - begin))
            self._waiting.append(some)
            self._num_waiting += len(some.ids)
            begin = end
            if self._num_waiting >= self._window:
                yield self._pack(is_last=False)

    def finish(self) -> Iterator[Packed]:
        """The blocks that are left."""
        if self._num_waiting:
            yield self._pack(is_last=True)

    def _pack(self, is_last: bool) -> Packed:
        stretch = _joined(self._waiting)
        self._waiting, self._num_waiting = [], 0
        if self._how == "whole":
            pieces = _fitted(stretch, self._max_length)
        else:
            starts = np.union1d(
                stretch.starts[:-1], np.arange(0, len(stretch.ids), self._max_length)
            )
            pieces = stretch.cut(starts, starts // self._max_length)
            if not is_last:
                num_full = len(stretch.ids) // self._max_length
                rest = stretch.after(num_full * self._max_length)
                self._waiting, self._num_waiting = [rest], len(rest.ids)
                pieces = pieces.take(pieces.blocks < num_full)
        return self._packed(stretch, pieces)

    def _packed(self, stretch: _Stretch, pieces: _Pieces) -> Packed:
        ends = np.cumsum(pieces.lengths)
        begins = ends - pieces.lengths
        tokens = np.arange(ends[-1]) + np.repeat(pieces.starts - begins, pieces.lengths)
        labels = stretch.labels[tokens]
        if self.apart:
            labels[begins] = IGNORED
        per_block = np.bincount(pieces.blocks)
        bounds = np.append(0, np.cumsum(per_block))
        offsets = np.append(0, ends[bounds[1:] - 1])
        columns = {
            "input_ids": _lists(stretch.ids[tokens], offsets),
            "labels": _lists(labels, offsets),
        }
        if self.apart:
            columns[LENGTHS] = _lists(pieces.lengths, bounds)
        place = {
            "block": pieces.blocks + self._num_blocks,
            ROW_ID: pa.array([stretch.row_ids[row] for row in pieces.rows], pa.string()),
            "start": begins - offsets[:-1][pieces.blocks],
            "first": pieces.first,
            "length": pieces.lengths,
        }
        self._num_blocks += len(per_block)
        return Packed(pa.table(columns), pa.table(place, schema=PIECES))


def block_schema(apart: bool) -> pa.Schema:
    """The columns of blocks."""
    names = ["input_ids", "labels", *([LENGTHS] if apart else [])]
    return pa.schema([(name, pa.list_(pa.int32())) for name in names])


def _lists(values: npt.NDArray[np.integer], offsets: Numbers) -> pa.Array:
    return pa.ListArray.from_arrays(
        pa.array(offsets.astype(np.int32)), pa.array(values.astype(np.int32))
    )


def _stretch(rows: pa.Table) -> _Stretch:
    ids, labels = (rows[name].combine_chunks() for name in ("input_ids", "labels"))
    starts = np.append(0, np.cumsum(pc.list_value_length(ids).to_numpy())).astype(np.int64)
    return _Stretch(
        ids.flatten().to_numpy(),
        labels.flatten().to_numpy(),
        rows[ROW_ID].to_pylist(),
        starts,
        np.zeros(rows.num_rows, np.int64),
    )


def _empty() -> _Stretch:
    none, tokens = np.zeros(0, np.int64), np.zeros(0, np.int32)
    return _Stretch(tokens, tokens, [], np.zeros(1, np.int64), none)


def _joined(stretches: list[_Stretch]) -> _Stretch:
    shifts = np.cumsum([0, *(len(one.ids) for one in stretches)])
    starts = [one.starts[:-1] + shift for one, shift in zip(stretches, shifts[:-1], strict=True)]
    return _Stretch(
        np.concatenate([one.ids for one in stretches]),
        np.concatenate([one.labels for one in stretches]),
        [row_id for one in stretches for row_id in one.row_ids],
        np.concatenate([*starts, shifts[-1:]]),
        np.concatenate([one.first for one in stretches]),
    )


def _fitted(stretch: _Stretch, max_length: int) -> _Pieces:
    """Whole rows in as few blocks as best fit finds; a block keeps the order of its rows."""
    lengths = np.diff(stretch.starts)
    num_cuts = np.maximum(1, -(-lengths // max_length))
    within = np.arange(num_cuts.sum()) - np.repeat(np.cumsum(num_cuts) - num_cuts, num_cuts)
    starts = np.repeat(stretch.starts[:-1], num_cuts) + within * max_length
    pieces = stretch.cut(starts, starts)
    found = _best_fit(pieces.lengths, max_length)
    # Blocks are numbered by their first row, so that they stay near ingest order.
    _, first, block = np.unique(found, return_index=True, return_inverse=True)
    blocks = np.argsort(np.argsort(first))[block]
    pieces = stretch.cut(starts, blocks)
    return pieces.take(np.argsort(blocks, kind="stable"))


def _best_fit(lengths: Numbers, size: int) -> Numbers:
    """Best-fit decreasing: the longest first, each to where it leaves the least room."""
    out = np.zeros(len(lengths), np.int64)
    by_room: list[list[int]] = [[] for _ in range(size + 1)]
    rooms = 0  # bit r is set while there is a block with room for exactly r more
    num_blocks = 0
    for piece in np.argsort(-lengths, kind="stable"):
        length = int(lengths[piece])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            block = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, block = size, num_blocks
            num_blocks += 1
        out[piece] = block
        left = room - length
        by_room[left].append(block)
        rooms |= 1 << left
    return out
