"""What a stage leaves behind, how it is identified, and what its files must be."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.errors import StoreError
from penstock.folders import object_error

MANIFEST = "manifest.json"


def fingerprint(stage: str, revision: int, settings: Mapping[str, Any], inputs: list[str]) -> str:
    """Identify a stage's result before it exists.

    Args:
        stage: The stage's name.
        revision: Its hand-bumped revision.
        settings: What was asked of it, as plain JSON values.
        inputs: Fingerprints of its inputs, in order.

    Returns:
        64 hex digits.

    Raises:
        TypeError: A setting has no stable encoding.
    """
    return digest_of([stage, revision, settings, inputs])


def digest_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON.

    Raises:
        TypeError: The value holds something other than plain JSON values.
        ValueError: It holds NaN or an infinity.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """The committed result of one stage.

    Attributes:
        fingerprint: What identifies it, known before it was made.
        stage: The stage that made it.
        path: Its folder, relative to the store root.
        digest: SHA-256 over its manifest: what is really in it.
        summary: The numbers worth showing, and table versions (small, JSON).
        settings: The settings that entered the fingerprint.
        inputs: Input name -> fingerprint.
        input_contents: Input name -> what was really in it, to notice when a
            result was made again and came out otherwise.
        run_id: The run that made it.
        duration_s: How long that took.
    """

    fingerprint: str
    stage: str
    path: str
    digest: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    input_contents: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""
    duration_s: float = 0.0

    @property
    def content(self) -> str:
        """What later stages read of this result: the model, the table versions, or all files."""
        if "model_digest" in self.summary and self.stage == "train":
            return str(self.summary["model_digest"])
        if "tables" in self.summary:
            return digest_of(self.summary["tables"])
        return self.digest


def write_manifest(folder: Path) -> str:
    """Record the size and SHA-256 of every file below ``folder``; returns its digest."""
    text = manifest_text(
        {
            str(path.relative_to(folder)): manifest_entry(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path != folder / MANIFEST
        }
    )
    with (folder / MANIFEST).open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of one file."""
    return {"size_bytes": path.stat().st_size, "sha256": file_digest(path)}


def manifest_text(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """A manifest as it is written: path -> entry; its SHA-256 is the folder's digest."""
    return json.dumps(entries, indent=1, sort_keys=True)


def damaged_files(folder: Path) -> list[str]:
    """Files whose content is no longer what the manifest says (reads everything)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return [MANIFEST]
    return [
        name
        for name, entry in manifest.items()
        if not (folder / name).is_file() or file_digest(folder / name) != entry["sha256"]
    ]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def store_errors(place: Path | str) -> Iterator[None]:
    """Turn the operating system's refusals into words.

    Delta's client is Rust and says what the system refused only in its message.

    Raises:
        StoreError: Instead of OSError and Delta's errors for a full, read-only
            or forbidden place, and for an object store that refuses or does not answer.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        said = object_error(str(place), error)
        if said is not None:
            raise said from error
        text = str(error)
        if "No space left" in text or "os error 28" in text:
            raise StoreError(
                f"The disk is full: {place} cannot be written.",
                "Free some space and run again: what was finished is kept.",
            ) from error
        if isinstance(error, PermissionError) or "Permission denied" in text:
            raise StoreError(
                f"{place} is not writable.", "Change its owner, or set `store` in the recipe."
            ) from error
        if "Read-only file system" in text:
            raise StoreError(
                f"{place} is on a read-only file system.", "Set `store` in the recipe."
            ) from error
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        if in_the_way or "os error 20" in text:
            raise StoreError(
                f"{place} cannot be a folder: a file is in its way.", "Set `store` in the recipe."
            ) from error
        raise
