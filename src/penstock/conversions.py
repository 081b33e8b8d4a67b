"""What serving backends derive from a version's files: where it is, and how long it stays.

A conversion can always be made again from the version. What serves, and what a
rollback would serve, keep theirs: nobody should wait for it then.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from penstock.store import Store

# Younger ones may be of a version that is on its way to serve.
_KEPT_S = 24 * 3600.0


def conversions(store: Store) -> Path:
    """Where a store keeps all conversions."""
    return store.root / "serving"


def conversion(place: Path, digest: str) -> Path:
    """Where the conversion of the version with this digest is kept."""
    return place / digest


def sweep_conversions(place: Path, wanted: Collection[str]) -> None:
    """Remove conversions that nobody has use for, once they are a day old.

    Args:
        place: Where they are kept.
        wanted: Digests of the versions whose conversions stay.
    """
    for folder in place.iterdir() if place.is_dir() else ():
        with suppress(OSError):  # another run sweeps at the same time
            age_s = time.time() - folder.stat().st_mtime
            if folder.name not in wanted and age_s > _KEPT_S:
                # Whoever looks for it finds all of it or nothing.
                aside = folder.rename(folder.with_name(f"gone-{folder.name}"))
                shutil.rmtree(aside, ignore_errors=True)
