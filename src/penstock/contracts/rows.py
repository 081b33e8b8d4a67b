"""Row rules as a contract engine: piece by piece, and every failing row is found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.contracts.base import Finding, Rule
from penstock.contracts.page import write_page
from penstock.transforms.base import ROW_ID


class RowRules:
    """Checks rows with the rules of ``contracts/rules.py`` and their like.

    Args:
        rules: What each is called, and the rule.
    """

    def __init__(self, rules: list[tuple[Rule, Any]]) -> None:
        self._rules = rules
        self._found: list[tuple[str, Finding]] = []

    def check(self, source: str, rows: Iterable[pa.Table]) -> list[Finding]:
        """Check one source's rows; see ``Contract``."""
        findings = [Finding(rule) for rule, _ in self._rules]
        for piece in rows:
            ids = piece[ROW_ID]
            for finding, (_, rule) in zip(findings, self._rules, strict=True):
                faults = rule.faults(piece)
                bad = faults.is_not_null().arg_true()
                failing = zip(ids.take(bad.to_arrow()).to_pylist(), faults.gather(bad), strict=True)
                finding.failing |= {row_id: fault[:200] for row_id, fault in failing}
                finding.num_rows += piece.num_rows
        for finding in findings:
            finding.is_met = not finding.failing
            self._found.append((source, finding))
        return findings

    def write_report(self, path: Path) -> None:
        """Write a page about everything checked so far."""
        write_page(path, "Row rules", self._found)
