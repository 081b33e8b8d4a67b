"""Soda contracts as a contract engine, run where the user has installed Soda.

Soda 4 reads a contract in YAML and answers each check with a count. Its licence
is not an open one, so Penstock neither depends on it nor imports it: a small
program (``soda_worker.py``) runs in the Python that has it, over the new rows as
a Parquet file. For checks about rows it also asks, by the condition that Soda
itself counts with, which rows those are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from penstock.artifacts import store_errors
from penstock.contracts.base import Finding, Rule
from penstock.contracts.page import write_page
from penstock.errors import RecipeError

_WORKER = Path(__file__).with_name("soda_worker.py")


class SodaContract:
    """Checks rows with one contract of Soda.

    Args:
        file: The contract.
        python: The interpreter that has Soda; None is this one.
    """

    def __init__(self, file: Path, python: str | None) -> None:
        self._file = file
        self._python = python or sys.executable
        self._found: list[tuple[str, Finding]] = []

    def check(self, source: str, rows: Iterable[pa.Table]) -> list[Finding]:
        """Check one source's rows; see ``Contract``.

        Raises:
            RecipeError: Soda is not there, or does not accept the contract.
        """
        with tempfile.TemporaryDirectory(prefix="penstock-soda-") as scratch:
            folder = Path(scratch)
            num_rows = _write(folder / "rows.parquet", rows)
            self._run(folder)
            findings = [
                _finding(json.loads(line), num_rows, self._file)
                for line in (folder / "checks.jsonl").read_text(encoding="utf-8").splitlines()
            ]
        self._found += [(source, finding) for finding in findings]
        return findings

    def write_report(self, path: Path) -> None:
        """Write a page about everything checked so far."""
        write_page(path, f"Soda: {self._file.name}", self._found)

    def _run(self, folder: Path) -> None:
        command = [self._python, "-I", str(_WORKER), str(self._file), str(folder)]
        try:
            ended = subprocess.run(  # noqa: S603  # what the recipe names
                command, capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise RecipeError(
                f"validate.contracts: {self._python} cannot be started: {error.strerror}.",
                "Name the interpreter of the environment that has Soda under `python`.",
            ) from error
        if ended.returncode == 0:
            return
        said = (
            (folder / "error").read_text() if (folder / "error").exists() else ended.stderr[-500:]
        )
        if said.startswith("ModuleNotFoundError"):
            raise RecipeError(
                f"validate.contracts: {self._python} has no Soda: {said.strip()}.",
                "Install it there: pip install soda-duckdb (under a licence of Soda's own).",
            )
        raise RecipeError(
            f"validate.contracts: Soda does not accept {self._file.name}: {said.strip()}"
        )


def _write(path: Path, rows: Iterable[pa.Table]) -> int:
    """Rows as Parquet, piece by piece; returns how many there are."""
    num_rows, writer = 0, None
    with store_errors(path):
        for piece in rows:
            writer = writer or pq.ParquetWriter(path, piece.schema)
            writer.write_table(piece)
            num_rows += piece.num_rows
        if writer is not None:
            writer.close()
    return num_rows


def _finding(check: dict[str, object], num_rows: int, file: Path) -> Finding:
    """What Soda said of one check.

    A check about rows is met or not row by row: Soda's threshold says only
    whether it fails, and then every row it counted is one that fails.
    """
    told = {key: check[key] for key in ("column", "name") if check[key]}
    finding = Finding(Rule(f"{file.name}: {check['type']}", told), num_rows)
    finding.is_met = check["outcome"] != "FAILED"
    finding.observed = str(check["observed"])
    if not finding.is_met:
        failing = check["failing"]
        assert isinstance(failing, list)
        finding.failing = {str(row_id): str(value)[:200] for row_id, value in failing}
    return finding
