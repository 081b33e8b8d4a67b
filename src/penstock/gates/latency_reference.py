"""Where the champion's latency quantiles lie, in constant time a request.

Only the power of a comparison rests on these estimates, never its error rate: a
threshold that was fixed before a request is as good a question as any other.
Hence a histogram is enough, in place of an exact quantile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

# Neighbouring bins are 2 % apart; a latency of zero is a microsecond.
LOG_STEP = math.log(1.02)
LEAST_S = 1e-6
# Thresholds move after every so many latencies; none is known before the first time.
REFRESH = 64
# At so many the histogram is halved: old latencies count for less, and the day is followed.
FULL = 20_000.0


@dataclass
class LatencyReference:
    """A forgetful histogram of the champion's latencies, and thresholds read from it.

    Attributes:
        quantiles: The quantiles that are followed, shape (k,).
        counts: Weight of latencies by bin: a bin's number is its logarithm's.
        total: Sum of the weights.
        seen: Latencies counted since the thresholds moved.
        thresholds_s: The quantiles' estimates, shape (k,); empty before there are any.
    """

    quantiles: tuple[float, ...]
    counts: dict[int, float] = field(default_factory=dict)
    total: float = 0.0
    seen: int = 0
    thresholds_s: tuple[float, ...] = ()

    def add(self, latency_s: float) -> None:
        """Count a latency of the champion; every 64th moves the thresholds."""
        place = math.floor(math.log(max(latency_s, LEAST_S)) / LOG_STEP)
        self.counts[place] = self.counts.get(place, 0.0) + 1
        self.total += 1
        self.seen += 1
        if self.seen == REFRESH:
            self._refresh()

    def _refresh(self) -> None:
        places = sorted(self.counts)
        thresholds, below, at = [], 0.0, -1
        for quantile in sorted(self.quantiles):
            while at < 0 or below < quantile * self.total:
                at += 1
                below += self.counts[places[at]]
            thresholds.append(math.exp((places[at] + 1) * LOG_STEP))
        self.thresholds_s, self.seen = tuple(thresholds), 0
        if self.total >= FULL:
            self.counts = {place: count / 2 for place, count in self.counts.items()}
            self.total = sum(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """The histogram as JSON values; the quantiles are the policy's."""
        return {
            "counts": sorted(self.counts.items()),
            "total": self.total,
            "seen": self.seen,
            "thresholds_s": list(self.thresholds_s),
        }

    def take(self, values: dict[str, Any]) -> None:
        """Take over what ``to_dict`` gave."""
        self.counts = {int(place): float(count) for place, count in values["counts"]}
        self.total, self.seen = float(values["total"]), int(values["seen"])
        self.thresholds_s = tuple(values["thresholds_s"])
