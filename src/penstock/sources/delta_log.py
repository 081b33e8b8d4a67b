"""What a Delta log says of others' tables: whether we read them, their files, what a commit did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from penstock.errors import SourceError
from penstock.sources.base import refuse_reserved
from penstock.tables import conform

# What a table may ask of its readers that we do as well.
_READABLE = {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "deletionVectors"}


@dataclass(frozen=True)
class DataFile:
    """One data file of a version."""

    path: str
    partition: Mapping[str, Any]


def stream_of(table: Any) -> str:
    """The table's own id: another table in the same place is another stream."""
    return f"delta:{table.metadata().id}"


def readable(table: Any, label: str) -> Any:
    """The table, if we read it as its writers mean it.

    Raises:
        SourceError: Its rows are not what its Parquet files hold.
    """
    protocol = table.protocol()
    wanted = set(protocol.reader_features or ()) - _READABLE
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        wanted.add("columnMapping")
    elif "columnMapping" in wanted:
        wanted.discard("columnMapping")
    if "deletionVectors" in (protocol.reader_features or ()) and _num_deletion_vectors(table):
        wanted.add("deletionVectors")
    if wanted:
        raise SourceError(
            f"{label} uses {', '.join(sorted(wanted))}, which Penstock does not read.",
            "Have its owner rewrite it without (REORG TABLE ... APPLY (PURGE) drops deletion "
            "vectors), or copy it.",
        )
    refuse_reserved(schema_of(table).names, label)
    return table


def schema_of(table: Any) -> pa.Schema:
    """The table's columns."""
    return pa.schema(table.schema().to_arrow())


def files_of(table: Any) -> list[DataFile]:
    """All files of the table's version, oldest first."""
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    actions.sort(key=lambda action: (action["modification_time"], action["path"]))
    names = table.metadata().partition_columns
    return [
        DataFile(unquote(action["path"]), {name: action[f"partition.{name}"] for name in names})
        for action in actions
    ]


def why_rewritten(actions: list[dict[str, Any]] | None, version: int) -> str | None:
    """Why a commit is not one that only appended; None if it is."""
    if actions is None:
        return f"the log no longer tells what version {version} did."
    if not any(action.get("remove", {}).get("dataChange", False) for action in actions):
        return None
    operation = next((a["commitInfo"].get("operation") for a in actions if "commitInfo" in a), None)
    return f"version {version} ({operation or 'unknown'}) rewrote rows of earlier versions."


def added_by(actions: list[dict[str, Any]], table: Any) -> list[DataFile]:
    """The files with new rows; those of a compaction hold none."""
    types = {field.name: field.type for field in schema_of(table)}
    added = [action["add"] for action in actions if action.get("add", {}).get("dataChange", False)]
    return [
        DataFile(
            unquote(add["path"]),
            {name: _typed(text, types[name]) for name, text in add["partitionValues"].items()},
        )
        for add in sorted(added, key=lambda add: str(add["path"]))
    ]


def _typed(text: str | None, type_: pa.DataType) -> Any:
    """A partition's value from the log, which keeps all as text; empty is null."""
    return None if text in (None, "") else pa.scalar(text).cast(type_).as_py()


def whole(batch: pa.RecordBatch, file: DataFile, schema: pa.Schema, label: str) -> pa.RecordBatch:
    """A file's rows with all columns of the table: partitions are not in the file."""
    for name, value in file.partition.items():
        column = pa.repeat(pa.scalar(value, schema.field(name).type), batch.num_rows)
        if name not in batch.schema.names:
            batch = batch.append_column(name, column)
    try:
        return conform(batch, schema)
    except pa.ArrowException as error:
        raise SourceError(
            f"{label}/{file.path}: a value does not fit the table's type: {error}",
            "Have the table's owner mend it.",
        ) from error


def _num_deletion_vectors(table: Any) -> int:
    return int(pa.table(table.deletion_vectors()).num_rows)
