"""Compare candidate and baseline on one metric, and on the macro mean of several.

Every difference is oriented: positive means the candidate is better, also where
less is better (there it is baseline minus candidate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from penstock.errors import EvaluationError
from penstock.gates.estimates import Estimate, estimate
from penstock.gates.paired import items_needed, mean_bounds, non_inferiority_power
from penstock.gates.resampling import MIN_UNITS
from penstock.gates.results import MetricResult, pair

MACRO_MEAN = "macro mean"


class Judgement(StrEnum):
    """What a comparison has shown."""

    NON_INFERIOR = "non-inferior"  # the lower limit lies above minus the margin
    INFERIOR = "inferior"  # the upper limit lies below minus the margin
    HARMED = "harmed"  # significantly worse, and not shown to be within a margin of its own
    UNDECIDED = "undecided"  # has a margin, and the limits lie on both sides of it
    NO_HARM_SHOWN = "no harm shown"  # has no margin of its own, and is not significantly worse
    UNTESTED = "untested"  # there are no items to compare


@dataclass(frozen=True)
class Comparison:
    """Candidate against baseline on one metric, or on the macro mean.

    Attributes:
        task: The task; ``macro mean`` for the mean over tasks.
        metric: The metric's label.
        higher_is_better: The metric's direction.
        is_proportion: Whether the difference is one of shares or of scores in
            [0, 1], so that 0.01 is one point.
        candidate: The candidate's mean, in the metric's unit.
        baseline: The baseline's.
        difference: Oriented difference of the two.
        num_items: Items compared; 0 when untested.
        num_clusters: Clusters they fall into; None without clusters.
        better: Items on which the candidate does better.
        worse: Items on which the baseline does.
        lower: One-sided lower confidence limit at alpha; None if unknown.
        upper: One-sided upper confidence limit at alpha; None if unknown.
        interval_lower: Lower end of the two-sided interval at 1 - alpha.
        interval_upper: Upper end of it.
        margin: Largest tolerated loss, in the unit of the difference; None for a
            metric that is guarded only by the harm test and the macro mean.
        standard_error: Of the difference, under no true difference for 0/1 metrics.
        power: Chance to show non-inferiority of an equal model with this many items.
        items_needed: Items at which that chance reaches 80 %.
        harm_p: One-sided p-value of "the candidate is worse".
        harm_p_holm: The same, adjusted over all metrics compared.
        in_macro: Whether the metric counts in the macro mean.
        judgement: What was shown.
        note: A clause that says why the metric could not be tested, if so.
    """

    task: str
    metric: str
    higher_is_better: bool
    is_proportion: bool
    candidate: float
    baseline: float
    difference: float
    num_items: int = 0
    num_clusters: int | None = None
    better: int = 0
    worse: int = 0
    lower: float | None = None
    upper: float | None = None
    interval_lower: float | None = None
    interval_upper: float | None = None
    margin: float | None = None
    standard_error: float | None = None
    power: float | None = None
    items_needed: int | None = None
    harm_p: float | None = None
    harm_p_holm: float | None = None
    in_macro: bool = False
    judgement: Judgement = Judgement.UNTESTED
    note: str = ""

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.task} over {self.metric}" if self.is_macro else f"{self.task}/{self.metric}"

    @property
    def is_macro(self) -> bool:
        """Whether this is the mean over tasks rather than one of them."""
        return self.task == MACRO_MEAN

    @property
    def is_accuracy_like(self) -> bool:
        """Whether it can enter a macro mean: in [0, 1], and more is better."""
        return self.is_proportion and self.higher_is_better

    @property
    def holds_margin(self) -> bool:
        """Whether the lower limit shows the loss to be smaller than the margin."""
        return self.margin is not None and self.lower is not None and self.lower > -self.margin

    @property
    def exceeds_margin(self) -> bool:
        """Whether the upper limit shows the loss to be larger than the margin."""
        return self.margin is not None and self.upper is not None and self.upper < -self.margin


def compare(
    task: str, candidate: MetricResult, baseline: MetricResult, alpha: float, seed: int
) -> Comparison:
    """Compare two results of one metric, item by item where items are known.

    Raises:
        EvaluationError: A mean is not a number, the direction is unknown, or the
            items are not the same.
    """
    higher = _direction(task, candidate, baseline)
    sign = 1.0 if higher else -1.0
    plain = Comparison(
        task=task,
        metric=candidate.label,
        higher_is_better=higher,
        is_proportion=_is_proportion(candidate, baseline, higher),
        candidate=candidate.mean,
        baseline=baseline.mean,
        difference=sign * (candidate.mean - baseline.mean) + 0.0,  # no negative zero
        note=_why_untested(candidate, baseline),
    )
    if candidate.items is None or baseline.items is None:
        return plain
    scores = pair(candidate.items, baseline.items, plain.name)
    binary = candidate.items.is_binary and baseline.items.is_binary
    oriented = scores if higher else scores.swapped()
    return _with_estimate(plain, estimate(oriented, binary, plain.is_proportion, alpha, seed))


def _direction(task: str, candidate: MetricResult, baseline: MetricResult) -> bool:
    """Whether more is better, after checking that there are two numbers to compare."""
    for side, result in (("candidate", candidate), ("baseline", baseline)):
        if not math.isfinite(result.mean):
            raise EvaluationError(
                f"{task}/{result.label}: the {side}'s value is {result.mean}, not a number.",
                "Look for empty answers or overflow in its samples, and evaluate again.",
            )
    for result in (candidate, baseline):
        if result.higher_is_better is not None:
            return result.higher_is_better
    raise EvaluationError(
        f"{task}/{candidate.label}: the results do not say whether higher is better.",
        "Set higher_is_better in the task's metric_list, and evaluate again.",
    )


def _is_proportion(candidate: MetricResult, baseline: MetricResult, higher: bool) -> bool:
    """Right or wrong in either direction, or scores in [0, 1] of which more is better."""
    if candidate.items is None or baseline.items is None:
        # Without items the means must do; a loss that happens to be small must not.
        return higher and 0 <= candidate.mean <= 1 and 0 <= baseline.mean <= 1
    if candidate.items.is_binary and baseline.items.is_binary:
        return True
    return higher and candidate.items.is_bounded and baseline.items.is_bounded


def _why_untested(candidate: MetricResult, baseline: MetricResult) -> str:
    for side, result in (("candidate", candidate), ("baseline", baseline)):
        if result.items is None:
            return f"the {side}'s {result.why_no_items}"
    return ""


def _with_estimate(plain: Comparison, found: Estimate) -> Comparison:
    return replace(
        plain,
        num_items=found.num_items,
        num_clusters=found.num_clusters,
        better=found.better,
        worse=found.worse,
        lower=_finite(found.one_sided[0]),
        upper=_finite(found.one_sided[1]),
        interval_lower=_finite(found.two_sided[0]),
        interval_upper=_finite(found.two_sided[1]),
        standard_error=_finite(found.standard_error),
        harm_p=found.harm_p,
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def macro_mean(parts: Sequence[Comparison]) -> Comparison:
    """The unweighted mean over tasks of accuracy-like metrics.

    Args:
        parts: One comparison per task, at least one. Where one was not tested,
            the mean is not either.
    """
    untested = [part for part in parts if part.lower is None or part.upper is None]
    plain = Comparison(
        task=MACRO_MEAN,
        metric=f"{len(parts)} tasks",
        higher_is_better=True,
        is_proportion=True,
        candidate=float(np.mean([part.candidate for part in parts])),
        baseline=float(np.mean([part.baseline for part in parts])),
        difference=float(np.mean([part.difference for part in parts])),
        num_items=sum(part.num_items for part in parts),
        better=sum(part.better for part in parts),
        worse=sum(part.worse for part in parts),
        note=f"{untested[0].name} has no confidence limits" if untested else "",
    )
    if untested:
        return plain
    differences = [part.difference for part in parts]
    lower, upper = mean_bounds(
        differences, [_known(part.lower) for part in parts], [_known(part.upper) for part in parts]
    )
    interval_lower, interval_upper = mean_bounds(
        differences,
        [_known(part.interval_lower) for part in parts],
        [_known(part.interval_upper) for part in parts],
    )
    errors = [_known(part.standard_error) for part in parts]
    return replace(
        plain,
        lower=lower,
        upper=upper,
        interval_lower=_finite(interval_lower),
        interval_upper=_finite(interval_upper),
        standard_error=_finite(math.hypot(*errors) / len(parts)),
    )


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def with_margin(comparison: Comparison, margin: float, alpha: float) -> Comparison:
    """Set the margin, and what it means for power and number of items."""
    error, count = comparison.standard_error, comparison.num_items
    if error is None or margin == 0:
        return replace(comparison, margin=margin)
    variance = error**2 * count
    fewest = 1 if comparison.is_proportion else MIN_UNITS
    return replace(
        comparison,
        margin=margin,
        power=non_inferiority_power(count, variance, margin, alpha) if count >= fewest else 0.0,
        items_needed=max(fewest, items_needed(variance, margin, alpha)),
    )


def judge(comparison: Comparison, alpha: float) -> Comparison:
    """Say what was shown; margin and adjusted harm p-value are in place.

    A significant loss is harm unless the metric has a margin of its own and is
    shown to stay within it: then that much loss is what the policy tolerates.
    """
    harm_p = comparison.harm_p_holm
    if comparison.note:
        verdict = Judgement.UNTESTED
    elif comparison.holds_margin:
        verdict = Judgement.NON_INFERIOR
    elif comparison.exceeds_margin:
        verdict = Judgement.INFERIOR
    elif harm_p is not None and harm_p <= alpha:
        verdict = Judgement.HARMED
    else:
        verdict = Judgement.NO_HARM_SHOWN if comparison.margin is None else Judgement.UNDECIDED
    return replace(comparison, judgement=verdict)
