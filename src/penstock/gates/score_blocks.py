"""Scores in blocks, so that it does not matter whether one arm is scored more often.

A request's score may be missing, and more often in one arm: users of a model that
asks for feedback give more of it. Among *scored* requests, the challenger's share is then
not the one that was drawn. If scores also drift with the time of day, bets at the
recorded share see harm where there is none (in simulation: in 35 % of equal challengers).

So scores wait until a block of them is full. How many of the block are the
challenger's is taken as given; *which* of them, is chance alone if the challenger scores no
worse: within a block that was drawn at one share, each order of the arms is equally
likely. Told one after the other, each score's chance to be the challenger's is the
challengers that are left, of the scores that are left. Those shares are exact, and
bets at them fair, whatever the scores do meanwhile. The price is the evidence in the
block's count, one part in the block's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# A thirty-second of the evidence is the price; and so many scores are waited for.
LENGTH = 32
# Late scores belong to the block of their own share; older shares are forgotten beyond this.
MOST_OPEN = 16

Block = list[tuple[bool, float]]


def told(block: Block) -> Iterator[tuple[bool, float, float]]:
    """A block's scores in order: whose it is, the challenger's chance of it, the outcome."""
    left = sum(challenger for challenger, _ in block)
    for place, (challenger, outcome) in enumerate(block):
        yield challenger, left / (len(block) - place), outcome
        left -= challenger


@dataclass
class ScoreBlocks:
    """The blocks that are not full yet, by step and share."""

    waiting: dict[tuple[int, float], Block] = field(default_factory=dict)

    def add(self, step: int, share: float, challenger: bool, outcome: float) -> Block | None:
        """Put an outcome in [0, 1] into its block; returns the block when it is full."""
        key = (step, share)
        if key not in self.waiting and len(self.waiting) == MOST_OPEN:
            del self.waiting[min(self.waiting)]
        block = self.waiting.setdefault(key, [])
        block.append((challenger, outcome))
        return self.waiting.pop(key) if len(block) == LENGTH else None

    def to_list(self) -> list[Any]:
        """The blocks as JSON values."""
        return [[step, share, block] for (step, share), block in sorted(self.waiting.items())]

    def take(self, values: list[Any]) -> None:
        """Take over what ``to_list`` gave."""
        self.waiting = {
            (int(step), float(share)): [(bool(arm), float(outcome)) for arm, outcome in block]
            for step, share, block in values
        }
