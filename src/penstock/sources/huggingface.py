"""Hugging Face datasets: by hub name and commit, or from a local folder.

A hub dataset is fetched whole at its pinned commit into the hub's own cache, and
read from there like a folder. Only data files are read: ``datasets`` runs no
code of a repository, and neither do we.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from penstock.artifacts import digest_of, file_digest
from penstock.errors import SourceError, SourceUnavailable
from penstock.registry import did_you_mean, require
from penstock.sources.base import (
    ORIGIN,
    AnyOptions,
    Options,
    Piece,
    Place,
    Unit,
    refuse_reserved,
)
from penstock.sources.formats import BATCH_ROWS

_COMMIT = re.compile(r"[0-9a-f]{40}")
# What a repository holds beside its data.
_NO_DATA = ["*.py", "*.md", ".gitattributes"]


class HuggingFaceOptions(Options):
    """Which dataset, and which part of it."""

    name: str | None = Field(None, description="Of a dataset on the hub, as in `org/data`.")
    revision: str | None = Field(
        None, description="The commit of a hub dataset, 40 hex digits; required for one."
    )
    path: Annotated[str | None, Place()] = Field(
        None,
        description="A local folder instead: of data files, or one that `save_to_disk` wrote.",
    )
    config: str | None = Field(None, description="The dataset's configuration, if it has several.")
    split: str = Field("train", min_length=1, description="The split.")

    @model_validator(mode="after")
    def _one_of_both(self) -> HuggingFaceOptions:
        if (self.name is None) == (self.path is None):
            raise ValueError("needs either name, of a hub dataset, or path, of a folder")
        if self.name is not None and not _COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"revision is {self.revision!r}: a hub dataset needs its commit, 40 hex digits, "
                "since a branch or tag may mean other rows tomorrow"
            )
        return self


class HuggingFaceSource:
    """Rows of one split of a dataset."""

    Options: ClassVar[AnyOptions] = HuggingFaceOptions

    def __init__(self, options: HuggingFaceOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder

    def snapshot(self) -> tuple[Unit, ...]:
        """Pin the split: by its commit, or by the digest of the folder's files."""
        part = f"{self._options.config or ''}/{self._options.split}"
        if self._options.name is not None:
            identity = f"{self._options.name}@{self._options.revision}"
        else:
            identity = _digest(self._local())
        return (Unit(f"huggingface:{identity}/{part}", 1, self._label()),)

    def read(self, unit: Unit) -> Iterator[Piece]:
        """Yield the split's rows in their order."""
        if self._options.path is not None and unit.stream != self.snapshot()[0].stream:
            raise SourceError(
                f"{unit.label} has changed since it was pinned.", "Run again to pin it as it is."
            )
        start = 0
        for table in self._tables(self._fetched()):
            refuse_reserved(table.column_names, unit.label)
            places = range(start, start + table.num_rows)
            origins = pa.array([f"{unit.label}:{place}" for place in places], pa.string())
            yield from table.append_column(ORIGIN, origins).combine_chunks().to_batches()
            start += table.num_rows

    def _tables(self, folder: Path) -> Iterator[pa.Table]:
        rows = self._split(folder).with_format("arrow")
        try:
            yield from (pa.table(batch) for batch in rows.iter(batch_size=BATCH_ROWS))
        except (ValueError, TypeError, pa.ArrowException, OSError) as error:
            raise _unreadable(self._label(), error) from error

    def _split(self, folder: Path) -> Any:
        datasets = require("datasets", "huggingface")
        split, config = self._options.split, self._options.config
        try:
            if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
                saved = datasets.load_from_disk(str(folder))
                if not isinstance(saved, dict):
                    return saved
                if split not in saved:
                    raise SourceError(
                        f"{self._label()}: there is no split {split!r}."
                        f"{did_you_mean(split, sorted(saved))}"
                    )
                return saved[split]
            # Streamed, so that nothing is converted into a cache first.
            return datasets.load_dataset(str(folder), name=config, split=split, streaming=True)
        except (ValueError, OSError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise _unreadable(self._label(), error) from error

    def _fetched(self) -> Path:
        """The folder that holds the data, fetched from the hub if it is not here yet."""
        if self._options.name is None:
            return self._local()
        hub = require("huggingface_hub", "huggingface")
        errors = require("huggingface_hub.errors", "huggingface")
        httpx = require("httpx", "huggingface")
        try:
            found = hub.snapshot_download(
                self._options.name,
                repo_type="dataset",
                revision=self._options.revision,
                ignore_patterns=_NO_DATA,
            )
        except errors.RepositoryNotFoundError:
            raise SourceError(
                f"There is no dataset {self._options.name!r} on the hub, or you may not see it.",
                "Check the name; for a private one set HF_TOKEN.",
            ) from None
        except errors.RevisionNotFoundError:
            raise SourceError(
                f"{self._options.name} has no commit {self._options.revision}.",
                "See its commits on the hub, under Files and versions.",
            ) from None
        except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, httpx.HTTPError, OSError):
            raise SourceUnavailable(
                f"{self._label()} is not in the cache, and the hub cannot be asked.",
                "Fetch it where there is a network (hf download), or give a local `path`.",
            ) from None
        return Path(found)

    def _local(self) -> Path:
        folder = self._folder / str(self._options.path)
        if not folder.is_dir():
            raise SourceError(
                f"There is no folder {folder}.", "Check `path`; it is relative to the recipe."
            )
        return folder

    def _label(self) -> str:
        where = self._options.path or f"{self._options.name}@{str(self._options.revision)[:12]}"
        return "/".join(part for part in (where, self._options.config, self._options.split) if part)


def _digest(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    data = [path for path in files if not path.name.startswith((".", "cache-"))]
    if not data:
        raise SourceError(f"{folder} holds no file.", "Check what writes it.")
    return digest_of({path.relative_to(folder).as_posix(): file_digest(path) for path in data})


def _unreadable(label: str, error: Exception) -> SourceError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return SourceError(
        f"{label} cannot be read: {first}",
        "Open it with datasets.load_dataset to see more; check `config` and `split`.",
    )
