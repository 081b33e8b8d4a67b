"""Keys that stay the same over batches, runs, hosts and library versions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import RecipeError
from penstock.transforms.base import require_columns

KEY_BYTES = 16


def row_keys(rows: pa.Table, columns: Sequence[str], step: str, salt: str = "") -> pa.Array:
    """A digest of each row's values in ``columns``; equal rows have equal keys.

    BLAKE2b by row costs 1 s per million rows; the faster hashes of Polars and
    Arrow may change with their versions, and then every row would be new.

    Returns:
        Shape (num_rows,), 16 bytes each. Null is a value, other than the empty text.

    Raises:
        RecipeError: A column is missing, or is a list or object.
    """
    require_columns(rows.schema, columns, step)
    framed = pc.binary_join_element_wise(
        *(_framed(rows, name, step) for name in columns), pa.scalar(b"", pa.large_binary())
    )
    secret = hashlib.blake2b(salt.encode()).digest()
    digests = [
        hashlib.blake2b(value, digest_size=KEY_BYTES, key=secret).digest()
        for value in framed.to_pylist()
    ]
    return pa.array(digests, pa.binary(KEY_BYTES))


def _framed(rows: pa.Table, column: str, step: str) -> pa.ChunkedArray:
    """Values with their length before them, so that ("ab", "c") is not ("a", "bc")."""
    try:
        text = rows[column].cast(pa.large_string())
    except pa.ArrowNotImplementedError:
        raise RecipeError(
            f"{step}: column {column!r} is {rows[column].type}, which cannot be a key.",
            "Name columns of text, numbers or booleans.",
        ) from None
    value = text.cast(pa.large_binary())
    length = pc.binary_length(value).cast(pa.large_string()).cast(pa.large_binary())
    return pc.fill_null(_join([length, value], b":"), pa.scalar(b"-", pa.large_binary()))


def _join(parts: Sequence[pa.ChunkedArray], separator: bytes) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(*parts, pa.scalar(separator, pa.large_binary()))
