"""Alarms in a ledger's database: what was seen that may be a reason for the next run.

- *Raised once.* Recipe, kind and key name an event; whoever raises it again, in the same
  moment or after a restart, finds the alarm that is there.
- *Closed once.* An alarm is open until a run answers it or a person has decided about it,
  and each change is a line that says who, why and when.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from penstock.errors import LedgerError
from penstock.ledger import schema
from penstock.ledger.database import clock
from penstock.ledger.processes import actor

if TYPE_CHECKING:
    from penstock.ledger.ledger import Ledger

Kind = Literal["drift", "quality", "feedback", "alert", "schedule", "person"]
KINDS: tuple[str, ...] = get_args(Kind)
Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[str, ...] = get_args(Severity)  # from the least

MAX_KEY = 200
MAX_EVIDENCE_BYTES = 64_000

_MAX_NUMBER = 2**31 - 1  # of an Integer; a database answers a larger one with an error of its own
# Databases limit how many values one statement may name.
_AT_ONCE = 500

_TABLE = schema.alarms
_EVENTS = schema.alarm_events


class AlarmState(StrEnum):
    """What has become of an alarm."""

    OPEN = "open"
    """Nothing yet: it may start a run."""
    ACKNOWLEDGED = "acknowledged"
    """A person has seen it; it may still start a run."""
    ANSWERED = "answered"
    """A run was started for it."""
    VETOED = "vetoed"
    """A person has decided that no run starts for it."""
    CLOSED = "closed"
    """It is over, or was none."""


OPEN = frozenset({AlarmState.OPEN, AlarmState.ACKNOWLEDGED})


@dataclass(frozen=True)
class Alarm:
    """Something that was seen.

    Attributes:
        recipe: Whose.
        kind: What sort of thing.
        key: Names the event among those of its kind, at most 200 printable characters.
        raised_s: When it was seen, Unix seconds, by the clock of who saw it.
        severity: How bad.
        evidence: What it rests on, as JSON values, at most 64 kB.
    """

    recipe: str
    kind: Kind
    key: str
    raised_s: float
    severity: Severity = "warning"
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AlarmRecord:
    """An alarm as the ledger has it.

    Attributes:
        number: Counts from 1 in a ledger, in the order of arrival.
        alarm: What was raised first under its name.
        received_s: When, by the database's clock.
        state: What has become of it.
        start_key: The start that answers it, or None.
    """

    number: int
    alarm: Alarm
    received_s: float
    state: AlarmState
    start_key: str | None

    @property
    def is_open(self) -> bool:
        """Whether it may still start a run."""
        return self.state in OPEN


@dataclass(frozen=True)
class AlarmEvent:
    """One change of an alarm: when, to what, why, by whom."""

    at_s: float
    state: AlarmState
    reason: str
    actor: str


class Alarms:
    """Storage of alarms.

    Args:
        ledger: Where.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._database = ledger.database

    def raise_(self, alarm: Alarm) -> AlarmRecord:
        """Write an alarm down, unless the same was raised before.

        Returns:
            The alarm of that name, as it was raised first.

        Raises:
            LedgerError: It is not one, or the ledger cannot be written.
        """
        values = {**vars(alarm), "evidence": _checked(alarm), "state": AlarmState.OPEN}
        with self._database.write() as connection:
            found = _named(connection, alarm)
            if found is not None:
                return found
            try:
                with connection.begin_nested():
                    number = connection.execute(
                        sa.insert(_TABLE).values(**values, received_s=clock(connection))
                    ).inserted_primary_key
            except IntegrityError:  # PostgreSQL waited for another who raised it
                number = None
            record = _named(connection, alarm)
            if record is None:
                raise LedgerError(f"Alarm {alarm.key!r} was written and is not there.")
            if number is not None:
                _log(connection, [record.number], AlarmState.OPEN, "raised", "")
        return record

    def find(self, number: int, recipe: str | None = None) -> AlarmRecord:
        """One alarm.

        Args:
            number: Which.
            recipe: Whose it has to be; None is anybody's.

        Raises:
            LedgerError: There is no such alarm, or it is another recipe's.
        """
        found = self._all(_one(number)) if number <= _MAX_NUMBER else []
        if not found:
            raise LedgerError(f"There is no alarm {number}.", "List them: penstock alarms list")
        if recipe is not None and found[0].alarm.recipe != recipe:
            raise LedgerError(f"Alarm {number} is of another recipe.")
        return found[0]

    def of(self, recipe: str, limit: int = 50) -> list[AlarmRecord]:
        """A recipe's alarms, newest first."""
        query = sa.select(_TABLE).where(_TABLE.c.recipe == recipe)
        return self._all(query.order_by(_TABLE.c.number.desc()).limit(limit))

    def last(self, recipe: str, kind: Kind) -> AlarmRecord | None:
        """A recipe's newest alarm of a kind, whatever has become of it."""
        query = sa.select(_TABLE).where(_TABLE.c.recipe == recipe, _TABLE.c.kind == kind)
        return next(iter(self._all(query.order_by(_TABLE.c.number.desc()).limit(1))), None)

    def open(self, recipe: str) -> list[AlarmRecord]:
        """A recipe's alarms that may still start a run, oldest first."""
        query = sa.select(_TABLE).where(_TABLE.c.recipe == recipe, _TABLE.c.state.in_(OPEN))
        return self._all(query.order_by(_TABLE.c.number))

    def newest(
        self, recipe: str, is_open: bool, limit: int, before: int | None = None
    ) -> list[AlarmRecord]:
        """A recipe's alarms that may still start a run, or those that may not, newest first.

        Args:
            recipe: Whose.
            is_open: Which of both.
            limit: At most so many.
            before: Only alarms with a lower number; None begins with the newest.
        """
        state = _TABLE.c.state
        wanted = state.in_(OPEN) if is_open else state.not_in(OPEN)
        query = sa.select(_TABLE).where(_TABLE.c.recipe == recipe, wanted)
        if before is not None:
            query = query.where(_TABLE.c.number < min(before, _MAX_NUMBER))
        return self._all(query.order_by(_TABLE.c.number.desc()).limit(limit))

    def num_open(self, recipe: str) -> int:
        """How many of a recipe's alarms may still start a run."""
        query = sa.select(sa.func.count()).select_from(_TABLE)
        query = query.where(_TABLE.c.recipe == recipe, _TABLE.c.state.in_(OPEN))
        with self._database.read() as connection:
            return connection.scalar(query) or 0

    def answered_by(self, recipe: str, start_key: str) -> list[AlarmRecord]:
        """The alarms for which a run was started."""
        query = sa.select(_TABLE).where(_TABLE.c.recipe == recipe, _TABLE.c.start_key == start_key)
        return self._all(query.order_by(_TABLE.c.number))

    def events(self, number: int) -> list[AlarmEvent]:
        """What has become of an alarm, oldest first."""
        query = sa.select(_EVENTS).where(_EVENTS.c.alarm == number).order_by(_EVENTS.c.nth)
        with self._database.read() as connection:
            return [_event(row) for row in connection.execute(query)]

    def last_events(self, numbers: Sequence[int]) -> dict[int, AlarmEvent]:
        """What has become of some alarms last, by number; at most 500 of them."""
        query = sa.select(_EVENTS).where(_EVENTS.c.alarm.in_(numbers[:_AT_ONCE]))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(_EVENTS.c.alarm, _EVENTS.c.nth)).all()
        return {row.alarm: _event(row) for row in rows}

    def decide(self, number: int, state: AlarmState, reason: str, by: str = "") -> AlarmRecord:
        """A person's word on an alarm: acknowledged, vetoed or closed.

        Raises:
            LedgerError: There is no such alarm, it is not open any more, or no reason is given.
        """
        if state in (AlarmState.OPEN, AlarmState.ANSWERED):
            raise LedgerError(f"A person does not make an alarm {state}.")
        if not reason.strip():
            raise LedgerError(f"Alarm {number} cannot be {state} without a reason.")
        self.find(number)
        with self._database.write() as connection:
            if not settle(connection, [number], state, reason, by):
                record = _record(connection.execute(_one(number)).mappings().one())
                answer = f" by {record.start_key}" if record.start_key else ""
                raise LedgerError(f"Alarm {number} is {record.state}{answer} already.")
        return self.find(number)

    def _all(self, query: sa.Select[Any]) -> list[AlarmRecord]:
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]


def settle(
    connection: sa.Connection,
    numbers: Sequence[int],
    state: AlarmState,
    reason: str,
    by: str = "",
    start_key: str | None = None,
) -> int:
    """Change alarms that are open, in a transaction of the caller's.

    Args:
        connection: In a transaction that writes.
        numbers: Which alarms.
        state: What becomes of them.
        reason: Why.
        by: Who; empty is the user of this process.
        start_key: The start that answers them.

    Returns:
        How many were open and are changed now.
    """
    changed = []
    for i in range(0, len(numbers), _AT_ONCE):
        some = numbers[i : i + _AT_ONCE]
        open_ = sa.and_(_TABLE.c.number.in_(some), _TABLE.c.state.in_(OPEN))
        query = sa.select(_TABLE.c.number).where(open_).with_for_update()
        still = list(connection.scalars(query.order_by(_TABLE.c.number)))
        values = {"state": state} | ({} if start_key is None else {"start_key": start_key})
        connection.execute(sa.update(_TABLE).where(_TABLE.c.number.in_(still)).values(**values))
        changed += still
    _log(connection, changed, state, reason, by)
    return len(changed)


def _checked(alarm: Alarm) -> str:
    """The evidence as JSON, of an alarm that is one."""
    if alarm.kind not in KINDS:
        raise LedgerError(f"{alarm.kind!r} is no kind of alarm.", f"One of {', '.join(KINDS)}.")
    if alarm.severity not in SEVERITIES:
        raise LedgerError(f"{alarm.severity!r} is no severity.", f"One of {', '.join(SEVERITIES)}.")
    if not alarm.key or len(alarm.key) > MAX_KEY or not alarm.key.isprintable():
        raise LedgerError(f"An alarm's key is 1 to {MAX_KEY} printable characters: {alarm.key!r}.")
    try:
        evidence = json.dumps(dict(alarm.evidence), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LedgerError(f"The evidence of alarm {alarm.key!r} is no JSON: {error}.") from error
    if len(evidence.encode()) > MAX_EVIDENCE_BYTES:
        raise LedgerError(
            f"The evidence of alarm {alarm.key!r} has {len(evidence.encode())} bytes, more than "
            f"{MAX_EVIDENCE_BYTES}.",
            "Store it elsewhere and say where.",
        )
    return evidence


def _named(connection: sa.Connection, alarm: Alarm) -> AlarmRecord | None:
    query = sa.select(_TABLE).where(
        _TABLE.c.recipe == alarm.recipe, _TABLE.c.kind == alarm.kind, _TABLE.c.key == alarm.key
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else _record(row)


def _one(number: int) -> sa.Select[Any]:
    return sa.select(_TABLE).where(_TABLE.c.number == number)


def _event(row: Any) -> AlarmEvent:
    return AlarmEvent(row.at_s, AlarmState(row.state), row.reason, row.actor)


def _record(row: Mapping[Any, Any]) -> AlarmRecord:
    values = {name: row[name] for name in Alarm.__dataclass_fields__}
    alarm = Alarm(**{**values, "evidence": json.loads(row["evidence"])})
    return AlarmRecord(
        row["number"], alarm, row["received_s"], AlarmState(row["state"]), row["start_key"]
    )


def _log(
    connection: sa.Connection, numbers: Sequence[int], state: AlarmState, reason: str, by: str
) -> None:
    """Write a line for each alarm; their rows are held by this transaction."""
    if not numbers:
        return
    nth = sa.select(sa.func.coalesce(sa.func.max(_EVENTS.c.nth), 0) + 1)
    connection.execute(
        sa.insert(_EVENTS).values(
            nth=nth.where(_EVENTS.c.alarm == sa.bindparam("number")).scalar_subquery()
        ),
        [
            {
                "alarm": number,
                "number": number,
                "at_s": clock(connection),
                "state": state,
                "reason": reason,
                "actor": by or actor(),
            }
            for number in numbers
        ],
    )
