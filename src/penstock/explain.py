"""One row's whole story: where it came from, what became of it, and which models learned from it.

Reads tables and the ledger, and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penstock.artifacts import Artifact
from penstock.errors import LedgerError
from penstock.ledger import ModelVersion
from penstock.pipeline import Pipeline
from penstock.stages import decisions
from penstock.stages.decisions import Decision
from penstock.stages.ingest import DEAD_LETTERS, raw_tables
from penstock.stages.prepare import EXAMPLES, REMOVED
from penstock.stages.train import BLOCKS, is_due
from penstock.stages.validate import QUARANTINE, valid_tables
from penstock.tables import Table
from penstock.transforms.base import ORIGIN, ROW_ID, SOURCE, VERSION

_ALL_RUNS = 1_000_000
_MANY = 5


@dataclass(frozen=True)
class Held:
    """A contract that held the row back.

    Attributes:
        rule: The first rule it broke.
        value: What the rule looked at.
        decision: What people decided about it under this contract.
    """

    rule: str
    value: str | None
    decision: Decision | None


@dataclass(frozen=True)
class Training:
    """A training on data that the row is in.

    Attributes:
        fingerprint: Of its result.
        run_id: The run that made it.
        is_in: Whether it saw the row; one on new rows alone leaves out most old ones.
        pieces: Where the row's tokens were, if rows were packed: block, start, first, length.
        models: Labels of the versions it made.
        descendants: Labels of the versions that continue from those.
    """

    fingerprint: str
    run_id: str
    is_in: bool
    pieces: tuple[Mapping[str, int], ...]
    models: tuple[str, ...]
    descendants: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """What one preparation made of the row.

    Attributes:
        fingerprint: Of its result.
        runs: The runs that used it, newest first.
        outcome: ``kept``, ``removed``, ``not in it``, or ``files are gone``.
        split: If it was kept: ``train`` or ``validation``.
        num_tokens: If it was kept: of the whole example.
        redacted: If it was kept: kind -> how many finds gave way to placeholders.
        step: If it was removed: which step did it.
        reason: Why.
        evidence: What shows it.
        trainings: Those on this data.
    """

    fingerprint: str
    runs: tuple[str, ...]
    outcome: str
    split: str | None = None
    num_tokens: int | None = None
    redacted: Mapping[str, int] | None = None
    step: str | None = None
    reason: str | None = None
    evidence: str | None = None
    trainings: tuple[Training, ...] = ()


@dataclass(frozen=True)
class Story:
    """Everything that is known about one piece of input.

    Attributes:
        row_id: None for input that never became a row.
        source: The source it came from.
        origin: Where in the source, such as a file and a line.
        version: The raw table's version that brought it.
        row: Its columns, as they came.
        dead_letter: Why it did not become a row.
        held: The contracts that held it back.
        is_valid: Whether a contract let it through, or people did.
        prepared: What each preparation made of it, newest first.
    """

    row_id: str | None
    source: str
    origin: str
    version: int
    row: Mapping[str, Any]
    dead_letter: str | None = None
    held: tuple[Held, ...] = ()
    is_valid: bool = False
    prepared: tuple[Prepared, ...] = ()

    @property
    def state(self) -> str:
        """Where it is now, in a few words."""
        if self.dead_letter is not None:
            return "never became a row"
        now = self.prepared[0] if self.prepared else None
        if now is not None and now.outcome == "removed":
            return f"removed by {now.step}"
        if now is not None and now.outcome == "kept":
            return f"kept in {now.split}"
        if self.is_valid:
            return "valid, not prepared yet"
        if self.held:
            decision = self.held[-1].decision
            return "in quarantine" if decision is None else f"dropped by {decision.by}"
        return "not validated yet"


def explain(pipeline: Pipeline, what: str) -> list[Story]:
    """Tell the story of a row.

    Args:
        pipeline: Whose.
        what: A row's id or the start of it; or where it came from (``data/a.jsonl:17``, or
            the end of that), which may be several rows if that file has changed.

    Raises:
        LedgerError: There is no such row, or an id begins several rows' ids.
    """
    found = list(_once(pipeline, _matching(pipeline, what)))
    ids = sorted({row[ROW_ID] for row in found})
    if len(ids) > 1 and any(row_id.startswith(what) for row_id in ids):
        some = ", ".join(f"{row[ROW_ID][:12]} ({row[ORIGIN]})" for row in found[:_MANY])
        raise LedgerError(
            f"{len(ids):,} rows have an id that starts with {what!r}, such as {some}.",
            "Give more of the id.",
        )
    stories = [*_dead_letters(pipeline, what), *(_story(pipeline, row) for row in found)]
    if not stories:
        raise LedgerError(
            f"There is no row {what!r}: it is neither the start of an id nor an origin.",
            "An origin is a file and a line, as in rows.jsonl:17; ids are in `penstock lineage`, "
            "`penstock quarantine show` and removed.parquet.",
        )
    return stories


def _tables(pipeline: Pipeline, kind: str) -> Iterator[Table]:
    """The recipe's tables of a kind, those of sources and contracts that have changed too."""
    tables = pipeline.store.tables(pipeline.recipe.name)
    return (table for table in tables if table.name.startswith(f"{kind}-"))


def _matching(pipeline: Pipeline, what: str) -> Iterator[Mapping[str, Any]]:
    """Id, source, origin, version and table of the raw rows that are meant."""
    columns = [ROW_ID, SOURCE, ORIGIN, VERSION]
    for table in _tables(pipeline, "raw"):
        for batch in table.scan(columns=columns):
            for row in batch.filter(_is_meant(batch, what)).to_pylist():
                yield {**row, "table": table}


def _once(pipeline: Pipeline, found: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Each row once: as it is read now, if it has been read in another way before."""
    current = raw_tables(pipeline.recipe).values()
    rows: dict[str, Mapping[str, Any]] = {}
    for row in found:
        if row[ROW_ID] not in rows or row["table"].name in current:
            rows[row[ROW_ID]] = row
    return rows.values()


def _is_meant(batch: pa.RecordBatch, what: str) -> pa.Array:
    here = pc.or_(pc.equal(batch[ORIGIN], what), pc.ends_with(batch[ORIGIN], f"/{what}"))
    if ROW_ID in batch.schema.names and re.fullmatch(r"[0-9a-f]{1,32}", what):
        return pc.or_(here, pc.starts_with(batch[ROW_ID], what))
    return here


def _dead_letters(pipeline: Pipeline, what: str) -> Iterator[Story]:
    table = pipeline.store.table(pipeline.recipe.name, DEAD_LETTERS)
    for batch in table.scan():
        for letter in batch.filter(_is_meant(batch, what)).to_pylist():
            yield Story(
                row_id=None,
                source=letter[SOURCE],
                origin=letter[ORIGIN],
                version=letter[VERSION],
                row={"begins": letter["excerpt"]},
                dead_letter=letter["reason"],
            )


def _story(pipeline: Pipeline, found: Mapping[str, Any]) -> Story:
    row_id, version = found[ROW_ID], found[VERSION]
    columns = next(_rows(found["table"], row_id, version))
    held = tuple(_held(pipeline, row_id))
    contracts = _contracts(pipeline, found[SOURCE])
    passed = any(True for table in contracts for _ in _rows(table, row_id, version))
    return Story(
        row_id=row_id,
        source=found[SOURCE],
        origin=found[ORIGIN],
        version=version,
        row={name: value for name, value in columns.items() if not name.startswith("_")},
        held=held,
        is_valid=passed or any(h.decision and h.decision.action == "release" for h in held),
        prepared=tuple(_prepared(pipeline, found)),
    )


def _contracts(pipeline: Pipeline, source: str) -> list[Table]:
    """The valid rows of a source by the contract in force; by any, if the source is gone."""
    name = valid_tables(pipeline.recipe).get(source)
    if name is None:
        return list(_tables(pipeline, "valid"))
    return [pipeline.store.table(pipeline.recipe.name, name)]


def _rows(table: Table, row_id: str, version: int) -> Iterator[Mapping[str, Any]]:
    """A row in a table, by the version that brought it: files of others are not read."""
    for batch in table.scan(after=version - 1, upto=version):
        yield from batch.filter(pc.equal(batch[ROW_ID], row_id)).to_pylist()


def _held(pipeline: Pipeline, row_id: str) -> Iterator[Held]:
    table = pipeline.store.table(pipeline.recipe.name, QUARANTINE)
    decided = decisions.table(pipeline.store, pipeline.recipe)
    for batch in table.scan():
        for entry in batch.filter(pc.equal(batch[ROW_ID], row_id)).to_pylist():
            contract = entry.get("contract")
            standing = decisions.standing(decided, [contract]) if contract else {}
            yield Held(entry["rule"], entry["value"], standing.get(row_id))


def _prepared(pipeline: Pipeline, row: Mapping[str, Any]) -> Iterator[Prepared]:
    runs = _runs_by_result(pipeline)
    trainings = [artifact for artifact in _results(pipeline, runs) if artifact.stage == "train"]
    for artifact in _results(pipeline, runs):
        if artifact.stage != "prepare":
            continue
        outcome = _outcome(pipeline.store.folder(artifact), row[ROW_ID])
        mine = [one for one in trainings if one.inputs.get("prepare") == artifact.fingerprint]
        if outcome.get("split") == "train":
            outcome["trainings"] = tuple(_training(pipeline, one, row) for one in mine)
        yield Prepared(artifact.fingerprint, tuple(runs[artifact.fingerprint]), **outcome)


def _runs_by_result(pipeline: Pipeline) -> dict[str, list[str]]:
    """Fingerprint -> the runs it is part of; newest first, both."""
    out: dict[str, list[str]] = {}
    for run in pipeline.ledger.runs(pipeline.recipe.name, limit=_ALL_RUNS):
        for record in pipeline.ledger.stages(run.id):
            if record.fingerprint and record.outcome in ("ran", "hit"):
                out.setdefault(record.fingerprint, []).append(run.id)
    return out


def _results(pipeline: Pipeline, fingerprints: Mapping[str, Any]) -> list[Artifact]:
    found = (pipeline.ledger.find(fingerprint) for fingerprint in fingerprints)
    return [artifact for artifact in found if artifact is not None]


def _outcome(folder: Path, row_id: str) -> dict[str, Any]:
    try:
        kept = _read(folder / EXAMPLES, row_id)
        removed = _read(folder / REMOVED, row_id)
    except FileNotFoundError:
        return {"outcome": "files are gone"}
    if kept:
        redacted = kept[0].get("redacted")
        counts = redacted.items() if isinstance(redacted, dict) else ()
        return {
            "outcome": "kept",
            "split": kept[0]["split"],
            "num_tokens": len(kept[0]["input_ids"]),
            "redacted": {kind: count for kind, count in counts if count},
        }
    if removed:
        why = {name: removed[0][name] for name in ("step", "reason", "evidence")}
        return {"outcome": "removed", **why}
    return {"outcome": "not in it"}


def _read(path: Path, row_id: str) -> list[dict[str, Any]]:
    """A row's lines in a Parquet file, a few of its groups at a time."""
    out: list[dict[str, Any]] = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            out += batch.filter(pc.equal(batch[ROW_ID], row_id)).to_pylist()
    return out


def _training(pipeline: Pipeline, artifact: Artifact, row: Mapping[str, Any]) -> Training:
    is_in = True
    if artifact.settings.get("rows") == "new":
        columns = {name: [row[name]] for name in (ROW_ID, SOURCE, VERSION)}
        is_in = is_due(pa.RecordBatch.from_pydict(columns), artifact.settings)[0].as_py()
    blocks = pipeline.store.folder(artifact) / BLOCKS
    pieces = _read(blocks, row[ROW_ID]) if is_in and blocks.exists() else []
    names = ("block", "start", "first", "length")
    models = pipeline.ledger.models()
    made = [model for model in models if model.train_fingerprint == artifact.fingerprint]
    return Training(
        fingerprint=artifact.fingerprint,
        run_id=artifact.run_id,
        is_in=is_in,
        pieces=tuple({name: piece[name] for name in names} for piece in pieces),
        models=_labels(made),
        descendants=_labels(_descendants(pipeline, models, made)),
    )


def _descendants(
    pipeline: Pipeline, models: Sequence[ModelVersion], made: Sequence[ModelVersion]
) -> list[ModelVersion]:
    """Versions that continue from some, directly or through others."""
    digests = {model.digest for model in made}
    out = []
    for model in sorted(models, key=lambda one: one.created_s):
        trained = pipeline.ledger.find(model.train_fingerprint)
        if trained is not None and trained.settings.get("base") in digests:
            digests.add(model.digest)
            out.append(model)
    return out


def _labels(models: Sequence[ModelVersion]) -> tuple[str, ...]:
    return tuple(f"{model.name} version {model.version}" for model in models)
