"""Has a stream of windows changed? Evidence that may be looked at after every window.

A test of each window against a reference is wrong about a stream: at 5 % it cries wolf
every twenty windows, and where the reference is training data, which live traffic never
quite resembles, at each of them. Here a window is compared with the windows before it:

1. Each window is a vector (say, its mean in a feature space). Its *strangeness* is the
   distance from a fixed point, or from the mean of the other windows so far.
2. Its *conformal p-value* is the share of windows so far that are at least as strange,
   ties broken by chance. If windows are exchangeable, these p-values are independent and
   uniform, whatever the vectors' distribution (Vovk, Gammerman & Shafer, "Algorithmic
   Learning in a Random World", 2nd ed. 2022, theorem 11.1).
3. A *bet* is a function of p that averages 1 and is large where p is small. The
   *Shiryaev-Roberts statistic* sums, over all times at which a change might have
   happened, the product of the bets since: R(n) = (R(n - 1) + 1) * bet(p(n)). Several bets
   have a sum each; their mean counts (an e-detector: Shin, Ramdas & Rinaldo 2024,
   arXiv:2203.03532; for retraining: Vovk et al. 2021, arXiv:2102.10439).

What is guaranteed, while windows are exchangeable: R(n) - n is a martingale, so

- over ``horizon`` windows the chance of any alarm is at most ``chance``, if the alarm is
  at R >= horizon / chance (Doob's inequality), and
- the mean number of windows before a false alarm is at least horizon / chance.

Both also hold for a mean over several signals' statistics, however they depend on each
other: that is how many signals share one budget. What they rest on is exchangeability.
Windows must be alike in size, and cover what repeats: with windows of an hour, night would
be news every evening.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.errors import EvaluationError

FloatArray = NDArray[np.float64]

# All but this share of a step's stake is on p being below 1 / factor.
_STEP_STAKE = 0.9
STEPS = (2.0, 4.0, 8.0, 16.0, 32.0)
# Slow changes: p * density p^(e - 1) integrates to 1.
POWERS = (0.3, 0.6)


@dataclass(frozen=True)
class Budget:
    """How often a stream that has not changed may raise an alarm.

    Attributes:
        chance: Of any alarm within the horizon, in (0, 1).
        horizon: Number of windows.

    Raises:
        EvaluationError: One is out of range.
    """

    chance: float = 0.05
    horizon: int = 365

    def __post_init__(self) -> None:
        if not 0 < self.chance < 1 or self.horizon < 1:
            raise EvaluationError(
                f"A budget of {self.chance:g} in {self.horizon} windows is none: the chance "
                "lies between 0 and 1, and there is at least one window."
            )

    @property
    def threshold(self) -> float:
        """The statistic at which there is an alarm."""
        return self.horizon / self.chance


@dataclass(frozen=True)
class Seen:
    """One signal of one window.

    Attributes:
        vector: What the window looks like, shape (d,); of length 1 and with ``fixed`` it
            is its strangeness itself.
        tie: A number in [0, 1), drawn once for this window and signal, that breaks ties.
        fixed: Whether strangeness does not depend on the other windows.
    """

    vector: FloatArray
    tie: float
    fixed: bool = False


@dataclass(frozen=True)
class Moment:
    """The stream after one window.

    Attributes:
        statistic: The mean of all signals' statistics.
        by_signal: Each one's own.
        p: Signal -> conformal p-value of this window.
        num_windows: Windows since the stream began.
        is_alarm: Whether this window raised the alarm; the stream begins anew after it.
    """

    statistic: float
    by_signal: Mapping[str, float]
    p: Mapping[str, float]
    num_windows: int
    is_alarm: bool


def follow(windows: Sequence[Mapping[str, Seen]], budget: Budget) -> list[Moment]:
    """The stream's statistic after each window, oldest first.

    Everything follows from the windows in their order, so it can be computed again. After
    an alarm what comes next is compared with itself: one change gives one alarm.

    Args:
        windows: Signals of each window, all of the same names: their evidence is averaged.
        budget: Of false alarms, from each beginning.

    Raises:
        EvaluationError: A vector holds NaN, or windows differ in their signals or in the
            length of a signal's vectors.
    """
    for window in windows:
        if set(window) != set(windows[0]):
            raise EvaluationError(
                f"A window has the signals {', '.join(sorted(window))}, and the first one "
                f"{', '.join(sorted(windows[0]))}: they are of different streams."
            )
    moments: list[Moment] = []
    begin = 0
    while begin < len(windows):
        some = _until_alarm(windows[begin:], budget)
        moments += some
        begin += len(some)
    return moments


def _until_alarm(windows: Sequence[Mapping[str, Seen]], budget: Budget) -> list[Moment]:
    signals = {name: _Signal(name) for name in windows[0]}
    moments: list[Moment] = []
    for number, window in enumerate(windows, start=1):
        p = {name: signals[name].see(seen) for name, seen in window.items()}
        by_signal = {name: signal.statistic for name, signal in signals.items()}
        statistic = sum(by_signal.values()) / len(by_signal) if by_signal else 0.0
        is_alarm = statistic >= budget.threshold
        moments.append(Moment(statistic, by_signal, p, number, is_alarm))
        if is_alarm:
            break
    return moments


class _Signal:
    """One signal's windows so far, and what was won on them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._vectors = np.empty((0, 0))
        self._count = 0
        self._sums = np.zeros(len(STEPS) + len(POWERS))

    @property
    def statistic(self) -> float:
        return float(self._sums.mean())

    def see(self, seen: Seen) -> float:
        """Take a window in; returns its p-value."""
        self._check(seen)
        if self._count == len(self._vectors):
            # Twice the room, so that a window costs no copy of all before it.
            room = np.empty((2 * self._count + 1, len(seen.vector)))
            if self._count:
                room[: self._count] = self._vectors
            self._vectors = room
        self._vectors[self._count] = seen.vector
        self._count += 1
        p = conformal_p(strangeness(self._vectors[: self._count], seen.fixed), seen.tie)
        self._sums = (self._sums + 1) * bets(p)
        return p

    def _check(self, seen: Seen) -> None:
        if not np.isfinite(seen.vector).all():
            raise EvaluationError(f"A window's {self._name} holds NaN or an infinity.")
        if self._count and self._vectors[0].shape != seen.vector.shape:
            raise EvaluationError(
                f"A window's {self._name} has shape {seen.vector.shape}, and those before "
                f"{self._vectors[0].shape}: they were made by different models."
            )


def strangeness(vectors: FloatArray, fixed: bool) -> FloatArray:
    """How strange each window is among all of them, shape (n,).

    Args:
        vectors: One for each window, shape (n, d).
        fixed: Whether they are the strangeness already, shape (n, 1).
    """
    if fixed:
        return vectors[:, 0]
    if len(vectors) == 1:
        return np.zeros(1)
    # From the mean of the others it is n / (n - 1) times as far as from the mean of all.
    steps = vectors - vectors.mean(axis=0)
    scale = len(vectors) / (len(vectors) - 1)
    return np.asarray(scale**2 * np.einsum("nd,nd->n", steps, steps))


def conformal_p(values: FloatArray, tie: float) -> float:
    """The smoothed p-value of the last value among all of them; large is strange.

    Args:
        values: Strangeness of each window, shape (n,), n >= 1.
        tie: Uniform in [0, 1).
    """
    # Equal but for rounding is equal.
    close = np.isclose(values, values[-1], rtol=1e-9, atol=0.0)
    above = (values > values[-1]) & ~close
    return float((above.sum() + tie * close.sum()) / len(values))


def bets(p: float) -> FloatArray:
    """What each bet makes of a p-value: functions that average 1 over a uniform p.

    Args:
        p: In [0, 1].
    """
    steps = [(1 - _STEP_STAKE) + _STEP_STAKE * factor * (p < 1 / factor) for factor in STEPS]
    # A tie of exactly 0 would win everything at once.
    small = max(p, 1e-9)
    return np.array([*steps, *(e * small ** (e - 1) for e in POWERS)])
