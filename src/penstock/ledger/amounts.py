"""Amounts of everything that a key's limits count."""

from __future__ import annotations

from typing import NamedTuple


class Amounts(NamedTuple):
    """What a request takes, or what is left; 0 wherever the key has no limit.

    Attributes:
        requests: Of the rate of requests.
        rate_tokens: Of the rate of tokens.
        tokens: Of the budget of tokens.
        nanousd: Of the budget of money, billionths of a dollar.
    """

    requests: int = 0
    rate_tokens: int = 0
    tokens: int = 0
    nanousd: int = 0

    def plus(self, other: Amounts) -> Amounts:
        """The sum."""
        a, b, c, d = other
        return Amounts(self[0] + a, self[1] + b, self[2] + c, self[3] + d)

    def minus(self, other: Amounts) -> Amounts:
        """The difference, which may be below zero."""
        a, b, c, d = other
        return Amounts(self[0] - a, self[1] - b, self[2] - c, self[3] - d)

    def times(self, factor: int) -> Amounts:
        """A multiple."""
        return Amounts(*(one * factor for one in self))

    def over(self, divisor: int) -> Amounts:
        """A part, rounded down."""
        return Amounts(*(one // divisor for one in self))

    def least(self, other: Amounts) -> Amounts:
        """The smaller of each."""
        return Amounts(*map(min, self, other))

    def above_zero(self) -> Amounts:
        """With 0 in place of what is below."""
        return Amounts(*(max(one, 0) for one in self))

    def fits(self, room: Amounts) -> bool:
        """Whether each is at most what there is room for."""
        a, b, c, d = room
        return self[0] <= a and self[1] <= b and self[2] <= c and self[3] <= d

    @property
    def budget(self) -> tuple[int, int]:
        """The part that belongs to a budget: tokens and nanousd."""
        return (self.tokens, self.nanousd)


NOTHING = Amounts()
