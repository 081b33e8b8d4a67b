"""Files written for other tools, which people then edit: nothing of theirs is overwritten.

Beside the files stands a list of their digests as they were written. A file that is there and
not as the list says has been changed by hand, or was never ours.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from penstock.artifacts import store_errors
from penstock.errors import PenstockError

MANIFEST = ".penstock-export.json"


def write_files(folder: Path, files: Mapping[str, str], force: bool = False) -> list[Path]:
    """Write what is new or has changed.

    Args:
        folder: Made if it is not there.
        files: Path in the folder -> text.
        force: Overwrite what was changed by hand.

    Returns:
        What was written.

    Raises:
        PenstockError: A file was changed by hand; then nothing was written.
    """
    with store_errors(folder):
        before = _manifest(folder)
        there = {name: _read(folder / name) for name in files}
        theirs = [
            str(folder / name)
            for name, text in there.items()
            if text not in (None, files[name]) and _digest(text or "") != before.get(name)
        ]
        if theirs and not force:
            raise PenstockError(
                f"Changed by hand: {', '.join(theirs)}.",
                "Export to another folder and compare; --force overwrites them.",
            )
        changed = [name for name, text in files.items() if there[name] != text]
        for name in changed:
            _write(folder / name, files[name])
        after = before | {name: _digest(text) for name, text in files.items()}
        if after != before:
            _write(folder / MANIFEST, json.dumps(after, indent=2, sort_keys=True) + "\n")
    return [folder / name for name in changed]


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Look whether the files are what would be written.

    Raises:
        PenstockError: One is missing, older, or changed by hand.
    """
    with store_errors(folder):
        before = _manifest(folder)
        for name, text in files.items():
            there = _read(folder / name)
            if there == text:
                continue
            if there is None:
                raise PenstockError(f"There is no {folder / name}.", "Export without --check.")
            older = _digest(there) == before.get(name)
            why = "would be written otherwise" if older else "was changed by hand"
            raise PenstockError(
                f"{folder / name} {why}.", "Export again; --force if changed by hand."
            )


def _manifest(folder: Path) -> dict[str, str]:
    text = _read(folder / MANIFEST)
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PenstockError(f"{folder / MANIFEST} is damaged.", "Remove it, and export to see.")
    return {str(name): str(digest) for name, digest in found.items()}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise PenstockError(f"{path} is not text.", "Move it away.") from None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
