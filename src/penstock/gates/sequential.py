"""The comparison behind a canary rollout: is the challenger worse, or good enough to go on?

Requests are given to challenger or champion by chance. After every one of them
two questions are asked of each signal (errors, format, latency, score), and both
may be asked as often as one likes:

- *Is the challenger worse* by more than ``harm_above``? One test over all signals
  and the whole rollout, at ``alpha``: the four signals' evidence is averaged,
  which never says less than a quarter of alpha for each. -> HARM
- *Is it shown less worse than the margin*, in every signal that has one? One test
  for each signal and step, at ``step_alpha``; as all of them must succeed, none
  needs a share of it. -> GOOD

How the evidence comes about, and why neither drift nor a changing share disturbs
it, is told in ``penstock.gates.betting``. What it rests on:

- Arms are drawn independently with the recorded share. What is drawn once must be
  observed once: if a conversation keeps its arm, observe its first request only; and
  what answers in place of an arm that failed was not drawn. A wrong share, or
  requests of one arm that get lost, are noticed (``Decision.drawn``).
- "Not worse" is meant at every request, given the past: an outage of the
  challenger alone counts as harm, even if the champion has as many at other times.

Scores, which only some requests get, are compared in blocks (``penstock.gates.score_blocks``).

Latency is judged by how often thresholds are passed: the champion's median, its
ninth decile and the policy's quantile, as estimated before the request. The
challenger's latency is divided by the ratio that is allowed. The thresholds need
not be right: "not slower" means that no threshold is passed more often, so for each
of them there is a fair bet. This avoids the two estimated distributions of sequential
quantile tests (Howard & Ramdas 2022, Bernoulli 28:1704-1728), which demand one
distribution all day.

Everything is a function of the observations in their order: ``replay`` gives the
decisions again from a log. A ``Comparison`` can be saved between any two of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from penstock.errors import EvaluationError
from penstock.gates.betting import BaseRate, Capital, Question, Watch
from penstock.gates.latency_reference import LatencyReference
from penstock.gates.rollout_policy import RolloutPolicy, Signal
from penstock.gates.score_blocks import ScoreBlocks, told

# That arms were not drawn as was said is a fault of the gateway: believed when it is sure.
DRAW_ALPHA = 0.001
# The reserve is opened when the challenger has answered so many, then twice as many, ...
FIRST_REOPENING = 512
# Rates guessed before the first requests; wrong guesses cost some of the first evidence.
GUESSES = {Signal.ERRORS: 0.01, Signal.FORMAT: 0.05, Signal.SCORE: 0.3}
MORE_QUANTILES = (0.5, 0.9)
# Outcomes of the champion over which a base rate is averaged: rare ones take long.
WINDOW, SCORE_WINDOW = 5_000, 200


class Arm(StrEnum):
    """Who answered."""

    CHAMPION = "champion"
    CHALLENGER = "challenger"


class Outcome(StrEnum):
    """What the observations so far say."""

    HARM = "HARM"
    GOOD = "GOOD"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True)
class Observation:
    """What is known of one request, or of one later score; None is "not known".

    Attributes:
        arm: Who answered.
        share: The probability with which the challenger was to answer, when that
            was drawn, in [0, 1]. At 0 and 1 there is nothing to compare.
        step: Number of the step in which it was drawn. A greater one than before
            begins a new step; late results of earlier steps still count as harm.
        error: Whether the request failed; None: this is a score that came later.
        valid: Whether the answer's form was valid.
        latency_s: Time to the answer; None for failed requests.
        score: A judge's or a user's score, in [0, 1].

    Raises:
        EvaluationError: A number is out of range.
    """

    arm: Arm
    share: float
    step: int = 0
    error: bool | None = None
    valid: bool | None = None
    latency_s: float | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        for name in ("share", "score"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise EvaluationError(f"{name} must lie in [0, 1], not {value}.")
        if self.latency_s is not None and not 0 <= self.latency_s < math.inf:
            raise EvaluationError(f"latency_s must be 0 or more, not {self.latency_s}.")

    def to_dict(self) -> dict[str, Any]:
        """The observation as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Observation:
        """The observation that ``to_dict`` gave."""
        return cls(**(values | {"arm": Arm(values["arm"])}))


@dataclass(frozen=True)
class Decision:
    """What may be said after a request.

    Attributes:
        outcome: HARM stays HARM; GOOD holds for the step, unless the draws turn out wrong.
        signal: The signal with the most evidence of harm, when there is HARM.
        evidence: For HARM an e-value, of at least 1 / alpha; otherwise the e-value
            of harm as it stands, over all signals.
        missing: Signals not yet shown to be within their margin.
        exhausted: Whether the step had its ``max_requests`` and is still undecided.
        drawn: Whether arms seem to be drawn with the shares that were recorded. If
            not, nothing is GOOD: comparisons are worth nothing.
    """

    outcome: Outcome
    signal: Signal | None = None
    evidence: float = 1.0
    missing: tuple[Signal, ...] = ()
    exhausted: bool = False
    drawn: bool = True


class Comparison:
    """All that is remembered of a rollout's observations; a few hundred numbers.

    Args:
        policy: What is tolerated.
    """

    def __init__(self, policy: RolloutPolicy) -> None:
        self.policy = policy
        self.step = 0
        self.num_challenger = 0
        self.step_challenger = 0
        self.harm: tuple[Signal, float] | None = None
        self.shown: set[Signal] = set()
        self.evidence = 1.0
        quantiles = tuple(sorted({*MORE_QUANTILES, policy.latency_quantile}))
        self._latencies = LatencyReference(quantiles)
        self._scores = ScoreBlocks()
        self._watches = {signal: self._watch(signal) for signal in Signal}
        self.demanded = policy.demanded
        self._weights = [
            (watch, 1 / (len(Signal) * len(watches)))
            for watches in self._watches.values()
            for watch in watches
        ]
        self._draws = (Capital(Question.WORSE), Capital(Question.WITHIN))
        self._reopen()
        self._begin_step()

    def _watch(self, signal: Signal) -> list[Watch]:
        given = self.policy.tolerance(signal)
        if signal is not Signal.LATENCY:
            within = None if given.margin is None else Capital(Question.WITHIN, given.margin)
            worse = Capital(Question.WORSE, given.harm_above)
            window = SCORE_WINDOW if signal is Signal.SCORE else WINDOW
            return [Watch(BaseRate(GUESSES[signal], window), worse, within)]
        return [
            Watch(
                BaseRate(1 - quantile, WINDOW),
                Capital(Question.WORSE),
                Capital(Question.WITHIN)
                if given.margin is not None and quantile == self.policy.latency_quantile
                else None,
            )
            for quantile in self._latencies.quantiles
        ]

    def observe(self, seen: Observation) -> None:
        """Take in one observation, in constant time."""
        if seen.step > self.step:
            self.step = seen.step
            self._reopen()
            self._begin_step()
        if seen.error is not None:
            self._count(seen)
            self._settle(Signal.ERRORS, seen, float(seen.error))
        if seen.valid is not None:
            self._settle(Signal.FORMAT, seen, float(not seen.valid))
        if seen.latency_s is not None:
            self._settle_latency(seen, seen.latency_s)
        if seen.score is not None:
            self._settle_score(seen, 1 - seen.score)
        self._conclude()
        if seen.error is not None and seen.arm is Arm.CHALLENGER:
            # Only now: capital that is laid must not know who answers.
            doublings = self.num_challenger / FIRST_REOPENING
            if doublings >= 1 and math.log2(doublings).is_integer():
                self._reopen()

    def _count(self, seen: Observation) -> None:
        challenger = seen.arm is Arm.CHALLENGER
        if 0 < seen.share < 1:
            for capital in self._draws:
                # An outcome that is always 1, of which the champion has none.
                capital.settle(challenger, seen.share, 1.0, 0.0)
        if challenger:
            self.num_challenger += 1
            self.step_challenger += seen.step == self.step

    def _settle(self, signal: Signal, seen: Observation, outcome: float) -> None:
        self._bet(self._watches[signal][0], seen, (outcome, outcome))

    def _bet(self, watch: Watch, seen: Observation, outcomes: tuple[float, float]) -> None:
        challenger = seen.arm is Arm.CHALLENGER
        watch.settle(challenger, seen.share, outcomes, seen.step == self.step)
        if not challenger:
            watch.base.add(outcomes[0])

    def _settle_score(self, seen: Observation, outcome: float) -> None:
        if not 0 < seen.share < 1:
            return
        arm = seen.arm is Arm.CHALLENGER
        block = self._scores.add(seen.step, seen.share, arm, outcome)
        if block is None:
            return
        watch = self._watches[Signal.SCORE][0]
        for challenger, share, lost in told(block):
            watch.settle(challenger, share, (lost, lost), seen.step == self.step)
        champions = [lost for challenger, lost in block if not challenger]
        if champions:
            watch.base.add(sum(champions) / len(champions), len(champions))

    def _settle_latency(self, seen: Observation, latency_s: float) -> None:
        given = self.policy.latency
        divisors = (1.0, 1.0)
        if seen.arm is Arm.CHALLENGER:
            divisors = (given.harm_above, given.margin or 1.0)
        thresholds_s = self._latencies.thresholds_s
        if thresholds_s:
            watches = self._watches[Signal.LATENCY]
            for watch, threshold_s in zip(watches, thresholds_s, strict=True):
                passed = (
                    float(latency_s / divisors[0] > threshold_s),
                    float(latency_s / divisors[1] > threshold_s),
                )
                self._bet(watch, seen, passed)
        if seen.arm is Arm.CHAMPION:
            self._latencies.add(latency_s)

    def _reopen(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.worse.start()
        for capital in self._draws:
            capital.start()

    def _begin_step(self) -> None:
        self.step_challenger = 0
        self.shown = set()
        for watches in self._watches.values():
            for watch in watches:
                if watch.within is not None:
                    watch.within.restart()

    def _conclude(self) -> None:
        for signal in self.demanded:
            if signal not in self.shown and self._within(signal) >= 1 / self.policy.step_alpha:
                self.shown.add(signal)
        self.evidence = sum([watch.worse.value * weight for watch, weight in self._weights])
        if self.harm is None and self.evidence >= 1 / self.policy.alpha:
            self.harm = (max(Signal, key=self._worse), self.evidence)

    @property
    def drawn(self) -> bool:
        """Whether arms seem to be drawn as recorded.

        Not for good: results of a slower arm arrive later, and then catch up.
        """
        return (self._draws[0].value + self._draws[1].value) / 2 < 1 / DRAW_ALPHA

    def _worse(self, signal: Signal) -> float:
        values = [watch.worse.value for watch in self._watches[signal]]
        return sum(values) / len(values)

    def _within(self, signal: Signal) -> float:
        for watch in self._watches[signal]:
            if watch.within is not None:
                return watch.within.value
        return 1.0

    def by_signal(self) -> dict[Signal, tuple[float, float | None]]:
        """For people: each signal's e-values, of harm and of being within the margin."""
        return {
            signal: (
                self._worse(signal),
                self._within(signal) if signal in self.demanded else None,
            )
            for signal in Signal
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values; what ``from_dict`` makes of it goes on in the same way."""
        return {
            "policy": self.policy.to_dict(),
            "step": self.step,
            "num_challenger": self.num_challenger,
            "step_challenger": self.step_challenger,
            "harm": None if self.harm is None else list(self.harm),
            "shown": sorted(self.shown),
            "evidence": self.evidence,
            "latencies": self._latencies.to_dict(),
            "scores": self._scores.to_list(),
            "watches": {
                signal: [watch.to_dict() for watch in watches]
                for signal, watches in self._watches.items()
            },
            "draws": [capital.to_dict() for capital in self._draws],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Comparison:
        """The comparison that ``to_dict`` gave, also after a way through JSON."""
        restored = cls(RolloutPolicy.from_dict(values["policy"]))
        restored.evidence = values["evidence"]
        restored.step = values["step"]
        restored.num_challenger = values["num_challenger"]
        restored.step_challenger = values["step_challenger"]
        if values["harm"] is not None:
            restored.harm = (Signal(values["harm"][0]), values["harm"][1])
        restored.shown = {Signal(signal) for signal in values["shown"]}
        restored._latencies.take(values["latencies"])
        restored._scores.take(values["scores"])
        for signal, watches in restored._watches.items():
            for watch, saved in zip(watches, values["watches"][signal], strict=True):
                watch.take(saved)
        for capital, saved in zip(restored._draws, values["draws"], strict=True):
            capital.take(saved)
        return restored


def decide(state: Comparison) -> Decision:
    """What the observations so far say: take it back, go on, or wait."""
    missing = tuple([signal for signal in state.demanded if signal not in state.shown])
    if state.harm is not None:
        signal, evidence = state.harm
        return Decision(Outcome.HARM, signal, evidence, missing, drawn=state.drawn)
    enough = state.step_challenger >= state.policy.min_requests
    if enough and state.drawn and not missing:
        return Decision(Outcome.GOOD, evidence=state.evidence)
    exhausted = state.step_challenger >= state.policy.max_requests
    return Decision(Outcome.UNDECIDED, None, state.evidence, missing, exhausted, state.drawn)


def replay(policy: RolloutPolicy, observations: Iterable[Observation]) -> Iterator[Decision]:
    """The decision after each observation of a log, in its order."""
    state = Comparison(policy)
    for seen in observations:
        state.observe(seen)
        yield decide(state)
