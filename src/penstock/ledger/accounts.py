"""Accounts: what keys have spent, and what gateways may still spend for them.

A gateway does not ask the ledger before each request. It draws an amount from a key's
account, spends from it in memory, and says later what became of it. An amount counts as
taken from the moment it is drawn, and only who drew it can give it back, once. So what is
spent is never above what is taken, and what is taken is never above the budget, whoever
is killed at whatever moment. docs/decisions/0017-budgets.md has the whole argument.

Every amount is a whole number: tokens, and billionths of a dollar.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from penstock.ledger import schema
from penstock.ledger.amounts import NOTHING, Amounts
from penstock.ledger.api_keys import ApiKey, read_keys
from penstock.ledger.database import Database, clock
from penstock.ledger.periods import Span, span
from penstock.ledger.processes import is_dead, process_of, this_process

# Who draws ahead takes at most this part of what is left, so that near the end of a
# budget everybody draws exactly what is needed.
_AHEAD = 16
# SQLite takes only so many values in one question.
_KEYS_AT_ONCE = 500
# Of another host, who has not come by for this long is not expected to give anything back.
_ALIVE_S = 15.0
_MINUTE_S = 60.0
_NO_PERIOD = Span(0, None)

AccountId = tuple[str, int]
"""A key's id, and the start of a period in Unix seconds."""
Dimension = Literal["day", "key_id", "tenant", "model", "version", "run_id"]


class UsageId(NamedTuple):
    """What usage is booked under.

    Attributes:
        day: In UTC, as in 2026-11-27.
        key_id: Empty without keys.
        model: As the gateway calls it.
        version: That answered; 0 where it has none.
        run_id: The run that made it.
    """

    day: str
    key_id: str
    model: str
    version: int = 0
    run_id: str = ""


class Usage(NamedTuple):
    """What requests used."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    nanousd: int = 0

    def plus(self, other: Usage) -> Usage:
        """The sum."""
        return Usage(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Batch:
    """What a holder has to say; it is taken once, however often it is sent.

    Attributes:
        sequence: One more than that of the holder's last batch.
        usage: What was used, for the books.
        spent: Of what was drawn, what was used.
        returned: Of what was drawn, what is not needed.
    """

    sequence: int
    usage: Mapping[UsageId, Usage] = field(default_factory=dict)
    spent: Mapping[AccountId, Amounts] = field(default_factory=dict)
    returned: Mapping[AccountId, Amounts] = field(default_factory=dict)


@dataclass(frozen=True)
class Wish:
    """What a holder wants to draw for one key.

    Attributes:
        key_id: The key.
        needs: What each waiting request takes; those that fit are drawn, in order.
        have: What the holder has at hand for them.
        ahead: What it would like for requests to come.
    """

    key_id: str
    needs: tuple[Amounts, ...] = ()
    have: Amounts = NOTHING
    ahead: Amounts = NOTHING


@dataclass(frozen=True)
class Grant:
    """What came of a wish.

    Attributes:
        start_s: The period it is for, Unix seconds.
        ends_in_s: When that period ends, seconds from now; None is never.
        held: Of budgets, all that the holder now holds in this period; of rates, what it
            has just drawn.
        left: What anybody could still draw.
        elsewhere: What others who live hold, and may give back; asked for only when a
            need did not fit.
        ended: ``revoked``, ``expired`` or ``unknown``: then nothing was drawn.
    """

    start_s: int = 0
    ends_in_s: float | None = None
    held: Amounts = NOTHING
    left: Amounts = NOTHING
    elsewhere: Amounts = NOTHING
    ended: str | None = None


@dataclass(frozen=True)
class Balance:
    """A key's account in one period.

    Attributes:
        tokens_spent: Used.
        tokens_held: Drawn by gateways and not used yet, or lost by one that was killed.
        nanousd_spent: As ``tokens_spent``, in billionths of a dollar.
        nanousd_held: As ``tokens_held``, in billionths of a dollar.
    """

    tokens_spent: int = 0
    tokens_held: int = 0
    nanousd_spent: int = 0
    nanousd_held: int = 0


def new_holder() -> str:
    """A name for one who draws, which nobody else ever has."""
    return f"{this_process()}/{uuid.uuid4().hex[:8]}"


class Accounts:
    """The accounts in a ledger's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def visit(
        self, holder: str, batch: Batch | None, wishes: Sequence[Wish] = ()
    ) -> dict[str, Grant]:
        """Take a holder's batch and draw what it wishes, in one transaction.

        When it fails, nobody knows whether it took place. Send the same batch again: it
        will not be taken twice, and ``Grant.held`` counts what was drawn unnoticed.

        Args:
            holder: From ``new_holder``.
            batch: None when there is nothing to say.
            wishes: At most one for each key.

        Returns:
            A grant for each wish, by key.
        """
        with self._database.write() as connection:
            return _Visit(connection, holder).run(batch, wishes)

    def leave(self, holder: str) -> None:
        """Forget a holder who holds nothing more; what it still holds stays taken."""
        drawings, holders = schema.drawings, schema.holders
        with self._database.write() as connection:
            mine = drawings.c.holder == holder
            empty = sa.and_(drawings.c.tokens == 0, drawings.c.nanousd == 0)
            connection.execute(sa.delete(drawings).where(mine, empty))
            if connection.scalar(sa.select(sa.func.count()).where(mine)) == 0:
                connection.execute(sa.delete(holders).where(holders.c.holder == holder))

    def balance(self, key: ApiKey) -> Balance:
        """What a key has spent in the period that is now."""
        return self.balances([key])[key.id]

    def balances(self, keys: Sequence[ApiKey]) -> dict[str, Balance]:
        """What keys have spent in the period that is now for each, by id."""
        table, found = schema.accounts, {key.id: Balance() for key in keys}
        with self._database.read() as connection:
            now_s = clock(connection)
            starts_s = {key.id: span(key.period, now_s).start_s for key in keys}
            for first in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[first : first + _KEYS_AT_ONCE]
                ids, periods = [key.id for key in some], {starts_s[key.id] for key in some}
                query = sa.select(table).where(
                    table.c.key_id.in_(ids), table.c.start_s.in_(periods)
                )
                for row in connection.execute(query):
                    if row.start_s == starts_s[row.key_id]:
                        found[row.key_id] = _balance(row)
        return found

    def usage(self, by: Dimension, since: str = "") -> dict[str, Usage]:
        """What was used, summed over all but one dimension.

        Args:
            by: The dimension; a version is called by its model and number, as in ``penny 3``.
            since: The first UTC day that counts, as in 2026-11-27; empty for all.
        """
        table = schema.version_spending if by in ("version", "run_id") else schema.spending
        keys = schema.api_keys
        columns: list[sa.ColumnElement[Any]]
        if by == "version":
            columns = [table.c.model, table.c.version]
        else:
            columns = [sa.func.coalesce(keys.c.tenant, "") if by == "tenant" else table.c[by]]
        sums = [sa.cast(sa.func.sum(table.c[name]), sa.BigInteger) for name in Usage._fields]
        query = sa.select(*columns, *sums).where(table.c.day >= since)
        if by == "tenant":
            query = query.select_from(table.outerjoin(keys, keys.c.id == table.c.key_id))
        with self._database.read() as connection:
            rows = connection.execute(query.group_by(*columns).order_by(*columns)).all()
        num = len(columns)
        return {" ".join(map(str, row[:num])): Usage(*row[num:]) for row in rows}


def _balance(row: Any) -> Balance:
    return Balance(
        tokens_spent=row.tokens_spent,
        tokens_held=row.tokens_taken - row.tokens_spent,
        nanousd_spent=row.nanousd_spent,
        nanousd_held=row.nanousd_taken - row.nanousd_spent,
    )


class _Visit:
    """One transaction. Locks are taken in one order, so that visits never wait in a circle."""

    def __init__(self, connection: sa.Connection, holder: str) -> None:
        self._connection = connection
        self._holder = holder
        self._now_s = clock(connection)
        self._keys: dict[str, ApiKey] = {}
        self._accounts: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._drawings: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._buckets: dict[tuple[Any, ...], dict[str, Any]] = {}

    def run(self, batch: Batch | None, wishes: Sequence[Wish]) -> dict[str, Grant]:
        is_new = self._enter(batch)
        said = batch if batch is not None and is_new else Batch(0)
        self._lock(said, wishes)
        for account in sorted({*said.spent, *said.returned}):
            self._settle(
                account, said.spent.get(account, NOTHING), said.returned.get(account, NOTHING)
            )
        grants = {wish.key_id: self._grant(wish) for wish in wishes}
        self._store()
        self._book(said.usage)
        return grants

    def _enter(self, batch: Batch | None) -> bool:
        """Note that the holder lives; whether its batch has not been taken before."""
        table = schema.holders
        query = sa.select(table.c.sequence).where(table.c.holder == self._holder)
        last = self._connection.scalar(query.with_for_update())
        sequence = batch.sequence if batch is not None else 0
        values = {"sequence": max(last or 0, sequence), "seen_s": self._now_s}
        change = (
            sa.insert(table).values(holder=self._holder, **values)
            if last is None
            else sa.update(table).where(table.c.holder == self._holder).values(**values)
        )
        self._connection.execute(change)
        return sequence > (last or 0)

    def _lock(self, said: Batch, wishes: Sequence[Wish]) -> None:
        """Read every row that may change, and let nobody else change it."""
        ids = {key_id for key_id, _ in (*said.spent, *said.returned)}
        self._keys = read_keys(self._connection, ids | {wish.key_id for wish in wishes})
        keys = [self._keys[w.key_id] for w in wishes if w.key_id in self._keys]
        accounts = {(key.id, self._span(key).start_s) for key in keys if key.has_budget}
        accounts |= {
            account
            for account in (*said.spent, *said.returned)
            if account[0] in self._keys and self._keys[account[0]].has_budget
        }
        self._accounts = self._rows(schema.accounts, accounts, lambda _: (0, 0, 0, 0))
        mine = {(self._holder, *account) for account in accounts}
        self._drawings = self._rows(schema.drawings, mine, lambda _: (0, 0))
        rates = {(key.id,) for key in self._keys.values() if key.has_rate}
        self._buckets = self._rows(schema.buckets, rates, lambda of: self._full(self._keys[of[0]]))

    def _full(self, key: ApiKey) -> tuple[float, float, float]:
        return (float(key.requests_per_min or 0), float(key.tokens_per_min or 0), self._now_s)

    def _span(self, key: ApiKey) -> Span:
        return span(key.period, self._now_s) if key.has_budget else _NO_PERIOD

    def _rows(
        self,
        table: sa.Table,
        ids: Iterable[tuple[Any, ...]],
        first: Callable[[tuple[Any, ...]], tuple[Any, ...]],
    ) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Rows by primary key, in its order; those that are missing are made."""
        wanted = sorted(ids)
        if not wanted:
            return {}
        names = list(table.columns.keys())
        fresh = [dict(zip(names, (*one, *first(one)), strict=True)) for one in wanted]
        self._connection.execute(self._insert(table).on_conflict_do_nothing(), fresh)
        primary = list(table.primary_key)
        query = sa.select(table).where(sa.tuple_(*primary).in_(wanted)).order_by(*primary)
        found = self._connection.execute(query.with_for_update()).mappings()
        return {tuple(row[column.name] for column in primary): dict(row) for row in found}

    def _settle(self, account: AccountId, spent: Amounts, returned: Amounts) -> None:
        """Move what was drawn to what was spent, and give back the rest."""
        bucket = self._buckets.get(account[:1])
        if bucket is not None:
            bucket["requests"] += returned.requests
            bucket["tokens"] += returned.rate_tokens
        row, drawing = self._accounts.get(account), self._drawings.get((self._holder, *account))
        if row is None or drawing is None:
            return
        for name, used, back in zip(
            ("tokens", "nanousd"), spent.budget, returned.budget, strict=True
        ):
            # Never more than was drawn, whatever the holder says.
            used = min(used, drawing[name])
            back = min(back, drawing[name] - used)
            drawing[name] -= used + back
            row[f"{name}_spent"] += used
            row[f"{name}_taken"] -= back

    def _grant(self, wish: Wish) -> Grant:
        key = self._keys.get(wish.key_id)
        ended = "unknown" if key is None else key.ended(self._now_s)
        if key is None or ended is not None:
            return Grant(ended=ended)
        start_s, end_s = self._span(key)
        row = self._accounts.get((key.id, start_s))
        bucket = self._refilled(key)
        left = _left(key, row, bucket)
        drawn, all_fit = share(wish, left)
        held = self._draw((key.id, start_s), bucket, drawn)
        return Grant(
            start_s=start_s,
            ends_in_s=None if end_s is None else end_s - self._now_s,
            held=held,
            left=left.minus(drawn),
            elsewhere=NOTHING if all_fit else self._elsewhere((key.id, start_s)),
        )

    def _refilled(self, key: ApiKey) -> dict[str, Any] | None:
        """A key's rates as they are now: they fill up within a minute."""
        bucket = self._buckets.get((key.id,))
        if bucket is None:
            return None
        passed_s = max(self._now_s - bucket["at_s"], 0.0)
        full = {"requests": key.requests_per_min or 0, "tokens": key.tokens_per_min or 0}
        for name, limit in full.items():
            bucket[name] = min(bucket[name] + limit * passed_s / _MINUTE_S, float(limit))
        bucket["at_s"] = self._now_s
        return bucket

    def _draw(self, account: AccountId, bucket: dict[str, Any] | None, drawn: Amounts) -> Amounts:
        """Take it; what the holder now holds."""
        if bucket is not None:
            bucket["requests"] -= drawn.requests
            bucket["tokens"] -= drawn.rate_tokens
        row, drawing = self._accounts.get(account), self._drawings.get((self._holder, *account))
        if row is None or drawing is None:
            return drawn
        for name, amount in zip(("tokens", "nanousd"), drawn.budget, strict=True):
            row[f"{name}_taken"] += amount
            drawing[name] += amount
        return drawn._replace(tokens=drawing["tokens"], nanousd=drawing["nanousd"])

    def _elsewhere(self, account: AccountId) -> Amounts:
        drawings, holders = schema.drawings, schema.holders
        query = (
            sa.select(drawings)
            .join(holders, holders.c.holder == drawings.c.holder)
            .where(
                drawings.c.key_id == account[0],
                drawings.c.start_s == account[1],
                drawings.c.holder != self._holder,
                holders.c.seen_s > self._now_s - _ALIVE_S,
            )
        )
        found = self._connection.execute(query).all()
        rows = [row for row in found if not is_dead(process_of(row.holder))]
        return Amounts(tokens=sum(r.tokens for r in rows), nanousd=sum(r.nanousd for r in rows))

    def _store(self) -> None:
        """Write the rows that were locked."""
        rows = {
            schema.accounts: self._accounts,
            schema.drawings: self._drawings,
            schema.buckets: self._buckets,
        }
        for table, changed in rows.items():
            if not changed:
                continue
            primary = {column.name for column in table.primary_key}
            here = [table.c[name] == sa.bindparam(f"at_{name}") for name in sorted(primary)]
            # A bound name may not be that of a column that the statement sets.
            values = [
                {f"at_{name}" if name in primary else name: value for name, value in row.items()}
                for row in changed.values()
            ]
            self._connection.execute(sa.update(table).where(*here), values)

    def _book(self, usage: Mapping[UsageId, Usage]) -> None:
        """Add to the books."""
        if not usage:
            return
        for table in (schema.spending, schema.version_spending):
            primary = [column.name for column in table.primary_key]
            sums: dict[tuple[Any, ...], Usage] = {}
            for one, used in usage.items():
                place = tuple(getattr(one, name) for name in primary)
                sums[place] = sums.get(place, Usage()).plus(used)
            insert = self._insert(table)
            added = {name: table.c[name] + insert.excluded[name] for name in Usage._fields}
            # In one order everywhere, so that no two who book wait for each other.
            rows = [
                dict(zip(primary, place, strict=True)) | used._asdict()
                for place, used in sorted(sums.items())
            ]
            statement = insert.on_conflict_do_update(index_elements=primary, set_=added)
            self._connection.execute(statement, rows)

    def _insert(self, table: sa.Table) -> Any:
        is_postgres = self._connection.dialect.name == "postgresql"
        return postgresql.insert(table) if is_postgres else sqlite.insert(table)


def share(wish: Wish, left: Amounts) -> tuple[Amounts, bool]:
    """What a wish gets of what is left, and whether all of its needs fit."""
    room = wish.have.plus(left)
    wanted, all_fit = NOTHING, True
    for need in wish.needs:
        more = wanted.plus(need)
        if more.fits(room):
            wanted = more
        else:
            all_fit = False
    needed = wanted.minus(wish.have).above_zero()
    ahead = wish.ahead.least(left.minus(needed).over(_AHEAD)).above_zero()
    return needed.plus(ahead), all_fit


def _left(key: ApiKey, row: dict[str, Any] | None, bucket: dict[str, Any] | None) -> Amounts:
    """What could be drawn; 0 wherever there is no limit, as a wish has 0 there, too."""
    requests = rate_tokens = tokens = nanousd = 0
    if bucket is not None:
        requests = int(bucket["requests"]) if key.requests_per_min is not None else 0
        rate_tokens = int(bucket["tokens"]) if key.tokens_per_min is not None else 0
    if row is not None:
        tokens = (key.budget_tokens or row["tokens_taken"]) - row["tokens_taken"]
        nanousd = (key.budget_nanousd or row["nanousd_taken"]) - row["nanousd_taken"]
    return Amounts(requests, rate_tokens, tokens, nanousd).above_zero()
