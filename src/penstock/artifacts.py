"""What a stage leaves behind, and how it is committed.

Everything lives under one store root::

    tables/<recipe>/...                 Delta tables (see tables.py)
    artifacts/<stage>/<fingerprint>-<digest>/   a stage's result, with manifest.json
    staging/<stage>-<fingerprint>.<attempt>/    being made; swept by the next attempt
    checkpoints/<fingerprint>/          training under way; gone once it is committed

A folder appears under ``artifacts/`` by one rename, complete with the SHA-256
of every file in it, or it does not appear at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.errors import StoreError

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


class Store:
    """A folder that holds everything a project makes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> Store:
        """Create the store, or say why it cannot be written.

        Raises:
            StoreError: The folder cannot be created or written.
        """
        with store_errors(self.root):
            for name in ("tables", "artifacts", "staging", "checkpoints"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            # A file without a name: a kill here leaves nothing.
            with tempfile.TemporaryFile(dir=self.root / "staging") as probe:
                probe.write(b"x")
        return self

    def folder(self, artifact: Artifact) -> Path:
        """Where an artifact's files are."""
        return self.root / artifact.path

    def table(self, recipe: str, name: str) -> Path:
        """Where a recipe's Delta table is."""
        return self.root / "tables" / recipe / name

    def checkpoints(self, print_: str) -> Path:
        """Where the training with this fingerprint keeps its checkpoints."""
        return self.root / "checkpoints" / print_[:20]

    def is_intact(self, artifact: Artifact) -> bool:
        """Whether the files are still there, by manifest digest and file sizes."""
        folder = self.folder(artifact)
        try:
            text = (folder / MANIFEST).read_bytes()
            if hashlib.sha256(text).hexdigest() != artifact.digest:
                return False
            return all(
                os.stat(folder / name).st_size == entry["size_bytes"]
                for name, entry in json.loads(text).items()
            )
        except OSError:
            return False

    def stage_folder(self, stage: str, print_: str) -> Path:
        """An empty folder to make a result in; what an earlier attempt left is gone.

        Each attempt has a folder of its own: one that lost its claim while it
        was paused may still be writing when its successor has begun.
        """
        name = f"{stage}-{print_[:20]}"
        folder = self.root / "staging" / f"{name}.{uuid.uuid4()}"
        with store_errors(folder):
            for earlier in folder.parent.glob(f"{name}.*"):
                shutil.rmtree(earlier, ignore_errors=True)
            folder.mkdir(parents=True)
        return folder

    def sweep(self, is_live: Callable[[str], bool], abandoned_s: float) -> None:
        """Remove what killed runs left behind and nobody is going to continue.

        A half-made result is of no use to anyone; checkpoints are, until they
        have been left alone for ``abandoned_s``.

        Args:
            is_live: Whether the folder of this name is being worked on.
            abandoned_s: Age from which checkpoints are given up, seconds.
        """
        for folder in (self.root / "staging").iterdir():
            if not is_live(folder.name.partition(".")[0]):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.root / "checkpoints").iterdir():
            with suppress(FileNotFoundError):  # another run sweeps at the same time
                age_s = time.time() - folder.stat().st_mtime
                if age_s > abandoned_s and not is_live(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)

    def commit(self, staged: Path, stage: str, print_: str) -> tuple[str, str]:
        """Turn a staged folder into an artifact by one rename.

        Returns:
            The artifact's path relative to the root, and its digest.

        Raises:
            StoreError: The disk is full or not writable; nothing is committed.
        """
        with store_errors(staged):
            digest = write_manifest(staged)
            # Named by its content too: a result that is made again and comes out
            # otherwise never replaces the files of one that serves.
            final = self.root / "artifacts" / stage / f"{print_[:20]}-{digest[:12]}"
            final.parent.mkdir(parents=True, exist_ok=True)
            # A folder already here was renamed by an attempt that died before
            # it was recorded, or is damaged; in both cases this one replaces it.
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staged, final)
            _fsync_folder(final.parent)
        return str(final.relative_to(self.root)), digest

    def prune(self, artifact: Artifact, registered: Iterable[str]) -> None:
        """Remove earlier attempts at a result that has been recorded now.

        Args:
            artifact: What was recorded.
            registered: Paths of registered models; an attempt that holds one stays.
        """
        for other in self._earlier_attempts(artifact):
            held = str(other.relative_to(self.root))
            if not any(path.startswith(f"{held}/") for path in registered):
                shutil.rmtree(other, ignore_errors=True)

    def has_earlier_attempts(self, artifact: Artifact) -> bool:
        """Whether there are folders of other attempts at this result."""
        return bool(self._earlier_attempts(artifact))

    def _earlier_attempts(self, artifact: Artifact) -> list[Path]:
        final = self.root / artifact.path
        print_ = final.name.rpartition("-")[0]
        return [other for other in final.parent.glob(f"{print_}-*") if other != final]


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
def store_errors(place: Path) -> Iterator[None]:
    """Turn the operating system's refusals into words.

    Delta's writer is Rust and reports a full disk only in its message.

    Raises:
        StoreError: Instead of OSError and Delta's errors for a full, read-only
            or forbidden place.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
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
        if isinstance(error, FileExistsError | NotADirectoryError):
            raise StoreError(
                f"{place} cannot be a folder: a file is in its way.", "Set `store` in the recipe."
            ) from error
        raise


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
