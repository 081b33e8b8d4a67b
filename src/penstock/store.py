"""The store: a folder that holds everything a project makes.

::

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
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from penstock.artifacts import (
    MANIFEST,
    Artifact,
    damaged_files,
    file_digest,
    store_errors,
    write_manifest,
)
from penstock.folders import Folder, LocalFolder
from penstock.tables import Table


class Store:
    """A folder that holds everything a project makes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._shared: Folder = LocalFolder(root)

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
        """Where an artifact's files can be read."""
        return self.fetch(artifact.path, artifact.digest)

    def fetch(self, path: str, digest: str) -> Path:
        """Where the files of an artifact, or of a model in one, can be read.

        Args:
            path: As it was recorded, relative to the store.
            digest: SHA-256 of its manifest.

        Raises:
            StoreError: They are kept elsewhere and cannot be had from there.
        """
        return self.root / path

    def has(self, path: str) -> bool:
        """Whether the store has files under a recorded path."""
        return (self.root / path).is_dir()

    def url(self, path: str) -> str:
        """Where others find the files under a recorded path."""
        return (self.root / path).as_uri()

    def damaged(self, path: str, digest: str) -> list[str]:
        """Files that are no longer what was recorded; reads every byte of them.

        Args:
            path: As it was recorded, relative to the store.
            digest: Of the manifest, so that one rewritten with the files is found too.
        """
        folder = self.root / path
        damaged = damaged_files(folder)
        if not damaged and file_digest(folder / MANIFEST) != digest:
            return [MANIFEST]
        return damaged

    def table(self, recipe: str, name: str) -> Table:
        """A recipe's Delta table."""
        return self.table_at(f"tables/{recipe}/{name}")

    def tables(self, recipe: str) -> list[Table]:
        """All Delta tables of a recipe, by their names."""
        names = (self._shared / "tables" / recipe).folders()
        return [self.table(recipe, name) for name in names]

    def table_at(self, key: str) -> Table:
        """The Delta table that a summary calls by this key."""
        return Table(self._shared / key, key)

    def checkpoints(self, print_: str) -> Path:
        """Where the training with this fingerprint keeps its checkpoints."""
        return self.root / "checkpoints" / print_[:20]

    def is_intact(self, artifact: Artifact) -> bool:
        """Whether the files are still there, by manifest digest and file sizes."""
        return is_complete(self.root / artifact.path, artifact.digest)

    def write_page(self, name: str, text: str) -> str:
        """Write a page about runs of this store, in place of an earlier one.

        Returns:
            Where others find it.

        Raises:
            StoreError: It cannot be written.
        """
        folder = self.root / "pages"
        part = folder / f".{uuid.uuid4()}"
        with store_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                part.write_text(text, encoding="utf-8")
                # Of two who write at once, one page stands whole.
                os.replace(part, folder / name)
            finally:
                part.unlink(missing_ok=True)  # of a full disk
        return self.url(f"pages/{name}")

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


def is_complete(folder: Path, digest: str) -> bool:
    """Whether a folder has the manifest of that digest, and files of the sizes in it."""
    try:
        text = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(text).hexdigest() != digest:
            return False
        return all(
            os.stat(folder / name).st_size == entry["size_bytes"]
            for name, entry in json.loads(text).items()
        )
    except OSError:
        return False


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
