"""What a team demands of a model before it serves: floors, margins and error rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.errors import RecipeError

DEFAULT_MAX_REGRESSION = 0.02
MACRO = "macro"
DEFAULT = "default"


@dataclass(frozen=True)
class GatePolicy:
    """The conditions of a gate.

    Metrics are named ``TASK`` (its primary metric: the one named as
    ``TASK/METRIC`` anywhere in the policy, else ``acc``, else the first),
    ``TASK/METRIC``, or ``TASK/METRIC,FILTER`` where several filters were applied.

    Attributes:
        min: Floors: the least the candidate must reach, by metric.
        max: Ceilings for metrics of which less is better, by metric.
        max_regression: Largest tolerated loss against the baseline. One number
            for everything, or a mapping by metric, in that metric's own unit,
            with two more keys: ``macro`` for the macro mean and ``default`` (0.02)
            for the rest. The default is absolute (0.02 = two points) for
            proportions and scores in [0, 1]; for lower-is-better and unbounded
            metrics, whose unit it cannot know, it is relative to the baseline's
            mean (0.02 = 2 %).
        alpha: One-sided error rate of every test: the chance of passing a true
            regression of exactly the margin.
        on_inconclusive: ``block`` leaves an inconclusive verdict as it is, so that
            nothing is promoted; ``point_estimate`` resolves it by the plain
            difference and records that it did.
        seed: Seed of the resampling for real-valued metrics.
        cluster_field: Field of the documents that names what items share.

    Raises:
        RecipeError: A value is out of range.
    """

    min: Mapping[str, float] = field(default_factory=dict)
    max: Mapping[str, float] = field(default_factory=dict)
    max_regression: float | Mapping[str, float] = DEFAULT_MAX_REGRESSION
    alpha: float = 0.05
    on_inconclusive: Literal["block", "point_estimate"] = "block"
    seed: int = 0
    cluster_field: str = "cluster"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise RecipeError(f"alpha must lie between 0 and 0.5, not {self.alpha}.")
        if self.on_inconclusive not in ("block", "point_estimate"):
            raise RecipeError(
                f"on_inconclusive must be 'block' or 'point_estimate', not "
                f"{self.on_inconclusive!r}."
            )
        for name, margin in self._margins().items():
            if not (math.isfinite(margin) and margin >= 0):
                raise RecipeError(f"max_regression of {name} must be 0 or more, not {margin}.")
        for name, bound in [*self.min.items(), *self.max.items()]:
            if not math.isfinite(bound):
                raise RecipeError(f"The floor or ceiling of {name} must be a number, not {bound}.")

    def _margins(self) -> Mapping[str, float]:
        if isinstance(self.max_regression, Mapping):
            return self.max_regression
        return {DEFAULT: self.max_regression}

    @property
    def default_margin(self) -> float:
        """The margin where none is given by name."""
        return self._margins().get(DEFAULT, DEFAULT_MAX_REGRESSION)

    @property
    def macro_margin(self) -> float:
        """The margin of the macro mean."""
        return self._margins().get(MACRO, self.default_margin)

    @property
    def named_margins(self) -> dict[str, float]:
        """Margins of single metrics, by ``TASK`` or ``TASK/METRIC``."""
        margins = self._margins().items()
        return {name: margin for name, margin in margins if name not in (MACRO, DEFAULT)}

    @property
    def has_floors(self) -> bool:
        """Whether anything is demanded that needs no baseline."""
        return bool(self.min or self.max)

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON values."""
        margins = self.max_regression
        return {
            "min": dict(self.min),
            "max": dict(self.max),
            "max_regression": dict(margins) if isinstance(margins, Mapping) else margins,
            "alpha": self.alpha,
            "on_inconclusive": self.on_inconclusive,
            "seed": self.seed,
            "cluster_field": self.cluster_field,
        }
