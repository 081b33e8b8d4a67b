"""What a rollout has come to so far, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.ledger.rollout_records import Rollout, RolloutEvent
from penstock.ledger.rollouts import Rollouts
from penstock.rollout import Terms
from penstock.rollout_evidence import Evidence


@dataclass(frozen=True)
class Status:
    """A rollout, its log and its evidence up to now.

    Attributes:
        rollout: As it is.
        share: The challenger's share of the requests.
        events: Its decision log.
        batch: The last batch that is in the evidence.
        evidence: Counts, rates and e-values.
    """

    rollout: Rollout
    share: float
    events: list[RolloutEvent]
    batch: int
    evidence: Mapping[str, Any]


def status(rollouts: Rollouts, rollout: Rollout) -> Status:
    """Read what there is, also what no controller has looked at yet.

    Of a rollout that has ended, what it was decided by.
    """
    saved = rollouts.checkpoint(rollout.id)
    evidence = Evidence.restored(Terms.from_dict(rollout.policy), saved)
    if rollout.is_open:
        _catch_up(rollouts, rollout.id, evidence)
    events = rollouts.events(rollout.id)
    return Status(rollout, rollout.share, events, evidence.batch, evidence.shown())


def _catch_up(rollouts: Rollouts, rollout_id: str, evidence: Evidence) -> None:
    seen, known = 0, evidence.batch
    while seen < known and (found := rollouts.batches(rollout_id, seen, known)):
        evidence.remember(found)
        seen = found[-1].number
    while found := rollouts.batches(rollout_id, evidence.batch):
        for batch in found:
            evidence.take(batch)


def signal_rows(now: Status) -> Iterator[tuple[str, ...]]:
    """One row for each signal: champion, challenger, difference, and both questions' evidence."""
    comparison = now.rollout.policy["comparison"]
    champion, challenger = (now.evidence["arms"][arm] for arm in ("champion", "challenger"))
    quantile = f"latency_p{comparison['latency_quantile'] * 100:g}_s"
    keys = {
        "errors": ("error_rate", _percent),
        "format": ("invalid_rate", _percent),
        "latency": (quantile, _seconds),
        "score": ("mean_score", _plain),
    }
    for signal, (key, shown) in keys.items():
        values = (champion[key], challenger[key])
        said = now.evidence["signals"][signal]
        margin = comparison[signal]["margin"]
        yield (
            signal,
            *(shown(value) for value in values),
            _difference(signal, *values),
            f"{said['harm']:.3g}",
            "" if said["within"] is None else f"{said['within']:.3g}",
            "" if margin is None else f"{margin:g}",
            "shown" if said["shown"] else "",
        )


SIGNAL_HEADERS = (
    "signal",
    "champion",
    "challenger",
    "difference",
    "for harm",
    "within margin",
    "margin",
    "",
)


def headline(now: Status) -> str:
    """Where it is, in one line."""
    rollout = now.rollout
    where = f"step {rollout.step + 1} of {len(rollout.steps)}, {now.share:.1%} of the requests"
    place = where if rollout.is_open else rollout.reason
    return (
        f"{rollout.id}: {rollout.model} version {rollout.challenger} against version "
        f"{rollout.champion} is {rollout.state}: {place}"
    )


def counts(now: Status) -> str:
    """How much was seen, and what would decide."""
    comparison = now.rollout.policy["comparison"]
    requests = now.evidence["requests"]
    lines = (
        f"{requests['champion']:,} requests of the champion, {requests['challenger']:,} of the "
        f"challenger ({now.evidence['step_challenger']:,} in this step, "
        f"{comparison['min_requests']:,} needed).",
        f"Evidence of harm over all signals: {now.evidence['harm']:.3g}; at "
        f"{1 / comparison['alpha']:.3g} the challenger is taken back. Evidence within a margin "
        f"must reach {1 / comparison['step_alpha']:.3g}.",
    )
    drawn = "" if now.evidence["drawn"] else "\nRequests were not drawn as the shares say."
    trouble = f"\nThe pointer cannot be moved: {now.rollout.trouble}" if now.rollout.trouble else ""
    return "\n".join(lines) + drawn + trouble


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} s"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _difference(signal: str, champion: float | None, challenger: float | None) -> str:
    if champion is None or challenger is None:
        return ""
    if signal == "latency":
        return f"x{challenger / champion:.2f}" if champion else ""
    return f"{challenger - champion:+.4f}"
