"""``POST /v1/alerts``: alerts of Prometheus become alarms in the ledger.

Alertmanager can send a secret and cannot sign, so a bearer token is enough. Who can sign
proves the body and the moment with an HMAC and never sends the secret. Neither lets anybody do
more than raise an alarm, and the same alert raises one, however often it is sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response

from penstock.errors import InvalidKey, LedgerError, NotFound, NotReady, RecipeError
from penstock.ledger import Ledger, schema
from penstock.ledger.alarms import Alarms, AlarmState, settle
from penstock.monitoring.alert_messages import Alert, read_alerts
from penstock.recipe import Recipe
from penstock.serving.answering import json_response
from penstock.serving.gateway import Gateway
from penstock.serving.replies import to_json

PATH = "/v1/alerts"
SIGNATURE = "x-penstock-signature"
TIMESTAMP = "x-penstock-timestamp"

_MIN_SECRET_CHARS = 16
# How far the clocks of who signs and of the gateway may be apart; older is a replay.
_MAX_AGE_S = 300
# Beside the one that is written; Alertmanager tries the others again.
_MAX_WAITING = 16
_SENDER = "alertmanager"


class AlertDesk:
    """Takes alerts for one recipe.

    Args:
        secret: What senders show, or sign with.
        recipe: Its name; alerts about others are left alone.
        ledger: Where alarms are kept.
    """

    def __init__(self, secret: str, recipe: str, ledger: Ledger) -> None:
        self._secret = secret.encode()
        self._recipe = recipe
        self._database = ledger.database
        self._alarms = Alarms(ledger)
        self._one_at_a_time = asyncio.Lock()
        self._num_waiting = 0

    @classmethod
    def of(cls, recipe: Recipe, ledger: Ledger) -> AlertDesk | None:
        """The desk, if its secret is in the environment.

        Raises:
            RecipeError: The secret is too short to be one.
        """
        name = recipe.observe.slo.secret_env
        secret = os.environ.get(name, "")
        if not secret:
            return None
        if len(secret) < _MIN_SECRET_CHARS:
            raise RecipeError(
                f"${name} has {len(secret)} characters; a secret has at least {_MIN_SECRET_CHARS}.",
                "Make one: openssl rand -hex 32",
            )
        return cls(secret, recipe.name, ledger)

    def authenticate(self, headers: Mapping[str, str], body: bytes) -> None:
        """Let in who knows the secret.

        Raises:
            InvalidKey: The sender does not, or signed something else or too long ago.
        """
        signature = headers.get(SIGNATURE)
        if signature is None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            known = scheme.lower() == "bearer" and _same(given.strip().encode(), self._secret)
        else:
            known = self._has_signed(signature, headers.get(TIMESTAMP, ""), body)
        if not known:
            raise InvalidKey(
                "The sender of these alerts is not known here.",
                "Show the secret as a bearer token, or sign time and body with it.",
            )

    def _has_signed(self, signature: str, timestamp: str, body: bytes) -> bool:
        # Compared before the time is looked at, so that both answers take as long.
        signed = hmac.new(self._secret, f"{timestamp}.".encode() + body, hashlib.sha256)
        is_right = _same(signature.encode(), f"sha256={signed.hexdigest()}".encode())
        is_time = re.fullmatch(r"[0-9]{1,12}", timestamp) is not None
        return is_right and is_time and abs(time.time() - int(timestamp)) <= _MAX_AGE_S

    async def take(self, alerts: list[Alert]) -> Counter[str]:
        """Keep alerts; the answer comes when they are in the ledger.

        Returns:
            How many are ``firing``, ``resolved``, about ``another`` recipe, or the ``echo``
            of an alarm.

        Raises:
            NotReady: Too many messages wait, or the ledger cannot be written.
        """
        if self._num_waiting >= _MAX_WAITING:
            raise NotReady("Too many alerts come at once.", "Send them again in a moment.")
        self._num_waiting += 1
        try:
            async with self._one_at_a_time:
                return await asyncio.to_thread(self._keep, alerts)
        except LedgerError as error:
            raise NotReady(f"Alerts cannot be kept: {error.message}", error.hint) from error
        finally:
            self._num_waiting -= 1

    def _keep(self, alerts: Iterable[Alert]) -> Counter[str]:
        told: Counter[str] = Counter()
        ours: dict[str, list[Alert]] = {"firing": [], "resolved": []}
        for alert in alerts:
            if not alert.belongs_to(self._recipe):
                told["another"] += 1
            elif alert.is_echo:
                told["echo"] += 1
            else:
                told[alert.status] += 1
                ours[alert.status].append(alert)
        self._begin(ours["firing"])
        if ours["resolved"]:
            self._end([one.key for one in ours["resolved"]])
        return told

    def _begin(self, alerts: list[Alert]) -> None:
        """Raise what is new; Alertmanager repeats itself, and that is one question."""
        known = self._numbers([one.key for one in alerts])
        for one in alerts:
            if one.key not in known:
                self._alarms.raise_(one.alarm(self._recipe))

    def _end(self, keys: list[str]) -> None:
        """Close the alarms that were raised, and of which nothing has become."""
        numbers = list(self._numbers(keys).values())
        with self._database.write() as connection:
            settle(connection, numbers, AlarmState.CLOSED, "resolved", _SENDER)

    def _numbers(self, keys: list[str]) -> dict[str, int]:
        """The alarms of these names, as far as there are any."""
        table = schema.alarms
        query = sa.select(table.c.key, table.c.number).where(
            table.c.recipe == self._recipe, table.c.kind == "alert", table.c.key.in_(keys)
        )
        with self._database.read() as connection:
            return {row.key: row.number for row in connection.execute(query)}


def _same(given: bytes, wanted: bytes) -> bool:
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(wanted).digest())


async def alerts(request: Request) -> Response:
    """``POST /v1/alerts``."""
    gateway: Gateway = request.state.gateway
    desk = gateway.alerts
    if desk is None:
        raise NotFound(
            "Alerts are not taken here.", "Set the secret: docs/how-to/dashboards-and-alerts.md"
        )
    body = request.state.exchange.body
    desk.authenticate(request.headers, body)
    told = await desk.take(read_alerts(body))
    for outcome, num in told.items():
        gateway.metrics.alerts.labels(outcome).inc(num)
    return json_response(to_json({"object": "alerts", **told}))
