"""Everything a loop leaves behind, in a form in which two loops can be compared.

Left out is only what must differ: run ids, MLflow's run ids, times (validate's
report shows one), and the random part of a Parquet file's name.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_RANDOM_NAME = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# What validate's report shows, the time included, decides its digest.
_REPORT = re.compile(r"(artifacts/validate/[0-9a-f]+)-[0-9a-f]+")
# SQLite's own, which come and go with its connections.
_SQLITE = re.compile(r"\.db-(wal|shm|journal)$")


def state(store: Path) -> dict[str, Any]:
    """What is in a store, as plain JSON values."""
    return {
        "files": _files(store),
        "tables": {name: _table(store, name) for name in _tables(store)},
        "artifacts": _artifacts(store),
        "ledger": _ledger(store / "ledger.db"),
        "mlflow": _mlflow(store / "mlflow.db"),
    }


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Where two states differ, one line for each place."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key in sorted({*wanted, *found}):
            if key not in found:
                yield f"{path}/{key}: lost {_short(wanted[key])}"
            elif key not in wanted:
                yield f"{path}/{key}: left over {_short(found[key])}"
            else:
                yield from differences(wanted[key], found[key], f"{path}/{key}")
    elif isinstance(wanted, list) and isinstance(found, list):
        lost = Counter(map(_text, wanted)) - Counter(map(_text, found))
        more = Counter(map(_text, found)) - Counter(map(_text, wanted))
        yield from (f"{path}: lost {_short(item)}" for item in list(lost.elements())[:5])
        yield from (f"{path}: left over {_short(item)}" for item in list(more.elements())[:5])
        if not lost and not more and wanted != found:
            yield f"{path}: in another order"
    elif wanted != found:
        yield f"{path}: {_short(wanted)} became {_short(found)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _files(store: Path) -> list[str]:
    """Every file and folder, orphans and leftovers included."""
    names = (path.relative_to(store).as_posix() for path in store.rglob("*"))
    return sorted(
        _REPORT.sub(r"\1-*", _RANDOM_NAME.sub("*", name))
        for name in names
        if not _SQLITE.search(name)
    )


def _tables(store: Path) -> list[str]:
    logs = (store / "tables").glob("*/*/_delta_log")
    return sorted(log.parent.relative_to(store).as_posix() for log in logs)


def _table(store: Path, name: str) -> dict[str, Any]:
    from deltalake import DeltaTable

    if not DeltaTable.is_deltatable(str(store / name)):
        return {"version": -1}
    handle = DeltaTable(store / name)
    logs = sorted((store / name / "_delta_log").glob("*.json"))
    actions = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    rows = handle.to_pyarrow_dataset().to_table().to_pylist()
    return {
        "version": handle.version(),
        "positions": [[a["txn"]["appId"], a["txn"]["version"]] for a in actions if "txn" in a],
        "rows": sorted(json.dumps(row, sort_keys=True, default=str) for row in rows),
    }


def _artifacts(store: Path) -> dict[str, Any]:
    """Artifact -> its manifest, after checking every file against it."""
    from penstock.artifacts import MANIFEST, damaged_files

    out: dict[str, Any] = {}
    for folder in sorted((store / "artifacts").glob("*/*")):
        manifest = folder / MANIFEST
        content = json.loads(manifest.read_text()) if manifest.exists() else None
        damaged = damaged_files(folder) if manifest.exists() else ["no manifest"]
        name = folder.relative_to(store).as_posix()
        if _REPORT.match(name) and content is not None:
            content = sorted(content)
        out[_REPORT.sub(r"\1-*", name)] = {"files": content, "damaged": damaged}
    return out


def _ledger(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with _Reader(path) as read:
        runs = read("SELECT id, status, message FROM runs ORDER BY started_s")
        # The one that did the work: a loop killed after its end leaves nothing to do.
        worked = [run for run in runs if run["status"] not in ("INTERRUPTED", "SKIPPED")]
        last = worked[-1] if worked else None
        stages = "SELECT stage, position, fingerprint FROM run_stages WHERE run_id = ?"
        artifacts = read(
            "SELECT fingerprint, stage, recipe, path, digest, summary, settings, inputs, "
            "input_contents FROM artifacts"
        )
        for artifact in artifacts:
            summary = json.loads(artifact["summary"])
            summary.pop("mlflow_run", None)
            artifact["summary"] = summary
            artifact["path"] = _REPORT.sub(r"\1-*", artifact["path"])
            if artifact["stage"] == "validate":
                artifact.pop("digest")
        return {
            "artifacts": {artifact["fingerprint"]: artifact for artifact in artifacts},
            "claims": read("SELECT key FROM claims"),
            "open runs": [run for run in runs[:-1] if run["status"] == "RUNNING"],
            "last run": last and {"status": last["status"], "message": last["message"]},
            "last run's stages": last and read(stages, last["id"]),
            "pins": read("SELECT key, value FROM pins WHERE key NOT LIKE '%/world'"),
            "watermarks": read("SELECT key, value FROM watermarks"),
            "models": read(
                "SELECT name, version, train_fingerprint, digest, path, data_version FROM models"
            ),
            "pointers": read("SELECT name, alias, version, epoch FROM pointers"),
            "audit": read(
                "SELECT name, alias, epoch, from_version, to_version, action, reason FROM audit"
            ),
        }


def _mlflow(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with _Reader(path) as read:
        if not read("SELECT name FROM sqlite_master WHERE name = 'model_versions'"):
            return {}
        runs = (
            "SELECT t.value AS fingerprint, r.status FROM runs r JOIN tags t USING (run_uuid) "
            "WHERE r.lifecycle_stage = 'active' AND t.key = 'penstock.fingerprint'"
        )
        values = (
            "SELECT t.value AS fingerprint, v.key, v.value {more} FROM {table} v "
            "JOIN runs r USING (run_uuid) JOIN tags t USING (run_uuid) "
            "WHERE r.lifecycle_stage = 'active' AND t.key = 'penstock.fingerprint'"
        )
        return {
            "experiments": read("SELECT name, lifecycle_stage FROM experiments"),
            "runs": read(runs),
            "params": read(values.format(table="params", more="")),
            "metrics": read(values.format(table="metrics", more=", v.step")),
            "models": read("SELECT name FROM registered_models"),
            "versions": read("SELECT name, version, status FROM model_versions"),
            "version tags": read(
                "SELECT name, version, key, value FROM model_version_tags "
                "WHERE key <> 'penstock.run'"
            ),
            "aliases": read("SELECT name, alias, version FROM registered_model_aliases"),
        }


class _Reader:
    """Queries a SQLite file; rows come back as dictionaries."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        self._connection.row_factory = sqlite3.Row

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __call__(self, query: str, *values: Any) -> list[dict[str, Any]]:
        rows = [dict(row) for row in self._connection.execute(query, values)]
        return rows if "ORDER BY" in query else sorted(rows, key=_text)
