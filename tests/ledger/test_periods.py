from datetime import UTC, datetime

import pytest

from penstock.errors import LedgerError
from penstock.ledger.periods import as_period, day_of, span


def at(*moment):
    return datetime(*moment, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("day", (2026, 12, 31), (2027, 1, 1)),
        ("week", (2026, 12, 28), (2027, 1, 4)),
        ("month", (2026, 12, 1), (2027, 1, 1)),
    ],
)
def test_a_moment_belongs_to_the_period_around_it(period, start, end):
    assert span(period, at(2026, 12, 31, 23, 59, 59)) == (at(*start), at(*end))


@pytest.mark.parametrize("period", ["day", "week", "month"])
def test_a_period_begins_where_the_last_one_ends(period):
    first = span(period, at(2028, 2, 20))
    assert span(period, first.end_s - 0.001) == first
    assert span(period, first.end_s).start_s == first.end_s


def test_a_total_never_ends():
    assert span("total", at(2026, 1, 1)) == span("total", at(2036, 1, 1)) == (0, None)


def test_another_period_is_refused_with_those_there_are():
    with pytest.raises(LedgerError, match="'year'") as caught:
        as_period("year")
    assert "day, week, month, total" in caught.value.hint
    assert as_period("week") == "week"


def test_days_are_utc():
    assert day_of(at(2026, 11, 27, 23, 59)) == "2026-11-27"
