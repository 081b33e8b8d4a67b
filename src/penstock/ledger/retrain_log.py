"""The log of a recipe's loop: what was decided about runs, by whom, on what evidence.

The lines of a recipe are numbered without gaps, and each is written by compare-and-set on
the number: of two who decide at once, one does, and the other looks again. A start and
the alarms that it answers are one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from penstock.errors import LedgerError
from penstock.ledger import schema
from penstock.ledger.alarms import AlarmState, settle
from penstock.ledger.database import clock
from penstock.ledger.processes import actor
from penstock.ledger.run_keys import named_run

if TYPE_CHECKING:
    from penstock.ledger.ledger import Ledger

_TABLE = schema.retrain_log
_TRIES = 20


class Line(StrEnum):
    """What a line says."""

    WAIT = "wait"
    REFUSE = "refuse"
    START = "start"
    JOIN = "join"
    STARTED = "started"
    """An orchestrator was asked, and has it."""
    TROUBLE = "trouble"
    """A run that was decided could not be started; it is tried again."""
    ENDED = "ended"
    PAUSE = "pause"
    RESUME = "resume"
    APPROVE = "approve"


# What the watcher decides by itself.
DECIDED = frozenset({Line.WAIT, Line.REFUSE, Line.START, Line.JOIN})


@dataclass(frozen=True)
class Logged:
    """One line.

    Attributes:
        epoch: Counts from 1 for each recipe.
        at_s: When, by the database's clock.
        action: What was done.
        start_key: The run that it is about, or None.
        reason: Why.
        evidence: What it rests on, as JSON values.
        actor: Who.
    """

    epoch: int
    at_s: float
    action: Line
    start_key: str | None
    reason: str
    evidence: Mapping[str, Any]
    actor: str


@dataclass(frozen=True)
class Entry:
    """What is to be written: as in ``Logged``.

    Attributes:
        action: What was done.
        reason: Why.
        evidence: What it rests on, as JSON values.
        start_key: The run that it is about, or None.
        answers: Alarms that are answered by it: all of them must be open.
        by: Who; empty is the user of this process.
    """

    action: Line
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    start_key: str | None = None
    answers: Sequence[int] = ()
    by: str = ""


class _NotOpen(Exception):
    """An alarm that was to be answered is not open any more."""


class RetrainLog:
    """The log of one recipe's loop.

    Args:
        ledger: Where.
        recipe: Whose.
    """

    def __init__(self, ledger: Ledger, recipe: str) -> None:
        self._database = ledger.database
        self._recipe = recipe

    def lines(self) -> list[Logged]:
        """All lines, oldest first."""
        query = sa.select(_TABLE).where(_TABLE.c.recipe == self._recipe).order_by(_TABLE.c.epoch)
        return self._some(query)

    def newest(self, limit: int, actions: Collection[Line] = ()) -> list[Logged]:
        """The last lines, newest first; with ``actions``, only those that say one of them."""
        query = sa.select(_TABLE).where(_TABLE.c.recipe == self._recipe)
        if actions:
            query = query.where(_TABLE.c.action.in_(actions))
        return self._some(query.order_by(_TABLE.c.epoch.desc()).limit(limit))

    def about(self, keys: Collection[str], actions: Collection[Line]) -> list[Logged]:
        """The lines about some runs that say one of some things, oldest first."""
        query = sa.select(_TABLE).where(
            _TABLE.c.recipe == self._recipe,
            _TABLE.c.start_key.in_(keys),
            _TABLE.c.action.in_(actions),
        )
        return self._some(query.order_by(_TABLE.c.epoch))

    def _some(self, query: sa.Select[Any]) -> list[Logged]:
        with self._database.read() as connection:
            return [_logged(row) for row in connection.execute(query).mappings()]

    def now_s(self) -> float:
        """The database's clock."""
        with self._database.read() as connection:
            return clock(connection)

    def run_id(self, key: str) -> str | None:
        """The run that has this name, if one was opened."""
        return named_run(self._database, self._recipe, key)

    def append(self, entry: Entry, after: int) -> bool:
        """Write the line after the one with this number, if nobody has written it.

        Returns:
            Whether it was written; nothing was if not, and no alarm has changed.
        """
        try:
            with self._database.write() as connection:
                if not self._insert(connection, entry, after):
                    return False
                state, key = AlarmState.ANSWERED, entry.start_key
                numbers = list(entry.answers)
                if settle(connection, numbers, state, entry.reason, entry.by, key) < len(numbers):
                    raise _NotOpen
        except _NotOpen:
            return False
        return True

    def add(self, entry: Entry) -> None:
        """Write a line whatever was written before it: what a person says, or what has happened.

        Raises:
            LedgerError: Others write so fast that no line is free.
        """
        for _ in range(_TRIES):
            if self.append(entry, self._last()):
                return
        raise LedgerError("The log of the loop is written by too many at once.", "Try again.")

    def _last(self) -> int:
        query = sa.select(sa.func.max(_TABLE.c.epoch)).where(_TABLE.c.recipe == self._recipe)
        with self._database.read() as connection:
            return connection.scalar(query) or 0

    def _insert(self, connection: sa.Connection, entry: Entry, after: int) -> bool:
        values = {
            "recipe": self._recipe,
            "epoch": after + 1,
            "at_s": clock(connection),
            "action": entry.action,
            "start_key": entry.start_key,
            "reason": entry.reason,
            "evidence": json.dumps(dict(entry.evidence), sort_keys=True),
            "actor": entry.by or actor(),
        }
        try:
            with connection.begin_nested():
                connection.execute(sa.insert(_TABLE).values(**values))
        except IntegrityError:
            return False
        return True


def _logged(row: Mapping[Any, Any]) -> Logged:
    values = {name: row[name] for name in Logged.__dataclass_fields__}
    evidence = json.loads(row["evidence"])
    return Logged(**{**values, "action": Line(row["action"]), "evidence": evidence})
