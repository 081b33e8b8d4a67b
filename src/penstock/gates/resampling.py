"""Paired comparison of real-valued metrics by resampling: a bootstrap and a permutation test.

A metric is ``link(sum of totals / sum of weights)`` over items: a plain mean
(all weights 1), or a ratio such as bits per byte (totals in bits, weights in
bytes) or perplexity (the exponential of one). What is resampled is a *unit*, an
item or a whole cluster of items, held as one row of four sums:
candidate total, candidate weight, baseline total, baseline weight.

Why the bootstrap-t and not BCa: a gate lives on one-sided limits of skewed data
with moderate n. Both are second-order accurate, but BCa's limits come out too
narrow for small n, which here means passing what should not pass; bootstrap-t
errs little, and on the wide side (Hesterberg 2015, "What teachers should know
about the bootstrap", The American Statistician 69:371-386). Its
two known costs do not bite: the standard error is known in closed form
(linearisation), and the link keeps the scale the user reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Quantiles at 5 % and 2.5 % are then known to about 0.03 standard errors.
NUM_RESAMPLES = 4_999
# p-values go down to 1e-4, enough for Holm over some hundred tasks.
NUM_PERMUTATIONS = 9_999
# Under this many units a resampled tail says more about luck than the model.
MIN_UNITS = 20
_CHUNK_ELEMENTS = 4_000_000  # 32 MB of float64 at a time


class Link(StrEnum):
    """What turns ``sum of totals / sum of weights`` into the metric."""

    IDENTITY = "identity"
    EXP = "exp"

    def of(self, ratio: FloatArray) -> FloatArray:
        """The metric at ``ratio``, elementwise."""
        return np.exp(ratio) if self is Link.EXP else ratio

    def slope(self, ratio: FloatArray) -> FloatArray:
        """Its derivative at ``ratio``, elementwise."""
        return np.exp(ratio) if self is Link.EXP else np.ones_like(ratio)


def paired_difference(sums: FloatArray, link: Link) -> FloatArray:
    """Candidate's metric minus the baseline's.

    Args:
        sums: Summed unit rows, shape (..., 4).
        link: What turns a ratio into the metric.

    Returns:
        Differences, shape (...).
    """
    return link.of(sums[..., 0] / sums[..., 1]) - link.of(sums[..., 2] / sums[..., 3])


def linearised(units: FloatArray, link: Link) -> FloatArray:
    """Each unit's first-order influence on the difference of means.

    Args:
        units: Unit rows, shape (m, 4).
        link: What turns a ratio into the metric.

    Returns:
        Influences, shape (m,), of mean zero; ``std(ddof=1) / sqrt(m)`` is the
        standard error of the difference (delta method).
    """
    num_units = units.shape[0]
    influences: FloatArray = units @ _coefficients(units.sum(axis=0), num_units, link)
    return influences


def _coefficients(sums: FloatArray, num_units: int, link: Link) -> FloatArray:
    """How a unit row enters its influence; ``sums`` (..., 4) -> (..., 4)."""
    ratio_c, ratio_b = sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]
    scale_c = link.slope(ratio_c) * num_units / sums[..., 1]
    scale_b = link.slope(ratio_b) * num_units / sums[..., 3]
    return np.stack([scale_c, -scale_c * ratio_c, -scale_b, scale_b * ratio_b], axis=-1)


def bootstrap_t_bounds(
    units: FloatArray,
    link: Link,
    alphas: Sequence[float],
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> list[tuple[float, float]]:
    """Studentised bootstrap limits of the paired difference (Efron & Tibshirani 1993, 12.5).

    Args:
        units: Unit rows, shape (m, 4).
        link: What turns a ratio into the metric.
        alphas: Error rate of each limit by itself.
        seed: Seed of the resampling.
        num_resamples: Number of bootstrap samples.

    Returns:
        For each alpha the lower and the upper limit. Infinite where the units
        are too few, or so few of them differ that many resamples see none.
    """
    num_units = units.shape[0]
    if num_units < MIN_UNITS:
        return [(-np.inf, np.inf) for _ in alphas]
    difference = float(paired_difference(units.sum(axis=0), link))
    error = float(linearised(units, link).std(ddof=1)) / np.sqrt(num_units)
    if np.array_equal(units[:, :2], units[:, 2:]) or error == 0:
        return [(difference, difference) for _ in alphas]
    pivots = np.sort(_pivots(units, link, difference, seed, num_resamples))
    return [
        (
            difference - error * _order_statistic(pivots, 1 - alpha),
            difference - error * _order_statistic(pivots, alpha),
        )
        for alpha in alphas
    ]


def _pivots(
    units: FloatArray, link: Link, difference: float, seed: int, num_resamples: int
) -> FloatArray:
    """(resampled difference - difference) / resampled standard error, shape (num_resamples,)."""
    num_units = units.shape[0]
    products = np.einsum("mi,mj->mij", units, units).reshape(num_units, 16)
    moments = np.concatenate([units, products], axis=1)
    pivots = []
    for counts in _resample_counts(num_units, num_resamples, seed):
        totals = counts @ moments
        sums, squares = totals[:, :4], totals[:, 4:].reshape(-1, 4, 4)
        weights = _coefficients(sums, num_units, link)
        spread = np.einsum("ri,rij,rj->r", weights, squares, weights)
        error = np.sqrt(np.maximum(spread, 0.0) / (num_units * (num_units - 1)))
        shift = paired_difference(sums, link) - difference
        # A resample without any spread has an infinite pivot, on the side it
        # missed: that widens the limit, as it should.
        with np.errstate(divide="ignore", invalid="ignore"):
            pivots.append(np.where(shift == 0, 0.0, shift / error))
    return np.concatenate(pivots)


def _resample_counts(num_units: int, num_resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each unit is drawn; chunks of shape (r, m) that add up to num_resamples rows."""
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // num_units)
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        drawn = random.integers(0, num_units, size=(size, num_units))
        drawn += np.arange(size)[:, None] * num_units
        counts = np.bincount(drawn.ravel(), minlength=size * num_units)
        yield counts.reshape(size, num_units).astype(np.float64)


def _order_statistic(ordered: FloatArray, level: float) -> float:
    """Quantile without interpolation, which infinite pivots would turn into NaN."""
    rank = round(level * (ordered.size + 1)) - 1
    return float(ordered[min(max(rank, 0), ordered.size - 1)])


def sign_flip_harm_p(
    units: FloatArray, link: Link, seed: int, num_permutations: int = NUM_PERMUTATIONS
) -> float:
    """One-sided permutation test that the candidate is worse.

    If the models were interchangeable, swapping their answers on any unit would
    change nothing; so the observed difference is ranked among random swaps. The
    observed arrangement counts as one of them, which keeps the test valid
    (Phipson & Smyth 2010, "Permutation p-values should never be zero").

    Args:
        units: Unit rows, shape (m, 4); positive differences favour the candidate.
        link: What turns a ratio into the metric.
        seed: Seed of the swaps.
        num_permutations: Number of random swaps.

    Returns:
        (1 + swaps at least as bad) / (1 + num_permutations).
    """
    # Units on which the models agree stay the same however they are swapped.
    half = (units[:, :2] - units[:, 2:]) / 2
    differing = half[np.any(half != 0, axis=1)]
    middle = (units[:, :2] + units[:, 2:]).sum(axis=0) / 2
    observed = float(paired_difference(units.sum(axis=0), link))
    tolerance = 1e-12 * max(1.0, abs(observed))
    as_bad = 1
    for signs in _random_signs(len(differing), num_permutations, seed):
        swing = signs @ differing
        sums = np.concatenate([middle + swing, middle - swing], axis=1)
        as_bad += int(np.sum(paired_difference(sums, link) <= observed + tolerance))
    return as_bad / (1 + num_permutations)


def _random_signs(num_units: int, num_rows: int, seed: int) -> Iterator[FloatArray]:
    """Chunks of shape (r, m) of +1 and -1 that add up to ``num_rows`` rows."""
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // max(1, num_units))
    for start in range(0, num_rows, rows):
        size = min(rows, num_rows - start)
        yield random.integers(0, 2, size=(size, num_units)).astype(np.float64) * 2 - 1
