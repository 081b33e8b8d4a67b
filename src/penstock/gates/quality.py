"""Shares of good answers: their intervals, whether they fell, and who wins in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import scipy  # whose parts load when they are first used

# The first look at a version, and what it takes of the one before.
FIRST_LOOK = 50


@dataclass(frozen=True)
class GoodShare:
    """How many answers were good.

    Attributes:
        good: So many.
        num: Of so many.
        low: Lower end of Wilson's 95 % interval of the share.
        high: Upper end.
    """

    good: int
    num: int
    low: float
    high: float

    @classmethod
    def of(cls, marks: Iterable[bool]) -> GoodShare:
        """From whether each answer was good."""
        each = list(marks)
        if not each:
            return cls(0, 0, 0.0, 1.0)
        limits = scipy.stats.binomtest(sum(each), len(each)).proportion_ci(method="wilson")
        return cls(sum(each), len(each), float(limits.low), float(limits.high))

    @property
    def share(self) -> float | None:
        """None of no answers."""
        return self.good / self.num if self.num else None


@dataclass(frozen=True)
class Preference:
    """Which of two versions a judge prefers, pair by pair.

    Attributes:
        wins: Of the first.
        losses: Of the first.
        ties: Neither is better, or the judge has gone by the order.
        p: Two-sided, of a sign test on wins and losses.
    """

    wins: int
    losses: int
    ties: int
    p: float

    @classmethod
    def of(cls, scores: Iterable[tuple[float, float]]) -> Preference:
        """From each pair's scores of the first, in both orders: unless they agree, it is a tie."""
        each = list(scores)
        wins = sum(both == (1.0, 1.0) for both in each)
        losses = sum(both == (0.0, 0.0) for both in each)
        p = float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
        return cls(wins, losses, len(each) - wins - losses, p)


def looks(num: int, alpha: float) -> Iterator[tuple[int, float]]:
    """When to look at a version's first answers, and at what level.

    After 50 answers, 100, 200, ...; at alpha/2, alpha/4, alpha/8, ... So all looks there
    will ever be find something in no more than alpha of the cases in which there is nothing.

    Args:
        num: Answers so far.
        alpha: Of all looks together.
    """
    size, level = FIRST_LOOK, alpha / 2
    while size <= num:
        yield size, level
        size, level = 2 * size, level / 2


def worse_p(before: GoodShare, after: GoodShare) -> float:
    """One-sided p-value of "fewer are good than before" (Fisher's exact test)."""
    table = [[side.good, side.num - side.good] for side in (after, before)]
    return float(scipy.stats.fisher_exact(table, alternative="less").pvalue)
