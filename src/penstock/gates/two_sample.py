"""Do two sets of vectors come from one distribution? Two tests, each with an exact level.

- *Kernel test*: the maximum mean discrepancy (Gretton et al. 2012, JMLR 13:723-773) under
  an RBF kernel whose bandwidth is the median distance. It sees new and shifted topics.
- *Classifier test*: half of the rows train a classifier, the other half is asked whether
  it tells them apart (Lopez-Paz & Oquab 2017, arXiv:1610.06545). It sees small shifts
  along one direction, where the kernel averages them away.

Each gets half of alpha, so that together they err no more often than alpha says.

Both p-values come from permutations and are exact at every size: the rows' labels are
exchangeable if nothing moved, and (b + 1) / (m + 1) counts the labels as they are among
the permuted ones (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585). For that, whatever
is chosen by the data (bandwidth, features) is chosen without looking at the labels.

The kernel is taken in random Fourier features (Rahimi & Recht 2007), whose mean is a
vector: a permutation then costs one row of a matrix product instead of a pass over a Gram
matrix of all pairs. Exactness is not touched, and power is the full test's with some
hundred features (Choi & Kim 2024, arXiv:2407.08976).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import EvaluationError

Vectors = NDArray[np.float32]

NUM_PERMUTATIONS = 499
NUM_FREQUENCIES = 256
# Fewer rows than this on one side say nothing about a distribution.
MIN_ROWS = 20
_BANDWIDTH_ROWS = 1_000
# Sums of equal numbers in another order differ by this much of their size, in float32.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class TwoSample:
    """What the two tests say.

    Attributes:
        num_before: Rows of the reference.
        num_after: Rows of the window.
        alpha: The level of both tests together.
        kernel_p: Of the kernel test; None if there were too few rows to test.
        classifier_p: Of the classifier test; None likewise.
        distance: Square root of the squared discrepancy above what chance makes of
            samples of this size; between 0 and the square root of 2.
        auc: How well the classifier orders unseen rows: 0.5 is not at all, 1 is perfectly.
    """

    num_before: int
    num_after: int
    alpha: float
    kernel_p: float | None = None
    classifier_p: float | None = None
    distance: float = 0.0
    auc: float = 0.5

    @property
    def is_tested(self) -> bool:
        """Whether there were enough rows."""
        return self.kernel_p is not None

    @property
    def differs(self) -> bool:
        """Whether either test says so, at half of alpha."""
        found = [p for p in (self.kernel_p, self.classifier_p) if p is not None]
        return any(p <= self.alpha / 2 for p in found)


def compare(before: Vectors, after: Vectors, alpha: float = 0.05, seed: int = 0) -> TwoSample:
    """Test whether two sets of vectors differ.

    Args:
        before: The reference, shape (m, d).
        after: The window, shape (n, d).
        alpha: Chance of finding a difference where there is none, over both tests.
        seed: Of permutations, features and halves.

    Raises:
        EvaluationError: Vectors have other dimensions, or hold what is not a number.
    """
    check_alike(before, after)
    sizes = (len(before), len(after), alpha)
    if min(sizes[:2]) < MIN_ROWS:
        return TwoSample(*sizes)
    random = np.random.default_rng(seed)
    kernel_p, distance = kernel_test(before, after, random)
    classifier_p, auc = classifier_test(before, after, random)
    return TwoSample(*sizes, kernel_p, classifier_p, distance, auc)


def check_alike(before: Vectors, after: Vectors) -> None:
    """See that two sets of vectors can be compared at all.

    Raises:
        EvaluationError: They cannot.
    """
    check_finite("reference", before)
    check_finite("window", after)
    if before.shape[1] != after.shape[1]:
        raise EvaluationError(
            f"The reference's vectors have {before.shape[1]} dimensions, and the window's "
            f"{after.shape[1]}: they are of different embedding models.",
            "Embed both with the same model.",
        )


def check_finite(whose: str, vectors: Vectors) -> None:
    """See that vectors are numbers.

    Args:
        whose: For the message.
        vectors: Shape (n, d).

    Raises:
        EvaluationError: They have another shape, or one holds NaN or an infinity.
    """
    if vectors.ndim != 2:
        raise EvaluationError(
            f"The vectors of the {whose} have shape {vectors.shape}, not (rows, dimensions)."
        )
    num_bad = int((~np.isfinite(vectors)).any(axis=1).sum())
    if num_bad:
        raise EvaluationError(
            f"{num_bad:,} of the {len(vectors):,} vectors of the {whose} hold NaN or an infinity.",
            "The embedding model is damaged, or was given something other than text.",
        )


def kernel_test(
    before: Vectors, after: Vectors, random: np.random.Generator
) -> tuple[float, float]:
    """The kernel test's p-value, and the distance above chance.

    Args:
        before: Shape (m, d).
        after: Shape (n, d).
        random: Draws what is drawn.
    """
    pooled = np.concatenate([before, after])
    bandwidth = np.float32(median_distance(pooled, random))
    frequencies = random.standard_normal((pooled.shape[1], NUM_FREQUENCIES), np.float32)
    features = fourier_features(pooled, frequencies / bandwidth)
    # Takes nothing from the differences of means, and much of their rounding.
    features -= features.mean(axis=0)
    sums = _permuted_differences(features, len(before), random)
    squares = np.einsum("pf,pf->p", sums, sums)
    p = permutation_p(squares, scale=float(np.einsum("nf,nf->n", features, features).mean()))
    return p, float(np.sqrt(max(squares[0] - squares[1:].mean(), 0.0)))


def classifier_test(
    before: Vectors, after: Vectors, random: np.random.Generator
) -> tuple[float, float]:
    """The classifier test's p-value, and its area under the ROC curve on unseen rows.

    A linear discriminant with a shrunken covariance learns on half of each side. What is
    tested is the difference of its mean scores on the other halves.

    Args:
        before: Shape (m, d).
        after: Shape (n, d).
        random: Draws what is drawn.
    """
    before_train, before_test = _halves(before, random)
    after_train, after_test = _halves(after, random)
    direction = _discriminant(before_train, after_train)
    scores = np.concatenate([before_test @ direction, after_test @ direction])
    scores = (scores - scores.mean())[:, None]
    differences = _permuted_differences(scores, len(before_test), random)[:, 0]
    p = permutation_p(differences, scale=float(np.abs(scores).mean()))
    return p, _auc(scores[:, 0], len(before_test))


def permutation_p(statistics: NDArray[np.float32], scale: float) -> float:
    """The p-value of the first statistic among all of them; large is extreme.

    What is equal but for rounding counts as equal, which can only make p larger.

    Args:
        statistics: The observed one, then those of permutations; shape (1 + m,).
        scale: Of what they are made of, for the rounding.
    """
    least = statistics[0] - _ROUNDING * scale
    return float(np.mean(statistics >= least))


def median_distance(vectors: Vectors, random: np.random.Generator) -> float:
    """The median distance of two different rows, of at most a thousand; 1 if that is 0.

    Args:
        vectors: Shape (n, d).
        random: Chooses the rows.
    """
    chosen = random.choice(len(vectors), min(len(vectors), _BANDWIDTH_ROWS), replace=False)
    some = vectors[chosen].astype(np.float64)
    norms = np.einsum("nd,nd->n", some, some)
    squares = norms[:, None] + norms[None, :] - 2 * some @ some.T
    median = np.median(squares[np.triu_indices(len(some), 1)]) if len(some) > 1 else 0.0
    return float(np.sqrt(median)) if median > 1e-9 else 1.0


def fourier_features(vectors: Vectors, frequencies: Vectors) -> Vectors:
    """Features whose products are, in the mean, an RBF kernel.

    It is ``exp(-|x - y|^2 / (2 bandwidth^2))`` if the frequencies are drawn from a normal
    distribution of standard deviation ``1 / bandwidth``.

    Args:
        vectors: Shape (n, d).
        frequencies: Shape (d, f); more come nearer to the kernel.

    Returns:
        Shape (n, 2 f); each row has length 1.
    """
    angles = vectors @ frequencies
    size = angles.shape[1]
    features = np.empty((len(vectors), 2 * size), np.float32)
    np.cos(angles, out=features[:, :size])
    np.sin(angles, out=features[:, size:])
    features *= np.float32(size**-0.5)
    return features


def _permuted_differences(
    features: Vectors, num_before: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Mean of the second part minus mean of the first, as it is and permuted: (1 + m, f)."""
    num_after = len(features) - num_before
    weights = np.empty((1 + NUM_PERMUTATIONS, len(features)), np.float32)
    weights[:, :num_before] = -1 / num_before
    weights[:, num_before:] = 1 / num_after
    random.permuted(weights[1:], axis=1, out=weights[1:])
    differences: NDArray[np.float32] = weights @ features
    return differences


def _halves(vectors: Vectors, random: np.random.Generator) -> tuple[Vectors, Vectors]:
    order = random.permutation(len(vectors))
    half = len(vectors) // 2
    return vectors[order[:half]], vectors[order[half:]]


def _discriminant(before: Vectors, after: Vectors) -> Vectors:
    """Fisher's direction, shape (d,), the covariance shrunk to its mean variance.

    The fewer rows there are for a dimension, the more it is shrunk.
    """
    means = before.mean(axis=0), after.mean(axis=0)
    centred = np.concatenate([before - means[0], after - means[1]])
    num_rows, size = centred.shape
    covariance = centred.T @ centred / np.float32(num_rows)
    weight = np.float32(size / (size + num_rows))
    variance = max(float(np.trace(covariance)) / size, 1e-12)
    covariance *= 1 - weight
    covariance[np.diag_indices(size)] += weight * np.float32(variance)
    direction: Vectors = np.linalg.solve(covariance, means[1] - means[0])
    return direction


def _auc(scores: NDArray[np.float32], num_before: int) -> float:
    from scipy.stats import rankdata

    num_after = len(scores) - num_before
    ranks = float(rankdata(scores)[num_before:].sum())
    return (ranks - num_after * (num_after + 1) / 2) / (num_before * num_after)
