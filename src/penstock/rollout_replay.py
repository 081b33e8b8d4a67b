"""Are a rollout's decisions what its observations say? Everything is computed again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from penstock.errors import LedgerError
from penstock.ledger.rollout_records import Action, Batch, Look, Rollout, RolloutEvent, State
from penstock.ledger.rollouts import Rollouts
from penstock.rollout import Terms, Turn, next_turn
from penstock.rollout_evidence import Evidence

_FOLLOWS = frozenset({Action.STEP, Action.HOLD, Action.ROLLBACK, Action.PROMOTE})


@dataclass(frozen=True)
class Replayed:
    """One decision, as it was made and as it comes out again.

    Attributes:
        event: The line of the log.
        recomputed: What follows from the observations up to there; None for what people
            did, and for moves of the pointer, which follow from no observation.
        same: Whether both say the same.
        note: What differs, if something does.
    """

    event: RolloutEvent
    recomputed: Action | None
    same: bool
    note: str = ""


def replay(rollouts: Rollouts, rollout: Rollout) -> list[Replayed]:
    """All decisions of a rollout, made again.

    The clock is taken from the log, as deadlines are about it; that a decision was made
    too late, or not at all, is found by the observations.

    Raises:
        LedgerError: The observations were pruned.
    """
    was_seen = any(event.batch for event in rollouts.events(rollout.id))
    if was_seen and not rollouts.batches(rollout.id, limit=1):
        raise LedgerError(
            f"The observations of {rollout.id} were removed by `penstock rollout prune`, so its "
            "decisions cannot be made again.",
            f"What each rested on is in the log: penstock rollout history {rollout.id} --json",
        )
    return list(_Replay(rollouts, rollout).run())


class _Replay:
    def __init__(self, rollouts: Rollouts, rollout: Rollout) -> None:
        self._rollouts = rollouts
        self._terms = Terms.from_dict(rollout.policy)
        self._evidence = Evidence(self._terms)
        self._now = rollout

    def run(self) -> Iterator[Replayed]:
        first, *rest = self._rollouts.events(self._now.id)
        self._now = replace(
            self._now,
            state=State.RUNNING,
            step=0,
            deadline_s=self._deadline_s(first),
            reason=first.reason,
        )
        yield Replayed(first, None, same=True)
        for event in rest:
            yield self._one(event)
            self._adopt(event)

    def _one(self, event: RolloutEvent) -> Replayed:
        missed = self._catch_up(event)
        if missed:
            return Replayed(event, missed, same=False, note="was due before, at an earlier batch")
        by_hand = event.action not in _FOLLOWS or not event.evidence
        if by_hand:
            return Replayed(event, None, same=True)
        turn = self._turn(event.at_s)
        if turn is None:
            return Replayed(event, None, same=False, note="nothing follows from the observations")
        same = (turn.action, turn.after.state, turn.after.step, turn.after.reason) == (
            event.action,
            event.state,
            event.step,
            event.reason,
        )
        evidence = self._evidence.shown()
        if same and evidence != event.evidence:
            return Replayed(event, turn.action, same=False, note="the evidence differs")
        return Replayed(event, turn.action, same, "" if same else turn.after.reason)

    def _catch_up(self, event: RolloutEvent) -> Action | None:
        """Fold what the event had seen; what was due before it, if anything was."""
        for batch in self._batches(event.batch):
            due = self._turn(-math.inf, caught_up=False)
            if due is not None:
                return due.action
            self._evidence.take(batch)
        return None

    def _batches(self, up_to: int) -> Iterator[Batch]:
        while found := self._rollouts.batches(self._now.id, self._evidence.batch, up_to):
            yield from found

    def _turn(self, now_s: float, caught_up: bool = True) -> Turn | None:
        look = Look(self._now, self._now.champion, now_s)
        finding = self._evidence.finding(self._now.step)
        return next_turn(look, finding, self._terms, caught_up)

    def _adopt(self, event: RolloutEvent) -> None:
        deadline_s = self._deadline_s(event) if event.action is Action.STEP else None
        if event.action not in (Action.STEP, Action.HOLD):
            deadline_s = self._now.deadline_s
        self._now = replace(
            self._now,
            state=event.state,
            step=event.step,
            deadline_s=deadline_s,
            reason=event.reason,
        )

    def _deadline_s(self, event: RolloutEvent) -> float | None:
        limit_s = self._terms.step_deadline_s
        return None if limit_s is None else event.at_s + limit_s
