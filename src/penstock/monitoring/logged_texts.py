"""Which texts a window of traffic holds, and which a model was trained on."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import groupby
from typing import Any

from penstock.artifacts import Artifact
from penstock.day_tables import RESPONSE_ID, DayTable, day_of, id_ms
from penstock.drift_section import TextColumn
from penstock.errors import LedgerError
from penstock.ledger import Ledger, ModelVersion
from penstock.stages.prepare import EXAMPLES, SPLIT
from penstock.store import Store
from penstock.transforms.base import ROW_ID

# Rows of a window may be written so long after its end.
SETTLE_MS = 120_000
_CHOOSE_BY = (RESPONSE_ID, "status", "shadow", "digest", "conversation")


@dataclass(frozen=True)
class Window:
    """A span of time.

    Attributes:
        start_ms: The first millisecond, Unix.
        end_ms: The first one after it.
    """

    start_ms: int
    end_ms: int

    @property
    def name(self) -> str:
        """When it begins, in UTC."""
        return datetime.fromtimestamp(self.start_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")


@dataclass(frozen=True)
class Logged:
    """What the log has of a window.

    Attributes:
        ids: Responses chosen from it, in an order of chance: one of each conversation.
        num_conversations: How many there were to choose from.
        num_requests: Answered requests.
    """

    ids: tuple[str, ...]
    num_conversations: int
    num_requests: int


def closed_windows(since_ms: int, now_ms: int, window_s: float) -> list[Window]:
    """Whole windows after a moment that are over, and whose rows have been written."""
    length_ms = int(window_s * 1000)
    first = -(-since_ms // length_ms)
    last = (now_ms - SETTLE_MS) // length_ms
    return [Window(n * length_ms, (n + 1) * length_ms) for n in range(first, last)]


def choose(log: DayTable, window: Window, digest: str, at_most: int) -> Logged:
    """Choose responses of one version in a window, one of each conversation.

    Turns of a conversation resemble each other, and tests count rows as if they did not.

    Args:
        log: The request log.
        window: When.
        digest: Of the version's files.
        at_most: How many.
    """
    first: dict[str, str] = {}
    num_requests = 0
    for row in log.between(window.start_ms, window.end_ms, _CHOOSE_BY).to_pylist():
        if row["status"] != 200 or row["shadow"] or row["digest"] != digest:
            continue
        num_requests += 1
        name = row[RESPONSE_ID]
        held_by = row["conversation"] or name
        first[held_by] = min(first.get(held_by, name), name)
    chosen = sorted(first.values(), key=_lot)[:at_most]
    return Logged(tuple(chosen), len(first), num_requests)


def texts_of(log: DayTable, ids: Sequence[str], column: TextColumn) -> dict[str, str]:
    """What was asked or answered, by response id; without those that hold no text.

    Args:
        log: The request log.
        ids: Responses.
        column: Which of both.
    """
    found: dict[str, str] = {}
    for day, names in groupby(sorted(ids, key=id_ms), key=lambda name: day_of(id_ms(name))):
        for row in log.find(list(names), day).to_pylist():
            text = row["answer"] if column == "output" else last_asked(row["prompt"])
            if text and text.strip():
                found.setdefault(row[RESPONSE_ID], text)
    return {name: found[name] for name in ids if name in found}


def is_trained_here(ledger: Ledger, model: ModelVersion) -> bool:
    """Whether one of our runs made a version, so that its training rows are known."""
    return _prepared(ledger, model) is not None


def training_texts(
    store: Store, ledger: Ledger, model: ModelVersion, column: str, at_most: int
) -> dict[str, str]:
    """Texts that a version was trained on, by row id; a sample if there are many.

    Raises:
        LedgerError: None of our runs made the version, or its rows are gone.
        StoreError: They cannot be had from the store now.
    """
    import pyarrow.parquet as pq

    label, elsewhere = f"{model.name} version {model.version}", "since_promotion"
    prepared = _prepared(ledger, model)
    path = None if prepared is None else store.folder(prepared) / EXAMPLES
    if path is None or not path.is_file():
        raise LedgerError(
            f"The rows that {label} was trained on are not in this store.",
            f"Run prepare again, or set observe.drift.against to [{elsewhere}].",
        )
    with pq.ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            raise LedgerError(
                f"The rows that {label} was trained on have no column {column!r}.",
                f"Set observe.drift.against to [{elsewhere}] until a version is trained anew.",
            )
        found = dict(heapq.nsmallest(at_most, _training_rows(file, column)))
    if not found:
        raise LedgerError(
            f"None of the rows that {label} was trained on has a text in {column!r}.",
            f"Set observe.drift.against to [{elsewhere}].",
        )
    return found


def _prepared(ledger: Ledger, model: ModelVersion) -> Artifact | None:
    trained = ledger.find(model.train_fingerprint) if model.train_fingerprint else None
    return None if trained is None else ledger.find(trained.inputs["prepare"])


def _training_rows(file: Any, column: str) -> Iterator[tuple[str, str]]:
    # Row ids are digests, so that the smallest are a sample by chance.
    for batch in file.iter_batches(columns=[ROW_ID, SPLIT, column]):
        for row in batch.to_pylist():
            if row[SPLIT] == "train" and row[column] and row[column].strip():
                yield row[ROW_ID], row[column]


def last_asked(prompt: str | None) -> str | None:
    """The last thing a user said, of the turns that the log keeps; None if nobody did."""
    turns = json.loads(prompt) if prompt else []
    said = [turn["content"] for turn in turns if turn["role"] == "user"]
    return said[-1] if said else None


def _lot(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()
