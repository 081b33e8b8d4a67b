"""Files as lines: decompressed, decoded, and never more than a few MiB at a time."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, BinaryIO

import pyarrow as pa
from pydantic import Field

from penstock.errors import SourceError
from penstock.section import Place

CHUNK_BYTES = 1 << 20
# A longer line is not a row of text anyone trains on, it is a file without newlines.
MAX_LINE_BYTES = 16 << 20

# Text packs to a twentieth of its size; what unpacks to more than so many times it is a bomb.
MAX_EXPANSION = 200.0
# Or a small file: ten million equal rows pack to nearly nothing, and fill no disk.
NO_BOMB_BYTES = 4 << 30

MaxExpansion = Annotated[
    float,
    Place(),
    Field(
        ge=1,
        description="How many times its size a file may unpack to, if that is more than 4 GiB; "
        "more is refused as a decompression bomb.",
    ),
]

_CODECS = {".gz": "gzip", ".zst": "zstd"}
_SIGNATURES = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "gzip-compressed data",
    b"\x28\xb5\x2f\xfd": "zstd-compressed data",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF document",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


class DigestingFile:
    """A binary file that takes the SHA-256 of every byte that is read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes."""
        data = self._file.read(size)
        self._sha256.update(data)
        self._num_bytes += len(data)
        return data

    def digest_to_end(self) -> str:
        """The hexadecimal digest of the whole file, wherever others left it."""
        self._file.seek(self._num_bytes)
        while self.read(CHUNK_BYTES):
            pass
        return self._sha256.hexdigest()


class _KeptOpen:
    """A file that is still open when Arrow closes what it has read: it may be read again."""

    def __init__(self, file: BinaryIO | DigestingFile) -> None:
        self.read = file.read
        self.closed = False

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""


def compression(name: str) -> str | None:
    """The codec that a file's suffix stands for; None when it is plain."""
    return next((codec for suffix, codec in _CODECS.items() if name.endswith(suffix)), None)


def plain_chunks(file: BinaryIO | DigestingFile, label: str) -> Iterator[bytes]:
    """The file's content, decompressed as its name asks for.

    Raises:
        SourceError: The compressed data is damaged or ends too early.
    """
    codec = compression(label)
    try:
        stream: Any = file
        if codec is not None:
            stream = pa.CompressedInputStream(pa.PythonFile(_KeptOpen(file), mode="r"), codec)
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
    except (OSError, pa.ArrowException) as error:
        raise SourceError(
            f"{label}: not a whole {codec or 'readable'} file: {error}",
            "Copy the file again, or give it the suffix of what it really is.",
        ) from error


def allowed_bytes(size_bytes: int, max_expansion: float) -> int:
    """How much a file of this size may unpack to."""
    return max(NO_BOMB_BYTES, int(size_bytes * max_expansion))


def refuse_bomb(num_bytes: int, allowed: int, label: str) -> None:
    """Check that no more has been unpacked than is allowed.

    Raises:
        SourceError: More has.
    """
    if num_bytes > allowed:
        raise SourceError(
            f"{label} unpacks to more than {allowed:,} bytes, far more than its size: it seems to "
            "be a decompression bomb.",
            "If it is what it should be, raise `max_expansion` for this source.",
        )


def bounded(chunks: Iterable[bytes], allowed: int, label: str) -> Iterator[bytes]:
    """Pass chunks on, up to so many bytes.

    Raises:
        SourceError: There are more.
    """
    num_bytes = 0
    for chunk in chunks:
        num_bytes += len(chunk)
        refuse_bomb(num_bytes, allowed, label)
        yield chunk


def as_utf8(chunks: Iterable[bytes], encoding: str, label: str) -> Iterator[bytes]:
    """Recode chunks to UTF-8, across their cuts.

    UTF-8 itself is passed through unchecked, so that one bad line costs one line.

    Raises:
        SourceError: The bytes are not ``encoding``.
    """
    if codecs.lookup(encoding).name == "utf-8":
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise SourceError(
            f"{label}: not {encoding} text: {error}", "Set `encoding` to the file's own."
        ) from error


def refuse_binary(chunks: Iterable[bytes], label: str, expected: str) -> Iterator[bytes]:
    """Pass chunks on, unless the first shows that this is not text at all.

    Raises:
        SourceError: It is not, and what it looks like.
    """
    for index, chunk in enumerate(chunks):
        if index == 0 and (found := binary_kind(chunk)):
            raise SourceError(
                f"{label}: expected {expected}, but this looks like {found}.",
                "Give the file the suffix of what it is, or set `format` or `encoding`.",
            )
        yield chunk


def binary_kind(head: bytes) -> str | None:
    """What a file that begins with ``head`` looks like, if not like UTF-8 text."""
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    return "binary data" if b"\0" in head[:4096] else None


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their newline, the byte order mark removed.

    A line longer than ``MAX_LINE_BYTES`` comes cut to one byte more than that,
    so the reader sees that it is too long and memory never holds the rest.
    """
    head = b""
    first = True
    for chunk in chunks:
        data = chunk.removeprefix(codecs.BOM_UTF8) if first else chunk
        first = False
        *whole, tail = data.split(b"\n")
        if whole:
            whole[0] = head + whole[0][: MAX_LINE_BYTES + 1 - len(head)]
            yield from whole
            head = b""
        head += tail[: MAX_LINE_BYTES + 1 - len(head)]
    if head:
        yield head
