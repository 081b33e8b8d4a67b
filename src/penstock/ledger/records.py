"""What the ledger says: runs, stages, models, pointers and their moves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.artifacts import Artifact


@dataclass(frozen=True)
class ModelVersion:
    """One registered version of a model.

    Attributes:
        name: The registered model's name.
        version: Counts from 1.
        train_fingerprint: The training that made it.
        digest: SHA-256 over the manifest of its files.
        path: Its folder, relative to the store root.
        run_id: The run that made it.
        data_version: The table versions it was trained on, as text.
        created_s: When it was registered, Unix seconds.
    """

    name: str
    version: int
    train_fingerprint: str
    digest: str
    path: str
    run_id: str
    data_version: str
    created_s: float = 0.0


@dataclass(frozen=True)
class Pointer:
    """Where an alias points, and the how-manieth move that was."""

    version: int
    epoch: int


@dataclass(frozen=True)
class Move:
    """One line of the audit log."""

    epoch: int
    from_version: int | None
    to_version: int
    action: str
    reason: str
    actor: str
    run_id: str | None
    at_s: float


@dataclass(frozen=True)
class StageRecord:
    """What one stage came to in one run: ran, hit, skipped or failed."""

    stage: str
    position: int
    fingerprint: str | None
    outcome: str
    note: str
    duration_s: float


@dataclass(frozen=True)
class RunRecord:
    """One run of a recipe."""

    id: str
    recipe: str
    written: str
    folder: str
    overrides: Mapping[str, Any]
    status: str
    message: str
    holder: str
    started_s: float
    ended_s: float | None


def read_artifact(row: Mapping[Any, Any]) -> Artifact:
    """A result from its row."""
    return Artifact(
        fingerprint=row["fingerprint"],
        stage=row["stage"],
        path=row["path"],
        digest=row["digest"],
        summary=json.loads(row["summary"]),
        settings=json.loads(row["settings"]),
        inputs=json.loads(row["inputs"]),
        input_contents=json.loads(row["input_contents"]),
        run_id=row["run_id"],
        duration_s=row["duration_s"],
    )


def read_run(row: Mapping[Any, Any]) -> RunRecord:
    """A run from its row."""
    return RunRecord(**{**row, "overrides": json.loads(row["overrides"])})
