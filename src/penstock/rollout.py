"""Where a rollout goes next: pure transitions, from what was observed, what serves and the clock.

::

    running --good--> next step --good--> ... --good--> promoting --pointer moved--> promoted
       |                                                    |
       +--harm, or undecided at the deadline--> rolled_back <+
       +--a person, or somebody else's move of the pointer--> stopped

The pointer is what serves, and only its compare-and-set changes that. So whatever a
rollout's row says and whoever dies when, there is exactly one champion: the version
that the pointer names. A rollout that finds its challenger there is promoted; one that
finds a third version there has lost its point.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from penstock.errors import RecipeError
from penstock.ledger.rollout_records import Action, Look, Rollout, State
from penstock.ledger.rollouts import new_id

if TYPE_CHECKING:
    from penstock.gates.rollout_policy import RolloutPolicy

OnUndecided = Literal["rollback", "continue", "hold"]
LatencyOf = Literal["answer", "first_token"]
DEFAULT_STEPS = (1.0, 5.0, 25.0, 100.0)


@dataclass(frozen=True)
class Terms:
    """What a rollout goes by; fixed when it starts.

    Attributes:
        comparison: What is tolerated, with which error rates.
        step_deadline_s: How long a step may take; None: as long as it likes.
        on_undecided: What happens then.
        latency: Which time is compared: to the whole answer, or to its first token.
    """

    comparison: RolloutPolicy
    step_deadline_s: float | None = 24 * 3600.0
    on_undecided: OnUndecided = "rollback"
    latency: LatencyOf = "answer"

    def to_dict(self) -> dict[str, Any]:
        """The terms as JSON values."""
        return {
            "comparison": self.comparison.to_dict(),
            "step_deadline_s": self.step_deadline_s,
            "on_undecided": self.on_undecided,
            "latency": self.latency,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Terms:
        """What ``to_dict`` gave."""
        from penstock.gates.rollout_policy import RolloutPolicy

        return cls(**{**values, "comparison": RolloutPolicy.from_dict(values["comparison"])})


@dataclass(frozen=True)
class Finding:
    """What the observations say about the step that is on.

    Attributes:
        outcome: ``HARM``, ``GOOD`` or ``UNDECIDED``.
        signal: The signal with the most evidence of harm, if there is harm.
        evidence: For harm.
        missing: Signals in which it is not shown to be no worse.
        enough: Whether the challenger has answered ``min_requests`` in this step.
        exhausted: Whether it has answered ``max_requests`` in this step.
        drawn: Whether requests were drawn as the shares say.
    """

    outcome: Literal["HARM", "GOOD", "UNDECIDED"] = "UNDECIDED"
    signal: str | None = None
    evidence: float = 1.0
    missing: tuple[str, ...] = ()
    enough: bool = False
    exhausted: bool = False
    drawn: bool = True


@dataclass(frozen=True)
class Turn:
    """A move that is due.

    Attributes:
        action: For the decision log.
        after: The rollout after it.
    """

    action: Action
    after: Rollout


@dataclass(frozen=True)
class Opening:
    """What starts a rollout.

    Attributes:
        model: The registered model.
        alias: Whose pointer it is about.
        champion: What serves.
        challenger: What may serve next.
        terms: What it goes by.
        percents: Of the requests, step by step.
        reason: Why.
        run_id: The run behind it, if one is.
        fingerprint: Of the stage's result behind it.
    """

    model: str
    alias: str
    champion: int
    challenger: int
    terms: Terms
    percents: Sequence[float] = DEFAULT_STEPS
    reason: str = "by hand"
    run_id: str | None = None
    fingerprint: str = ""

    def rollout(self) -> Rollout:
        """The rollout as it begins.

        Raises:
            RecipeError: The steps are none.
        """
        return Rollout(
            id=new_id(),
            model=self.model,
            alias=self.alias,
            champion=self.champion,
            challenger=self.challenger,
            steps=shares(self.percents),
            policy=self.terms.to_dict(),
            reason=self.reason,
            run_id=self.run_id,
            fingerprint=self.fingerprint,
        )


def shares(percents: Sequence[float]) -> tuple[float, ...]:
    """The steps in which there is something to compare, as shares.

    At 100 nobody is left to be compared with: that step is the promotion.

    Args:
        percents: Rising, above 0; the last one may be 100.

    Raises:
        RecipeError: They are not.
    """
    rising = all(a < b for a, b in itertools.pairwise(percents))
    compared = [percent for percent in percents if percent < 100]
    if not (rising and compared and compared[0] > 0 and all(one <= 100 for one in percents)):
        shown = ",".join(f"{one:g}" for one in percents)
        raise RecipeError(
            f"The steps {shown or 'of a rollout'} must rise, from above 0 to at most 100, with at "
            "least one below 100.",
            "Write 1,5,25,100. To promote without a trial: penstock promote.",
        )
    return tuple(percent / 100 for percent in compared)


def next_turn(look: Look, finding: Finding, terms: Terms, caught_up: bool = True) -> Turn | None:
    """What is due now.

    Args:
        look: The rollout, what serves, and the time.
        finding: What the observations say.
        terms: What the rollout goes by.
        caught_up: Whether all observations are in. A step is not undecided before.
    """
    rollout = look.rollout
    if not rollout.is_open:
        return None
    moved = _after_the_pointer(look)
    if moved is not None:
        return moved
    if finding.outcome == "HARM":
        return Turn(Action.ROLLBACK, ended(rollout, State.ROLLED_BACK, _harm(finding), look.now_s))
    if rollout.state is State.PROMOTING:
        return None
    if finding.outcome == "GOOD":
        return _onward(look, terms, "shown to be no worse")
    overdue = rollout.deadline_s is not None and look.now_s >= rollout.deadline_s
    if caught_up and (overdue or finding.exhausted):
        return _undecided(look, terms, finding)
    return None


def ended(rollout: Rollout, state: State, reason: str, now_s: float) -> Rollout:
    """The rollout, closed."""
    return replace(rollout, state=state, reason=reason, deadline_s=None, ended_s=now_s, trouble="")


def promoted_by_hand(rollout: Rollout, reason: str) -> Turn:
    """A person does not wait for the evidence."""
    after = replace(rollout, state=State.PROMOTING, deadline_s=None, reason=reason)
    return Turn(Action.PROMOTE, after)


def _after_the_pointer(look: Look) -> Turn | None:
    """What a move of the pointer means; also one that a crash has kept from being noted."""
    rollout, serving = look.rollout, look.serving
    if serving == rollout.challenger:
        reason = rollout.reason
        if rollout.state is not State.PROMOTING:
            reason = f"somebody promoted version {serving}"
        return Turn(Action.PROMOTED, ended(rollout, State.PROMOTED, reason, look.now_s))
    if serving != rollout.champion:
        named = "nothing" if serving is None else f"version {serving}"
        reason = f"somebody moved the pointer: {named} serves, and not version {rollout.champion}"
        return Turn(Action.STOP, ended(rollout, State.STOPPED, reason, look.now_s))
    return None


def _onward(look: Look, terms: Terms, why: str) -> Turn:
    rollout = look.rollout
    if rollout.step + 1 == len(rollout.steps):
        reason = f"{why} in the last step, at {rollout.share:.3g} of the requests"
        after = replace(rollout, state=State.PROMOTING, deadline_s=None, reason=reason)
        return Turn(Action.PROMOTE, after)
    limit_s = terms.step_deadline_s
    after = replace(
        rollout,
        step=rollout.step + 1,
        step_started_s=look.now_s,
        deadline_s=None if limit_s is None else look.now_s + limit_s,
        reason=f"{why} at {rollout.share:.3g} of the requests",
    )
    return Turn(Action.STEP, after)


def _undecided(look: Look, terms: Terms, finding: Finding) -> Turn | None:
    rollout = look.rollout
    why = _why_undecided(finding)
    if terms.on_undecided == "hold":
        if rollout.deadline_s is None:
            return None  # it is held already
        reason = f"held: {why}"
        return Turn(Action.HOLD, replace(rollout, deadline_s=None, reason=reason))
    # A trial that did not take place is no reason to go on.
    if terms.on_undecided == "continue" and finding.drawn and finding.enough:
        return _onward(look, terms, f"not shown to be worse ({why})")
    return Turn(Action.ROLLBACK, ended(rollout, State.ROLLED_BACK, why, look.now_s))


def _harm(finding: Finding) -> str:
    return f"worse in {finding.signal} (evidence {finding.evidence:.3g})"


def _why_undecided(finding: Finding) -> str:
    if not finding.drawn:
        return "undecided: requests were not drawn as the shares say"
    if not finding.enough:
        return "undecided: the challenger had answered too few requests"
    missing = ", ".join(finding.missing)
    return f"undecided in time: not shown to be no worse in {missing}"
