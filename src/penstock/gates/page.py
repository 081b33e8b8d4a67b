"""A decision as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from penstock.gates import plots
from penstock.gates.comparison import Comparison
from penstock.gates.decision import Decision, Side
from penstock.gates.report import HEADLINES, comparison_rows, floor_rows, limits_explained, number

_STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1a2230; --soft: #5d6a7e; --rule: #dfe4ea;
  --good: #17794b; --bad: #b93232; --unsure: #9a6700; --calm: #4a6da7;
  --better: #2f7fb8; --worse: #d98324; --track: #edf0f4; }
@media (prefers-color-scheme: dark) { :root {
  --page: #10151d; --card: #181f2a; --ink: #e4e9f0; --soft: #94a1b5; --rule: #2b3544;
  --good: #4cc38a; --bad: #f2777a; --unsure: #e3b341; --calm: #8aa9e0;
  --better: #58a6d8; --worse: #e59c4b; --track: #242d3a; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; }
section, header { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1.4rem 1.6rem; margin-bottom: 1.1rem; }
header { border-left: 6px solid var(--verdict); }
.PASS { --verdict: var(--good); } .BLOCK { --verdict: var(--bad); }
.INCONCLUSIVE { --verdict: var(--unsure); }
.verdict { color: var(--verdict); font-weight: 700; letter-spacing: .06em; font-size: .9rem; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: .15rem 0 .8rem; font-weight: 650; }
h2 { font-size: 1.05rem; margin: 0 0 .3rem; font-weight: 650; }
p { margin: .3rem 0 .9rem; } .soft { color: var(--soft); font-size: .87rem; }
header ul { margin: 0; padding-left: 1.1rem; } header li { margin: .2rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: .86em ui-monospace, "Liberation Mono", monospace; }
.scroll { overflow-x: auto; } .scroll > svg { min-width: 700px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--ink); font-size: 13px; } svg .tick { fill: var(--soft); font-size: 12px; }
svg .label.strong { font-weight: 650; } svg .value { font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); } .zero { stroke: var(--soft); stroke-width: 1.2; }
.margin { stroke: var(--bad); stroke-width: 1.6; stroke-dasharray: 4 3; }
.thin { stroke-width: 1.6; } .thick { stroke-width: 6; stroke-linecap: butt; opacity: .55; }
line.good { stroke: var(--good); } line.bad { stroke: var(--bad); }
line.unsure { stroke: var(--unsure); } line.calm { stroke: var(--calm); }
.dot.good, .fill.good, svg text.good { fill: var(--good); }
.dot.bad, .fill.bad, svg text.bad { fill: var(--bad); }
.dot.unsure, svg text.unsure { fill: var(--unsure); }
.dot.calm, svg text.calm { fill: var(--calm); }
.hollow { fill: var(--card); stroke: var(--unsure); stroke-width: 2; }
.better { fill: var(--better); } .worse { fill: var(--worse); } .track { fill: var(--track); }
.bound { stroke: var(--ink); stroke-width: 2; }
table { border-collapse: collapse; width: 100%; font-size: .8rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .45rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; min-width: 9.5rem;
  white-space: normal; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
"""


def to_html(decision: Decision, title: str = "Gate") -> str:
    """The decision as one self-contained page.

    Args:
        decision: What to show. All its text is escaped.
        title: The page's title.
    """
    sections = [_header(decision), *parts(decision)]
    return document(f"{title}: {decision.verdict}", decision.verdict, sections)


def parts(decision: Decision) -> list[str]:
    """All that a page shows of a decision below its headline, as HTML."""
    return [
        *_forests(decision),
        _disagreement(decision),
        _floors(decision),
        _numbers(decision),
        _provenance(decision),
    ]


def document(title: str, kind: str, sections: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: Escaped here.
        kind: PASS, BLOCK or INCONCLUSIVE, for its colour.
        sections: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f'<body class="{kind}">\n<main>\n{"".join(sections)}</main>\n</body>\n</html>\n'
    )


def _header(decision: Decision) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in decision.reasons)
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in decision.notes)
    return (
        f'<header><div class="verdict">{decision.verdict}</div>'
        f"<h1>{HEADLINES[decision.verdict]}</h1><ul>{reasons}</ul>{notes}</header>\n"
    )


def _forests(decision: Decision) -> list[str]:
    points = [row for row in decision.rows if row.is_proportion]
    others = [row for row in decision.rows if not row.is_proportion]
    level = f"{100 * (1 - decision.policy.alpha):g} %"
    legend = (
        f"Right of zero the candidate is better. Thick: between the one-sided {level} limits. "
        f"Thin: the two-sided {level} interval. Dashed: the margin; non-inferiority is shown where "
        "the thick bar ends to the right of it."
    )
    plotted = [
        ("Difference to the serving model, in points", points, False),
        ("Difference to the serving model, in per cent of its value", others, True),
    ]
    sections = []
    for heading, rows, in_percent in plotted:
        if rows:
            sections.append(section(heading, legend, plots.forest(rows, in_percent)))
            legend = ""  # once is enough
    return sections


def _disagreement(decision: Decision) -> str:
    # Real-valued scores differ on nearly every item, which tells nothing.
    rows = [row for row in decision.comparisons if row.num_items and row.is_proportion]
    if not rows:
        return ""
    legend = "Only the items on which the models differ can tell them apart."
    return section("Where the models disagree", legend, plots.discordance(rows))


def _floors(decision: Decision) -> str:
    if not decision.floors:
        return ""
    legend = "What the candidate must reach by itself. The mark is the bound."
    return section("Floors", legend, plots.floors(decision.floors))


def _numbers(decision: Decision) -> str:
    tables = []
    if decision.rows:
        tables.append(table(comparison_rows(decision)))
        untested = "".join(map(_untested, decision.comparisons))
        tables.append(f'<p class="soft">{escape(limits_explained(decision))}</p>{untested}')
    if decision.floors:
        tables.append(table(floor_rows(decision)))
    return section("All numbers", "", "".join(tables))


def _untested(row: Comparison) -> str:
    return f'<p class="soft">{escape(row.name)}: {escape(row.note)}.</p>' if row.note else ""


def _provenance(decision: Decision) -> str:
    policy = decision.policy
    margins = policy.max_regression
    entries = [("Candidate", _side(decision.candidate))]
    entries.append(("Baseline", _side(decision.baseline) if decision.baseline else "none"))
    entries += [
        ("Largest tolerated loss", escape(str(policy.to_dict()["max_regression"])))
        if not isinstance(margins, float | int)
        else ("Largest tolerated loss", number(margins)),
        ("Error rate", f"{policy.alpha:g}, one-sided"),
        ("If inconclusive", escape(policy.on_inconclusive.replace("_", " "))),
        ("Decided by", escape(decision.resolved_by.replace("_", " "))),
        ("Seed", str(policy.seed)),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in entries)
    return section("Policy and provenance", "", f"<dl>{listed}</dl>")


def _side(side: Side) -> str:
    model = f" · {escape(side.model)}" if side.model and side.model != side.label else ""
    return f"{escape(side.label)}{model}<br><code>{escape(side.digest)}</code>"


def section(heading: str, legend: str, content: str) -> str:
    """A part of a page; heading and legend are escaped, the content is HTML."""
    explained = f'<p class="soft">{escape(legend)}</p>' if legend else ""
    return (
        f'<section><h2>{escape(heading)}</h2>{explained}<div class="scroll">{content}</div>'
        "</section>\n"
    )


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """A table whose first row is its header; all cells are escaped."""
    header, *body = rows
    head = "".join(
        f'<th scope="col">{escape(cell)}</th>' if cell else "<td></td>" for cell in header
    )
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
