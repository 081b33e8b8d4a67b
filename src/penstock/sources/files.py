"""Files on disk and objects in S3: JSON Lines, CSV and Parquet, plain or compressed.

A file is pinned by the SHA-256 of its bytes, so a file that is renamed or
copied is not read twice and one that is edited is read anew. While it is read,
its digest is taken again: if it changed in between, reading ends in an error
and the ingest stage commits nothing of it.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, Literal, cast

from pydantic import BeforeValidator, Field, field_validator

from penstock.errors import SourceError, SourceUnavailable
from penstock.sources import objects
from penstock.sources.base import AnyOptions, DeadLetter, Options, Piece, Place, Unit
from penstock.sources.formats import csv_kinds, read_csv, read_jsonl, read_parquet
from penstock.sources.lines import (
    MAX_EXPANSION,
    DigestingFile,
    MaxExpansion,
    allowed_bytes,
    as_utf8,
    bounded,
    compression,
    plain_chunks,
)
from penstock.sources.shapes import KINDS

Format = Literal["jsonl", "csv", "parquet"]
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}

# After so many bad lines and no good one, the file is not what its name says.
HOPELESS_AFTER = 10_000

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WHERE = "Paths are relative to the recipe's folder."


class FilesOptions(Options):
    """Which files, and how to read them."""

    paths: Annotated[
        list[str],
        Place(),
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value,
            json_schema_input_type=str | list[str],
        ),
    ] = Field(
        min_length=1, description="Files or globs, relative to the recipe's folder, or s3:// URLs."
    )
    format: Literal["auto", "jsonl", "csv", "parquet"] = Field(
        "auto", description="auto goes by the suffix: .jsonl, .ndjson, .csv or .parquet."
    )
    encoding: str = Field("utf-8", description="Of JSON Lines and CSV.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="Of CSV.")
    types: dict[str, Literal["string", "number", "boolean"]] = Field(
        default_factory=dict,
        description="Columns of JSON Lines and CSV whose type is not to be inferred.",
    )

    max_expansion: MaxExpansion = MAX_EXPANSION

    @field_validator("paths")
    @classmethod
    def _are_within_reach(cls, value: list[str]) -> list[str]:
        for path in value:
            if _URL.match(path) and not path.startswith(objects.SCHEME):
                raise ValueError(
                    f"{path!r} is out of reach: valid are paths on this machine and s3:// URLs. "
                    "Copy or mount it here, or have the store speak S3's protocol (set "
                    "AWS_ENDPOINT_URL and write s3://BUCKET/KEY)"
                )
        return value

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            codecs.lookup(value)
        except LookupError:
            raise ValueError(f"{value!r} is not an encoding that Python knows") from None
        return value


class FilesSource:
    """Rows from files.

    Files are ingested in the order of their labels: their paths relative to the
    recipe's folder. Files with the same content are one unit. An empty file holds
    no rows and is passed over, unless all are empty.
    """

    Options: ClassVar[AnyOptions] = FilesOptions

    def __init__(self, options: FilesOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder.resolve()

    def snapshot(self) -> tuple[Unit, ...]:
        """Pin every file by its digest."""
        units: dict[str, Unit] = {}
        paths = self._paths()
        for label, path in sorted(paths.items()):
            self._format(label)
            if path.stat().st_size == 0:
                continue
            unit = self._pin(label, path)
            units.setdefault(unit.stream, unit)
        for found in self._objects():
            self._format(found.url)
            if found.size_bytes:
                unit = Unit(found.stream, 1, found.url, found.size_bytes)
                units.setdefault(unit.stream, unit)
        if not units:
            raise SourceUnavailable(
                f"There is nothing in {', '.join(sorted(paths) or self._options.paths)}: 0 bytes.",
                "Check what writes these files.",
            )
        return tuple(units.values())

    def read(self, unit: Unit) -> Iterator[Piece]:
        """Yield a file's rows, and check at the end that it was the pinned file."""
        if unit.label.startswith(objects.SCHEME):
            with objects.opened(unit.stream, unit.label) as file:
                yield from _hopeful(self._pieces(file, file, unit.label), unit.label)
            return
        changed = SourceUnavailable(
            f"{unit.label} has changed since it was pinned.",
            "Run again to pin it as it is now; do not write to it meanwhile.",
        )
        with _open(self._folder / unit.label, unit.label) as file:
            digesting = DigestingFile(file)
            try:
                yield from _hopeful(self._pieces(file, digesting, unit.label), unit.label)
            except SourceError:
                if _stream(digesting.digest_to_end()) != unit.stream:
                    raise changed from None
                raise
            if _stream(digesting.digest_to_end()) != unit.stream:
                raise changed

    def _pieces(
        self, file: BinaryIO, digesting: BinaryIO | DigestingFile, label: str
    ) -> Iterator[Piece]:
        """A file's pieces, read through ``digesting`` where once from front to back will do."""
        format_ = self._format(label)
        allowed = allowed_bytes(file.seek(0, os.SEEK_END), self._options.max_expansion)
        file.seek(0)
        kinds = {name: KINDS[word] for name, word in self._options.types.items()}
        if format_ == "jsonl":
            yield from read_jsonl(self._text(digesting, label, allowed), label, kinds)
        elif format_ == "csv":
            delimiter = self._options.delimiter
            kinds = csv_kinds(self._text(file, label, allowed), label, delimiter) | kinds
            file.seek(0)
            text = self._text(digesting, label, allowed)
            yield from read_csv(text, label, delimiter, kinds)
        else:
            yield from read_parquet(file, label, allowed)

    def _text(self, file: BinaryIO | DigestingFile, label: str, allowed: int) -> Iterator[bytes]:
        chunks = bounded(plain_chunks(file, label), allowed, label)
        return as_utf8(chunks, self._options.encoding, label)

    def _format(self, label: str) -> Format:
        """The format to read a file as.

        Raises:
            SourceError: Its suffix says nothing, or it is compressed twice.
        """
        codec = compression(label)
        stem = label if codec is None else label.rpartition(".")[0]
        format_: str | None = self._options.format
        if format_ == "auto":
            format_ = _SUFFIXES.get(os.path.splitext(stem)[1].lower())
        if format_ is None:
            raise SourceError(
                f"{label}: no format is known by this suffix. Valid: {', '.join(_SUFFIXES)}, "
                "each also with .gz or .zst (but not .parquet).",
                "Rename the file, or set `format` for this source.",
            )
        if format_ == "parquet" and codec is not None:
            raise SourceError(
                f"{label}: Parquet compresses its own pages, so it is not read through {codec}.",
                "Decompress the file.",
            )
        return cast(Format, format_)

    def _pin(self, label: str, path: Path) -> Unit:
        with _open(path, label) as file:
            digest = DigestingFile(file).digest_to_end()
            size_bytes = os.fstat(file.fileno()).st_size
        return Unit(_stream(digest), 1, label, size_bytes)

    def _paths(self) -> dict[str, Path]:
        """Label -> path of every file that matches.

        Raises:
            SourceError: A path matches no file.
        """
        found: dict[str, Path] = {}
        for pattern in self._options.paths:
            if pattern.startswith(objects.SCHEME):
                continue
            literal = self._folder / pattern
            if literal.exists():
                matches = [literal]
            else:
                names = glob.glob(pattern, root_dir=self._folder, recursive=True)
                matches = [self._folder / name for name in names]
            files = {self._label(path): path for path in matches if path.is_file()}
            if not files:
                raise _no_match(pattern, literal, is_glob=glob.has_magic(pattern))
            found |= files
        return found

    def _objects(self) -> Iterator[objects.Object]:
        for pattern in self._options.paths:
            if pattern.startswith(objects.SCHEME):
                yield from objects.find(pattern)

    def _label(self, path: Path) -> str:
        plain = Path(os.path.normpath(path))
        inside = plain.is_relative_to(self._folder)
        return (plain.relative_to(self._folder) if inside else plain).as_posix()


def _no_match(pattern: str, literal: Path, is_glob: bool) -> SourceError:
    """Say why ``pattern`` stands for no file, and what was perhaps meant."""
    if literal.is_dir():
        return SourceError(
            f"{pattern!r} is a folder.", f"Name the files in it: {pattern.rstrip('/')}/*.jsonl"
        )
    parent = literal.parent
    if not is_glob and parent.is_dir():
        near = difflib.get_close_matches(literal.name, os.listdir(parent), n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return SourceError(f"There is no file {pattern!r} in {parent}.{guess}", _WHERE)
    while not parent.is_dir():
        parent = parent.parent
    here = ", ".join(sorted(os.listdir(parent))[:8]) or "nothing"
    return SourceUnavailable(f"No file matches {pattern!r}; {parent} holds {here}.", _WHERE)


def _stream(digest: str) -> str:
    return f"sha256:{digest}"


def _open(path: Path, label: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise SourceError(
            f"{label} cannot be opened: {error.strerror}.",
            "Restore the file, or run again to pin what is there now.",
        ) from error


def _hopeful(pieces: Iterable[Piece], label: str) -> Iterator[Piece]:
    """Pass pieces on, unless no line at all is a row.

    Raises:
        SourceError: The file ended, or ``HOPELESS_AFTER`` lines passed, without a row.
    """
    num_bad = 0
    first: DeadLetter | None = None
    any_rows = False
    for piece in pieces:
        if isinstance(piece, DeadLetter):
            num_bad += 1
            first = first or piece
        else:
            any_rows = True
        if num_bad >= HOPELESS_AFTER and not any_rows:
            break
        yield piece
    if first is not None and not any_rows:
        raise SourceError(
            f"{label}: not one of {num_bad} lines is a row. {first.origin}: {first.reason}.",
            _hint(first),
        )


def _hint(first: DeadLetter) -> str:
    if first.excerpt.lstrip().startswith("["):
        return "A JSON array is not JSON Lines; convert it with: jq -c '.[]' FILE"
    if "is reserved" in first.reason:
        return "Rename the column in the file."
    if first.excerpt.lstrip().startswith("{"):
        return "JSON Lines has one whole object on each line; convert it with: jq -c . FILE"
    return "Check that the file is what its suffix says, or set `format`."
