"""Which rows are in which step, and which of them a worker gets.

A step's rows depend on the seed, the epoch and the global batch size alone: not
on how many workers share them, and not on where a killed training went on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from penstock.registry import require
from penstock.tokenizer import IGNORED


class Order:
    """The order of the rows in each epoch.

    Args:
        num_rows: How many there are.
        seed: Together with the epoch, decides the order.
        lengths: Tokens of each row, to bring rows of similar length together; or None.
        group_size: Rows that should be of similar length.
    """

    def __init__(
        self, num_rows: int, seed: int, lengths: list[int] | None, group_size: int
    ) -> None:
        self.num_rows = num_rows
        self._seed = seed
        self._lengths = lengths
        self._group_size = group_size

    def epoch(self, number: int) -> list[int]:
        """Row numbers in the order of an epoch."""
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        draw = torch.Generator().manual_seed(self._seed + number)
        if self._lengths is None:
            return torch.randperm(self.num_rows, generator=draw).tolist()
        return list(get_length_grouped_indices(self._lengths, self._group_size, generator=draw))


class Shares:
    """One worker's share of each batch, for torch's ``batch_sampler``.

    A worker whose share is empty, at the end of an epoch, gets the row after the
    last: a filler without a label. Its loss is nothing, and no worker waits for it.

    Args:
        order: Gives the row numbers when an epoch begins.
        num_rows: How many rows that is.
        batch_size: Rows in a batch, over all workers.
        worker: This worker's number.
        num_workers: How many there are.
    """

    def __init__(
        self,
        order: Callable[[], list[int]],
        num_rows: int,
        batch_size: int,
        worker: int,
        num_workers: int,
    ) -> None:
        self._order = order
        self._num_rows = num_rows
        self._batch_size = batch_size
        self._worker = worker
        self._num_workers = num_workers

    def __len__(self) -> int:
        return math.ceil(self._num_rows / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rows = self._order()
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            yield batch[self._worker :: self._num_workers] or [self._num_rows]


class WithFiller:
    """Examples, and one more at the end that trains nothing."""

    def __init__(self, rows: Any, pad: int) -> None:
        self._rows = rows
        self._filler = {"input_ids": [pad, pad], "labels": [IGNORED, IGNORED]}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Any:
        return self._filler if number == len(self._rows) else self._rows[number]


def loader(rows: Any, shares: Shares, collate: Any, pad: int, pin: bool) -> Any:
    """Torch's loader of one worker's shares."""
    data = require("torch.utils.data", "train")
    return data.DataLoader(
        WithFiller(rows, pad), batch_sampler=shares, collate_fn=collate, pin_memory=pin
    )
