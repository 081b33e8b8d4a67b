"""Which rows a model learns from, and which it is only measured on."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from penstock.errors import RecipeError
from penstock.sources.base import AnyOptions, Options
from penstock.transforms.base import REMOVED_SCHEMA, Outcome
from penstock.transforms.keys import KEY_BYTES, row_keys

SPLIT = "split"
TRAIN = "train"
VALIDATION = "validation"


class SplitOptions(Options):
    """How rows are divided."""

    by: tuple[str, ...] = Field(
        ("instruction", "response"),
        min_length=1,
        description="Rows that are equal in all of these stay together; `[_cluster]` after "
        "`near_dedupe: {keep: all}` keeps near-duplicates together.",
    )
    validation: float = Field(0.05, ge=0, lt=1, description="Share of groups.")
    seed: int = Field(0, description="Another seed divides the groups otherwise.")


class Split:
    """Add the column ``split``: "train" or "validation".

    A group's side is a function of its key and the seed alone. So no group is
    on both sides, a row never changes sides when others arrive, and a larger
    ``validation`` only takes rows from training, never the other way.
    """

    name: ClassVar[str] = "split"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = SplitOptions

    def __init__(self, options: SplitOptions) -> None:
        self._options = options

    def open(self) -> None:
        """There is nothing to load."""

    def __call__(self, rows: pa.Table) -> Outcome:
        """Add the column; no row is removed."""
        if SPLIT in rows.schema.names:
            raise RecipeError(
                f"split: the rows have a column {SPLIT!r} already.",
                "Rename it in the source, or leave the step `split` out.",
            )
        options = self._options
        keys = row_keys(rows, options.by, self.name, salt=f"split {options.seed}")
        heads = np.frombuffer(b"".join(keys.to_pylist()), np.uint8).reshape(-1, KEY_BYTES)[:, :8]
        numbers = np.ascontiguousarray(heads).view(">u8").ravel()
        is_validation = numbers < np.uint64(int(options.validation * 2**64))
        side = pa.array(np.where(is_validation, VALIDATION, TRAIN), pa.string())
        return Outcome(rows.append_column(SPLIT, side), REMOVED_SCHEMA.empty_table())
