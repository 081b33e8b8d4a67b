"""Charts as inline SVG; colours are classes of the style sheet, which follows light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from markupsafe import Markup, escape

from penstock.artifacts import Artifact
from penstock.console.desk import Cost
from penstock.console.live import Bucket
from penstock.gates.plots import Bar, bars
from penstock.run_page import row_bars

_WIDTH, _ROW, _START, _END = 880, 30, 130, 700


def rows(artifacts: Mapping[str, Artifact]) -> Markup:
    """Rows that each stage kept, beside those it removed; empty if none had any."""
    return _bars(row_bars(artifacts), "Rows kept and removed by each stage")


def days(costs: Sequence[Cost]) -> Markup:
    """US dollars for each day, or tokens where nothing has a price; empty if nothing was used."""
    by_price = any(one.usage.nanousd for one in costs)
    found = []
    for one in costs:
        value = one.usage.nanousd if by_price else _tokens(one)
        said = f"${one.dollars}" if by_price else f"{value:,} tokens"
        found.append(Bar(one.name, ((value, "better"),), said))
    if not any(length for one in found for length, _ in one.parts):
        return Markup("")
    return _bars(found, "Cost of each day" if by_price else "Tokens of each day")


def requests(buckets: Sequence[Bucket]) -> Markup:
    """Requests over time: those that got an answer, and on top of them those that got none."""
    largest = max((one.num_answered + one.num_other for one in buckets), default=0)
    if not largest:
        return Markup("")
    width, height = (_END - _START) / len(buckets), 5 * _ROW
    lines = [_axis(height, largest, buckets[0].at, buckets[-1].at)]
    for index, one in enumerate(buckets):
        x, low = _START + index * width, height * one.num_answered / largest
        high = height * one.num_other / largest
        said = f"{one.at:%H:%M:%S}: {one.num_answered:,} answered, {one.num_other:,} not"
        lines.append(_column(x, width, height - low, low, "kept", said))
        lines.append(_column(x, width, height - low - high, high, "removed", said))
    return _svg(lines, 6, "Requests over the last minutes")


def _axis(height: int, largest: int, first: datetime, last: datetime) -> Markup:
    return Markup(
        '<text x="{0}" y="14" text-anchor="end" class="value">{1}</text>'
        '<line x1="{2}" x2="{3}" y1="{4}" y2="{4}" class="grid"/>'
        '<text x="{2}" y="{5}" class="value">{6}</text>'
        '<text x="{3}" y="{5}" text-anchor="end" class="value">{7}</text>'
    ).format(
        *(_START - 10, f"{largest:,}", _START, _END, height, height + 18),
        *(f"{first:%H:%M:%S}", f"{last:%H:%M:%S}"),
    )


def _column(x: float, width: float, y: float, height: float, kind: str, said: str) -> Markup:
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}">'
        "<title>{}</title></rect>"
    ).format(x + 1, y, width - 2, height, kind, said)


def _bars(found: Sequence[Bar], title: str) -> Markup:
    # Everything in it was escaped where it was made.
    return Markup(bars(found, title)) if found else Markup("")  # noqa: S704


def _tokens(cost: Cost) -> int:
    return cost.usage.prompt_tokens + cost.usage.completion_tokens


def _svg(lines: Sequence[Markup], num_rows: int, title: str) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(_WIDTH, num_rows * _ROW, title, title, Markup("").join(escape(one) for one in lines))
