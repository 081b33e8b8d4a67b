"""What of a window has shifted that needs no embedding: lengths, and shares of languages.

Each shift has a p-value of its own; as several are looked at, Holm's method (1979) says
which of them stand at a common level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from penstock.errors import EvaluationError
from penstock.gates.paired import critical_value
from penstock.gates.two_sample import MIN_ROWS


@dataclass(frozen=True)
class Shift:
    """One number of the reference and of the window.

    Attributes:
        name: Of what.
        before: In the reference: a median or a share.
        after: In the window.
        p: Two-sided; None if there were too few rows.
        interval: The difference of shares, after minus before; None for medians.
        stands: Whether it holds after correction for all that was looked at.
    """

    name: str
    before: float
    after: float
    p: float | None
    interval: tuple[float, float] | None = None
    stands: bool = False


def length_shift(name: str, before: ArrayLike, after: ArrayLike) -> Shift:
    """Whether texts have become longer or shorter (Mann-Whitney).

    Args:
        name: Of the texts.
        before: Lengths, shape (m,).
        after: Lengths, shape (n,).

    Raises:
        EvaluationError: A length is not a number.
    """
    from scipy.stats import mannwhitneyu

    sides = [np.asarray(side, float) for side in (before, after)]
    if not all(np.isfinite(side).all() for side in sides):
        raise EvaluationError(f"{name}: a length is not a number.")
    before_median, after_median = (float(np.median(x)) if x.size else 0.0 for x in sides)
    shift = Shift(name, before_median, after_median, p=None)
    if min(side.size for side in sides) < MIN_ROWS:
        return shift
    if np.ptp(np.concatenate(sides)) == 0:
        return replace(shift, p=1.0)
    return replace(shift, p=float(mannwhitneyu(*sides).pvalue))


def share_shift(
    name: str, before: tuple[int, int], after: tuple[int, int], alpha: float = 0.05
) -> Shift:
    """Whether a share has changed (Fisher's exact test), and by how much.

    The interval is Newcombe's hybrid score interval (1998, Statistics in Medicine
    17:873-890, method 10).

    Args:
        name: Of the share.
        before: How many have it, of how many.
        after: The same in the window.
        alpha: The interval's.

    Raises:
        EvaluationError: More have it than there are.
    """
    from scipy.stats import fisher_exact

    for part, whole in (before, after):
        if not 0 <= part <= whole:
            raise EvaluationError(f"{name}: {part} of {whole} is no share.")
    share_before, share_after = (x / whole if whole else 0.0 for x, whole in (before, after))
    shift = Shift(name, share_before, share_after, p=None)
    if min(before[1], after[1]) < MIN_ROWS:
        return shift
    table = [[part, whole - part] for part, whole in (before, after)]
    interval = _difference_interval(before, after, alpha)
    return replace(shift, p=float(fisher_exact(table).pvalue), interval=interval)


def share_shifts(
    kind: str, before: Mapping[str, int], after: Mapping[str, int], alpha: float = 0.05
) -> list[Shift]:
    """The share of each value that either side has, largest first.

    Args:
        kind: What values are of, before their names.
        before: Value -> how often, in the reference.
        after: Value -> how often, in the window.
        alpha: The intervals'.
    """
    totals = sum(before.values()), sum(after.values())
    counts = {name: (before.get(name, 0), after.get(name, 0)) for name in {*before, *after}}
    order = sorted(counts, key=lambda name: (-sum(counts[name]), name))
    return [
        share_shift(f"{kind} {name}", (counts[name][0], totals[0]), (counts[name][1], totals[1]),
                    alpha)
        for name in order
    ]  # fmt: skip


def holm(shifts: Sequence[Shift], alpha: float) -> list[Shift]:
    """The same shifts, each knowing whether it stands among all of them.

    Args:
        shifts: In any order, which is kept.
        alpha: Chance that any stands where nothing shifted.
    """
    tested = [i for i, shift in enumerate(shifts) if shift.p is not None]
    tested.sort(key=lambda i: shifts[i].p or 0.0)
    out = list(shifts)
    for rank, i in enumerate(tested):
        if (shifts[i].p or 0.0) > alpha / (len(tested) - rank):
            break
        out[i] = replace(shifts[i], stands=True)
    return out


def share_interval(part: int, whole: int, alpha: float = 0.05) -> tuple[float, float]:
    """Wilson's score interval of a share; (0, 1) of nothing."""
    if not whole:
        return 0.0, 1.0
    low, _, high = _wilson(part, whole, critical_value(alpha / 2))
    return low, high


def _difference_interval(
    before: tuple[int, int], after: tuple[int, int], alpha: float
) -> tuple[float, float]:
    z = critical_value(alpha / 2)
    (low_b, share_b, high_b), (low_a, share_a, high_a) = (_wilson(*x, z) for x in (before, after))
    difference = share_a - share_b
    return (
        difference - math.hypot(share_a - low_a, high_b - share_b),
        difference + math.hypot(high_a - share_a, share_b - low_b),
    )


def _wilson(part: int, whole: int, z: float) -> tuple[float, float, float]:
    share = part / whole
    centre = (share + z * z / (2 * whole)) / (1 + z * z / whole)
    reach = (
        z
        / (1 + z * z / whole)
        * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    )
    return max(centre - reach, 0.0), share, min(centre + reach, 1.0)
