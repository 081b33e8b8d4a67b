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

PREFIX = "psk_"
_SECRET_BYTES = 32
_ID_DIGITS = 12


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

    def state(self) -> tuple[int, int]:
        """Differs whenever a key was made or revoked, which is all that happens to keys."""
        made, revoked = schema.api_keys.c.id, schema.api_keys.c.revoked_s
        query = sa.select(sa.func.count(made), sa.func.count(revoked))
        with self._database.read() as connection:
            row = connection.execute(query).one()
        return (row[0], row[1])

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
            query = sa.select(table).where(table.c.id == key_id)
            row = connection.execute(query).mappings().first()
        if row is None:
            # A secret that was given in place of its id must not be printed.
            shown = "" if PREFIX in key_id else f" {key_id!r}"
            raise LedgerError(f"There is no key{shown}.", "Ask for ids: penstock keys list")
        return _read(row)


def digest_of(secret: str) -> str:
    """What is kept of a secret: its SHA-256, 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def read_keys(connection: sa.Connection, ids: set[str]) -> dict[str, ApiKey]:
    """Keys by id; those that do not exist are left out."""
    query = sa.select(schema.api_keys).where(schema.api_keys.c.id.in_(sorted(ids)))
    return {row["id"]: _read(row) for row in connection.execute(query).mappings()}


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
