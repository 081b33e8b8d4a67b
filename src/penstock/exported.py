"""Files written for other tools, which people then edit: nothing of theirs is overwritten.

What was written is known again by its digest. A file that goes alone carries its own in a
comment; beside the files of a folder stands a list. A file that is there and not as its digest
says has been changed by hand, or was never ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from penstock.artifacts import store_errors
from penstock.errors import PenstockError, StoreError

MANIFEST = ".penstock-export.json"
_MARK = "# Digest of what follows: "


def marked(head: str, body: str) -> str:
    """The text of a file that goes alone: how it was made, its digest, and what it is about.

    Args:
        head: Lines that begin with ``#``, ending with a line feed.
        body: The rest, ending with a line feed.
    """
    return f"{head}{_MARK}{_digest(body)}\n{body}"


def write_file(path: Path, text: str, force: bool = False) -> bool:
    """Write a file that goes alone.

    Args:
        path: Its folder is made if it is not there.
        text: Made by ``marked``.
        force: Overwrite what was changed by hand.

    Returns:
        Whether anything was written.

    Raises:
        PenstockError: The file was changed by hand.
    """
    there = _read(path)
    if there == text:
        return False
    if there is not None and not force and not _is_untouched(there):
        raise PenstockError(
            f"{path} was changed by hand.", "Look at the changes; --force overwrites them."
        )
    with store_errors(path):
        _write(path, text)
    return True


def check_file(path: Path, text: str, command: str) -> None:
    """Look whether a file that goes alone is what would be written.

    Args:
        path: The file.
        text: What would be written.
        command: Which writes it.

    Raises:
        PenstockError: It is missing, older, or changed by hand.
    """
    there = _read(path)
    if there is None:
        raise PenstockError(f"There is no {path}.", f"Write it with: {command}")
    if there != text:
        hint = "Export it again with the same options; --force if changed by hand."
        raise PenstockError(f"{path} {_why_other(_is_untouched(there))}.", hint)


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
    before = _manifest(folder)
    there = {name: _read(folder / name) for name in files}
    theirs = [
        str(folder / name)
        for name, text in there.items()
        if text not in (None, files[name]) and not _is_listed(before, name, text or "")
    ]
    if theirs and not force:
        raise PenstockError(
            f"Changed by hand: {', '.join(theirs)}.",
            "Export to another folder and compare; --force overwrites them.",
        )
    changed = [name for name, text in files.items() if there[name] != text]
    after = before | {name: _digest(text) for name, text in files.items()}
    # Until all are written, a file may be as it was or as it will be, wherever this is killed.
    either = after | {name: f"{before.get(name, '')} {after[name]}".strip() for name in changed}
    with store_errors(folder):
        if either != before:
            _write_manifest(folder, either)
        for name in changed:
            _write(folder / name, files[name])
        if after != either:
            _write_manifest(folder, after)
    return [folder / name for name in changed]


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Look whether the files are what would be written.

    Raises:
        PenstockError: One is missing, older, or changed by hand.
    """
    before = _manifest(folder)
    for name, text in files.items():
        path, there = folder / name, _read(folder / name)
        if there is None:
            raise PenstockError(f"There is no {path}.", "Export without --check.")
        if there != text:
            why = _why_other(_is_listed(before, name, there))
            raise PenstockError(f"{path} {why}.", "Export again; --force if changed by hand.")


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as people write them, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Two that are equal may become different when somebody edits one."""
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)


def as_yaml(*documents: Any, width: int = 1000) -> str:
    """YAML for people: keys in our order, long texts in blocks."""
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, width=width, allow_unicode=True
    )


def _is_untouched(text: str) -> bool:
    """Whether a file is an export, of whatever version and options, that nobody has edited."""
    found = re.search(rf"^{re.escape(_MARK)}([0-9a-f]{{64}})\n", text, re.MULTILINE)
    return (
        found is not None
        and all(line.startswith("#") for line in text[: found.start()].splitlines())
        and _digest(text[found.end() :]) == found.group(1)
    )


def _is_listed(manifest: Mapping[str, str], name: str, text: str) -> bool:
    return _digest(text) in manifest.get(name, "").split()


def _why_other(is_ours: bool) -> str:
    return "would be written otherwise" if is_ours else "was changed by hand"


def _manifest(folder: Path) -> dict[str, str]:
    """File -> its digest; two, before and after, where an export was cut off."""
    text = _read(folder / MANIFEST)
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PenstockError(f"{folder / MANIFEST} is damaged.", "Remove it, and export to see.")
    return {str(name): str(digest) for name, digest in found.items()}


def _write_manifest(folder: Path, manifest: Mapping[str, str]) -> None:
    _write(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise StoreError(f"{path} is not text.", "Move it away.") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}", "Move it away.") from None


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, also when two do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
