"""Runs one Soda contract, in the environment that has Soda; started by ``soda.py``.

``python -I soda_worker.py CONTRACT FOLDER`` reads FOLDER/rows.parquet and writes
FOLDER/checks.jsonl, one check a line, or FOLDER/error. It imports nothing of
Penstock, which need not be installed there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SOURCE = "penstock"
_ROWS = "rows"
# Type of a check about rows -> what counts the rows that fail it.
_COUNTS = {
    "missing": "MissingCountMetricImpl",
    "invalid": "InvalidCountMetricImpl",
    "failed_rows": "FailedRowsExpressionMetricImpl",
}


def main(contract: str, folder: Path) -> int:
    """Run the contract; returns the exit code."""
    os.environ["SODA_TELEMETRY_ENABLED"] = "false"
    os.chdir(folder)
    try:
        with open("checks.jsonl", "w", encoding="utf-8") as file:
            for check in _checks(contract):
                file.write(json.dumps(check, default=str) + "\n")
    except Exception as error:
        Path("error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        return 1
    return 0


def _checks(contract: str) -> Iterator[dict[str, Any]]:
    import duckdb

    with duckdb.connect("rows.db") as database:
        columns = database.sql("SELECT * FROM 'rows.parquet' LIMIT 0").columns
        theirs = ", ".join(_quoted(name) for name in columns if not name.startswith("_"))
        view = f"CREATE VIEW {_ROWS} AS SELECT {theirs} FROM 'rows.parquet'"  # noqa: S608  # quoted
        database.execute(view)
    implementation, results = _verify(_addressed(contract))
    with duckdb.connect("rows.db", read_only=True) as database:
        for check, result in zip(implementation.all_check_impls, results, strict=True):
            yield {
                "type": check.type,
                "name": result.check.name,
                "column": result.check.column_name,
                "outcome": result.outcome.name,
                "observed": result.threshold_value,
                "failing": _failing(database, implementation, check, result),
            }


def _addressed(contract: str) -> str:
    """The contract, about our rows whatever it calls its dataset."""
    from ruamel.yaml import YAML

    yaml = YAML()
    content = yaml.load(Path(contract).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is not a mapping")
    content["dataset"] = f"{_SOURCE}/main/{_ROWS}"
    with open("contract.yml", "w", encoding="utf-8") as file:
        yaml.dump(content, file)
    source = f"type: duckdb\nname: {_SOURCE}\nconnection:\n  database: rows.db\n"
    Path("source.yml").write_text(source)
    return "contract.yml"


def _verify(contract: str) -> tuple[Any, list[Any]]:
    """Soda's own objects: what it made of the contract, and its results in the same order."""
    from soda_core.contracts.api.verify_api import verify_contract_locally
    from soda_core.contracts.impl import contract_verification_impl as engine

    made: list[Any] = []
    make = engine.ContractImpl.__init__

    def remember(self: Any, *arguments: Any, **options: Any) -> None:
        made.append(self)
        make(self, *arguments, **options)

    # Soda tells how many rows fail, and only this object knows by which condition.
    engine.ContractImpl.__init__ = remember
    session = verify_contract_locally(
        data_source_file_path="source.yml", contract_file_path=contract
    )
    if session.has_errors or not made:
        raise ValueError(session.get_errors_str())
    return made[-1], session.contract_verification_results[0].check_results


def _failing(database: Any, contract: Any, check: Any, result: Any) -> list[Any]:
    """Row id and value of each row that a failed check counts; none for checks of columns."""
    if result.outcome.name != "FAILED":
        return []
    for metric in check.metrics:
        if type(metric).__name__ != _COUNTS.get(check.type):
            continue
        condition = metric.sql_condition_expression()
        sql = contract.data_source_impl.sql_dialect.build_expression_sql(condition)
        column = result.check.column_name
        shown = _quoted(column) if column else "NULL"
        # The condition is the contract's own, as Soda has run it a moment ago.
        query = f"SELECT _row_id, {shown} FROM 'rows.parquet' WHERE {sql}"  # noqa: S608
        rows = database.execute(query).fetchall()
        return [[row_id, "null" if value is None else value] for row_id, value in rows]
    return []


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
