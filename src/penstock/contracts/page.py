"""A page about what was checked, for engines that bring none of their own."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from penstock.contracts.base import Finding

_EXAMPLES = 20
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;
padding:0 1rem}table{border-collapse:collapse;width:100%}td,th{border:1px solid #ccc;
padding:.4rem .6rem;text-align:left;vertical-align:top}
@media(prefers-color-scheme:dark){body{background:#161616;color:#eee}td,th{border-color:#444}}"""


def write_page(path: Path, title: str, found: Iterable[tuple[str, Finding]]) -> None:
    """Write one table: rules, how many rows break each, and examples.

    Args:
        path: Where to.
        title: The page's.
        found: Source name and finding, in the order they are shown.
    """
    rows = "".join(_line(source, finding) for source, finding in found)
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><table><tr><th>source<th>rule<th>met<th>rows<th>break it<th>such as</tr>"
        f"{rows}</table>\n",
        encoding="utf-8",
    )


def _line(source: str, finding: Finding) -> str:
    examples = [f"{row_id[:12]} {fault}" for row_id, fault in finding.failing.items()]
    if not examples and finding.observed:
        examples = [f"observed {finding.observed}"]
    cells = (
        source,
        str(finding.rule),
        "yes" if finding.is_met else "no",
        f"{finding.num_rows:,}",
        f"{len(finding.failing):,}",
    )
    shown = "<br>".join(html.escape(one) for one in examples[:_EXAMPLES])
    return "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + f"<td>{shown}</tr>"
