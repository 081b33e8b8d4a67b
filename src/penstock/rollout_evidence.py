"""What a rollout's observations say: a function of their order, and of nothing else.

Controller, ``status`` and ``replay`` all fold the same batches in the same order through
this module. It turns what gateways saw into what ``gates.sequential`` compares,
counts each conversation once, and keeps counts for people.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.gates.sequential import Arm, Comparison, Observation, decide
from penstock.ledger.rollout_records import Batch, Checkpoint, Observed
from penstock.rollout import Finding, Terms

# Latencies are counted in classes that are 5 % wide.
_LOG_WIDTH = math.log(1.05)
_LEAST_S = 1e-4


@dataclass
class Tally:
    """One arm's counts, for people: no decision rests on them.

    Attributes:
        requests: Drawn for this arm.
        errors: That failed.
        checked: Answers whose form was looked at.
        invalid: Of these, not valid.
        scored: Scores.
        score_sum: Their sum.
        latencies: Class of latency -> how many answers.
    """

    requests: int = 0
    errors: int = 0
    checked: int = 0
    invalid: int = 0
    scored: int = 0
    score_sum: float = 0.0
    latencies: dict[int, int] = field(default_factory=dict)

    def add(self, seen: Observation) -> None:
        """Count one."""
        self.requests += seen.error is not None
        self.errors += bool(seen.error)
        self.checked += seen.valid is not None
        self.invalid += seen.valid is False
        if seen.score is not None:
            self.scored += 1
            self.score_sum += seen.score
        if seen.latency_s is not None:
            place = math.ceil(math.log(max(seen.latency_s, _LEAST_S)) / _LOG_WIDTH)
            self.latencies[place] = self.latencies.get(place, 0) + 1

    def latency_s(self, quantile: float) -> float | None:
        """A quantile of the latencies, at most 5 % too large."""
        left = quantile * sum(self.latencies.values())
        for place in sorted(self.latencies):
            left -= self.latencies[place]
            if left <= 0:
                return math.exp(place * _LOG_WIDTH)
        return None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tally:
        """What ``asdict`` and a way through JSON gave."""
        latencies = {int(place): count for place, count in values["latencies"].items()}
        return cls(**{**values, "latencies": latencies})


class Evidence:
    """The comparison of one rollout, and where in the log it is.

    Args:
        terms: What the rollout goes by.

    Attributes:
        batch: The last batch it has taken in.
        tallies: Counts by arm.
    """

    def __init__(self, terms: Terms) -> None:
        self.batch = 0
        self.tallies = {arm: Tally() for arm in Arm}
        self._terms = terms
        self._comparison = Comparison(terms.comparison)
        self._drawn: set[int] = set()
        self._scored: set[int] = set()

    def take(self, batch: Batch) -> None:
        """Take in the next batch.

        Raises:
            ValueError: It is not the next one.
        """
        if batch.number != self.batch + 1:
            raise ValueError(f"batch {batch.number} does not follow {self.batch}")
        for observed in batch.observed:
            if self._is_first(observed):
                seen = self._observation(observed)
                self._comparison.observe(seen)
                self.tallies[seen.arm].add(seen)
        self.batch = batch.number

    def remember(self, batches: Iterable[Batch]) -> None:
        """Take note of conversations that a checkpoint has judged: it does not hold them."""
        for batch in batches:
            for observed in batch.observed:
                self._is_first(observed)

    def finding(self, step: int) -> Finding:
        """What this says about a step."""
        comparison = self._comparison
        decision = decide(comparison)
        missing = tuple(signal.value for signal in decision.missing)
        if comparison.step < step and decision.outcome != "HARM":
            # Nothing of this step was seen yet; what is known is about the one before.
            return Finding(evidence=decision.evidence, missing=missing, drawn=decision.drawn)
        return Finding(
            outcome=decision.outcome.value,
            signal=None if decision.signal is None else decision.signal.value,
            evidence=decision.evidence,
            missing=missing,
            enough=comparison.step_challenger >= comparison.policy.min_requests,
            exhausted=decision.exhausted,
            drawn=decision.drawn,
        )

    def shown(self) -> dict[str, Any]:
        """For the decision log and for people: counts, rates and e-values by signal."""
        comparison = self._comparison
        quantile = comparison.policy.latency_quantile
        arms = {arm.value: _arm_shown(tally, quantile) for arm, tally in self.tallies.items()}
        signals = {
            signal.value: {"harm": harm, "within": within, "shown": signal in comparison.shown}
            for signal, (harm, within) in comparison.by_signal().items()
        }
        return {
            "requests": {arm: values["requests"] for arm, values in arms.items()},
            "step_challenger": comparison.step_challenger,
            "harm": comparison.evidence,
            "drawn": comparison.drawn,
            "signals": signals,
            "arms": arms,
        }

    def checkpoint(self) -> Checkpoint:
        """Everything but the conversations' names."""
        evidence = {
            "comparison": self._comparison.to_dict(),
            "tallies": {arm.value: asdict(tally) for arm, tally in self.tallies.items()},
        }
        return Checkpoint(self.batch, evidence)

    @classmethod
    def restored(cls, terms: Terms, saved: Checkpoint) -> Evidence:
        """What ``checkpoint`` gave; ``remember`` the batches up to it."""
        evidence = cls(terms)
        if saved.evidence:
            evidence.batch = saved.batch
            evidence._comparison = Comparison.from_dict(dict(saved.evidence["comparison"]))
            tallies = saved.evidence["tallies"]
            evidence.tallies = {arm: Tally.from_dict(tallies[arm.value]) for arm in Arm}
        return evidence

    def _is_first(self, observed: Observed) -> bool:
        """Whether this was drawn by itself: a conversation is drawn once, and keeps its arm."""
        if observed.conversation is None:
            return True
        seen = self._drawn if observed.score is None else self._scored
        key = int(observed.conversation, 16)
        if key in seen:
            return False
        seen.add(key)
        return True

    def _observation(self, observed: Observed) -> Observation:
        by_first = self._terms.latency == "first_token"
        return Observation(
            arm=Arm(observed.arm),
            share=observed.share,
            step=observed.step,
            error=observed.error,
            valid=observed.valid,
            latency_s=observed.first_token_s if by_first else observed.answer_s,
            score=observed.score,
        )


def _arm_shown(tally: Tally, quantile: float) -> dict[str, Any]:
    answered = sum(tally.latencies.values())
    return {
        "requests": tally.requests,
        "errors": tally.errors,
        "error_rate": _rate(tally.errors, tally.requests),
        "checked": tally.checked,
        "invalid": tally.invalid,
        "invalid_rate": _rate(tally.invalid, tally.checked),
        "answered": answered,
        "latency_p50_s": tally.latency_s(0.5),
        f"latency_p{quantile * 100:g}_s": tally.latency_s(quantile),
        "scored": tally.scored,
        "mean_score": _rate(tally.score_sum, tally.scored),
    }


def _rate(part: float, whole: int) -> float | None:
    return part / whole if whole else None
