"""A decision for people: rows for a terminal, and Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.errors import PenstockError
from penstock.gates.comparison import Comparison
from penstock.gates.decision import Decision, FloorCheck, Side, signed

HEADLINES = {
    "PASS": "The candidate may serve.",
    "BLOCK": "The candidate must not serve.",
    "INCONCLUSIVE": "There is not enough evidence to let the candidate serve.",
}

SUMMARY_HEADER = ("metric", "candidate", "difference", "lower limit", "demand", "shown")
COMPARISON_HEADER = (
    "metric",
    "shown",
    "candidate",
    "baseline",
    "difference",
    "lower limit",
    "margin",
    "items",
    "better/worse",
    "harm p (Holm)",
    "power",
    "items for 80 %",
)
FLOOR_HEADER = ("kind", "metric", "candidate", "demand", "shown")


def summary_rows(decision: Decision) -> list[tuple[str, ...]]:
    """What a terminal of 80 columns can hold: a header, then all that was demanded.

    First floors and ceilings, then the macro mean if any, then each metric.
    """
    floors = [
        (check.metric, number(check.value), "–", "–", _bound(check), _holds(check))
        for check in decision.floors
    ]
    return [SUMMARY_HEADER, *floors, *(_summary_row(row) for row in decision.rows)]


def comparison_rows(decision: Decision) -> list[tuple[str, ...]]:
    """Every number of the comparisons as text: a header, the macro mean if any, the metrics."""
    return [COMPARISON_HEADER, *(_comparison_row(row) for row in decision.rows)]


def floor_rows(decision: Decision) -> list[tuple[str, ...]]:
    """The floors and ceilings as text, with a header."""
    return [FLOOR_HEADER, *(_floor_row(check) for check in decision.floors)]


def to_markdown(decision: Decision) -> str:
    """The decision as GitHub-flavoured Markdown."""
    lines = [f"## Gate: {decision.verdict}", "", HEADLINES[decision.verdict], ""]
    lines += [f"- {_escaped(reason)}" for reason in decision.reasons]
    if decision.notes:
        lines += ["", *(f"> {_escaped(note)}" for note in decision.notes)]
    if decision.rows:
        lines += ["", "### Against the baseline", "", *_table(comparison_rows(decision))]
        lines += ["", limits_explained(decision)]
    if decision.floors:
        lines += ["", "### Floors", "", *_table(floor_rows(decision))]
    lines += ["", *(f"- {_escaped(text)}" for text in _side_lines(decision))]
    return "\n".join(lines) + "\n"


def error_to_markdown(error: PenstockError) -> str:
    """What is said in place of a decision when there could be none."""
    lines = ["## Gate: error", "", "Nothing was judged, so nothing may be promoted.", ""]
    lines += [f"- {_escaped(text)}" for text in (error.message, error.hint) if text]
    return "\n".join(lines) + "\n"


def limits_explained(decision: Decision) -> str:
    """How to read differences and limits, in two sentences."""
    level = f"{100 * (1 - decision.policy.alpha):g} %"
    return (
        "A positive difference favours the candidate, also where less is better. "
        f"Lower limits are one-sided at {level}: a true regression as large as the margin "
        f"passes {100 * decision.policy.alpha:g} % of the time."
    )


def number(value: float | None) -> str:
    """A value for people; a dash for an unknown one."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def describe(side: Side) -> str:
    """Label, model and digest of one side."""
    model = f" ({side.model})" if side.model and side.model != side.label else ""
    return f"{side.label}{model}, digest {side.digest[:12]}"


def _comparison_row(row: Comparison) -> tuple[str, ...]:
    return (
        row.name,
        row.judgement.value,
        number(row.candidate),
        number(row.baseline),
        signed(row.difference),
        "–" if row.lower is None else signed(row.lower),
        number(row.margin),
        f"{row.num_items:,}" if row.num_items else "–",
        f"{row.better:,}/{row.worse:,}" if row.num_items else "–",
        "–" if row.harm_p_holm is None else f"{row.harm_p_holm:.2g}",
        "–" if row.power is None else f"{row.power:.0%}",
        "–" if row.items_needed is None else f"{row.items_needed:,}",
    )


def _summary_row(row: Comparison) -> tuple[str, ...]:
    return (
        row.name,
        number(row.candidate),
        signed(row.difference),
        "–" if row.lower is None else signed(row.lower),
        "–" if row.margin is None else f"> {signed(-row.margin)}",
        row.judgement.value,
    )


def _floor_row(check: FloorCheck) -> tuple[str, ...]:
    kind = "ceiling" if check.is_ceiling else "floor"
    return kind, check.metric, number(check.value), _bound(check), _holds(check)


def _bound(check: FloorCheck) -> str:
    return f"{'≤' if check.is_ceiling else '≥'} {number(check.bound)}"


def _holds(check: FloorCheck) -> str:
    return "holds" if check.holds else "fails"


def _side_lines(decision: Decision) -> list[str]:
    lines = [f"Candidate: {describe(decision.candidate)}"]
    if decision.baseline is not None:
        lines.append(f"Baseline: {describe(decision.baseline)}")
    return lines


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    header, *body = rows
    # The first column names things; numbers are read from the right.
    rule = ["---", *("---:" for _ in header[1:])]
    return [_line(header), _line(rule), *(_line(row) for row in body)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: no table, link, HTML or emphasis of a task's making."""
    flat = " ".join(text.split())
    for character in "\\`*_[]<>|":
        flat = flat.replace(character, "\\" + character)
    return flat
