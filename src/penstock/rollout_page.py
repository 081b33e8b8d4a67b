"""A rollout as one HTML page that needs nothing else: evidence, differences, decisions."""

from __future__ import annotations

from html import escape

from penstock.gates.page import document, section, table
from penstock.gates.plots import Bar, Evidence, bars, trail
from penstock.ledger.rollout_records import RolloutEvent, State
from penstock.printing import clock
from penstock.rollout_report import SIGNAL_HEADERS, Status, counts, headline, signal_rows

_KINDS = {State.PROMOTED: "PASS", State.ROLLED_BACK: "BLOCK"}


def to_html(now: Status) -> str:
    """The page."""
    rollout = now.rollout
    kind = _KINDS.get(rollout.state, "INCONCLUSIVE")
    told = "".join(f'<p class="soft">{escape(line)}</p>' for line in counts(now).splitlines())
    head = (
        f'<header><div class="verdict">{escape(rollout.state.value.replace("_", " ").upper())}'
        f"</div><h1>{escape(headline(now))}</h1>{told}</header>\n"
    )
    enough = 1 / rollout.policy["comparison"]["alpha"]
    signals = (
        "Champion beside challenger. Both kinds of evidence may be looked at after every request."
    )
    harm = (
        "Evidence that the challenger does harm, when something was decided and now, on a "
        f"logarithmic scale. Dashed: where it is taken back ({enough:,.0f})."
    )
    parts = [
        head,
        section("Evidence of harm", harm, trail(_moments(now, enough), enough, "Evidence of harm")),
        section("Signals", signals, table([SIGNAL_HEADERS, *signal_rows(now)])),
        section("Share of the requests", "After each decision.", _shares(now)),
        section("Decisions", "Each can be computed again from the log.", table(_decisions(now))),
    ]
    return document(f"Rollout {rollout.id}: {rollout.state.value}", kind, parts)


def _moments(now: Status, enough: float) -> list[Evidence]:
    decided = [
        Evidence(clock(one.at_s), float(one.evidence["harm"]), one.evidence["harm"] >= enough)
        for one in now.events
        if "harm" in one.evidence
    ]
    if decided and not now.rollout.is_open:
        return decided
    harm = float(now.evidence["harm"])
    return [*decided, Evidence("now", harm, harm >= enough)]


def _shares(now: Status) -> str:
    rows = [
        Bar(
            f"{one.epoch}. {one.action}",
            ((one.share, "better"), (1 - one.share, "track")),
            f"{one.share:.1%}",
        )
        for one in now.events
    ]
    return bars(rows, "The challenger's share after each decision") if rows else ""


def _decisions(now: Status) -> list[tuple[str, ...]]:
    return [("", "at (UTC)", "decision", "step", "share", "by", "why"), *map(_row, now.events)]


def _row(one: RolloutEvent) -> tuple[str, ...]:
    step = f"{one.step + 1}"
    return (
        *(str(one.epoch), clock(one.at_s), str(one.action), step),
        *(f"{one.share:.1%}", one.actor, one.reason),
    )
