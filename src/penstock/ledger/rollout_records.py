"""What the ledger says of rollouts: their state, their decisions, and what was observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

ArmName = Literal["champion", "challenger"]


class State(StrEnum):
    """Where a rollout is."""

    RUNNING = "running"
    """The challenger answers a share of the requests."""
    PROMOTING = "promoting"
    """It was decided that the challenger takes over; the pointer moves next."""
    PROMOTED = "promoted"
    """The challenger is the champion."""
    ROLLED_BACK = "rolled_back"
    """The challenger was worse, or not shown to be good enough in time."""
    STOPPED = "stopped"
    """A person ended it, or it lost its point: something else serves."""


OPEN = frozenset({State.RUNNING, State.PROMOTING})


class Action(StrEnum):
    """What a line of the decision log says."""

    START = "start"
    STEP = "step"
    HOLD = "hold"
    ROLLBACK = "rollback"
    PROMOTE = "promote"
    """Decided; the pointer has not moved yet."""
    PROMOTED = "promoted"
    STOP = "stop"


@dataclass(frozen=True)
class Rollout:
    """A version on trial beside the one that serves.

    Attributes:
        id: Made of the time and of chance.
        model: The registered model's name.
        alias: Whose pointer it is about.
        champion: The version that served when it began.
        challenger: The version on trial.
        steps: Shares of the requests that the challenger gets, in (0, 1), rising.
        policy: What is tolerated and how long a step may take, as JSON values.
        state: Where it is.
        step: Index of the step.
        started_s: Unix seconds, as all times here; the database's clock.
        step_started_s: When this step began.
        deadline_s: When the step should be decided; None: no matter when.
        ended_s: When it was closed.
        reason: Why it is in this state.
        trouble: What keeps a promotion that was decided; empty if nothing does.
        run_id: The run that started it, if one did.
        fingerprint: Of the deploy stage's result that started it, or empty.
        epoch: Lines in its decision log; compared when it moves.
        checkpoint_at: The batch of observations up to which the saved evidence goes.
    """

    id: str
    model: str
    alias: str
    champion: int
    challenger: int
    steps: tuple[float, ...]
    policy: Mapping[str, Any]
    state: State = State.RUNNING
    step: int = 0
    started_s: float = 0.0
    step_started_s: float = 0.0
    deadline_s: float | None = None
    ended_s: float | None = None
    reason: str = ""
    trouble: str = ""
    run_id: str | None = None
    fingerprint: str = ""
    epoch: int = 1
    checkpoint_at: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the challenger still answers requests."""
        return self.state in OPEN

    @property
    def share(self) -> float:
        """The share of the requests that the challenger gets now, in [0, 1)."""
        return self.steps[self.step] if self.is_open else 0.0


@dataclass(frozen=True)
class RolloutEvent:
    """One line of a rollout's decision log.

    Attributes:
        epoch: Counts from 1.
        at_s: When.
        action: What was done.
        state: Where the rollout was after it.
        step: Index of the step after it.
        share: The challenger's share after it.
        batch: The last batch of observations that was looked at.
        reason: Why.
        evidence: What the observations said, as JSON values.
        actor: Who.
    """

    epoch: int
    at_s: float
    action: Action
    state: State
    step: int
    share: float
    batch: int
    reason: str
    evidence: Mapping[str, Any]
    actor: str


@dataclass(frozen=True)
class Observed:
    """What a gateway saw of one request on trial, or a score that came later.

    Attributes:
        arm: Who was drawn to answer, whoever did in the end.
        share: With which probability the challenger was drawn, in [0, 1].
        step: In which step.
        error: Whether who was drawn failed; None for a score.
        valid: Whether the answer's form was as the recipe says; None where it says nothing.
        first_token_s: Time from the draw to the first token.
        answer_s: Time from the draw to the whole answer.
        score: In [0, 1].
        conversation: A digest of its name; of a conversation only the first draw counts.
        response: The end of the answer's id, by which a score finds the draw later.
    """

    arm: ArmName
    share: float
    step: int
    error: bool | None = None
    valid: bool | None = None
    first_token_s: float | None = None
    answer_s: float | None = None
    score: float | None = None
    conversation: str | None = None
    response: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Observed:
        """What ``to_dict`` gave."""
        return cls(**values)


@dataclass(frozen=True)
class Batch:
    """Observations in the order in which they are judged.

    Attributes:
        number: Counts from 1 in each rollout, without gaps.
        observed: In order.
    """

    number: int
    observed: tuple[Observed, ...]


@dataclass(frozen=True)
class Look:
    """A rollout and what serves, read in one moment.

    Attributes:
        rollout: As it is now.
        serving: The version that the alias names.
        now_s: The database's clock.
    """

    rollout: Rollout
    serving: int | None
    now_s: float


@dataclass(frozen=True)
class Checkpoint:
    """Evidence as it stood after a batch.

    Attributes:
        batch: Which; 0 is before the first.
        evidence: As JSON values; empty before the first.
    """

    batch: int = 0
    evidence: Mapping[str, Any] = field(default_factory=dict)
