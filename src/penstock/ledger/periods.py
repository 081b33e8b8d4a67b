"""The periods that budgets are for, in UTC: they begin at the same moment everywhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, get_args

from penstock.errors import LedgerError

Period = Literal["day", "week", "month", "total"]
PERIODS: tuple[Period, ...] = get_args(Period)


class Span(NamedTuple):
    """One period.

    Attributes:
        start_s: Unix seconds; 0 for a period without an end.
        end_s: Unix seconds, no longer part of it; None for a period without an end.
    """

    start_s: int
    end_s: int | None


def as_period(text: str) -> Period:
    """A period by its name.

    Raises:
        LedgerError: There is none of that name.
    """
    for period in PERIODS:
        if text == period:
            return period
    raise LedgerError(f"{text!r} is no period.", f"There are {', '.join(PERIODS)}.")


def span(period: Period, at_s: float) -> Span:
    """The period that a moment belongs to; weeks begin on Monday, as in ISO 8601.

    Args:
        period: Its kind.
        at_s: Unix seconds.
    """
    if period == "total":
        return Span(0, None)
    day = datetime.fromtimestamp(at_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return _between(day, day + timedelta(days=1))
    if period == "week":
        monday = day - timedelta(days=day.weekday())
        return _between(monday, monday + timedelta(days=7))
    first = day.replace(day=1)
    return _between(first, (first + timedelta(days=31)).replace(day=1))


def day_of(at_s: float) -> str:
    """The UTC day of a moment, as in 2026-11-27."""
    return datetime.fromtimestamp(at_s, UTC).date().isoformat()


def _between(start: datetime, end: datetime) -> Span:
    return Span(int(start.timestamp()), int(end.timestamp()))
