"""Whether raters agree: two of them beyond chance, several with gaps, and a judge with people.

Sources: Cohen, A coefficient of agreement for nominal scales (1960); Fleiss, Cohen and Everitt,
Large sample standard errors of kappa and weighted kappa (1969); Krippendorff, Computing
alpha-reliability (2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import scipy  # whose parts load when they are first used
from numpy.typing import ArrayLike, NDArray

from penstock.errors import EvaluationError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Kappa:
    """How far two raters agree beyond chance.

    Attributes:
        value: 1 is always, 0 as often as chance would have it; None where both gave
            everything the same mark, so that chance explains it all.
        low: Lower end of the interval; -1 where nothing is known.
        high: Upper end.
        num_items: Rated by both.
    """

    value: float | None
    low: float
    high: float
    num_items: int


class Standing(StrEnum):
    """Whether a judge's scores may count."""

    COUNTS = "counts"
    TOO_FEW_LABELS = "too few labels"
    DISAGREES = "does not agree"


@dataclass(frozen=True)
class Calibration:
    """What a judge's marks beside people's come to.

    Attributes:
        standing: Whether the judge may count.
        kappa: Of judge and people.
    """

    standing: Standing
    kappa: Kappa


def cohen_kappa(table: ArrayLike, confidence: float = 0.95) -> Kappa:
    """Cohen's kappa with a two-sided interval.

    The interval is that of the table with one more item on which the raters agree as
    often as by chance. Without it, full agreement on three items would be certainty.

    Args:
        table: Counts, square: how often one rater gave the row's mark and the other the
            column's.
        confidence: Of the interval, in (0, 1).

    Raises:
        EvaluationError: The table is not square, too small, or holds what is no count.
    """
    counts = _checked(table)
    num_items = float(counts.sum())
    if num_items == 0 or (value := _kappa(counts / num_items)) is None:
        return Kappa(None, -1.0, 1.0, int(num_items))
    shares = counts / num_items
    widened = (counts + np.outer(shares.sum(1), shares.sum(0))) / (num_items + 1)
    centre = _kappa(widened)
    assert centre is not None  # its margins are those of the table
    reach = float(scipy.special.ndtri((1 + confidence) / 2)) * _standard_error(
        widened, num_items + 1
    )
    return Kappa(value, max(centre - reach, -1.0), min(centre + reach, 1.0), int(num_items))


def calibrate(table: ArrayLike, min_labels: int, min_kappa: float) -> Calibration:
    """Decide whether a judge may count.

    Args:
        table: Of the judge's marks and people's, as ``cohen_kappa`` takes it.
        min_labels: Items that both have rated, at least.
        min_kappa: What the lower end of the 95 % interval must reach.
    """
    kappa = cohen_kappa(table)
    if kappa.num_items < min_labels:
        return Calibration(Standing.TOO_FEW_LABELS, kappa)
    agrees = kappa.value is not None and kappa.low >= min_kappa
    return Calibration(Standing.COUNTS if agrees else Standing.DISAGREES, kappa)


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """Agreement of any number of raters, each of whom may have left items out.

    Marks are numbers, and disagreement is the square of their distance.

    Args:
        units: The marks of each item, one for each rater who gave one.

    Returns:
        1 for full agreement, 0 for that of chance; None where no two marks differ.
    """
    rated = [np.asarray(unit, float) for unit in units if len(unit) > 1]
    marks = np.concatenate(rated) if rated else np.empty(0)
    if len(marks) < 2 or np.ptp(marks) == 0:
        return None
    within = sum(float(unit.var(ddof=1)) * len(unit) for unit in rated)
    return float(1 - within / (len(marks) * marks.var(ddof=1)))


def _checked(table: ArrayLike) -> Floats:
    counts = np.asarray(table, dtype=float)
    is_square = counts.ndim == 2 and counts.shape[0] == counts.shape[1] >= 2
    if not is_square or not np.isfinite(counts).all() or (counts < 0).any():
        raise EvaluationError(
            f"A table of shape {counts.shape} is no table of two raters' marks.",
            "Give counts, at least 2 x 2, with as many rows as columns.",
        )
    return counts


def _kappa(shares: Floats) -> float | None:
    expected = float(shares.sum(1) @ shares.sum(0))
    if expected > 1 - 1e-12:
        return None
    return float((np.trace(shares) - expected) / (1 - expected))


def _standard_error(shares: Floats, num_items: float) -> float:
    """Equation 13 of Fleiss, Cohen and Everitt."""
    rows, columns = shares.sum(1), shares.sum(0)
    observed, expected = float(np.trace(shares)), float(rows @ columns)
    inner = np.eye(len(shares)) * (1 - expected) - np.add.outer(columns, rows) * (1 - observed)
    spread = (shares * inner**2).sum() - (observed * expected - 2 * expected + observed) ** 2
    return math.sqrt(max(float(spread), 0.0) / num_items) / (1 - expected) ** 2
