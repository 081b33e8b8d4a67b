"""From paired scores to limits, a standard error and a harm p-value, by the kind of metric."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.gates.paired import (
    critical_value,
    design_effect,
    discordance_variance,
    mcnemar_mid_p,
    tango_bounds,
)
from penstock.gates.resampling import bootstrap_t_bounds, linearised, sign_flip_harm_p
from penstock.gates.results import PairedScores


@dataclass(frozen=True)
class Estimate:
    """What the items say about a difference, before any margin.

    Attributes:
        num_items: Items compared.
        num_clusters: Clusters they fall into; None without clusters.
        better: Items on which the candidate does better.
        worse: Items on which the baseline does.
        one_sided: Lower and upper limit, each at alpha; may be infinite.
        two_sided: Lower and upper limit, each at alpha / 2; may be infinite.
        standard_error: For planning: that of the difference between equal models.
        harm_p: One-sided p-value of "the candidate is worse".
    """

    num_items: int
    num_clusters: int | None
    better: int
    worse: int
    one_sided: tuple[float, float]
    two_sided: tuple[float, float]
    standard_error: float
    harm_p: float


def estimate(
    scores: PairedScores, binary: bool, bounded: bool, alpha: float, seed: int
) -> Estimate:
    """Choose the method by the kind of metric and apply it.

    0/1 metrics get Tango's limits and a mid-p McNemar test; clusters divide the
    counts by the design effect, and the test flips whole clusters. Everything
    else gets the bootstrap-t and a sign-flip test, over items or clusters.

    Args:
        scores: Both models' scores; positive differences favour the candidate.
        binary: Whether each item is 0 or 1.
        bounded: Whether each item lies in [0, 1].
        alpha: One-sided error rate.
        seed: Seed of the resampling.
    """
    if binary:
        return _binary(scores, alpha, seed)
    return _real(scores, bounded, alpha, seed)


def _binary(scores: PairedScores, alpha: float, seed: int) -> Estimate:
    differences = scores.differences
    better, worse = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    num_clusters, inflation, degrees = None, 1.0, None
    harm_p = mcnemar_mid_p(better, worse)
    if scores.clusters is not None:
        num_clusters = int(scores.clusters.max()) + 1
        inflation, degrees = design_effect(differences, scores.clusters), num_clusters - 1
        harm_p = sign_flip_harm_p(_units(scores), scores.link, seed)
    counts = (better / inflation, worse / inflation, len(differences) / inflation)
    variance = discordance_variance(*counts, critical_value(alpha))
    return Estimate(
        num_items=len(differences),
        num_clusters=num_clusters,
        better=better,
        worse=worse,
        one_sided=_tango(counts, alpha, degrees),
        two_sided=_tango(counts, alpha / 2, degrees),
        standard_error=math.sqrt(variance / counts[2]),
        harm_p=harm_p,
    )


def _tango(
    counts: tuple[float, float, float], alpha: float, degrees: int | None
) -> tuple[float, float]:
    if degrees == 0:  # one cluster tells nothing about the spread between clusters
        return -math.inf, math.inf
    return tango_bounds(*counts, critical_value(alpha, degrees))


def _real(scores: PairedScores, bounded: bool, alpha: float, seed: int) -> Estimate:
    differences = scores.differences
    better, worse = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    units = _units(scores)
    if bounded and better + worse == 0:
        # No spread to resample; but an item may still turn by a whole point.
        counts = (0.0, 0.0, float(len(units)))
        one_sided, two_sided = _tango(counts, alpha, None), _tango(counts, alpha / 2, None)
    else:
        one_sided, two_sided = bootstrap_t_bounds(units, scores.link, [alpha, alpha / 2], seed)
    spread = float(linearised(units, scores.link).std(ddof=1)) if len(units) > 1 else math.inf
    return Estimate(
        num_items=len(differences),
        num_clusters=None if scores.clusters is None else len(units),
        better=better,
        worse=worse,
        one_sided=one_sided,
        two_sided=two_sided,
        standard_error=spread / math.sqrt(len(units)),
        harm_p=sign_flip_harm_p(units, scores.link, seed),
    )


def _units(scores: PairedScores) -> NDArray[np.float64]:
    """Rows to resample, shape (m, 4): the items, or the clusters' sums."""
    if scores.clusters is None:
        return scores.sums
    columns = [np.bincount(scores.clusters, weights=column) for column in scores.sums.T]
    return np.stack(columns, axis=1)
