"""Row rules as a contract engine: piece by piece, and every failing row is found."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.contracts.base import Finding, Rule
from penstock.transforms.base import ROW_ID

_EXAMPLES = 20
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;
padding:0 1rem}table{border-collapse:collapse;width:100%}
td,th{border:1px solid #ccc;padding:.4rem .6rem;
text-align:left;vertical-align:top}@media(prefers-color-scheme:dark){body{background:#161616;
color:#eee}td,th{border-color:#444}}"""


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
        """Write one table: rules, how many rows break each, and examples."""
        rows = "".join(_line(source, finding) for source, finding in self._found)
        path.write_text(
            f'<!doctype html><meta charset="utf-8"><title>Row rules</title><style>{_STYLE}</style>'
            "<h1>Row rules</h1><table><tr><th>source<th>rule<th>rows<th>break it<th>such as</tr>"
            f"{rows}</table>\n",
            encoding="utf-8",
        )


def _line(source: str, finding: Finding) -> str:
    examples = [f"{row_id[:12]} {fault}" for row_id, fault in finding.failing.items()]
    cells = (source, str(finding.rule), f"{finding.num_rows:,}", f"{len(finding.failing):,}")
    shown = "<br>".join(html.escape(one) for one in examples[:_EXAMPLES])
    return "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + f"<td>{shown}</tr>"
