"""Rollouts in a ledger's database: one row each, a log of decisions, a log of observations.

- *One at a time.* While it is open, a rollout holds its model and alias in a column
  that is unique.
- *Decisions are compare-and-set* on the row's ``epoch``, and the line of the log is in the
  same transaction.
- *Observations have one order.* Whoever writes a batch takes its number from the
  rollout's row and holds that row until the batch is committed, so batch n is there before
  n + 1 has a number. Every reader sees the same order, without gaps, and a decision
  can say up to where it has read.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from penstock.errors import LedgerError, RolloutRunning
from penstock.ledger import schema
from penstock.ledger.database import Database, clock
from penstock.ledger.processes import actor
from penstock.ledger.records import Pointer
from penstock.ledger.rollout_records import (
    OPEN,
    Action,
    ArmName,
    Batch,
    Checkpoint,
    Look,
    Observed,
    Rollout,
    RolloutEvent,
    State,
)

_TABLE = schema.rollouts
_EVENTS = schema.rollout_events
_OBSERVATIONS = schema.rollout_observations
_COLUMNS = [_TABLE.c[name] for name in Rollout.__dataclass_fields__]


def new_id() -> str:
    """Time-ordered, readable, and unique between hosts."""
    return f"ro-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"


class Rollouts:
    """Storage of rollouts.

    Args:
        database: The ledger's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- reading -----------------------------------------------------------

    def find(self, rollout_id: str) -> Rollout:
        """One rollout by its id, or by the start of it when that is unambiguous.

        Raises:
            LedgerError: There is no such rollout, or more than one.
        """
        query = sa.select(*_COLUMNS).where(_TABLE.c.id.startswith(rollout_id, autoescape=True))
        found = self._all(query.limit(2))
        if len(found) != 1 or not rollout_id:
            problem = "There is no rollout" if not found else "More than one rollout starts with"
            raise LedgerError(f"{problem} {rollout_id!r}.", "List them: penstock rollout history")
        return found[0]

    def open(self, model: str, alias: str) -> Rollout | None:
        """The rollout that is on now."""
        query = sa.select(*_COLUMNS).where(_TABLE.c.open_for == _open_for(model, alias))
        return next(iter(self._all(query)), None)

    def open_ones(self) -> list[Rollout]:
        """All rollouts that are on now."""
        return self._all(sa.select(*_COLUMNS).where(_TABLE.c.open_for.is_not(None)))

    def of(self, model: str, alias: str, limit: int = 50) -> list[Rollout]:
        """A pointer's rollouts, newest first."""
        query = sa.select(*_COLUMNS).where(_TABLE.c.model == model, _TABLE.c.alias == alias)
        return self._all(query.order_by(_TABLE.c.started_s.desc()).limit(limit))

    def started_by(self, fingerprint: str) -> Rollout | None:
        """The rollout that a deploy stage has started for this result."""
        query = sa.select(*_COLUMNS).where(_TABLE.c.fingerprint == fingerprint)
        return next(iter(self._all(query.order_by(_TABLE.c.started_s.desc()).limit(1))), None)

    def started_in(self, run_id: str) -> Rollout | None:
        """The rollout that a run has started."""
        query = sa.select(*_COLUMNS).where(_TABLE.c.run_id == run_id)
        return next(iter(self._all(query.order_by(_TABLE.c.started_s.desc()).limit(1))), None)

    def serving(self, model: str, alias: str) -> tuple[Pointer | None, Rollout | None]:
        """What an alias points at, and the rollout that is on, in one moment.

        One statement: a promotion between two would show neither champion nor challenger.
        """
        pointers = schema.pointers
        both = sa.join(
            pointers,
            _TABLE,
            _TABLE.c.open_for == sa.literal(_open_for(model, alias)),
            isouter=True,
        )
        query = (
            sa.select(pointers.c.version, pointers.c.epoch.label("pointer_epoch"), *_COLUMNS)
            .select_from(both)
            .where(pointers.c.name == model, pointers.c.alias == alias)
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            return None, None
        pointer = Pointer(row["version"], row["pointer_epoch"])
        return pointer, None if row["id"] is None else _rollout(row)

    def look(self, rollout_id: str) -> Look:
        """One rollout, what serves, and the time.

        Raises:
            LedgerError: There is no such rollout.
        """
        pointers = schema.pointers
        both = sa.join(
            _TABLE,
            pointers,
            sa.and_(pointers.c.name == _TABLE.c.model, pointers.c.alias == _TABLE.c.alias),
            isouter=True,
        )
        query = (
            sa.select(pointers.c.version, *_COLUMNS)
            .select_from(both)
            .where(_TABLE.c.id == rollout_id)
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
            now_s = clock(connection)
        if row is None:
            raise LedgerError(f"There is no rollout {rollout_id!r}.")
        return Look(_rollout(row), row["version"], now_s)

    def events(self, rollout_id: str) -> list[RolloutEvent]:
        """A rollout's decision log, oldest first."""
        query = sa.select(_EVENTS).where(_EVENTS.c.rollout == rollout_id).order_by(_EVENTS.c.epoch)
        with self._database.read() as connection:
            return [_event(row) for row in connection.execute(query).mappings()]

    def batches(
        self, rollout_id: str, after: int = 0, up_to: int | None = None, limit: int = 100
    ) -> list[Batch]:
        """Observations after a batch, in order."""
        query = (
            sa.select(_OBSERVATIONS.c.batch, _OBSERVATIONS.c.observed)
            .where(_OBSERVATIONS.c.rollout == rollout_id, _OBSERVATIONS.c.batch > after)
            .order_by(_OBSERVATIONS.c.batch)
            .limit(limit)
        )
        if up_to is not None:
            query = query.where(_OBSERVATIONS.c.batch <= up_to)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Batch(row.batch, tuple(map(Observed.from_dict, json.loads(row.observed))))
            for row in rows
        ]

    def checkpoint(self, rollout_id: str) -> Checkpoint:
        """The evidence that was saved last."""
        query = sa.select(_TABLE.c.checkpoint_at, _TABLE.c.checkpoint)
        with self._database.read() as connection:
            row = connection.execute(query.where(_TABLE.c.id == rollout_id)).one()
        return Checkpoint(row.checkpoint_at, json.loads(row.checkpoint))

    # -- writing -----------------------------------------------------------

    def start(self, rollout: Rollout, deadline_after_s: float | None, by: str = "") -> Rollout:
        """Open a rollout.

        Args:
            rollout: As it begins; its times are set here.
            deadline_after_s: How long the first step may take; None: as long as it likes.
            by: Who; by default the user of this process.

        Raises:
            RolloutRunning: There is one for this model and alias already.
        """
        with self._database.write() as connection:
            now_s = clock(connection)
            deadline_s = None if deadline_after_s is None else now_s + deadline_after_s
            begun = replace(rollout, started_s=now_s, step_started_s=now_s, deadline_s=deadline_s)
            values = _values(begun) | {"num_batches": 0, "checkpoint": "{}"}
            try:
                with connection.begin_nested():
                    connection.execute(sa.insert(_TABLE).values(**values))
            except IntegrityError:
                raise self._running(connection, rollout) from None
            _log(connection, begun, Action.START, 0, {}, now_s, by)
        return begun

    def move(
        self,
        before: Rollout,
        after: Rollout,
        action: Action,
        evidence: Mapping[str, Any],
        checkpoint: Checkpoint | None = None,
        by: str = "",
    ) -> Rollout | None:
        """Move a rollout, if it is still where it was, and log that.

        Args:
            before: As it was read.
            after: As it shall be.
            action: For the log.
            evidence: For the log.
            checkpoint: The evidence that decided; None for a person's decision.
            by: Who; by default the user of this process.

        Returns:
            As it is now; None if it had moved meanwhile, and nothing was changed.
        """
        moved = replace(after, epoch=before.epoch + 1)
        values: dict[str, Any] = _values(moved)
        # Others write these.
        del values["checkpoint_at"]
        if checkpoint is not None:
            values |= _checkpoint(checkpoint)
        here = (_TABLE.c.id == before.id, _TABLE.c.epoch == before.epoch)
        with self._database.write() as connection:
            changed = connection.execute(sa.update(_TABLE).where(*here).values(**values))
            if changed.rowcount != 1:
                return None
            batch = before.checkpoint_at if checkpoint is None else checkpoint.batch
            _log(connection, moved, action, batch, evidence, clock(connection), by)
        return moved

    def save(self, rollout: Rollout, checkpoint: Checkpoint) -> None:
        """Keep the evidence, so that who takes over need not read everything again."""
        here = (
            _TABLE.c.id == rollout.id,
            _TABLE.c.epoch == rollout.epoch,
            _TABLE.c.checkpoint_at < checkpoint.batch,
        )
        with self._database.write() as connection:
            connection.execute(sa.update(_TABLE).where(*here).values(**_checkpoint(checkpoint)))

    def note_trouble(self, rollout_id: str, trouble: str) -> None:
        """Say what keeps a promotion."""
        with self._database.write() as connection:
            connection.execute(
                sa.update(_TABLE).where(_TABLE.c.id == rollout_id).values(trouble=trouble)
            )

    def observe(
        self, rollout_id: str, worker: str, sequence: int, observed: Sequence[Observed]
    ) -> bool:
        """Append what a worker saw, once, however often it is tried.

        Args:
            rollout_id: The rollout.
            worker: Names the worker, also among all that were before it.
            sequence: Of its batches; the same one again is not written twice.
            observed: In the order of their ends.

        Returns:
            Whether the rollout is still open; if not, nothing was written.
        """
        batch = {
            "rollout": rollout_id,
            "worker": worker,
            "sequence": sequence,
            "observed": json.dumps([one.to_dict() for one in observed], separators=(",", ":")),
        }
        is_open = (_TABLE.c.id == rollout_id, _TABLE.c.open_for.is_not(None))
        with self._database.write() as connection:
            # Locks the row, so that batches are numbered in the order of their commits.
            counted = connection.execute(
                sa.update(_TABLE).where(*is_open).values(num_batches=_TABLE.c.num_batches + 1)
            )
            if counted.rowcount != 1:
                return False
            number = connection.scalar(
                sa.select(_TABLE.c.num_batches).where(_TABLE.c.id == rollout_id)
            )
            if _is_written(connection, rollout_id, worker, sequence):
                # Whoever tried before had committed it, and was not told so.
                connection.execute(
                    sa.update(_TABLE)
                    .where(_TABLE.c.id == rollout_id)
                    .values(num_batches=_TABLE.c.num_batches - 1)
                )
                return True
            connection.execute(sa.insert(_OBSERVATIONS).values(batch=number, **batch))
        return True

    def prune(self, model: str, alias: str, before_s: float) -> int:
        """Remove the observations of rollouts that ended before a moment; their logs stay.

        Returns:
            Of how many rollouts there were any. Their decisions cannot be made again.
        """
        ended = sa.select(_TABLE.c.id).where(
            _TABLE.c.model == model, _TABLE.c.alias == alias, _TABLE.c.ended_s < before_s
        )
        old = _OBSERVATIONS.c.rollout.in_(ended)
        count = sa.select(sa.func.count(_OBSERVATIONS.c.rollout.distinct())).where(old)
        with self._database.write() as connection:
            num = connection.scalar(count) or 0
            connection.execute(sa.delete(_OBSERVATIONS).where(old))
        return num

    def add_scores(self, rollout_id: str, scores: Iterable[Observed]) -> bool:
        """Append scores that came after the answers: a user's feedback, a judge's marks.

        Each score is of a request that took part in the trial, and says how that was
        drawn: ``score_of`` makes one.

        Returns:
            Whether the rollout is still open; if not, they come too late to count.
        """
        return self.observe(rollout_id, f"scores/{uuid.uuid4().hex}", 0, list(scores))

    def score(self, response: str, score: float) -> bool:
        """Let a score of an answer count in the trial that the answer was part of.

        Of each answer the first score counts, and none where another version answered
        for the one that was drawn.

        Args:
            response: The end of the answer's id, 32 hex digits.
            score: In [0, 1].

        Returns:
            Whether there was such an answer, in a trial that is still open.
        """
        for rollout_id, seen in self._open_draws(response):
            if not seen.error:
                told = score_of(seen.arm, score, seen.share, seen.step, seen.conversation)
                return self.observe(rollout_id, f"score/{response}", 0, [told])
        return False

    def _open_draws(self, response: str) -> list[tuple[str, Observed]]:
        """What open rollouts have observed of an answer."""
        query = (
            sa.select(_OBSERVATIONS.c.rollout, _OBSERVATIONS.c.observed)
            .join(_TABLE, _TABLE.c.id == _OBSERVATIONS.c.rollout)
            .where(
                _TABLE.c.open_for.is_not(None),
                _OBSERVATIONS.c.observed.contains(f'"response":"{response}"', autoescape=True),
            )
        )
        with self._database.read() as connection:
            found = connection.execute(query).all()
        return [
            (rollout, Observed.from_dict(one))
            for rollout, batch in found
            for one in json.loads(batch)
            if one.get("response") == response
        ]

    def still(self, rollout: Rollout) -> Callable[[sa.Connection], bool]:
        """A condition: the rollout has not moved since, and does not while the condition counts."""

        def holds(connection: sa.Connection) -> bool:
            query = sa.select(_TABLE.c.epoch).where(_TABLE.c.id == rollout.id).with_for_update()
            return connection.scalar(query) == rollout.epoch

        return holds

    # -- inside ------------------------------------------------------------

    def _all(self, query: sa.Select[Any]) -> list[Rollout]:
        with self._database.read() as connection:
            return [_rollout(row) for row in connection.execute(query).mappings()]

    def _running(self, connection: sa.Connection, wanted: Rollout) -> RolloutRunning:
        query = sa.select(*_COLUMNS).where(
            _TABLE.c.open_for == _open_for(wanted.model, wanted.alias)
        )
        row = connection.execute(query).mappings().first()
        if row is None:
            return RolloutRunning(f"There is a rollout {wanted.id!r} already.")
        on = _rollout(row)
        return RolloutRunning(
            f"Version {wanted.challenger} of {on.model} waits: version {on.challenger} is on trial "
            f"against version {on.champion} (rollout {on.id}, step {on.step + 1} of "
            f"{len(on.steps)}).",
            "See: penstock rollout status. When that has ended, run again; or end it: penstock "
            "rollout stop.",
        )


def score_of(
    arm: ArmName, score: float, share: float, step: int, conversation: str | None = None
) -> Observed:
    """A score of an answer.

    Args:
        arm: Who was drawn to answer, and did.
        score: In [0, 1]; 1 is best.
        share: The challenger's share when that was drawn.
        step: The step in which it was drawn.
        conversation: The digest that the draw carries.
    """
    return Observed(arm, share, step, score=score, conversation=conversation)


def _open_for(model: str, alias: str) -> str:
    return f"{model}@{alias}"


def _values(rollout: Rollout) -> dict[str, Any]:
    values = dict(vars(rollout))
    values["steps"] = json.dumps(rollout.steps)
    values["policy"] = json.dumps(dict(rollout.policy), sort_keys=True)
    key = _open_for(rollout.model, rollout.alias)
    return values | {"open_for": key if rollout.state in OPEN else None}


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    evidence = json.dumps(dict(checkpoint.evidence), separators=(",", ":"))
    return {"checkpoint_at": checkpoint.batch, "checkpoint": evidence}


def _rollout(row: Mapping[Any, Any]) -> Rollout:
    values = {name: row[name] for name in Rollout.__dataclass_fields__}
    values |= {
        "steps": tuple(json.loads(row["steps"])),
        "policy": json.loads(row["policy"]),
        "state": State(row["state"]),
    }
    return Rollout(**values)


def _event(row: Mapping[Any, Any]) -> RolloutEvent:
    values = {name: row[name] for name in RolloutEvent.__dataclass_fields__}
    values |= {
        "action": Action(row["action"]),
        "state": State(row["state"]),
        "evidence": json.loads(row["evidence"]),
    }
    return RolloutEvent(**values)


def _log(
    connection: sa.Connection,
    rollout: Rollout,
    action: Action,
    batch: int,
    evidence: Mapping[str, Any],
    now_s: float,
    by: str,
) -> None:
    connection.execute(
        sa.insert(_EVENTS).values(
            rollout=rollout.id,
            epoch=rollout.epoch,
            at_s=now_s,
            action=action,
            state=rollout.state,
            step=rollout.step,
            share=rollout.share,
            batch=batch,
            reason=rollout.reason,
            evidence=json.dumps(dict(evidence), sort_keys=True),
            actor=by or actor(),
        )
    )


def _is_written(connection: sa.Connection, rollout_id: str, worker: str, sequence: int) -> bool:
    query = sa.select(_OBSERVATIONS.c.batch).where(
        _OBSERVATIONS.c.rollout == rollout_id,
        _OBSERVATIONS.c.worker == worker,
        _OBSERVATIONS.c.sequence == sequence,
    )
    return connection.scalar(query) is not None
