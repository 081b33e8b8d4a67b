"""When the next run starts: alarms and earlier runs in, a decision out.

Nothing here reads a clock, a recipe or the ledger: the same situation and the same policy
give the same decision at any time, and both can be written down as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

_SEVERITIES = ("info", "warning", "critical")
# What tells of the state of what serves: while a run mends that, they tell of the same.
_OF_THE_SAME = frozenset({"drift", "quality", "alert"})
_PERSON = "person"
WEEK_S = 7 * 24 * 3600.0
MONTH_S = 30 * 24 * 3600.0
# Of a run's outcomes, those after which users have what they had, and money is gone.
FAILURES = frozenset({"FAILED", "BLOCKED", "INCONCLUSIVE", "UNKNOWN", "ROLLED_BACK"})
_NEUTRAL = frozenset({"SKIPPED"})


@dataclass(frozen=True)
class RetrainPolicy:
    """What may start a run, and how often.

    Attributes:
        on: Kind of alarm -> the least severity that counts. A person's always do.
        debounce_s: A start waits so long after the first alarm for others to join it.
        cooldown_s: Between the end of a run and the next start.
        max_runs_per_week: Starts in any seven days.
        usd_per_run: What a run is expected to cost.
        usd_per_hour: What an hour of a run costs that has ended; None: `usd_per_run` holds.
        max_usd_per_month: Spent on runs in any 30 days; None is no limit.
        needs_approval: Whether a person has to agree.
        veto_s: A start waits so long, after `debounce_s`, for a person to forbid it.
        max_failures: After so many failures in a row nothing starts until a person says so.
    """

    on: Mapping[str, str] = field(default_factory=dict)
    debounce_s: float = 300.0
    cooldown_s: float = 6 * 3600.0
    max_runs_per_week: int = 7
    usd_per_run: float = 0.0
    usd_per_hour: float | None = None
    max_usd_per_month: float | None = None
    needs_approval: bool = False
    veto_s: float = 0.0
    max_failures: int = 3


@dataclass(frozen=True)
class Waiting:
    """An alarm that is open; ``received_s`` by the ledger's clock, as all times here."""

    number: int
    kind: str
    severity: str
    received_s: float


@dataclass(frozen=True)
class Start:
    """A run that was started.

    Attributes:
        key: Its name.
        at_s: When that was decided.
        outcome: What it came to; None while it is on.
        ended_s: When it was over; None while it is on.
        duration_s: How long it ran; None if that is not known.
    """

    key: str
    at_s: float
    outcome: str | None = None
    ended_s: float | None = None
    duration_s: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether it may still change what serves."""
        return self.outcome is None


@dataclass(frozen=True)
class Situation:
    """All that a decision rests on.

    Attributes:
        now_s: Unix seconds.
        waiting: Open alarms, in the order of their numbers.
        starts: Of the last 30 days and later, oldest first.
        paused: Why a person has halted the loop; None if nobody has.
        trial: The rollout that is on, or None.
        approved_up_to: The number of the last alarm for which a person has agreed to a start.
        resumed_s: Failures before this moment are forgiven.
    """

    now_s: float
    waiting: tuple[Waiting, ...] = ()
    starts: tuple[Start, ...] = ()
    paused: str | None = None
    trial: str | None = None
    approved_up_to: int = 0
    resumed_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Situation:
        """What ``to_dict`` gave."""
        waiting = tuple(Waiting(**one) for one in values["waiting"])
        starts = tuple(Start(**one) for one in values["starts"])
        return cls(**{**values, "waiting": waiting, "starts": starts})


class Move(StrEnum):
    """What is to be done."""

    IDLE = "idle"
    """Nothing: no alarm counts."""
    JOIN = "join"
    """The run that is on answers these alarms too."""
    WAIT = "wait"
    """A start is due later, without anything else happening."""
    REFUSE = "refuse"
    """A limit or a person forbids a start."""
    START = "start"


@dataclass(frozen=True)
class RetrainDecision:
    """What is to be done, and why.

    Attributes:
        move: What.
        why: One word: debounce, veto, approval, cooldown, running, trial, runs, budget, paused,
            stopped, or alarm.
        reason: One sentence.
        until_s: Before then the answer stays the same unless something else happens.
        alarms: The numbers of the alarms that it is about.
        key: The run's name.
    """

    move: Move
    why: str
    reason: str
    until_s: float | None = None
    alarms: tuple[int, ...] = ()
    key: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def gist(self) -> tuple[str, str, int | None]:
        """What tells it from the decision before: it is written down when this changes."""
        return self.move, self.why, self.alarms[0] if self.alarms else None


def decide(situation: Situation, policy: RetrainPolicy) -> RetrainDecision:
    """Whether a run starts now.

    Returns:
        The decision; the same for the same arguments.
    """
    on = next((one for one in reversed(situation.starts) if one.is_on), None)
    if on is not None and (same := _told_again(situation, policy, on)):
        reason = f"{len(same)} alarms of what run {on.key} is about"
        return RetrainDecision(Move.JOIN, "running", reason, None, same, on.key)
    event = [one for one in situation.waiting if counts(one, policy)]
    if not event:
        return RetrainDecision(Move.IDLE, "alarm", "no alarm that counts is open")
    by_person = any(one.kind == _PERSON for one in event)
    held = (
        _halted(situation, policy)
        or _busy(situation, on)
        or (None if by_person else _not_yet(situation, policy, event))
        or _over_limits(situation, policy)
    )
    numbers = tuple(one.number for one in event)
    if held is not None:
        return replace(held, alarms=numbers)
    kinds = ", ".join(sorted({one.kind for one in event}))
    first = event[0]
    key = f"alarm-{first.number}-{first.received_s:.0f}"
    return RetrainDecision(
        Move.START, "alarm", f"{len(event)} alarms ({kinds})", None, numbers, key
    )


def failures_in_a_row(situation: Situation) -> int:
    """How many of the last runs have failed, since a person has last resumed the loop."""
    count = 0
    for start in reversed(situation.starts):
        if start.outcome is None or start.outcome in _NEUTRAL:
            continue
        if start.outcome not in FAILURES or start.at_s < situation.resumed_s:
            break
        count += 1
    return count


def spent_usd(situation: Situation, policy: RetrainPolicy) -> float:
    """What the runs of the last 30 days have cost."""
    recent = [one for one in situation.starts if one.at_s > situation.now_s - MONTH_S]
    return sum(cost_usd(one, policy) for one in recent)


def cost_usd(start: Start, policy: RetrainPolicy) -> float:
    """What a run has cost, or is expected to cost while it is on."""
    if policy.usd_per_hour is None or start.duration_s is None:
        return policy.usd_per_run
    return policy.usd_per_hour * start.duration_s / 3600.0


def counts(alarm: Waiting, policy: RetrainPolicy) -> bool:
    """Whether an alarm may start a run at all."""
    if alarm.kind == _PERSON:
        return True
    least = policy.on.get(alarm.kind)
    return least is not None and _SEVERITIES.index(alarm.severity) >= _SEVERITIES.index(least)


def _told_again(situation: Situation, policy: RetrainPolicy, on: Start) -> tuple[int, ...]:
    return tuple(
        one.number
        for one in situation.waiting
        if one.kind in _OF_THE_SAME and one.received_s >= on.at_s and counts(one, policy)
    )


def _halted(situation: Situation, policy: RetrainPolicy) -> RetrainDecision | None:
    if situation.paused is not None:
        return RetrainDecision(Move.REFUSE, "paused", f"paused: {situation.paused}")
    failures = failures_in_a_row(situation)
    if failures >= policy.max_failures:
        reason = f"{failures} runs in a row have failed: a person has to look, and to resume"
        return RetrainDecision(Move.REFUSE, "stopped", reason)
    return None


def _busy(situation: Situation, on: Start | None) -> RetrainDecision | None:
    if on is not None:
        return RetrainDecision(Move.WAIT, "running", f"run {on.key} is on")
    if situation.trial is not None:
        return RetrainDecision(Move.WAIT, "trial", f"a version is on trial: {situation.trial}")
    return None


def _not_yet(
    situation: Situation, policy: RetrainPolicy, event: Sequence[Waiting]
) -> RetrainDecision | None:
    ready_s = min(one.received_s for one in event) + policy.debounce_s
    if situation.now_s < ready_s:
        return RetrainDecision(Move.WAIT, "debounce", "others may join", ready_s)
    if situation.now_s < ready_s + policy.veto_s:
        reason = "a person may forbid it until then"
        return RetrainDecision(Move.WAIT, "veto", reason, ready_s + policy.veto_s)
    if policy.needs_approval and situation.approved_up_to < event[0].number:
        return RetrainDecision(Move.WAIT, "approval", "a person has to agree")
    ends = [one.ended_s for one in situation.starts if one.ended_s is not None]
    cool_s = max(ends, default=-policy.cooldown_s) + policy.cooldown_s
    if situation.now_s < cool_s:
        return RetrainDecision(Move.REFUSE, "cooldown", "too soon after the last run", cool_s)
    return None


def _over_limits(situation: Situation, policy: RetrainPolicy) -> RetrainDecision | None:
    week = [one.at_s for one in situation.starts if one.at_s > situation.now_s - WEEK_S]
    if len(week) >= policy.max_runs_per_week:
        until_s = sorted(week)[-policy.max_runs_per_week] + WEEK_S
        reason = f"{len(week)} runs in seven days, of {policy.max_runs_per_week} allowed"
        return RetrainDecision(Move.REFUSE, "runs", reason, until_s)
    limit = policy.max_usd_per_month
    if limit is None or spent_usd(situation, policy) + policy.usd_per_run <= limit:
        return None
    reason = (
        f"{spent_usd(situation, policy):.2f} USD spent in 30 days and {policy.usd_per_run:.2f} "
        f"for the next run are more than {limit:.2f}"
    )
    return RetrainDecision(Move.REFUSE, "budget", reason, _affordable_s(situation, policy, limit))


def _affordable_s(situation: Situation, policy: RetrainPolicy, limit: float) -> float | None:
    """When enough of what was spent is 30 days ago; None if a run alone is too dear."""
    spent = spent_usd(situation, policy)
    for start in situation.starts:
        if start.at_s > situation.now_s - MONTH_S:
            spent -= cost_usd(start, policy)
            if spent + policy.usd_per_run <= limit:
                return start.at_s + MONTH_S
    return None
