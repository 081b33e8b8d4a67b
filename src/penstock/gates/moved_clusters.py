"""Which topics have come or gone: clusters of both sides' vectors, and their shares.

Clusters are found in reference and window together, without knowing which row is whose,
so that a topic that is new has one too, and the test of each share remains one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.gates.shifts import Shift, holm, share_shift
from penstock.gates.two_sample import MIN_ROWS, Vectors, check_alike

NUM_CLUSTERS = 12
NUM_EXAMPLES = 3
_ROUNDS = 25


@dataclass(frozen=True)
class Cluster:
    """A topic.

    Attributes:
        share: Its share of the reference and of the window.
        before: Rows of the reference nearest to its middle: up to three indices.
        after: Rows of the window likewise.
    """

    share: Shift
    before: tuple[int, ...]
    after: tuple[int, ...]


def moved_clusters(
    before: Vectors,
    after: Vectors,
    alpha: float = 0.05,
    num_clusters: int = NUM_CLUSTERS,
    seed: int = 0,
) -> list[Cluster]:
    """Clusters, those first whose share changed most.

    Args:
        before: The reference, shape (m, d).
        after: The window, shape (n, d).
        alpha: For all clusters together (Holm).
        num_clusters: At most; each has some ten rows.
        seed: Of the clustering.

    Returns:
        None of them if one side has too few rows.

    Raises:
        EvaluationError: Vectors have other dimensions, or hold what is not a number.
    """
    check_alike(before, after)
    if min(len(before), len(after)) < MIN_ROWS:
        return []
    pooled = np.concatenate([before, after])
    wanted = max(2, min(num_clusters, len(pooled) // 20))
    middles, owner = k_means(pooled, wanted, np.random.default_rng(seed))
    sides = owner[: len(before)], owner[len(before) :]
    counts = [np.bincount(side, minlength=len(middles)) for side in sides]
    shares = [
        share_shift(
            f"cluster {k}",
            (int(counts[0][k]), len(before)),
            (int(counts[1][k]), len(after)),
            alpha,
        )
        for k in range(len(middles))
    ]
    found = [
        Cluster(
            share, _nearest(before, sides[0], middles, k), _nearest(after, sides[1], middles, k)
        )
        for k, share in enumerate(holm(shares, alpha))
    ]
    return sorted(found, key=lambda one: -abs(one.share.after - one.share.before))


def k_means(
    vectors: Vectors, num_clusters: int, random: np.random.Generator
) -> tuple[Vectors, NDArray[np.intp]]:
    """Lloyd's algorithm from k-means++ seeds (Arthur & Vassilvitskii 2007).

    Args:
        vectors: Shape (n, d).
        num_clusters: At most n.
        random: Chooses the seeds.

    Returns:
        The clusters' middles, shape (k, d), and each row's cluster, shape (n,).
    """
    middles = _seeds(vectors, num_clusters, random)
    owner = _distances(vectors, middles).argmin(axis=1)
    for _ in range(_ROUNDS):
        members = np.eye(len(middles), dtype=np.float32)[owner]
        sizes = members.sum(axis=0)
        middles = np.where(sizes[:, None] > 0, members.T @ vectors / np.maximum(sizes, 1)[:, None],
                           middles)  # fmt: skip
        moved = _distances(vectors, middles).argmin(axis=1)
        if np.array_equal(moved, owner):
            break
        owner = moved
    return middles, owner


def _seeds(vectors: Vectors, num_clusters: int, random: np.random.Generator) -> Vectors:
    chosen = [vectors[random.integers(len(vectors))]]
    nearest = _distances(vectors, chosen[0][None])[:, 0]
    while len(chosen) < num_clusters and nearest.sum() > 0:
        chosen.append(vectors[random.choice(len(vectors), p=nearest / nearest.sum())])
        nearest = np.minimum(nearest, _distances(vectors, chosen[-1][None])[:, 0])
    return np.stack(chosen)


def _distances(vectors: Vectors, middles: Vectors) -> NDArray[np.float64]:
    """Squared, shape (n, k)."""
    products = (vectors @ middles.T).astype(np.float64)
    norms = np.einsum("nd,nd->n", vectors, vectors)[:, None]
    squares: NDArray[np.float64] = (
        norms + np.einsum("kd,kd->k", middles, middles)[None] - 2 * products
    )
    # Below this, a row differs from a middle by rounding alone.
    squares[squares < 1e-6] = 0.0
    return squares


def _nearest(
    vectors: Vectors, owner: NDArray[np.intp], middles: Vectors, cluster: int
) -> tuple[int, ...]:
    mine = np.flatnonzero(owner == cluster)
    if not mine.size:
        return ()
    far = _distances(vectors[mine], middles[cluster][None])[:, 0]
    return tuple(int(i) for i in mine[np.argsort(far, kind="stable")[:NUM_EXAMPLES]])
