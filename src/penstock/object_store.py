"""A store in an object store: shared by several hosts, with a working folder on each.

Tables are there alone. A stage's result is made in the working folder and then
uploaded, its manifest last: what has no manifest is not there. Whoever reads a
result gets a copy of it in the working folder, held to the recorded digests, so
that folder may be deleted at any time. Checkpoints stay on the host that trains.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from penstock.artifacts import MANIFEST, Artifact, file_digest, store_errors
from penstock.errors import StoreError
from penstock.folders import ObjectFolder
from penstock.store import Store, is_complete

_MARK = "penstock.json"
# Below this a bar would be gone before it was seen.
_BAR_BYTES = 64 << 20

Track = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class ObjectStore(Store):
    """A store whose tables and artifacts are under a URL.

    Args:
        root: The working folder.
        url: Such as ``s3://bucket/prefix``.
        track: Shows how far a long transfer is.
    """

    def __init__(self, root: Path, url: str, track: Track | None = None) -> None:
        super().__init__(root)
        self._shared: ObjectFolder = ObjectFolder(url)
        self._track = track or _untracked

    def open(self) -> ObjectStore:
        """Create the working folder, and make sure of the object store.

        Raises:
            StoreError: It does not answer, refuses, or cannot create an object on the
                condition that there is none, without which two writers of a Delta
                table would overwrite each other's commits.
        """
        super().open()
        mark = json.dumps({"store": "penstock"}).encode()
        if self._shared.create_once(_MARK, mark) and self._shared.create_once(_MARK, mark):
            raise StoreError(
                f"{self._shared.url}: this object store ignores If-None-Match, so it cannot "
                "keep two writers apart.",
                "Use one that honours conditional writes (S3, Google Cloud Storage, Azure, "
                "MinIO since 2024), or a folder on a shared volume.",
            )
        return self

    def fetch(self, path: str, digest: str) -> Path:
        """A copy in the working folder, each file of it held to its digest.

        Files are put in place one by one, the manifest last: a fetch that is cut short
        goes on where it was, and two at once do not disturb each other or a reader.

        Raises:
            StoreError: The files are gone or are not what was recorded, the disk is full,
                or the object store does not answer.
        """
        folder = self.root / path
        if is_complete(folder, digest):
            return folder
        manifest = self._manifest(path, digest)
        entries = json.loads(manifest)
        missing = {name: one for name, one in entries.items() if not _is(folder / name, one)}
        total = sum(one["size_bytes"] for one in missing.values())
        with store_errors(folder), self._transfer(f"download {path}", total) as advance:
            for name, entry in missing.items():
                _arrive(folder / name, self._verified(path, name, entry), advance)
            _arrive(folder / MANIFEST, [manifest], advance)
        return folder

    def has(self, path: str) -> bool:
        """Whether the store has files under a recorded path."""
        return bool((self._shared / path).files())

    def url(self, path: str) -> str:
        """Where others find the files under a recorded path."""
        return f"{self._shared.url}/{path}"

    def write_page(self, name: str, text: str) -> str:
        """Write a page about runs of this store, in place of an earlier one."""
        with store_errors(self._shared.url), (self._shared / "pages").written(name) as path:
            path.write_text(text, encoding="utf-8")
        return self.url(f"pages/{name}")

    def damaged(self, path: str, digest: str) -> list[str]:
        """Objects that are no longer what was recorded; reads every byte of them."""
        try:
            # Not the copy here, which cannot be what changed.
            entries = json.loads(self._kept_manifest(path, digest))
        except StoreError as error:
            if error.transient:
                raise
            return [MANIFEST]
        damaged = []
        total = sum(one["size_bytes"] for one in entries.values())
        with self._transfer(f"check {path}", total) as advance:
            for name, entry in entries.items():
                if not self._is_stored(path, name, entry):
                    damaged.append(name)
                advance(entry["size_bytes"])
        return damaged

    def is_intact(self, artifact: Artifact) -> bool:
        """Whether the objects are still there, by manifest digest and sizes."""
        sizes = (self._shared / artifact.path).files()
        if MANIFEST not in sizes:
            return False
        try:
            manifest = self._manifest(artifact.path, artifact.digest)
        except StoreError as error:
            if error.transient:
                raise
            return False
        entries = json.loads(manifest)
        return sizes[MANIFEST] == len(manifest) and all(
            sizes.get(name) == one["size_bytes"] for name, one in entries.items()
        )

    def commit(self, staged: Path, stage: str, print_: str) -> tuple[str, str]:
        """Turn a staged folder into an artifact, here and in the object store.

        Raises:
            StoreError: The disk is full, or the object store does not take the files;
                nothing is committed.
        """
        path, digest = super().commit(staged, stage, print_)
        self._upload(path)
        return path, digest

    def prune(self, artifact: Artifact, registered: Iterable[str]) -> None:
        """Remove earlier attempts at a result that has been recorded now."""
        registered = list(registered)
        super().prune(artifact, registered)
        for held in self._earlier_uploads(artifact):
            if not any(path.startswith(f"{held}/") for path in registered):
                folder = self._shared / held
                # The manifest first: without it there is no artifact.
                folder.delete([MANIFEST, *folder.files()])

    def has_earlier_attempts(self, artifact: Artifact) -> bool:
        """Whether there are folders of other attempts at this result."""
        return super().has_earlier_attempts(artifact) or bool(self._earlier_uploads(artifact))

    def _earlier_uploads(self, artifact: Artifact) -> list[str]:
        parent, _, name = artifact.path.rpartition("/")
        print_ = name.rpartition("-")[0]
        found = (self._shared / parent).folders()
        return [
            f"{parent}/{other}"
            for other in found
            if other.startswith(f"{print_}-") and other != name
        ]

    def _upload(self, path: str) -> None:
        folder, remote = self.root / path, self._shared / path
        entries = json.loads((folder / MANIFEST).read_text())
        total = sum(one["size_bytes"] for one in entries.values())
        with self._transfer(f"upload {path}", total) as advance:
            for name, entry in entries.items():
                remote.put(name, folder / name)
                advance(entry["size_bytes"])
            remote.put(MANIFEST, folder / MANIFEST)

    def _manifest(self, path: str, digest: str) -> bytes:
        """The recorded manifest: the working folder's, or the object store's."""
        here = self.root / path / MANIFEST
        if here.is_file() and file_digest(here) == digest:
            return here.read_bytes()
        return self._kept_manifest(path, digest)

    def _kept_manifest(self, path: str, digest: str) -> bytes:
        """The recorded manifest, as the object store has it."""
        place = f"{self._shared.url}/{path}"
        try:
            text = b"".join((self._shared / path).get(MANIFEST))
        except FileNotFoundError:
            raise StoreError(
                f"{place} is gone from the object store.",
                "Make it again: penstock run. If it serves, go back: penstock model rollback",
            ) from None
        if hashlib.sha256(text).hexdigest() != digest:
            raise StoreError(
                f"{place} is damaged: {MANIFEST}.",
                "Make it again: penstock run --force STAGE",
            )
        return text

    def _verified(self, path: str, name: str, entry: Mapping[str, Any]) -> Iterator[bytes]:
        """A file's bytes; at their end it is known whether they are the recorded ones."""
        digest = hashlib.sha256()
        try:
            for chunk in (self._shared / path).get(name):
                digest.update(chunk)
                yield chunk
        except FileNotFoundError:
            raise StoreError(
                f"{self._shared.url}/{path}/{name} is gone from the object store.",
                "Make it again: penstock run --force STAGE",
            ) from None
        if digest.hexdigest() != entry["sha256"]:
            raise StoreError(
                f"{self._shared.url}/{path}/{name} is damaged: its SHA-256 is "
                f"{digest.hexdigest()[:12]}, and {entry['sha256'][:12]} was recorded.",
                "Make it again: penstock run --force STAGE. If it serves, go back to another "
                "version: penstock model rollback",
            )

    def _is_stored(self, path: str, name: str, entry: Mapping[str, Any]) -> bool:
        try:
            for _ in self._verified(path, name, entry):
                pass
        except StoreError as error:
            if error.transient:
                raise
            return False
        return True

    @contextmanager
    def _transfer(self, label: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
        track = self._track if num_bytes >= _BAR_BYTES else _untracked
        with track(label, num_bytes) as advance:
            yield advance


@contextmanager
def _untracked(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def _is(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is here already, as it was recorded."""
    try:
        same_size = path.stat().st_size == entry["size_bytes"]
        return bool(same_size and file_digest(path) == entry["sha256"])
    except OSError:
        return False


def _arrive(path: Path, chunks: Iterable[bytes], advance: Callable[[int], None]) -> None:
    """Write a file beside its place, and rename it there once all of it has come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                advance(len(chunk))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
