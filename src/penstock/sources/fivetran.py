"""Fivetran: ask for a sync, wait for it, and read what it landed.

Fivetran writes into a warehouse or a lake, and this source reads there, as ``sql``
or ``delta``, along ``_fivetran_synced``. Syncs of a connection follow each other, so
once one has succeeded, all rows up to that moment have landed: no row is read late.

API: https://fivetran.com/docs/rest-api/api-reference/connections
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, SecretStr, model_validator

from penstock.errors import SourceError, SourceUnavailable
from penstock.registry import require
from penstock.sources import cursors
from penstock.sources.base import AnyOptions, DeadLetter, Options, Piece, Place, Source, Unit
from penstock.sources.delta import DeltaOptions, DeltaSource
from penstock.sources.sql import SqlOptions, SqlSource

SYNCED = "_fivetran_synced"
DELETED = "_fivetran_deleted"
_ACCEPT = "application/json;version=2"
_EXCERPT = 200
_HINTS = {
    401: "Check `api_key` and `api_secret` and the variables they take their values from.",
    403: "The key's user may not use this connection: give it a role that may.",
    404: "Check `connection`: it is the id on the connection's setup page.",
}


class FivetranOptions(Options):
    """Which connection, and where it lands."""

    connection: Annotated[str, Place()] = Field(
        pattern=r"^[A-Za-z0-9_-]+$", description="The connection's id."
    )
    api_key: Annotated[SecretStr, Place()] = Field(description="As ${VAR}.")
    api_secret: Annotated[SecretStr, Place()] = Field(description="As ${VAR}.")
    sql: SqlOptions | None = Field(
        None, description="Where it lands, with the options of the source `sql`."
    )
    delta: DeltaOptions | None = Field(
        None, description="Where it lands, with the options of the source `delta`."
    )
    deleted: Literal["leave_out", "keep"] = Field(
        "leave_out", description="What to do about rows with `_fivetran_deleted`."
    )
    fresh_s: Annotated[float, Place()] = Field(
        300.0, ge=0, description="A sync that succeeded no longer ago than this will do."
    )
    force: Annotated[bool, Place()] = Field(
        False, description="Stop a sync that is running and begin anew."
    )
    wait_s: Annotated[float, Place()] = Field(3600.0, gt=0, description="For the sync to end.")
    poll_s: Annotated[float, Place()] = Field(10.0, gt=0, description="Between two looks.")
    timeout_s: Annotated[float, Place()] = Field(30.0, gt=0, description="For an answer.")
    attempts: Annotated[int, Place()] = Field(
        5, ge=1, description="At one request, when it gets HTTP 429, 5xx or no answer."
    )
    max_wait_s: Annotated[float, Place()] = Field(
        60.0, ge=0, description="Longest pause between attempts, whatever Retry-After asks for."
    )
    base_url: Annotated[str, Place()] = Field(
        "https://api.fivetran.com", pattern=r"^https?://[^/@]+/?$", description="Of the API."
    )

    @model_validator(mode="after")
    def _lands_once(self) -> FivetranOptions:
        if (self.sql is None) == (self.delta is None):
            raise ValueError("needs either `sql` or `delta`: where the connection lands")
        if self.delta is not None and not self.delta.key:
            raise ValueError("delta needs a `key`; a table without one has `_fivetran_id`")
        return self


class FivetranSource:
    """Rows that a Fivetran connection landed."""

    Options: ClassVar[AnyOptions] = FivetranOptions

    def __init__(self, options: FivetranOptions, folder: Path) -> None:
        self._options = options
        self._landed, self._cursor = _landing(options, folder)

    def snapshot(self) -> tuple[Unit, ...]:
        """Have the newest rows landed, and pin how far they go."""
        succeeded = _Connection(self._options).fresh()
        units = self._landed.snapshot()
        if self._cursor != SYNCED:
            return units
        # What the next sync is landing already does not count before it has succeeded.
        limit = cursors.ZONED_TIMES.position(succeeded)
        return tuple(replace(unit, position=min(unit.position, limit)) for unit in units)

    def read(self, unit: Unit) -> Iterator[Piece]:
        """Yield the landed rows that the source of the connection still has."""
        for piece in self._landed.read(unit):
            if self._options.deleted == "keep" or isinstance(piece, DeadLetter):
                yield piece
            elif (kept := _alive(piece)).num_rows:
                yield kept


def _landing(options: FivetranOptions, folder: Path) -> tuple[Source, str]:
    """The source that reads where the connection lands, and its cursor."""
    if options.sql is not None:
        cursor = options.sql.cursor or SYNCED
        return SqlSource(options.sql.model_copy(update=_along(cursor)), folder), cursor
    assert options.delta is not None, "the options were checked"
    cursor = options.delta.cursor or SYNCED
    return DeltaSource(options.delta.model_copy(update=_along(cursor)), folder), cursor


def _along(cursor: str) -> dict[str, Any]:
    # A time that Fivetran writes has settled when its sync has succeeded.
    return {"cursor": cursor, **({"settle_s": 0.0} if cursor == SYNCED else {})}


def _alive(batch: pa.RecordBatch) -> pa.RecordBatch:
    if DELETED not in batch.schema.names:
        return batch
    deleted = pc.fill_null(batch[DELETED].cast(pa.bool_()), False)
    return batch.filter(pc.invert(deleted))


class _Connection:
    """One connection, as Fivetran's API tells of it."""

    def __init__(self, options: FivetranOptions) -> None:
        self._options = options
        self._path = f"/v1/connections/{options.connection}"
        self._httpx = require("httpx", "fivetran")

    def fresh(self) -> datetime:
        """When the last sync succeeded, after having one made if that was too long ago.

        Raises:
            SourceError: The API refuses, or the sync fails.
            SourceUnavailable: The API does not answer, or the sync takes too long.
        """
        credentials = (
            self._options.api_key.get_secret_value(),
            self._options.api_secret.get_secret_value(),
        )
        with self._httpx.Client(
            base_url=self._options.base_url,
            auth=credentials,
            headers={"Accept": _ACCEPT},
            timeout=self._options.timeout_s,
        ) as client:
            before = self._look(client)
            succeeded = _time(before.get("succeeded_at"))
            if succeeded is not None and _age_s(succeeded) <= self._options.fresh_s:
                return succeeded
            self._refuse_unready(before)
            self._ask(client, "POST", f"{self._path}/sync", {"force": self._options.force})
            return self._wait(client, before)

    def _wait(self, client: Any, before: Mapping[str, Any]) -> datetime:
        """Look until a sync has ended since ``before``; returns when it succeeded."""
        end = time.monotonic() + self._options.wait_s
        while True:
            now = self._look(client)
            succeeded, failed = _time(now.get("succeeded_at")), _time(now.get("failed_at"))
            if succeeded is not None and _is_newer(succeeded, before.get("succeeded_at")):
                return succeeded
            if failed is not None and _is_newer(failed, before.get("failed_at")):
                raise self._error(
                    f"failed to sync at {failed.isoformat()}{_notes(now)}",
                    "Mend it in Fivetran's dashboard, then run again.",
                )
            self._refuse_unready(now)
            if time.monotonic() >= end:
                state = _status(now).get("sync_state", "unknown")
                raise self._error(
                    f"has not ended its sync within {self._options.wait_s:g} s; it is {state}"
                    f"{_notes(now)}",
                    "Run again when it has, or raise `wait_s`.",
                    SourceUnavailable,
                )
            time.sleep(self._options.poll_s)

    def _look(self, client: Any) -> Mapping[str, Any]:
        data = self._ask(client, "GET", self._path, None).get("data")
        if not isinstance(data, dict) or not isinstance(data.get("status"), dict):
            raise self._error(
                "is described without `data.status`.", "Check `base_url`: is this Fivetran's API?"
            )
        return data

    def _refuse_unready(self, data: Mapping[str, Any]) -> None:
        """Refuse a connection that will never sync as it is."""
        status = _status(data)
        setup = status.get("setup_state", "connected")
        if setup != "connected":
            raise self._error(
                f"is not set up: it is {setup}{_notes(data)}",
                "Finish or mend its setup in Fivetran's dashboard.",
            )
        if data.get("paused") or status.get("sync_state") == "paused":
            raise self._error("is paused.", "Unpause it in Fivetran's dashboard.")

    def _ask(self, client: Any, method: str, path: str, body: Any) -> Mapping[str, Any]:
        """One request, tried again where that can help.

        Raises:
            SourceError: It was refused.
            SourceUnavailable: It did not get through in all attempts.
        """
        reason = ""
        for attempt in range(self._options.attempts):
            try:
                answer = client.request(method, path, json=body)
            except self._httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                pause_s = 2.0**attempt
            else:
                if answer.status_code != 429 and answer.status_code < 500:
                    return self._answer(answer)
                reason = f"HTTP {answer.status_code}{self._said(answer)}"
                pause_s = _retry_after_s(answer.headers.get("Retry-After")) or 2.0**attempt
            if attempt + 1 < self._options.attempts:
                time.sleep(min(pause_s, self._options.max_wait_s))
        raise self._error(
            f"got no answer from {self._options.base_url} in {self._options.attempts} attempts: "
            f"{reason}.",
            "Run again later.",
            SourceUnavailable,
        )

    def _answer(self, answer: Any) -> Mapping[str, Any]:
        if answer.status_code >= 300:
            raise self._error(
                f"got HTTP {answer.status_code} from {self._options.base_url}{self._said(answer)}.",
                _HINTS.get(answer.status_code, "Fivetran's documentation explains the code."),
            )
        try:
            body = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise self._error(
                f"got {answer.headers.get('Content-Type', 'no type')} in place of JSON from "
                f"{self._options.base_url}: {self._plain(answer.text)!r}.",
                "Check `base_url` and proxies.",
            )
        return body

    def _said(self, answer: Any) -> str:
        """Fivetran's own code and message."""
        try:
            body = answer.json()
            text = f"{body['code']}: {body['message']}"
        except (ValueError, KeyError, TypeError):
            text = answer.text
        return f", saying {self._plain(text)!r}" if text.strip() else ""

    def _plain(self, text: str) -> str:
        for secret in (self._options.api_secret, self._options.api_key):
            text = text.replace(secret.get_secret_value() or "\0", "***")
        return " ".join(text.split())[:_EXCERPT]

    def _error(self, what: str, hint: str, kind: type[SourceError] = SourceError) -> SourceError:
        return kind(f"Fivetran connection {self._options.connection} {what}", hint)


def _status(data: Mapping[str, Any]) -> Mapping[str, Any]:
    status = data["status"]
    assert isinstance(status, dict), "seen when it came"
    return status


def _notes(data: Mapping[str, Any]) -> str:
    """What Fivetran asks somebody to do, as the end of a sentence."""
    status = _status(data)
    notes = [*(status.get("tasks") or []), *(status.get("warnings") or [])]
    said = [
        str(note.get("message") or note.get("code")) for note in notes if isinstance(note, dict)
    ]
    return f": {'; '.join(said)[:400]}" if said else "."


def _time(text: Any) -> datetime | None:
    try:
        return cursors.utc(datetime.fromisoformat(text))
    except (TypeError, ValueError):
        return None


def _is_newer(now: datetime, before: Any) -> bool:
    earlier = _time(before)
    return earlier is None or now > earlier


def _age_s(when: datetime) -> float:
    return (datetime.now(UTC) - when).total_seconds()


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3): a number or a date."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, -_age_s(cursors.utc(parsedate_to_datetime(header))))
    except (TypeError, ValueError):
        return None
