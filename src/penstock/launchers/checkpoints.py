"""Checkpoints: which one to go on from.

A checkpoint counts once it has a manifest, written after all of its files. Without
one it was cut short by a kill; with other content than the manifest says, a disk or
a person damaged it. Neither is gone on from.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from penstock.artifacts import damaged_files

_log = logging.getLogger(__name__)


def newest_checkpoint(folder: Path, usable: Callable[[Path], bool]) -> Path | None:
    """The newest complete and undamaged checkpoint; what is newer is removed.

    Args:
        folder: Holds ``checkpoint-STEP`` folders.
        usable: Says no to one that cannot be gone on from for another reason.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        damaged = damaged_files(checkpoint)
        if not damaged and usable(checkpoint):
            return checkpoint
        if damaged:
            _log.warning("%s is not gone on from: %s", checkpoint, ", ".join(damaged))
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def step_of(checkpoint: Path) -> int:
    """After how many steps it was taken."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
