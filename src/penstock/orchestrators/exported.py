"""Files written for other tools: with a digest of themselves, so that no edit is overwritten."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from penstock.artifacts import store_errors
from penstock.errors import PenstockError

_MARK = "# Digest of what follows: "


def marked(head: str, body: str) -> str:
    """A file's text: comments on how it was made, a digest, and what it is about.

    Args:
        head: Lines that begin with ``#``, ending with a line feed.
        body: The rest, ending with a line feed.
    """
    return f"{head}{_MARK}{_digest(body)}\n{body}"


def write(text: str, path: Path, force: bool = False) -> bool:
    """Write an export, unless somebody has edited the one that is there.

    Returns:
        Whether anything was written.

    Raises:
        PenstockError: The file was changed by hand; ``force`` overwrites it.
    """
    there = _read(path)
    if there == text:
        return False
    if there is not None and not force and not is_untouched(there):
        raise PenstockError(
            f"{path} was changed by hand.", "Look at the changes; --force overwrites them."
        )
    new = path.with_name(f".{path.name}.new")
    with store_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    return True


def check(text: str, path: Path, command: str) -> None:
    """Look whether the file is what would be written.

    Args:
        text: What would be written.
        path: The file.
        command: Which writes it.

    Raises:
        PenstockError: It is missing, older, or changed by hand.
    """
    there = _read(path)
    if there is None:
        raise PenstockError(f"There is no {path}.", f"Write it with: {command}")
    if there != text:
        why = "would be written otherwise" if is_untouched(there) else "was changed by hand"
        raise PenstockError(
            f"{path} {why}.", "Export it again with the same options; --force if changed by hand."
        )


def is_untouched(text: str) -> bool:
    """Whether a file is an export, of whatever version and options, that nobody has edited."""
    found = re.search(rf"^{re.escape(_MARK)}([0-9a-f]{{64}})\n", text, re.MULTILINE)
    return (
        found is not None
        and all(line.startswith("#") for line in text[: found.start()].splitlines())
        and _digest(text[found.end() :]) == found.group(1)
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PenstockError(f"{path} cannot be read: {error}", "Move it away.") from None


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
