"""Streams of simulated requests, and a rollout's comparison for many of them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from penstock.gates.betting import MOST, PRIOR_WEIGHT, STRENGTHS
from penstock.gates.latency_reference import FULL, LOG_STEP, REFRESH
from penstock.gates.rollout_policy import RolloutPolicy, Signal
from penstock.gates.score_blocks import LENGTH
from penstock.gates.sequential import (
    FIRST_REOPENING,
    GUESSES,
    MORE_QUANTILES,
    SCORE_WINDOW,
    WINDOW,
)

MEDIAN_S, SPREAD = 1.0, 0.5  # a log-normal latency: its p99 is 3.2 s
SLOWEST_S = 200.0


# -- the worlds --------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What the champion does, and how the challenger differs.

    Attributes:
        errors: Rate of failed requests.
        invalid: Rate of answers that are not valid in form.
        score: Mean score; scores have a standard deviation of about 0.2.
        scored: Share of requests that get a score.
        more_errors: What the challenger's rate is above the champion's.
        more_invalid: The same for the form.
        lost_score: What the challenger's mean score is below the champion's.
        latency: How the challenger's latency is distorted; see ``distorted``.
        drift: Whether all rates move, as by day and night, and rise with the share.
        bursts: Requests that fail in bursts: "" none, "shared" by both arms, "own" of each.
        talkative: How many times as often the challenger's requests get a score.
        turns: Turns of a conversation, which keeps its arm, its luck and its speed.
        begins: Request at which the challenger's harm begins.
    """

    errors: float = 0.005
    invalid: float = 0.03
    score: float = 0.75
    scored: float = 0.1
    more_errors: float = 0.0
    more_invalid: float = 0.0
    lost_score: float = 0.0
    latency: str = ""
    drift: bool = False
    bursts: str = ""
    talkative: float = 1.0
    turns: int = 1
    begins: int = 0


@dataclass
class Requests:
    """A chunk of requests, arrays of shape (requests, streams); scores are NaN where unknown."""

    challenger: np.ndarray
    error: np.ndarray
    invalid: np.ndarray
    latency_s: np.ndarray
    score: np.ndarray


@dataclass
class Source:
    """Draws a world's requests, chunk after chunk."""

    world: World
    chance: np.random.Generator
    bursting: np.ndarray | None = None
    kept: dict[str, np.ndarray] = field(default_factory=dict)

    def draw(self, start: int, num: int, streams: int, share: float) -> Requests:
        """Requests ``start`` to ``start + num`` of so many streams, at one share."""
        world, shape = self.world, (num, streams)
        luck = {name: self._luck(name, shape) for name in ("arm", "error", "invalid", "speed")}
        challenger = luck["arm"] < share
        harmed = challenger & (start + np.arange(num)[:, None] >= world.begins)
        more = self._drift(start, num, share)
        errors = world.errors * more + world.more_errors * harmed
        if world.bursts:
            errors = np.where(self._bursts(challenger), 0.5, errors)
        latency_s = MEDIAN_S * np.exp(SPREAD * special.ndtri(luck["speed"]))
        latency_s = np.where(harmed, distorted(latency_s, world.latency), latency_s) * more**0.5
        mean = np.clip(world.score - 0.1 * (more - 1) - world.lost_score * harmed, 0.05, 0.95)
        score = self.chance.beta(3.7 * mean, 3.7 * (1 - mean), size=shape)
        rate = world.scored * np.where(challenger, world.talkative, 1.0)
        score[self.chance.random(shape) >= rate] = np.nan
        return Requests(
            challenger,
            luck["error"] < errors,
            luck["invalid"] < world.invalid * more + world.more_invalid * harmed,
            np.minimum(latency_s, SLOWEST_S),
            score,
        )

    def _luck(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        if self.world.turns == 1:
            return self.chance.random(shape)
        # Turns of one conversation follow each other; a conversation has one draw of each.
        drawn = self.chance.random((-(-shape[0] // self.world.turns), shape[1]))
        return np.repeat(drawn, self.world.turns, axis=0)[: shape[0]]

    def _drift(self, start: int, num: int, share: float) -> np.ndarray:
        if not self.world.drift:
            return np.ones((num, 1))
        day = 1 + 0.8 * np.sin(2 * np.pi * (start + np.arange(num)) / 5_000)
        return (day * (1 + 4 * share))[:, None]

    def _bursts(self, challenger: np.ndarray) -> np.ndarray:
        """Where a burst is on: bursts of 40 requests on average, one in 4,000."""
        num, streams = challenger.shape
        own = self.world.bursts == "own"
        if self.bursting is None or self.bursting.shape[1] != streams:
            self.bursting = np.zeros((2, streams), bool)
        state, on = self.bursting, np.empty((num, 2, streams), bool)
        for i in range(num):
            luck = self.chance.random((2, streams))
            state = np.where(state, luck > 1 / 40, luck < 1 / 4_000)
            on[i] = state
        self.bursting = state
        return np.where(challenger & own, on[:, 1], on[:, 0])


def distorted(latency_s: np.ndarray, how: str) -> np.ndarray:
    """The challenger's latency for the champion's, keeping the order of requests.

    ``all`` is 30 % slower; ``tail`` only the slowest 5 % (p99 is 30 % up, the median
    stays); ``body`` all but the slowest tenth (the median is 30 % up, p99 stays).
    """
    p90 = MEDIAN_S * math.exp(SPREAD * special.ndtri(0.90))
    p95 = MEDIAN_S * math.exp(SPREAD * special.ndtri(0.95))
    if how == "all":
        return latency_s * 1.3
    if how == "tail":
        return np.where(latency_s > p95, latency_s * 1.3, latency_s)
    if how == "body":
        return np.where(latency_s < p90, latency_s * 1.3, np.maximum(latency_s, p90 * 1.3))
    return latency_s


# -- the comparison, for many streams ----------------------------------------------


class Comparisons:
    """``penstock.gates.sequential.Comparison`` for many streams that share a schedule.

    Outcomes have the shape (watches, streams): errors, form, the latency quantiles,
    score. Capital has the shape (strengths, capitals, streams): harm of each watch,
    then the margins of errors, form, the last quantile and score.
    """

    def __init__(self, policy: RolloutPolicy, streams: int, margins: bool = True) -> None:
        self.policy = policy
        self.quantiles = sorted({*MORE_QUANTILES, policy.latency_quantile})
        k = len(self.quantiles)
        self.base_of = [*range(k + 3)]
        self.weights = np.array([3, 3, *[3 / k] * k, 3])[:, None] / 12
        self.allowed = np.array([
            policy.errors.harm_above, policy.format.harm_above, *[0.0] * k, policy.score.harm_above
        ])[:, None]  # fmt: skip
        self.num_watches = k + 3
        if margins:
            latency_at = 2 + self.quantiles.index(policy.latency_quantile)
            self.base_of += [0, 1, latency_at, k + 2]
            given = [policy.errors.margin, policy.format.margin, 0.0, policy.score.margin]
            self.allowed = np.vstack([self.allowed, np.array(given)[:, None]])
        self.inverses = 1 / np.array(STRENGTHS)[:, None, None]
        self.bets = np.zeros((len(STRENGTHS), len(self.base_of), streams))
        self.bets[:, self.num_watches :] = 1 / len(STRENGTHS)
        self.reserve, self.starts = np.ones(streams), np.zeros(streams)
        guesses = [GUESSES[Signal.ERRORS], GUESSES[Signal.FORMAT]]
        guesses += [*(1 - q for q in self.quantiles), GUESSES[Signal.SCORE]]
        self.base = np.repeat(np.array(guesses)[:, None], streams, axis=1)
        self.weight = np.full_like(self.base, PRIOR_WEIGHT)
        self.window = np.array([WINDOW] * (k + 2) + [SCORE_WINDOW])[:, None]
        self.score_rows = [row for row, base in enumerate(self.base_of) if base == k + 2]
        self.block_arm = np.zeros((LENGTH, streams), bool)
        self.block_outcome = np.zeros((LENGTH, streams))
        self.filled = np.zeros(streams, int)
        self.num_challenger = np.zeros(streams, int)
        self.shown = np.zeros((len(self.base_of) - self.num_watches, streams), bool)
        self.lowest = math.floor(math.log(1e-3) / LOG_STEP)
        num_bins = math.floor(math.log(SLOWEST_S * 1.01) / LOG_STEP) - self.lowest + 1
        self.counts = np.zeros((streams, num_bins))
        self.total, self.seen = np.zeros(streams), np.zeros(streams, int)
        self.thresholds_s = np.full((k, streams), np.nan)
        self._reopen(np.ones(streams, bool))

    def keep(self, which: np.ndarray) -> None:
        """Forget the other streams."""
        arrays = ("bets", "base", "weight", "shown", "thresholds_s", "filled")
        for name in (*arrays, "block_arm", "block_outcome"):
            setattr(self, name, getattr(self, name)[..., which])
        for name in ("reserve", "starts", "num_challenger", "counts", "total", "seen"):
            setattr(self, name, getattr(self, name)[which])

    def begin_step(self) -> None:
        """What a greater step number does."""
        self._reopen(np.ones(len(self.reserve), bool))
        self.filled[:] = 0
        self.bets[:, self.num_watches :] = 1 / len(STRENGTHS)
        self.shown[:] = False

    def _reopen(self, which: np.ndarray) -> None:
        self.starts[which] += 1
        left = 1 / (self.starts[which] + 1)
        laid = (self.reserve[which] - left) / len(STRENGTHS)
        self.bets[:, : self.num_watches, which] += laid
        self.reserve[which] = left

    def observe(self, share: float, requests: Requests, i: int) -> np.ndarray:
        """Take in request ``i`` of every stream; returns the evidence of harm, shape (streams,)."""
        challenger = requests.challenger[i]
        self.num_challenger += challenger
        worse, within, known = self._outcomes(requests, i)
        if 0 < share < 1:
            self._settle(challenger, share, worse, within, known)
            self._add_scores(challenger, requests.score[i], ~requests.error[i])
        told = known & ~challenger
        self.weight = np.where(told, np.minimum(self.weight + 1, self.window), self.weight)
        self.base += np.where(told, (worse - self.base) / self.weight, 0.0)
        self._add_latencies(requests.latency_s[i], ~challenger & ~requests.error[i])
        values = self.bets.sum(axis=0)
        self.shown |= values[self.num_watches :] >= 1 / self.policy.step_alpha
        evidence = (values[: self.num_watches] * self.weights).sum(axis=0) + self.reserve
        doublings = np.where(challenger, self.num_challenger, 0) / FIRST_REOPENING
        due = doublings >= 1
        if due.any():
            due[due] = np.log2(doublings[due]) % 1 == 0
            self._reopen(due)
        return evidence

    def _outcomes(self, requests: Requests, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        challenger, error = requests.challenger[i], requests.error[i]
        latency_s = requests.latency_s[i]
        given = self.policy.latency
        rows = [error, requests.invalid[i]]
        scaled = np.where(challenger, latency_s / given.harm_above, latency_s)
        slow = scaled > self.thresholds_s
        worse = np.vstack([rows, slow, np.zeros((1, len(error)))])
        scaled = np.where(challenger, latency_s / given.margin, latency_s)
        slow = scaled > self.thresholds_s[self.quantiles.index(self.policy.latency_quantile)]
        within = np.vstack([rows, slow[None], worse[-1:]])
        known = np.empty(worse.shape, bool)
        known[0], known[1] = True, ~error
        known[2:-1] = ~error & ~np.isnan(self.thresholds_s)
        known[-1] = False  # scores wait for their block
        return worse, within, known

    def _settle(
        self,
        challenger: np.ndarray,
        share: float,
        worse: np.ndarray,
        within: np.ndarray,
        known: np.ndarray,
    ) -> None:
        outcome = worse
        if len(self.base_of) > self.num_watches:
            outcome, known = np.vstack([worse, within]), known[self.base_of]
        center = np.minimum(self.base[self.base_of], 1 - self.allowed)
        tolerated = center + self.allowed
        gain = np.where(challenger, (1 - share) * (outcome - tolerated), share * (center - outcome))
        room = (1 - share) * tolerated + share * (1 - center)
        gain[self.num_watches :] *= -1
        room[self.num_watches :] = 1 - room[self.num_watches :]
        gain = np.where(known, gain, 0.0)
        self.bets *= (self.inverses + (room + gain)) / (self.inverses + room)
        if self.bets.max() > MOST:
            np.minimum(self.bets, MOST, out=self.bets)

    def _add_scores(self, challenger: np.ndarray, score: np.ndarray, answered: np.ndarray) -> None:
        which = np.flatnonzero(answered & ~np.isnan(score))
        self.block_arm[self.filled[which], which] = challenger[which]
        self.block_outcome[self.filled[which], which] = 1 - score[which]
        self.filled[which] += 1
        full = which[self.filled[which] == LENGTH]
        if full.size:
            self._settle_blocks(full)

    def _settle_blocks(self, full: np.ndarray) -> None:
        arm, outcome = self.block_arm[:, full], self.block_outcome[:, full]
        after = arm[::-1].cumsum(axis=0)[::-1]  # challengers from here to the block's end
        share = after / np.arange(len(arm), 0, -1)[:, None]
        base = self.base[-1, full]
        for row in self.score_rows:
            allowed = self.allowed[row, 0]
            center = np.minimum(base, 1 - allowed)
            tolerated = center + allowed
            gain = np.where(arm, (1 - share) * (outcome - tolerated), share * (center - outcome))
            room = (1 - share) * tolerated + share * (1 - center)
            if row >= self.num_watches:
                gain, room = -gain, 1 - room
            gain = np.where((share > 0) & (share < 1), gain, 0.0)
            factors = (self.inverses + room + gain) / (self.inverses + room)
            self.bets[:, row, full] *= factors.prod(axis=1)
        champions = (~arm).sum(axis=0)
        mean = np.where(arm, 0.0, outcome).sum(axis=0) / np.maximum(champions, 1)
        self.weight[-1, full] = np.minimum(self.weight[-1, full] + champions, SCORE_WINDOW)
        self.base[-1, full] += (mean - base) * champions / self.weight[-1, full]
        self.filled[full] = 0

    def _add_latencies(self, latency_s: np.ndarray, told: np.ndarray) -> None:
        which = np.flatnonzero(told)
        places = np.floor(np.log(latency_s[which]) / LOG_STEP).astype(int) - self.lowest
        self.counts[which, places] += 1
        self.total[which] += 1
        self.seen[which] += 1
        due = which[self.seen[which] == REFRESH]
        if not due.size:
            return
        below = self.counts[due].cumsum(axis=1)
        for row, quantile in enumerate(self.quantiles):
            at = (below < quantile * self.total[due][:, None]).sum(axis=1)
            self.thresholds_s[row, due] = np.exp((at + self.lowest + 1) * LOG_STEP)
        self.seen[due] = 0
        full = due[self.total[due] >= FULL]
        self.counts[full] /= 2
        self.total[full] = self.counts[full].sum(axis=1)


class ZTests:
    """One-sided z-tests on the sums so far, one per signal, without regard to time."""

    def __init__(self, streams: int) -> None:
        self.sums = np.zeros((2, 4, 3, streams))  # arm, signal, (number, sum, squares)

    def observe(self, requests: Requests) -> None:
        """Take in a chunk."""
        answered = ~requests.error
        scored = answered & ~np.isnan(requests.score)
        signals = (
            (requests.error.astype(float), np.ones_like(answered)),
            (requests.invalid.astype(float), answered),
            (np.log(requests.latency_s), answered),
            (1 - np.nan_to_num(requests.score), scored),
        )
        for arm, mine in enumerate((~requests.challenger, requests.challenger)):
            for row, (value, known) in enumerate(signals):
                used = mine & known
                seen = (used, value * used, value**2 * used)
                self.sums[arm, row] += [part.sum(axis=0) for part in seen]

    def alarms(self, alpha: float) -> np.ndarray:
        """In which streams one of the four tests is significant, shape (streams,)."""
        number, total, squares = np.moveaxis(self.sums, 2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = total / number
            errors = (squares / number - mean**2) / number
            z = (mean[1] - mean[0]) / np.sqrt(errors.sum(axis=0))
        return ((z > -special.ndtri(alpha / 4)) & (number.min(axis=0) >= 30)).any(axis=0)
