"""API keys: who may ask the gateway, for which models, and how much.

A key is 256 random bits. Nobody can try enough of those for a slow hash to matter, so one
plain SHA-256 is kept of it: fast enough for every request, and worthless to a reader of
the ledger. The key itself is shown when it is made and is written nowhere.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from penstock.errors import LedgerError
from penstock.ledger import schema
from penstock.ledger.database import Database, clock
from penstock.ledger.periods import Period, as_period
from penstock.ledger.processes import actor

PREFIX = "psk_"
_SECRET_BYTES = 32
_ID_DIGITS = 12
LIMITS = (
    *("models", "requests_per_min", "tokens_per_min", "budget_tokens", "budget_nanousd"),
    *("period", "expires_s"),
)


@dataclass(frozen=True)
class ApiKey:
    """One key, without its secret.

    Attributes:
        id: ``key_`` and the first 12 digits of the secret's SHA-256: who finds a secret can
            tell which key to revoke.
        name: What it is for.
        tenant: Whose it is; costs can be asked by it.
        models: What it may ask; None is every model.
        requests_per_min: None is without limit.
        tokens_per_min: Prompt and answer together; None is without limit.
        budget_tokens: For each period; None is without limit.
        budget_nanousd: Billionths of a dollar for each period; None is without limit.
        period: After which budgets begin anew.
        created_s: Unix seconds.
        expires_s: From when on it is refused, Unix seconds; None is never.
        revoked_s: When it was revoked, Unix seconds.
    """

    id: str
    name: str
    tenant: str = ""
    models: frozenset[str] | None = None
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    budget_tokens: int | None = None
    budget_nanousd: int | None = None
    period: Period = "month"
    created_s: float = 0.0
    expires_s: float | None = None
    revoked_s: float | None = None

    @property
    def has_budget(self) -> bool:
        """Whether what it spends is limited."""
        return self.budget_tokens is not None or self.budget_nanousd is not None

    @property
    def has_rate(self) -> bool:
        """Whether how fast it asks is limited."""
        return self.requests_per_min is not None or self.tokens_per_min is not None

    def allows(self, model: str) -> bool:
        """Whether it may ask this model."""
        return self.models is None or model in self.models

    def ended(self, now_s: float) -> str | None:
        """``revoked`` or ``expired``, if it is."""
        if self.revoked_s is not None:
            return "revoked"
        return "expired" if self.expires_s is not None and self.expires_s <= now_s else None


class ApiKeys:
    """The keys in a ledger's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, key: ApiKey) -> tuple[ApiKey, str]:
        """Make a key with these limits.

        Args:
            key: ``id`` and ``created_s`` are given here, whatever they say.

        Returns:
            The key, and its secret: the only time that it is known.

        Raises:
            LedgerError: A limit is no limit.
        """
        _check(key)
        secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        digest = digest_of(secret)
        with self._database.write() as connection:
            made = replace(
                key, id=f"key_{digest[:_ID_DIGITS]}", created_s=clock(connection), revoked_s=None
            )
            models = None if made.models is None else json.dumps(sorted(made.models))
            values = {**vars(made), "models": models, "digest": digest}
            connection.execute(sa.insert(schema.api_keys).values(**values))
        return made, secret

    def list(self) -> list[ApiKey]:
        """All keys, also those that have ended, oldest first."""
        query = sa.select(schema.api_keys).order_by(schema.api_keys.c.created_s)
        with self._database.read() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def by_digest(self) -> dict[str, ApiKey]:
        """All keys that have not been revoked, by the hex SHA-256 of their secrets."""
        query = sa.select(schema.api_keys).where(schema.api_keys.c.revoked_s.is_(None))
        with self._database.read() as connection:
            return {row["digest"]: _read(row) for row in connection.execute(query).mappings()}

    def state(self) -> tuple[int, int, int]:
        """Differs whenever a key was made, changed or revoked: all that happens to keys."""
        made, revoked = schema.api_keys.c.id, schema.api_keys.c.revoked_s
        changes = sa.select(sa.func.count()).select_from(schema.key_changes).scalar_subquery()
        query = sa.select(sa.func.count(made), sa.func.count(revoked), changes)
        with self._database.read() as connection:
            row = connection.execute(query).one()
        return (row[0], row[1], row[2])

    def change(self, key_id: str, limits: Mapping[str, Any]) -> ApiKey:
        """Give a key other limits.

        What gateways have drawn of a budget that was lowered may still be spent.

        Args:
            key_id: Which.
            limits: Name -> value of those of ``LIMITS`` that change; None lifts one.

        Returns:
            The key as it is now.

        Raises:
            LedgerError: There is no such key, it was revoked, or a limit is no limit.
        """
        with self._database.write() as connection:
            before = _found(connection, key_id)
            if before.revoked_s is not None:
                raise LedgerError(
                    f"{before.id} was revoked.", "Make another: penstock keys create NAME"
                )
            after = replace(before, **limits)
            _check(after)
            values = {name: getattr(after, name) for name in LIMITS}
            values["models"] = None if after.models is None else json.dumps(sorted(after.models))
            connection.execute(
                sa.update(schema.api_keys).where(schema.api_keys.c.id == key_id).values(**values)
            )
            connection.execute(
                sa.insert(schema.key_changes).values(
                    key_id=key_id,
                    at_s=clock(connection),
                    actor=actor(),
                    limits=json.dumps(values, sort_keys=True),
                )
            )
        return after

    def revoke(self, key_id: str) -> ApiKey:
        """End a key; one that was revoked before stays as it is.

        Raises:
            LedgerError: There is no such key.
        """
        table = schema.api_keys
        with self._database.write() as connection:
            connection.execute(
                sa.update(table)
                .where(table.c.id == key_id, table.c.revoked_s.is_(None))
                .values(revoked_s=clock(connection))
            )
            return _found(connection, key_id)


def digest_of(secret: str) -> str:
    """What is kept of a secret: its SHA-256, 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def read_keys(connection: sa.Connection, ids: set[str]) -> dict[str, ApiKey]:
    """Keys by id; those that do not exist are left out."""
    query = sa.select(schema.api_keys).where(schema.api_keys.c.id.in_(sorted(ids)))
    return {row["id"]: _read(row) for row in connection.execute(query).mappings()}


def _found(connection: sa.Connection, key_id: str) -> ApiKey:
    found = read_keys(connection, {key_id})
    if key_id not in found:
        # A secret that was given in place of its id must not be printed.
        shown = "" if PREFIX in key_id else f" {key_id!r}"
        raise LedgerError(f"There is no key{shown}.", "Ask for ids: penstock keys list")
    return found[key_id]


def _read(row: Mapping[Any, Any]) -> ApiKey:
    values = {name: value for name, value in row.items() if name != "digest"}
    models = values["models"]
    return ApiKey(**{**values, "models": None if models is None else frozenset(json.loads(models))})


def _check(key: ApiKey) -> None:
    as_period(key.period)
    if not key.name.strip() or len(key.name) > 100 or len(key.tenant) > 100:
        raise LedgerError("A key's name has 1 to 100 characters, its tenant's at most 100.")
    if PREFIX in key.name or PREFIX in key.tenant:
        raise LedgerError("A key cannot be part of a name.", "Names are shown to everybody.")
    limits = ("requests_per_min", "tokens_per_min", "budget_tokens", "budget_nanousd")
    for name in limits:
        value = getattr(key, name)
        if value is not None and not 0 < value < 2**62:
            raise LedgerError(f"{name} {value} is no limit.", "Give 1 or more, or leave it out.")
    if key.models is not None and not key.models:
        raise LedgerError("A key without models can do nothing.", "Leave models out for all.")
