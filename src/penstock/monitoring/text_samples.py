"""What drift needs to know of texts: their vectors, lengths and languages, and who refuses.

It is measured once for each window and kept in the store as long as the log keeps its days,
so that later windows can be compared with it and nothing is embedded twice. The texts are
not kept.

::

    drift/<digest of the embedding model>/<day>/<key>.parquet
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from penstock.artifacts import digest_of, file_digest, store_errors
from penstock.encoder import PACKAGED, Encoder, is_cross_encoder, model_files, packaged_folder
from penstock.errors import RecipeError
from penstock.folders import Folder
from penstock.gates.two_sample import Vectors, check_finite

# An encoder reads some hundred tokens: what comes after these characters it never sees.
_READ_CHARACTERS = 4_000
_BATCH_SIZE = 64
# Folder of what belongs to no day: training rows.
LASTING = "training"
# Shorter texts have no language that could be told.
_MIN_CHARACTERS = 20
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("vector", pa.list_(pa.float32())),
        ("num_characters", pa.int64()),
        ("language", pa.string()),
        ("refuses", pa.bool_()),
    ]
)

Encode = Callable[[Sequence[str]], Vectors]


@dataclass(frozen=True)
class Sample:
    """Some texts, measured; all arrays in one order, and that is by chance.

    Attributes:
        ids: Of the responses or training rows they are of.
        vectors: Shape (n, d).
        lengths: In characters, shape (n,).
        languages: ISO 639 codes; empty where there is too little text, or nothing to tell it by.
        refuses: Whether a text declines to answer, shape (n,).
    """

    ids: tuple[str, ...]
    vectors: Vectors
    lengths: NDArray[np.int64]
    languages: tuple[str, ...]
    refuses: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, num: int) -> Sample:
        """The first so many, which are a sample of them."""
        return Sample(
            self.ids[:num],
            self.vectors[:num],
            self.lengths[:num],
            self.languages[:num],
            self.refuses[:num],
        )

    @classmethod
    def joined(cls, samples: Sequence[Sample]) -> Sample:
        """Several, one after the other; there is at least one."""
        return cls(
            tuple(name for one in samples for name in one.ids),
            np.concatenate([one.vectors for one in samples]),
            np.concatenate([one.lengths for one in samples]),
            tuple(name for one in samples for name in one.languages),
            np.concatenate([one.refuses for one in samples]),
        )


class Embedding:
    """The embedding model that a recipe names, loaded when it is first used.

    Args:
        name: A packaged model, or a folder.
        base: Where a relative folder begins.

    Attributes:
        digest: Of its files.

    Raises:
        RecipeError: There is no such model, or it gives no vectors.
        MissingExtra: The packaged model is not installed.
    """

    def __init__(self, name: str, base: Path) -> None:
        self._folder = packaged_folder(name) if name in PACKAGED else (base / name).resolve()
        if not self._folder.is_dir():
            raise RecipeError(
                f"observe.drift.embedding: there is no folder {name!r}.",
                f"Name one, or a packaged model: {', '.join(PACKAGED)}.",
            )
        if is_cross_encoder(self._folder):
            raise RecipeError(
                f"observe.drift.embedding: {name!r} reads texts in pairs and gives no vectors.",
                "Name an embedding model.",
            )
        files = model_files(self._folder)
        self.digest = digest_of({p.as_posix(): file_digest(self._folder / p) for p in files})
        self._encoder: Encoder | None = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors of unit length, shape (len(texts), d)."""
        if self._encoder is None:
            self._encoder = Encoder.load(self._folder)
        return self._encoder.encode(
            [text[:_READ_CHARACTERS] for text in texts], "text", _BATCH_SIZE
        )


def measured(ids: Sequence[str], texts: Sequence[str], encode: Encode) -> Sample:
    """Measure texts.

    Args:
        ids: One for each text.
        texts: At least one.
        encode: Makes vectors.

    Raises:
        EvaluationError: A vector holds what is not a number.
    """
    vectors = encode(texts)
    check_finite("texts", vectors)
    return Sample(
        tuple(ids),
        vectors,
        np.array([len(text) for text in texts], np.int64),
        tuple(_languages(texts)),
        np.array(_refusals(texts), bool),
    )


class KeptSamples:
    """Samples of texts in the store.

    Args:
        folder: Of the store, for drift.
        model_digest: Of the embedding model.
    """

    def __init__(self, folder: Folder, model_digest: str) -> None:
        self._all = folder
        self._folder = folder / model_digest[:16]

    def get(self, day: str, key: str) -> Sample | None:
        """A sample that was kept; None if it was not, or only half."""
        import pyarrow.parquet as pq

        folder, name = self._folder / day, f"{key}.parquet"
        with store_errors(self._folder.url):
            if name not in folder.files():
                return None
            try:
                table = pq.read_table(folder.opened(name), partitioning=None)
            except pa.ArrowInvalid:  # what a kill left: its end is missing
                return None
        return _sample(table)

    def put(self, day: str, key: str, sample: Sample) -> None:
        """Keep a sample; the same key always means the same texts."""
        import pyarrow.parquet as pq

        columns: list[Any] = [
            sample.ids,
            list(sample.vectors),
            sample.lengths,
            sample.languages,
            sample.refuses,
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
        with store_errors(self._folder.url), self._folder.written(f"{day}/{key}.parquet") as path:
            pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), path, compression="zstd")

    def expire(self, before: date) -> None:
        """Drop what any model measured of days before this one, as the log does with its rows."""
        with store_errors(self._all.url):
            self._all.delete([name for name in self._all.files() if _is_of_before(name, before)])


def tells_languages() -> bool:
    """Whether what tells languages is installed."""
    from importlib.util import find_spec

    return find_spec("py3langid") is not None


def _is_of_before(name: str, before: date) -> bool:
    match name.split("/"):
        case [_, day, _]:
            return day != LASTING and day < before.isoformat()
    return False  # not ours


def _sample(table: pa.Table) -> Sample:
    vectors = table["vector"].combine_chunks()
    flat = vectors.values.to_numpy(zero_copy_only=False)
    return Sample(
        tuple(table["id"].to_pylist()),
        flat.reshape(len(vectors), -1),
        table["num_characters"].to_numpy(),
        tuple(table["language"].to_pylist()),
        table["refuses"].to_numpy(),
    )


def _languages(texts: Sequence[str]) -> list[str]:
    if not tells_languages():
        return [""] * len(texts)
    from penstock.transforms.language import language_of

    return [language_of(text) if len(text.strip()) >= _MIN_CHARACTERS else "" for text in texts]


def _refusals(texts: Sequence[str]) -> list[bool]:
    import polars as pl

    from penstock.contracts.rules import refusals

    return list(refusals(pl.Series(texts, dtype=pl.String)).is_not_null())
