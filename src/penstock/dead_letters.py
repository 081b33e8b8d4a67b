"""Input that could not become rows: counted by reason, and shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from penstock.pipeline import Pipeline
from penstock.stages.ingest import DEAD_LETTERS
from penstock.transforms.base import ORIGIN, SOURCE


@dataclass(frozen=True)
class Reason:
    """The dead letters of one source that share a reason.

    Attributes:
        source: The source's name.
        reason: Why they are no rows.
        num_letters: How many there are.
        example: Where one of them stands.
    """

    source: str
    reason: str
    num_letters: int
    example: str


@dataclass(frozen=True)
class Letter:
    """One piece of input that is no row.

    Attributes:
        source: The source's name.
        origin: Where it stands, such as a file and a line.
        reason: Why it is no row.
        excerpt: How it begins.
    """

    source: str
    origin: str
    reason: str
    excerpt: str


def reasons(pipeline: Pipeline, source: str = "") -> list[Reason]:
    """Dead letters by source and reason, the most frequent first."""
    counts: dict[tuple[str, str], tuple[int, str]] = {}
    for entry in _entries(pipeline, source):
        key = entry[SOURCE], entry["reason"]
        count, example = counts.get(key, (0, entry[ORIGIN]))
        counts[key] = count + 1, example
    found = [Reason(*key, *value) for key, value in counts.items()]
    return sorted(found, key=lambda one: (-one.num_letters, one.source, one.reason))


def letters(pipeline: Pipeline, source: str = "", limit: int = 20) -> list[Letter]:
    """Dead letters, in the order they came."""
    entries = islice(_entries(pipeline, source), limit)
    return [Letter(e[SOURCE], e[ORIGIN], e["reason"], e["excerpt"]) for e in entries]


def _entries(pipeline: Pipeline, source: str) -> Iterator[dict[str, Any]]:
    table = pipeline.store.table(pipeline.recipe.name, DEAD_LETTERS)
    for batch in table.scan():
        yield from (entry for entry in batch.to_pylist() if source in ("", entry[SOURCE]))
