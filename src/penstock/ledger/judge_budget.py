"""What a judge may still be asked today: taken before each question, so that nobody overspends.

An amount counts as spent from the moment it is taken. Who dies with it has spent it; who
knows that nothing came of it gives it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from penstock.ledger import schema
from penstock.ledger.database import Database, clock
from penstock.ledger.periods import day_of

_TABLE = schema.judge_days


class Spent(NamedTuple):
    """What a day has taken.

    Attributes:
        questions: Sent, or about to be.
        nanousd: Billionths of a dollar.
    """

    questions: int = 0
    nanousd: int = 0


@dataclass(frozen=True)
class JudgeBudget:
    """A recipe's budget by UTC day, by the database's clock.

    Attributes:
        database: The ledger's.
        recipe: Whose.
        max_questions: For a day.
        max_nanousd: For a day; None for no limit.
    """

    database: Database
    recipe: str
    max_questions: int
    max_nanousd: int | None

    def take(self, nanousd: int) -> str | None:
        """Take one question and what it may cost at most.

        Returns:
            The day it was taken from; None if there is not so much left today.

        Raises:
            LedgerError: The ledger cannot be written.
        """
        with self.database.write() as connection:
            day = day_of(clock(connection))
            self._open(connection, day)
            fits = _TABLE.c.questions < self.max_questions
            if self.max_nanousd is not None:
                fits &= _TABLE.c.nanousd + nanousd <= self.max_nanousd
            more = {"questions": _TABLE.c.questions + 1, "nanousd": _TABLE.c.nanousd + nanousd}
            taken = connection.execute(sa.update(_TABLE).where(self._at(day), fits).values(**more))
        return day if taken.rowcount == 1 else None

    def give_back(self, day: str, questions: int, nanousd: int) -> None:
        """Give back what was taken and not spent; below zero, it cost more than was thought."""
        less = {
            "questions": _TABLE.c.questions - questions,
            "nanousd": _TABLE.c.nanousd - nanousd,
        }
        with self.database.write() as connection:
            connection.execute(sa.update(_TABLE).where(self._at(day)).values(**less))

    def today(self) -> Spent:
        """What was taken today."""
        with self.database.read() as connection:
            day = day_of(clock(connection))
            query = sa.select(_TABLE.c.questions, _TABLE.c.nanousd).where(self._at(day))
            row = connection.execute(query).first()
        return Spent() if row is None else Spent(*row)

    def _at(self, day: str) -> sa.ColumnElement[bool]:
        return sa.and_(_TABLE.c.recipe == self.recipe, _TABLE.c.day == day)

    def _open(self, connection: sa.Connection, day: str) -> None:
        if connection.scalar(sa.select(_TABLE.c.day).where(self._at(day))) is not None:
            return
        try:
            with connection.begin_nested():
                first = {"recipe": self.recipe, "day": day, "questions": 0, "nanousd": 0}
                connection.execute(sa.insert(_TABLE).values(**first))
        except IntegrityError:
            return  # another was quicker
