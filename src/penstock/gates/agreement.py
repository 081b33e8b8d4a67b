"""Whether raters agree: two of them beyond chance, several with gaps, and a judge with people.

Sources: Cohen, Weighted kappa (1968); Fleiss, Cohen and Everitt, Large sample standard errors
of kappa and weighted kappa (1969); Krippendorff, Computing alpha-reliability (2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from penstock.errors import EvaluationError

Weights = Literal["none", "linear", "quadratic"]
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


def weighted_kappa(table: ArrayLike, weights: Weights, confidence: float = 0.95) -> Kappa:
    """Cohen's kappa with a two-sided interval.

    The interval is that of the table with one more item on which the raters agree as
    often as by chance. Without it, full agreement on three items would be certainty.

    Args:
        table: Counts, square: how often one rater gave the row's mark and the other the
            column's. Marks are in order unless ``weights`` is ``none``.
        weights: How much a near miss counts.
        confidence: Of the interval, in (0, 1).

    Raises:
        EvaluationError: The table is not square, too small, or holds what is no count.
    """
    counts = _checked(table)
    num_items = float(counts.sum())
    agree = _agreement(len(counts), weights)
    if num_items == 0 or (value := _kappa(counts / num_items, agree)) is None:
        return Kappa(None, -1.0, 1.0, int(num_items))
    shares = counts / num_items
    by_chance = np.outer(shares.sum(1), shares.sum(0))
    widened = (counts + by_chance) / (num_items + 1)
    centre = _kappa(widened, agree)
    assert centre is not None  # its margins are those of the table
    reach = float(norm.ppf((1 + confidence) / 2)) * _standard_error(widened, agree, num_items + 1)
    return Kappa(value, max(centre - reach, -1.0), min(centre + reach, 1.0), int(num_items))


def calibrate(table: ArrayLike, weights: Weights, min_labels: int, min_kappa: float) -> Calibration:
    """Decide whether a judge may count.

    Args:
        table: Of the judge's marks and people's, as ``weighted_kappa`` takes it.
        weights: As there.
        min_labels: Items that both have rated, at least.
        min_kappa: What the lower end of the 95 % interval must reach.
    """
    kappa = weighted_kappa(table, weights)
    if kappa.num_items < min_labels:
        return Calibration(Standing.TOO_FEW_LABELS, kappa)
    agrees = kappa.value is not None and kappa.low >= min_kappa
    return Calibration(Standing.COUNTS if agrees else Standing.DISAGREES, kappa)


def krippendorff_alpha(ratings: ArrayLike, metric: Literal["nominal", "interval"]) -> float | None:
    """Agreement of any number of raters, each of whom may have left items out.

    Args:
        ratings: Shape (items, raters), NaN where a rater said nothing.
        metric: Whether marks are names, or numbers whose distance counts.

    Returns:
        1 for full agreement, 0 for that of chance; None where no two marks differ.
    """
    given = np.asarray(ratings, dtype=float)
    given = given[np.sum(~np.isnan(given), axis=1) >= 2]
    marks, places = np.unique(given[~np.isnan(given)], return_inverse=True)
    if len(marks) < 2:
        return None
    counts = np.zeros((len(given), len(marks)))
    np.add.at(counts, (np.nonzero(~np.isnan(given))[0], places), 1)
    pairs = np.einsum("ua,ub->uab", counts, counts) - np.eye(len(marks)) * counts[:, None, :]
    seen = (pairs / (counts.sum(1) - 1)[:, None, None]).sum(0)
    total = counts.sum(0)
    expected = (np.outer(total, total) - np.diag(total)) / (total.sum() - 1)
    gap = np.subtract.outer(marks, marks)
    distance = (gap != 0).astype(float) if metric == "nominal" else gap**2
    return float(1 - (seen * distance).sum() / (expected * distance).sum())


def _checked(table: ArrayLike) -> Floats:
    counts = np.asarray(table, dtype=float)
    is_square = counts.ndim == 2 and counts.shape[0] == counts.shape[1] >= 2
    if not is_square or not np.isfinite(counts).all() or (counts < 0).any():
        raise EvaluationError(
            f"A table of shape {counts.shape} is no table of two raters' marks.",
            "Give counts, at least 2 x 2, with as many rows as columns.",
        )
    return counts


def _agreement(num_marks: int, weights: Weights) -> Floats:
    """How far two marks agree, in [0, 1]."""
    if weights == "none":
        return np.eye(num_marks)
    gap = np.abs(np.subtract.outer(np.arange(num_marks), np.arange(num_marks))) / (num_marks - 1)
    return 1 - (gap if weights == "linear" else gap**2)


def _kappa(shares: Floats, agree: Floats) -> float | None:
    expected = float((np.outer(shares.sum(1), shares.sum(0)) * agree).sum())
    if expected > 1 - 1e-12:
        return None
    return float(((shares * agree).sum() - expected) / (1 - expected))


def _standard_error(shares: Floats, agree: Floats, num_items: float) -> float:
    """Equation 9 of Fleiss, Cohen and Everitt."""
    rows, columns = shares.sum(1), shares.sum(0)
    observed = float((shares * agree).sum())
    expected = float((np.outer(rows, columns) * agree).sum())
    means = np.add.outer(agree @ columns, rows @ agree)
    inner = agree * (1 - expected) - means * (1 - observed)
    spread = (shares * inner**2).sum() - (observed * expected - 2 * expected + observed) ** 2
    return math.sqrt(max(float(spread), 0.0) / num_items) / (1 - expected) ** 2
