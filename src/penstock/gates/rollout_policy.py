"""What a rollout's comparison tolerates, and with which error rates it speaks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from penstock.errors import RecipeError


class Signal(StrEnum):
    """What is compared; in each, more is worse."""

    ERRORS = "errors"
    """The share of requests that fail."""
    FORMAT = "format"
    """The share of answers that are not valid in form."""
    LATENCY = "latency"
    """The time to the answer, at quantiles."""
    SCORE = "score"
    """One less a judge's or a user's score in [0, 1]."""


@dataclass(frozen=True)
class Tolerance:
    """How much worse a challenger may be in one signal.

    In points (0.01 is one of a hundred requests) for errors, format and score; as
    a ratio of latencies (1.3 is 30 % slower) for latency.

    Attributes:
        harm_above: A challenger that is shown worse by more than this is taken
            back. No difference at all, by default: 0 points, a ratio of 1.
        margin: A challenger must be shown less worse than this before the next
            step; None: nothing needs to be shown.
    """

    harm_above: float
    margin: float | None


def _points(margin: float | None) -> Tolerance:
    return Tolerance(harm_above=0.0, margin=margin)


@dataclass(frozen=True)
class RolloutPolicy:
    """The conditions of a rollout.

    Attributes:
        alpha: The chance that a challenger which is at no request worse than
            ``harm_above`` is ever taken back: over the whole rollout, all its steps
            and signals, however often one looks.
        step_alpha: The chance that a challenger which is worse than a margin in
            some signal ever passes a given step.
        errors: Tolerance of failed requests.
        format: Tolerance of answers that are not valid in form. Demands nothing
            by default, as not every model's answers have a form; harm is always watched.
        latency: Tolerance of latency. The margin is that of ``latency_quantile``.
        score: Tolerance of lost score; demands nothing by default.
        latency_quantile: The quantile of latency that the margin is about, in (0, 1).
            Harm is looked for at the median and the ninth decile, too.
        min_requests: Requests that the challenger must answer in a step before it
            can be good.
        max_requests: Requests of the challenger in a step after which it stays
            undecided.

    Raises:
        RecipeError: A value is out of range.
    """

    alpha: float = 0.05
    step_alpha: float = 0.05
    errors: Tolerance = field(default_factory=lambda: _points(0.01))
    format: Tolerance = field(default_factory=lambda: _points(None))
    latency: Tolerance = field(default_factory=lambda: Tolerance(harm_above=1.0, margin=1.3))
    score: Tolerance = field(default_factory=lambda: _points(None))
    latency_quantile: float = 0.99
    min_requests: int = 100
    max_requests: int = 100_000

    def __post_init__(self) -> None:
        for name in ("alpha", "step_alpha"):
            if not 0 < getattr(self, name) < 0.5:
                raise RecipeError(f"{name} must lie between 0 and 0.5, not {getattr(self, name)}.")
        if not 0 < self.latency_quantile < 1:
            raise RecipeError(
                f"latency_quantile must lie between 0 and 1, not {self.latency_quantile}.",
                "Write 0.99 for the 99th percentile.",
            )
        if not 0 < self.min_requests <= self.max_requests:
            raise RecipeError(
                f"min_requests must be at least 1 and at most max_requests, "
                f"not {self.min_requests} and {self.max_requests}."
            )
        for signal in Signal:
            self._check(signal)

    def _check(self, signal: Signal) -> None:
        given = self.tolerance(signal)
        least, most, unit = (
            (1.0, math.inf, "ratio") if signal is Signal.LATENCY else (0, 1, "point")
        )
        if not least <= given.harm_above < most:
            raise RecipeError(
                f"harm_above of {signal} must be a {unit} from {least} to below {most}, "
                f"not {given.harm_above}."
            )
        if given.margin is None:
            return
        if not (given.harm_above <= given.margin < most and given.margin > least):
            raise RecipeError(
                f"margin of {signal} must be a {unit} above {least}, below {most} and no less "
                f"than its harm_above ({given.harm_above}), not {given.margin}.",
                "A margin of nothing can never be shown: equal models differ by chance.",
            )

    def tolerance(self, signal: Signal) -> Tolerance:
        """The tolerance of one signal."""
        tolerances = {
            Signal.ERRORS: self.errors,
            Signal.FORMAT: self.format,
            Signal.LATENCY: self.latency,
            Signal.SCORE: self.score,
        }
        return tolerances[signal]

    @property
    def demanded(self) -> tuple[Signal, ...]:
        """The signals in which a challenger must be shown within the margin."""
        return tuple(signal for signal in Signal if self.tolerance(signal).margin is not None)

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RolloutPolicy:
        """The policy that ``to_dict`` gave."""
        tolerances = {signal.value: Tolerance(**values[signal.value]) for signal in Signal}
        return cls(**(values | tolerances))
