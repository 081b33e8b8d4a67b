"""A model's files on their way to a folder: whole, verified, and never unpickled."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from penstock.artifacts import (
    MANIFEST,
    damaged_files,
    manifest_entry,
    manifest_text,
    store_errors,
)
from penstock.errors import RecipeError, RegistryError, StoreError
from penstock.model_registry import ModelRegistry, RegisteredVersion

_PICKLES = frozenset(
    {".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".pt", ".pth", ".ckpt"}
)
# The first byte of a pickle, and its protocol; older ones are known by their names only.
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))


@dataclass(frozen=True)
class Download:
    """What came: a version's files, and what is in them.

    Attributes:
        name: The model's.
        version: Its number.
        folder: Where the files are.
        digest: SHA-256 over the manifest of the files.
        num_files: How many they are.
        verified: Whether they were held to digests recorded at registration.
    """

    name: str
    version: int
    folder: Path
    digest: str
    num_files: int
    verified: bool


def download(registry: ModelRegistry, name: str, version: int, output_dir: Path) -> Download:
    """Copy a registered version's files to a new folder, whole or not at all.

    A folder that holds exactly these files is left as it is.

    Raises:
        RegistryError: There is no such version, its files cannot be read, or one is pickled.
        RecipeError: The folder is there, with other content.
        StoreError: The files are not what was registered, or the disk is full.
    """
    found = registry.version(name, version)
    files = registry.files(found)
    refuse_pickles(files)
    _check_room(output_dir, sum(files.values()))

    def fill(folder: Path) -> None:
        for path in files:
            registry.fetch(found, path, folder)

    digest, verified = arrive(output_dir, fill, found.digest)
    return Download(name, version, output_dir, digest, len(set(files) - {MANIFEST}), verified)


def arrive(
    output_dir: Path, fill: Callable[[Path], None], expected: str | None
) -> tuple[str, bool]:
    """Fill a folder beside ``output_dir``, verify it, and rename it into place.

    Args:
        output_dir: Absent, empty, or holding the same files already.
        fill: Writes the files; a ``manifest.json`` among them is verified and left out.
        expected: The digest the files must have, if it is known.

    Returns:
        The files' digest, and whether a manifest or ``expected`` vouched for them.

    Raises:
        RecipeError: The folder is there, with other content.
        RegistryError: A file is pickled.
        StoreError: The files are not what they should be, or the disk is full.
    """
    occupied = output_dir.is_dir() and any(output_dir.iterdir())
    if occupied and expected is not None:
        _refuse_others(output_dir, expected)
        return expected, True
    with store_errors(output_dir), _staged(output_dir) as staged:
        fill(staged)
        verified = _verify(staged, expected)
        refuse_pickled_content(staged)
        digest = content_digest(staged)
        if occupied:
            _refuse_others(output_dir, digest)
            return digest, verified
        (staged / MANIFEST).unlink(missing_ok=True)
        if output_dir.exists():
            output_dir.rmdir()
        os.replace(staged, output_dir)
    return digest, verified


def content_digest(folder: Path) -> str:
    """The digest of a folder's files; its manifest, if it has one, is none of them.

    Raises:
        RecipeError: There is no such folder, or it is empty.
    """
    entries = {
        str(path.relative_to(folder)): manifest_entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    if not entries:
        raise RecipeError(f"{folder} holds no files.", "Name the folder that was downloaded.")
    return hashlib.sha256(manifest_text(entries).encode()).hexdigest()


def digest_in_registry(registry: ModelRegistry, found: RegisteredVersion) -> str:
    """The digest of a registered version's files, read one after the other and not kept."""
    entries = {}
    files = registry.files(found)
    refuse_pickles(files)
    for path in files:
        if path != MANIFEST:
            with tempfile.TemporaryDirectory(prefix="penstock-") as scratch:
                registry.fetch(found, path, Path(scratch))
                refuse_pickled_content(Path(scratch))
                entries[path] = manifest_entry(Path(scratch) / path)
    return hashlib.sha256(manifest_text(entries).encode()).hexdigest()


def refuse_pickles(paths: Iterable[str]) -> None:
    """Refuse files whose names say that they are pickled.

    Raises:
        RegistryError: One is.
    """
    for path in paths:
        if Path(path).suffix.lower() in _PICKLES:
            raise _pickled(path)


def refuse_pickled_content(folder: Path) -> None:
    """Refuse files that are pickled whatever they are called; none is opened as such.

    Raises:
        RegistryError: One is.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise RegistryError(f"{path.relative_to(folder)} is a link, not a file.")
        if path.is_file() and _is_pickled(path):
            raise _pickled(str(path.relative_to(folder)))


def _is_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(2) in _PICKLE_STARTS:
            return True
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).suffix.lower() in _PICKLES for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _pickled(path: str) -> RegistryError:
    return RegistryError(
        f"{path} is pickled: to read it would run whatever its maker wrote.",
        "Save the model with safe_serialization=True (safetensors), and register that.",
    )


def _verify(folder: Path, expected: str | None) -> bool:
    """Hold the files to their manifest and to the digest they were registered with."""
    listed = (folder / MANIFEST).is_file()
    damaged = damaged_files(folder) if listed else []
    if damaged:
        raise StoreError(
            f"The registry's files are damaged: {', '.join(damaged)}.",
            "They are not what was registered; register the model again.",
        )
    if expected is not None and content_digest(folder) != expected:
        raise StoreError(
            f"The registry's files are not those of digest {expected[:12]} that was registered.",
            "Somebody changed or added files since; register the model again.",
        )
    return listed or expected is not None


def _refuse_others(output_dir: Path, digest: str) -> None:
    if content_digest(output_dir) != digest:
        raise RecipeError(f"{output_dir} holds other files.", "Name a new folder.")


def _check_room(output_dir: Path, num_bytes: int) -> None:
    place = output_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if num_bytes > free:
        raise StoreError(
            f"The files are {num_bytes / 1e9:.2f} GB, and {output_dir} has room for "
            f"{free / 1e9:.2f} GB.",
            "Free some space, or name a folder on another disk.",
        )


@contextmanager
def _staged(output_dir: Path) -> Iterator[Path]:
    """A folder beside the wanted one; gone at the end, as are those of killed downloads."""
    place = output_dir.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{place.name}.*.part"):
        pid = left.name.split(".")[-2]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            shutil.rmtree(left, ignore_errors=True)
    staged = place.with_name(f".{place.name}.{os.getpid()}.part")
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
