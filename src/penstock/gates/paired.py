"""Paired comparison of two models in closed form: bounds, tests, corrections, power.

Both models answer the same items, so what carries information is where they
*disagree*. Throughout, ``better`` counts the items that only the candidate gets
right, ``worse`` those that only the baseline gets right, and a difference is
positive when the candidate is better.

Sources:
    Tango 1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine 17:891-908.
    Fagerland, Lydersen & Laake 2013, "The McNemar test for binary matched-pairs
    data: mid-p and asymptotic are better than exact conditional", BMC Medical
    Research Methodology 13:91.
    Holm 1979, "A simple sequentially rejective multiple test procedure".
    Rao & Scott 1992, "A simple method for the analysis of clustered binary
    data", Biometrics 48:577-585.
    Zou & Donner 2008, "Construction of confidence limits about effect measures:
    a general approach", Statistics in Medicine 27:1693-1702.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy  # whose parts load when they are first used, which most commands never do
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def critical_value(alpha: float, degrees_of_freedom: int | None = None) -> float:
    """The upper ``alpha`` quantile of the standard normal, or of Student's t.

    Args:
        alpha: One-sided error rate, in (0, 0.5).
        degrees_of_freedom: Number of clusters minus one when errors are clustered;
            None for the normal distribution.
    """
    if degrees_of_freedom is None:
        return float(-scipy.special.ndtri(alpha))
    return float(-scipy.special.stdtrit(degrees_of_freedom, alpha))


def tango_bounds(
    better: float, worse: float, num_items: float, critical: float
) -> tuple[float, float]:
    """Score confidence limits for a difference of paired proportions.

    The limits invert the score test, whose variance is estimated *under* each
    hypothetical difference. They therefore stay honest with few or no
    discordant items, where Wald's interval collapses to a point: without any,
    the limits are ``-+ z^2 / (n + z^2)``.

    Args:
        better: Items only the candidate gets right. Need not be whole: counts
            divided by a design effect are accepted (Rao & Scott 1992).
        worse: Items only the baseline gets right.
        num_items: All items, n > 0.
        critical: Critical value of each limit by itself (``critical_value``).

    Returns:
        Lower and upper limit of p(candidate) - p(baseline), within [-1, 1].
    """
    lower = _tango_lower(better, worse, num_items, critical)
    upper = -_tango_lower(worse, better, num_items, critical)
    return lower, upper


def _tango_lower(better: float, worse: float, n: float, critical: float) -> float:
    if better + worse == 0:
        return -(critical**2) / (n + critical**2)
    difference = (better - worse) / n

    def excess(delta: float) -> float:
        # The score statistic squared, times its variance: no division by a
        # variance that vanishes at delta = -1 and at some observed differences.
        score = better - worse - n * delta
        return score**2 - critical**2 * _tango_variance(better, worse, n, delta)

    # At the observed difference the score is zero; just left of it `excess` is
    # negative, and it has exactly one root between there and -1.
    right = difference - 1e-10
    if right <= -1 or excess(-1.0) <= 0:
        return -1.0
    return float(scipy.optimize.brentq(excess, -1.0, right, xtol=1e-12))


def _tango_variance(better: float, worse: float, n: float, delta: float) -> float:
    """Variance of ``better - worse`` when the true difference is ``delta``.

    The probability of a worse item is its maximum-likelihood estimate given
    ``delta``, the larger root of a quadratic (Tango 1998, equation 11).
    """
    a = 2 * n
    b = -better - worse + (2 * n - better + worse) * delta
    c = -worse * delta * (1 - delta)
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    p_worse = (root - b) / (2 * a)
    return n * (2 * p_worse + delta * (1 - delta))


def mcnemar_mid_p(better: int, worse: int) -> float:
    """One-sided mid-p McNemar test that the candidate is worse.

    Args:
        better: Items only the candidate gets right.
        worse: Items only the baseline gets right.

    Returns:
        P(X > worse) + P(X = worse) / 2 with X ~ Binomial(better + worse, 1/2);
        0.5 without discordant items.
    """
    discordant = better + worse
    # P(X <= better) = P(X >= worse), by symmetry.
    at_least = scipy.special.bdtr(better, discordant, 0.5)
    more = scipy.special.bdtr(better - 1, discordant, 0.5) if better > 0 else 0.0
    return float((at_least + more) / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given.

    Rejecting where the adjusted value is at most alpha keeps the chance of any
    false rejection at alpha, whatever the dependence between the tests.
    """
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(np.argsort(np.asarray(p_values), kind="stable")):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def design_effect(differences: FloatArray, clusters: NDArray[np.intp]) -> float:
    """How much clustering inflates the variance of the mean difference.

    Args:
        differences: Per-item differences, shape (n,).
        clusters: Cluster number of each item, shape (n,), from 0 without gaps.

    Returns:
        Cluster-robust variance over the variance under independence. At least
        1: an apparent gain from clustering is noise more often than a fact,
        and it would loosen the gate.
    """
    deviations = differences - differences.mean()
    independent = float(deviations @ deviations)
    num_clusters = int(clusters.max()) + 1
    if independent == 0 or num_clusters < 2:
        return 1.0
    sums = np.bincount(clusters, weights=deviations)
    robust = float(sums @ sums) * num_clusters / (num_clusters - 1)
    return max(1.0, robust / (independent * differences.size / (differences.size - 1)))


def mean_bounds(
    differences: Sequence[float], lowers: Sequence[float], uppers: Sequence[float]
) -> tuple[float, float]:
    """Confidence limits of the mean of K independent differences (MOVER).

    Tasks share no items, so their estimates are independent and variances add.
    Each variance is recovered from that task's own limit, at the side that
    matters: the lower limit from the distances to the lower limits. The mean
    thus inherits what is good about them (for Tango's: asymmetry, and no
    collapse at zero discordant items), and for K = 1 it *is* the task's limit.

    Args:
        differences: Point estimates, shape (K,).
        lowers: One-sided lower limits at the wanted level, shape (K,).
        uppers: One-sided upper limits at the wanted level, shape (K,).

    Returns:
        Lower and upper limit of the unweighted mean, each at the same level.
    """
    center = float(np.mean(differences))
    below = math.hypot(*np.subtract(differences, lowers)) / len(differences)
    above = math.hypot(*np.subtract(uppers, differences)) / len(differences)
    return center - below, center + above


def non_inferiority_power(num_items: float, variance: float, margin: float, alpha: float) -> float:
    """Chance that the test shows non-inferiority when there is no true difference.

    Args:
        num_items: Number of items (divided by the design effect, if any).
        variance: Variance of one item's difference. For 0/1 metrics without a
            true difference this is the share of discordant items.
        margin: Largest tolerated loss, > 0, in the unit of the difference.
        alpha: One-sided error rate.
    """
    if variance <= 0:
        return 1.0
    shift = margin * math.sqrt(num_items / variance)
    return float(scipy.special.ndtr(shift - critical_value(alpha)))


def items_needed(variance: float, margin: float, alpha: float, power: float = 0.8) -> int:
    """Number of items at which ``non_inferiority_power`` reaches ``power``.

    The usual formula, ``(z_alpha + z_power)^2 variance / margin^2``; arguments
    as for ``non_inferiority_power``.
    """
    quantiles = critical_value(alpha) + float(scipy.special.ndtri(power))
    return max(1, math.ceil(quantiles**2 * variance / margin**2))


def discordance_variance(better: float, worse: float, num_items: float, critical: float) -> float:
    """Variance of one item's difference for planning, if the models are equally good.

    The share of discordant items, but no less than what Tango's limit allows
    for without any: seeing no disagreement on 50 items does not rule out 5 %.
    """
    unseen = num_items * (critical / (num_items + critical**2)) ** 2
    return max((better + worse) / num_items, unseen)
