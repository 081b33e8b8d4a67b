"""Evidence that may be looked at after every request: a bet on how outcomes fall to two arms.

Each request is given to the challenger with a known probability ``share``, by a
draw that knows nothing of the outcome. If the challenger is not worse, then no
way of betting on "bad outcomes fall to the challenger" makes money on average:
the capital is a nonnegative supermartingale, and the chance that it *ever*
reaches ``1 / alpha`` is at most alpha (Ville 1939), whenever one looks or stops.

For an outcome ``y`` in [0, 1] (1 is bad), one bet of strength ``a`` multiplies
its capital by ``1 + a * gain / (1 + a * room)``, where::

    gain = (1 - share) * (y - center - allowed)    if the challenger answered
           -share * (y - center)                   if the champion did
    room = (1 - share) * (center + allowed) + share * (1 - center)

- *It is fair.* Given the past, the mean of ``gain`` is ``share * (1 - share) *
  (mean of the challenger - mean of the champion - allowed)``, for any ``center``
  that was fixed before. Only the two means of this very request count. So base
  rates may drift, and the share may change with them: champion and challenger
  are compared within each request's own draw, never across time.
- *It cannot be ruined.* ``-gain <= room`` for every outcome.
- *It is sharp.* For 0/1 outcomes whose base rate is ``center``, it is the likelihood
  ratio of an odds ratio of ``1 + a``, exactly so for rare outcomes and for small shares.

Turned around (``Question.WITHIN``), it bets that the challenger is *less* than
``allowed`` worse.

No strength is best for every truth, so the capital is spread over several. And
a bet that has long lost cannot see a harm that begins today, as under the load of
a new step; therefore part of the capital stays in reserve, and some of it is laid
anew at each call of ``Capital.start``. A sum of fair bets is a fair bet.

Sources:
    Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by
    betting", Journal of the Royal Statistical Society B 86:1-27.
    Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro 2024, "Anytime-valid
    off-policy inference for contextual bandits", ACM/IMS Journal of Data Science 1(3):
    known shares as weights, and a center to take the variance out.
    Vovk & Wang 2021, "E-values: calibration, combination and applications", Annals
    of Statistics 49:1736-1754: averages of e-values are e-values.
    Lindon & Malek 2022, "Anytime-valid inference for multinomial count data", NeurIPS:
    the test that the arms were drawn as was said.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

# Odds ratios less one. Nine in ten of the best bet's growth is within reach of one of
# them from a tenth more errors to forty times as many.
STRENGTHS = (0.1, 0.3, 0.9, 2.7, 9.0, 36.0)
_INVERSES = tuple(1 / strength for strength in STRENGTHS)
# Capital is cut here, so that it stays a number. Cutting can only lose evidence.
MOST = 1e12
PRIOR_WEIGHT = 10.0


class Question(StrEnum):
    """What a capital bets on."""

    WORSE = "worse"
    """The challenger is worse by more than is allowed."""
    WITHIN = "within"
    """The challenger is worse by less than is allowed."""


@dataclass
class BaseRate:
    """The champion's mean outcome so far: a running mean that forgets slowly.

    Attributes:
        mean: The estimate, in (0, 1); at first a guess with the weight of 10 outcomes.
        window: Outcomes over which it is averaged.
        weight: How many outcomes it stands for.
    """

    mean: float
    window: int
    weight: float = PRIOR_WEIGHT

    def add(self, outcome: float, count: int = 1) -> None:
        """Count outcomes of the champion, in [0, 1], or their mean."""
        self.weight = min(self.weight + count, self.window)
        self.mean += (outcome - self.mean) * count / self.weight


@dataclass
class Capital:
    """The capital of one question about one signal.

    Attributes:
        question: What it bets on.
        allowed: The difference of the means at which it is fair, in [0, 1).
        bets: Capital by strength, shape (len(STRENGTHS),).
        reserve: What is not laid.
        starts: How often capital was laid.
        value: All of it: the evidence. An e-value, at least 1 / alpha with a chance
            of alpha at most if there is nothing to be found.
    """

    question: Question
    allowed: float = 0.0
    bets: list[float] = field(default_factory=lambda: [0.0] * len(STRENGTHS))
    reserve: float = 1.0
    starts: int = 0
    value: float = 1.0

    def start(self) -> None:
        """Lay a part of the reserve: 1/2, then 1/6, 1/12, ... of what there was at first."""
        self.starts += 1
        left = 1 / (self.starts + 1)
        laid = (self.reserve - left) / len(STRENGTHS)
        self.bets = [bet + laid for bet in self.bets]
        self.reserve = left

    def restart(self) -> None:
        """Forget everything, and lay all of a new capital."""
        self.bets = [1 / len(STRENGTHS)] * len(STRENGTHS)
        self.reserve, self.value = 0.0, 1.0

    def settle(self, challenger: bool, share: float, outcome: float, base: float) -> None:
        """Settle the bets on one outcome.

        Args:
            challenger: Whether the challenger answered.
            share: The probability with which it was to answer, in (0, 1).
            outcome: In [0, 1]; 1 is bad.
            base: The champion's mean as estimated *before* this outcome.
        """
        center = min(base, 1 - self.allowed)
        tolerated = center + self.allowed
        gain = (1 - share) * (outcome - tolerated) if challenger else share * (center - outcome)
        room = (1 - share) * tolerated + share * (1 - center)
        if self.question is Question.WITHIN:
            gain, room = -gain, 1 - room
        # 1 + a * gain / (1 + a * room), with fewer operations: this line is most of the cost.
        after = room + gain
        self.bets = [
            bet * (inverse + after) / (inverse + room)
            for bet, inverse in zip(self.bets, _INVERSES, strict=True)
        ]
        self.value = self.reserve + sum(self.bets)
        if self.value > MOST:
            self.bets = [bet * (MOST / self.value) for bet in self.bets]

    def to_dict(self) -> dict[str, Any]:
        """The capital as JSON values; the question and what it allows are the policy's."""
        return {
            "bets": list(self.bets),
            "reserve": self.reserve,
            "starts": self.starts,
            "value": self.value,
        }

    def take(self, values: dict[str, Any]) -> None:
        """Take over what ``to_dict`` gave."""
        self.bets = [float(bet) for bet in values["bets"]]
        self.reserve, self.starts = float(values["reserve"]), int(values["starts"])
        self.value = float(values["value"])


@dataclass
class Watch:
    """The two questions about one outcome in [0, 1].

    Attributes:
        base: The champion's mean.
        worse: What is bet on harm.
        within: What is bet on "within the margin"; None where nothing is demanded.
    """

    base: BaseRate
    worse: Capital
    within: Capital | None

    def settle(
        self, challenger: bool, share: float, outcomes: tuple[float, float], is_current: bool
    ) -> None:
        """Settle both bets.

        Args:
            challenger: Whether the challenger answered.
            share: The probability with which it was to answer; at 0 and 1 there is no bet.
            outcomes: For harm, and for the margin: two ratios of latency may be allowed.
            is_current: Whether the request belongs to the step that is judged now.
        """
        if 0 < share < 1:
            self.worse.settle(challenger, share, outcomes[0], self.base.mean)
            if self.within is not None and is_current:
                self.within.settle(challenger, share, outcomes[1], self.base.mean)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        within = None if self.within is None else self.within.to_dict()
        return {"base": asdict(self.base), "worse": self.worse.to_dict(), "within": within}

    def take(self, saved: dict[str, Any]) -> None:
        """Take over what ``to_dict`` gave."""
        self.base = BaseRate(**saved["base"])
        self.worse.take(saved["worse"])
        if self.within is not None:
            self.within.take(saved["within"])
