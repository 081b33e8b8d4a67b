"""From a response id back to the rows that made the model that gave it.

A response id carries the start of its model's digest, so any response can be traced,
also years later, by the ledger alone. Where requests are logged and judged, the log adds
when it was asked, how that went, and what people said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.artifacts import Artifact
from penstock.errors import LedgerError
from penstock.ledger import Ledger, ModelVersion
from penstock.opinions import Opinion
from penstock.store import Store
from penstock.tables import Table
from penstock.traffic import Traffic
from penstock.transforms.base import ORIGIN, ROW_ID

_NUM_ROWS = 5


@dataclass(frozen=True)
class SourceRows:
    """What one source contributed.

    Attributes:
        source: Its name.
        version: Raw table version the data reached to.
        units: Labels of the units (files, libraries) ingested up to it.
        num_rows: Raw rows up to that version.
        examples: Some rows: row id, origin and the start of the text.
    """

    source: str
    version: int
    units: tuple[str, ...]
    num_rows: int
    examples: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Lineage:
    """One response's ancestry, newest first.

    Attributes:
        response_id: The id that was asked about; empty where a version was.
        model: Its model version.
        trained: The training that made it, with settings and losses.
        ancestors: Labels of the models it continues from, nearest first.
        prepared: How many rows went in, were removed by which step, came out.
        validated: How many rows were quarantined.
        sources: The source rows.
        request: Its row of the request log; None if it has none.
        opinions: What people said of it, oldest first; counted or not.
    """

    response_id: str
    model: ModelVersion
    trained: Artifact
    ancestors: tuple[str, ...]
    prepared: Mapping[str, Any]
    validated: Mapping[str, Any]
    sources: tuple[SourceRows, ...] = field(default=())
    request: Mapping[str, Any] | None = None
    opinions: tuple[Opinion, ...] = ()


def trace(response_id: str, ledger: Ledger, store: Store) -> Lineage:
    """Resolve a response id.

    Raises:
        LedgerError: It is not a response id, or names no model of this ledger.
    """
    found = ancestry(_model(response_id, ledger), ledger, store)
    known = Traffic.of(store).known(response_id)
    return replace(found, response_id=response_id, request=known.request, opinions=known.opinions)


def ancestry(model: ModelVersion, ledger: Ledger, store: Store) -> Lineage:
    """What a version was made of: the lineage of a response that it has not given yet.

    Raises:
        LedgerError: No run of this ledger has made it.
    """
    if not model.train_fingerprint:
        raise LedgerError(
            f"{model.name} version {model.version} was promoted without a recipe: none of our "
            "runs has made it.",
            f"MLflow may know more of its run {model.run_id!r}.",
        )
    trained = _artifact(ledger, model.train_fingerprint)
    prepared = _artifact(ledger, trained.inputs["prepare"])
    validated = _artifact(ledger, prepared.inputs["validate"])
    ingested = _artifact(ledger, validated.inputs["ingest"])
    return Lineage(
        response_id="",
        model=model,
        trained=trained,
        ancestors=_ancestors(ledger, trained),
        prepared=prepared.summary,
        validated=validated.summary,
        sources=tuple(_sources(store, ingested, validated)),
    )


def _model(response_id: str, ledger: Ledger) -> ModelVersion:
    # Response ids are written and read in one place, which is light to import.
    from penstock.serving.response_id import parse_response_id

    prefix = parse_response_id(response_id).digest_prefix
    models = ledger.models_by_digest(prefix)
    if not models:
        raise LedgerError(
            f"No registered model has a digest that starts with {prefix}, as {response_id} says.",
            "Ask the ledger of the project that served it (--recipe).",
        )
    return models[-1]


def _artifact(ledger: Ledger, fingerprint: str) -> Artifact:
    artifact = ledger.find(fingerprint)
    if artifact is None:
        raise LedgerError(f"The ledger has no record of {fingerprint[:12]}.")
    return artifact


def _ancestors(ledger: Ledger, trained: Artifact) -> tuple[str, ...]:
    out: list[str] = []
    current: Artifact | None = trained
    while current is not None and current.summary.get("base"):
        out.append(str(current.summary["base"]))
        parents = ledger.models_by_digest(str(current.settings.get("base") or "-"))
        current = ledger.find(parents[-1].train_fingerprint) if parents else None
    return tuple(out)


def _sources(store: Store, ingested: Artifact, validated: Artifact) -> list[SourceRows]:
    out = []
    tables = ingested.settings["tables"]
    for path in ingested.summary["tables"]:
        name = next(source for source, table in tables.items() if path.endswith(table))
        upto = validated.summary["data"][name]
        out.append(
            SourceRows(
                source=name,
                version=upto,
                units=tuple(unit["label"] for unit in ingested.summary["units"][name]),
                num_rows=ingested.summary["raw_rows"][path],
                examples=tuple(_examples(store.table_at(path), upto)),
            )
        )
    return out


def _examples(table: Table, upto: int) -> list[Mapping[str, str]]:
    """The first rows: enough to see what kind they are, at no cost of a scan."""
    for batch in table.scan(upto=upto, batch_rows=_NUM_ROWS):
        rows = batch.slice(0, _NUM_ROWS).to_pylist()
        return [
            {
                "row_id": row[ROW_ID],
                "origin": row[ORIGIN],
                "text": " | ".join(
                    str(value)[:80] for key, value in row.items() if not key.startswith("_")
                )[:200],
            }
            for row in rows
        ]
    return []
