"""Drift as one HTML page that needs nothing else: the stream, a window's tests, its topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from penstock.gates.page import document, section, table
from penstock.gates.plots import PLOT_END, PLOT_START, Evidence, bar, svg, text, trail
from penstock.monitoring.drift import Judged, Status
from penstock.monitoring.drift_report import AGAINST, HEADERS, Topic, Topics, headline, rows

_ROW = 44
_MAX_ROWS = 60
_MAX_DOTS = 365


def to_html(status: Status, one: Judged | None, topics: Sequence[Topics]) -> str:
    """The page.

    Args:
        status: All windows.
        one: The window that is told in detail; None if none was judged.
        topics: What moved in it.
    """
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in status.notes)
    verdict = "ALARM" if status.alarms else "NO ALARM"
    head = (
        f'<header><div class="verdict">{verdict}</div><h1>{escape(headline(status))}</h1>'
        f"{notes}</header>\n"
    )
    parts = [head, stream_section(status)]
    parts += [] if one is None else window_sections(one)
    parts += [topics_section(found) for found in topics]
    shown = [HEADERS, *reversed(rows(status)[-_MAX_ROWS:])]
    parts.append(section("Windows", f"The last {_MAX_ROWS}, newest first.", table(shown)))
    return document(f"Drift: {verdict}", "BLOCK" if status.alarms else "PASS", parts)


def stream_section(status: Status) -> str:
    """The statistic after each window, beside the one that raises an alarm."""
    legend = (
        "Evidence that windows are no longer alike, on a logarithmic scale. Dashed: where it "
        f"raises an alarm ({status.threshold:,.0f}). It begins anew after one."
    )
    return section("The stream", legend, _stream(status))


def _stream(status: Status) -> str:
    moments = [
        Evidence(one.name, one.moment.statistic, one.moment.is_alarm)
        for one in status.windows
        if one.moment is not None
    ]
    if not moments:
        return '<p class="soft">No window was judged yet.</p>'
    title = "Statistic of the stream after each window"
    return trail(moments[-_MAX_DOTS:], status.threshold, title)


def window_sections(one: Judged) -> list[str]:
    """A window's tests and shifts, and what its part of the stream is made of."""
    found = one.record.found
    tests: list[tuple[str, ...]] = [
        ("", "texts", "p, kernel", "p, classifier", "distance", "AUC", "")
    ]
    shifts: list[tuple[str, ...]] = [("", "before", "after", "difference", "p", "")]
    for column, compared in found["columns"].items():
        for against, words in AGAINST.items():
            test = compared.get(against)
            if test is not None:
                tests.append(_test_row(f"{column} against {words}", test))
                shifts += [_shift_row(words, shift) for shift in test["shifts"]]
    legend = (
        "Each test's p-value is exact, and counts at half of alpha. They say how the window "
        "differs; live traffic always differs somehow, and they raise no alarm."
    )
    parts = [section(f"Window {one.name}", legend, table(tests))]
    if len(shifts) > 1:
        said = "Lengths are medians, in characters. Which stand is corrected for all (Holm)."
        parts.append(section("Lengths, languages, refusals", said, table(shifts)))
    if one.moment is not None:
        parts.append(section("What the alarm is made of", "", table(_signals(one))))
    return parts


def _test_row(name: str, test: Mapping[str, Any]) -> tuple[str, ...]:
    p = [test["kernel_p"], test["classifier_p"]]
    shown = ["" if value is None else f"{value:.3f}" for value in p]
    differs = "differs" if test["differs"] else ""
    numbers = f"{test['distance']:.3f}", f"{test['auc']:.3f}"
    return (name, f"{test['num_before']:,} / {test['num_after']:,}", *shown, *numbers, differs)


def _shift_row(words: str, shift: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"{shift['name']}, against {words}"
    if shift["interval"] is None:
        values = (f"{shift['before']:,.0f}", f"{shift['after']:,.0f}", "")
    else:
        low, high = shift["interval"]
        values = (f"{shift['before']:.1%}", f"{shift['after']:.1%}", f"{low:+.1%} to {high:+.1%}")
    p = "" if shift["p"] is None else f"{shift['p']:.3g}"
    return (name, *values, p, "stands" if shift["stands"] else "")


def _signals(one: Judged) -> list[tuple[str, ...]]:
    assert one.moment is not None
    p = one.moment.p
    ordered = sorted(one.moment.by_signal.items(), key=lambda item: -item[1])
    body = [(name, f"{value:.3g}", f"{p[name]:.3f}") for name, value in ordered]
    return [("signal", "statistic", "conformal p"), *body]


def topics_section(found: Topics) -> str:
    """The shares of topics before and after, and examples of those that moved."""
    heading = f"Topics of the {found.column}, against {AGAINST[found.against]}"
    legend = (
        "Shares before and after, and examples from the middle of each; personal data is taken "
        "out. Whether a share moved is corrected for all topics (Holm)."
    )
    if not found.topics:
        return section(heading, "There are too few texts for topics.", "")
    widest = max(max(one.share.before, one.share.after) for one in found.topics)
    drawn = [_shares(one, i * _ROW, widest) for i, one in enumerate(found.topics)]
    plot = svg(drawn, len(found.topics) * _ROW, "Share of each topic before and after")
    told = "".join(_examples(one) for one in found.topics if one.share.stands)
    return section(heading, legend, plot + told)


def _shares(topic: Topic, top: float, widest: float) -> str:
    share, wide = topic.share, (PLOT_END - PLOT_START) / max(widest, 1e-9)
    low, high = share.interval or (0.0, 0.0)
    kind = "bad" if share.stands else "calm"
    moved = f"{share.after - share.before:+.1%} ({low:+.1%} to {high:+.1%})"
    return "".join(
        [
            text(PLOT_START - 16, top + 24, share.name, "label", "end"),
            bar(PLOT_START, top + 2, share.before * wide, "worse"),
            bar(PLOT_START, top + 20, share.after * wide, "better"),
            text(PLOT_END + 8, top + 24, moved, f"shown {kind}"),
        ]
    )


def _examples(topic: Topic) -> str:
    sides = (("before", topic.before), ("after", topic.after))
    listed = "".join(
        f"<p><strong>{name}</strong></p><ul>"
        + "".join(f"<li>{escape(example)}</li>" for example in examples)
        + "</ul>"
        for name, examples in sides
        if examples
    )
    return f"<h2>{escape(topic.share.name)}</h2>{listed}"
