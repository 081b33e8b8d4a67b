"""Plots of the pages as inline SVG: differences with limits, disagreement, floors, bars, evidence.

Colours are CSS classes of the page, so that they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from penstock.gates.comparison import Comparison, Judgement
from penstock.gates.decision import FloorCheck
from penstock.gates.report import number

WIDTH = 880
LABEL_END, PLOT_START, PLOT_END, TEXT_START = 232, 248, 668, 680
ROW = 32
AXIS = 24
_TRAIL = 220
LABEL_CHARACTERS = 28

_TONES = {
    Judgement.NON_INFERIOR: "good",
    Judgement.NO_HARM_SHOWN: "calm",
    Judgement.INFERIOR: "bad",
    Judgement.HARMED: "bad",
    Judgement.UNDECIDED: "unsure",
    Judgement.UNTESTED: "unsure",
}


def tone(judgement: Judgement) -> str:
    """The CSS class that colours a judgement."""
    return _TONES[judgement]


@dataclass(frozen=True)
class _Scale:
    """From a value to a horizontal position."""

    low: float
    high: float

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return PLOT_START + min(max(share, 0.0), 1.0) * (PLOT_END - PLOT_START)

    def ticks(self) -> list[float]:
        """Four to eight round values within the scale."""
        raw = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
        first = math.ceil(self.low / step)
        return [step * index for index in range(first, math.floor(self.high / step) + 1)]


def forest(rows: Sequence[Comparison], in_percent: bool) -> str:
    """Differences with confidence limits, a zero line, and each row's margin.

    The thick bar spans the two one-sided limits, the thin one the two-sided
    interval; a row with a margin passes when its thick bar ends right of the
    margin's mark.

    Args:
        rows: Comparisons of one kind, at least one.
        in_percent: Show differences as per cent of the baseline, rather than in points.
    """
    units = [_unit(row, in_percent) for row in rows]
    scale = _forest_scale(rows, units)
    height = len(rows) * ROW + AXIS
    parts = [_axis(scale, height, "%" if in_percent else "")]
    for index, (row, unit) in enumerate(zip(rows, units, strict=True)):
        parts.append(_forest_row(row, unit, scale, index * ROW, "%" if in_percent else ""))
    kind = "per cent of the baseline" if in_percent else "points"
    return svg(parts, height, f"Difference between candidate and baseline in {kind}")


def _unit(row: Comparison, in_percent: bool) -> float:
    """What one unit of the row's difference is on the axis."""
    return 100 / abs(row.baseline) if in_percent and row.baseline else 100.0


def _forest_scale(rows: Sequence[Comparison], units: Sequence[float]) -> _Scale:
    values = [0.0]
    for row, unit in zip(rows, units, strict=True):
        ends = [row.difference, row.interval_lower, row.interval_upper, row.lower, row.upper]
        values += [end * unit for end in ends if end is not None]
        values += [] if row.margin is None else [-row.margin * unit]
    spread = max(max(values) - min(values), 1e-6)
    return _Scale(min(values) - 0.06 * spread, max(values) + 0.06 * spread)


def _axis(scale: _Scale, height: int, suffix: str) -> str:
    bottom = height - AXIS
    parts = []
    for tick in scale.ticks():
        x = scale.x(tick)
        parts.append(line(x, 0, x, bottom, "zero" if abs(tick) < 1e-12 else "grid"))
        label = f"{tick:+.6g}" if abs(tick) > 1e-12 else "0"
        parts.append(text(x, bottom + 18, label + suffix, "tick", "middle"))
    return "".join(parts)


def _forest_row(row: Comparison, unit: float, scale: _Scale, top: float, suffix: str) -> str:
    y = top + ROW / 2
    parts = [_label(row.name, y, strong=row.is_macro)]
    if row.margin is not None:
        x = scale.x(-row.margin * unit)
        parts.append(line(x, top + 4, x, top + ROW - 4, "margin", f"margin {number(row.margin)}"))
    thin = _span(row.interval_lower, row.interval_upper, unit, scale)
    if thin:
        parts.append(line(thin[0], y, thin[1], y, f"thin {tone(row.judgement)}"))
    thick = _span(row.lower, row.upper, unit, scale)
    if thick:
        parts.append(line(thick[0], y, thick[1], y, f"thick {tone(row.judgement)}"))
    parts.append(_dot(row, scale.x(row.difference * unit), y))
    shown = f"{row.difference * unit:+.2f}{suffix}"
    parts.append(text(TEXT_START + 62, y + 4, shown, "value", "end"))
    parts.append(text(TEXT_START + 76, y + 4, row.judgement.value, f"shown {tone(row.judgement)}"))
    return "".join(parts)


def _span(
    low: float | None, high: float | None, unit: float, scale: _Scale
) -> tuple[float, float] | None:
    if low is None or high is None:
        return None
    return scale.x(low * unit), scale.x(high * unit)


def _dot(row: Comparison, x: float, y: float) -> str:
    radius = 5.5 if row.is_macro else 4.5
    kind = "hollow" if row.lower is None else "dot"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind} {tone(row.judgement)}"/>'


def discordance(rows: Sequence[Comparison]) -> str:
    """On how many items each model does better than the other, as a share of all.

    Args:
        rows: Comparisons with items, at least one.
    """
    widest = max(max(row.better, row.worse) / row.num_items for row in rows) or 1.0
    scale = _Scale(-1.25 * widest, 1.25 * widest)
    height = len(rows) * ROW + 24
    middle = scale.x(0)
    parts = [
        text(middle - 10, 14, "baseline does better", "tick", "end"),
        text(middle + 10, 14, "candidate does better", "tick"),
    ]
    for index, row in enumerate(rows):
        parts.append(_discordance_row(row, scale, 24 + index * ROW))
    parts.append(line(middle, 22, middle, height, "zero"))
    return svg(parts, height, "Items on which the two models disagree")


def _discordance_row(row: Comparison, scale: _Scale, top: float) -> str:
    middle, y = scale.x(0), top + ROW / 2
    left, right = scale.x(-row.worse / row.num_items), scale.x(row.better / row.num_items)
    equal = row.num_items - row.better - row.worse
    return "".join(
        [
            _label(row.name, y),
            bar(left, top + 8, middle - left, "worse"),
            bar(middle, top + 8, right - middle, "better"),
            text(left - 6, y + 4, f"{row.worse:,}", "value", "end"),
            text(right + 6, y + 4, f"{row.better:,}", "value"),
            text(WIDTH - 4, y + 4, f"{equal:,} of {row.num_items:,} equal", "tick", "end"),
        ]
    )


def floors(checks: Sequence[FloorCheck]) -> str:
    """Each demand's bound against what the candidate reached.

    Args:
        checks: At least one.
    """
    parts = [_floor_row(check, index * ROW) for index, check in enumerate(checks)]
    return svg(parts, len(checks) * ROW, "Floors and ceilings")


def _floor_row(check: FloorCheck, top: float) -> str:
    y = top + ROW / 2
    low = min(0.0, check.value, check.bound)
    largest = max(check.value, check.bound)
    scale = _Scale(low, 1.0 if low == 0 and 0 < largest <= 1 else max(largest, 0.0) * 1.15 + 1e-9)
    end, mark = scale.x(check.value), scale.x(check.bound)
    colour = "good" if check.holds else "bad"
    sign = "≤" if check.is_ceiling else "≥"
    return "".join(
        [
            _label(check.metric, y),
            bar(PLOT_START, top + 8, PLOT_END - PLOT_START, "track"),
            bar(PLOT_START, top + 8, end - PLOT_START, f"fill {colour}"),
            line(mark, top + 4, mark, top + ROW - 4, "bound", f"{sign} {number(check.bound)}"),
            text(TEXT_START + 62, y + 4, number(check.value), "value", "end"),
            text(
                TEXT_START + 76,
                y + 4,
                f"{sign} {number(check.bound)} {'holds' if check.holds else 'fails'}",
                f"shown {colour}",
            ),
        ]
    )


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart.

    Attributes:
        name: At its left.
        parts: Length and CSS class of each piece, from left to right.
        said: At its right.
    """

    name: str
    parts: Sequence[tuple[float, str]]
    said: str


def bars(rows: Sequence[Bar], title: str) -> str:
    """Bars on one scale, the longest as wide as the plot.

    Args:
        rows: At least one.
        title: For those who do not see it.
    """
    longest = max(sum(length for length, _ in row.parts) for row in rows) or 1.0
    parts = []
    for place, row in enumerate(rows):
        y, x = place * ROW + ROW / 2, float(PLOT_START)
        parts.append(_label(row.name, y))
        for length, kind in row.parts:
            width = length / longest * (PLOT_END - PLOT_START)
            parts.append(bar(x, y - 8, width, kind))
            x += width
        parts.append(text(TEXT_START, y + 4, row.said, "value"))
    return svg(parts, len(rows) * ROW, title)


@dataclass(frozen=True)
class Evidence:
    """Evidence at one moment.

    Attributes:
        name: When.
        value: Not negative.
        is_enough: Whether something was decided by it; what comes next begins anew.
    """

    name: str
    value: float
    is_enough: bool


def trail(moments: Sequence[Evidence], threshold: float, title: str) -> str:
    """Evidence over time on a logarithmic scale, from 1, and where it is enough.

    Args:
        moments: Oldest first; at least one.
        threshold: Where it is enough.
        title: For those who do not see it.
    """
    top = math.log10(threshold) + 0.7
    parts = [_power(power, top) for power in range(int(top) + 1)]
    y = _height(math.log10(threshold), top)
    parts.append(line(PLOT_START, y, PLOT_END, y, "margin", f"enough: {threshold:,.3g}"))
    before: tuple[float, float] | None = None
    for i, one in enumerate(moments):
        value = max(math.log10(max(one.value, 1e-9)), 0.0)
        x = PLOT_START + (i + 0.5) / len(moments) * (PLOT_END - PLOT_START)
        at = x, _height(min(value, top), top)
        if before is not None:
            parts.append(line(*before, *at, "thin calm"))
        parts.append(
            f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3.5" '
            f'class="dot {"bad" if one.is_enough else "calm"}">'
            f"<title>{escape(f'{one.name}: {one.value:.3g}')}</title></circle>"
        )
        before = None if one.is_enough else at
    parts.append(text(PLOT_START, _TRAIL + 20, moments[0].name, "tick"))
    if len(moments) > 1:
        parts.append(text(PLOT_END, _TRAIL + 20, moments[-1].name, "tick", "end"))
    return svg(parts, _TRAIL + 26, title)


def _power(power: int, top: float) -> str:
    y = _height(power, top)
    label = text(PLOT_START - 8, y + 4, f"{10**power:,}", "tick", "end")
    return line(PLOT_START, y, PLOT_END, y, "grid") + label


def _height(value: float, top: float) -> float:
    return 8 + (1 - value / top) * (_TRAIL - 16)


def svg(parts: Sequence[str], height: float, title: str) -> str:
    """A drawing of the page's width."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _label(name: str, y: float, strong: bool = False) -> str:
    short = name
    if len(name) > LABEL_CHARACTERS:  # the end holds the metric
        half = LABEL_CHARACTERS // 2
        short = f"{name[: half - 1]}…{name[-half:]}"
    kind = "label strong" if strong else "label"
    return text(LABEL_END, y + 4, short, kind, "end", name)


def text(
    x: float, y: float, content: str, kind: str, anchor: str = "start", title: str = ""
) -> str:
    """Words at a place; escaped."""
    hover = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
        f"{hover}{escape(content)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str, title: str = "") -> str:
    """A line of a CSS class."""
    hover = f"<title>{escape(title)}</title>" if title else ""
    position = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {position} class="{kind}">{hover}</line>'


def bar(x: float, y: float, width: float, kind: str) -> str:
    """A bar as high as a row of a plot allows."""
    size = f'width="{max(width, 0):.1f}" height="{ROW - 16}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} rx="2" class="{kind}"/>'
