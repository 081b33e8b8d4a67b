"""What Alertmanager posts to a webhook, and what of it becomes alarms.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config has the form, version 4.
An alert is told apart by its labels, of which ``fingerprint`` is a digest, and by when it began:
however often it is sent, by however many Alertmanagers, it is one alarm.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from penstock.errors import InvalidRequest
from penstock.ledger.alarms import MAX_EVIDENCE_BYTES, Alarm, Severity
from penstock.monitoring.alert_rules import ECHO

MAX_ALERTS = 1_000
_MAX_PAIRS = 40
_MAX_TEXT_CHARS = 400
_SEVERITIES: Mapping[str, Severity] = {"page": "critical", "critical": "critical", "info": "info"}


class Alert(BaseModel):
    """One alert of a message.

    Attributes:
        status: Whether it is so, or is over.
        labels: What tells it apart.
        annotations: For people.
        starts_at: When it began.
        generator: Where its query can be looked at.
        fingerprint: Of the labels.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    starts_at: AwareDatetime = Field(alias="startsAt")
    generator: str = Field("", alias="generatorURL")
    fingerprint: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]

    @property
    def key(self) -> str:
        """Names the event: these labels, since that moment."""
        return f"{self.fingerprint}@{self.starts_at.timestamp():.6f}"

    def belongs_to(self, recipe: str) -> bool:
        """Whether it is about a recipe; an alert that names none may be about any."""
        return self.labels.get("recipe", recipe) == recipe

    @property
    def is_echo(self) -> bool:
        """Whether it tells people of an alarm that the ledger has already."""
        return ECHO in self.labels

    def alarm(self, recipe: str) -> Alarm:
        """As the ledger keeps it."""
        return Alarm(
            recipe=recipe,
            kind="alert",
            key=self.key,
            # Who sends it may have any clock, and nobody is to see an alarm of tomorrow.
            raised_s=min(max(self.starts_at.timestamp(), 0.0), time.time()),
            severity=_SEVERITIES.get(self.labels.get("severity", ""), "warning"),
            evidence=self._evidence,
        )

    @property
    def _evidence(self) -> dict[str, Any]:
        name = self.labels.get("alertname", "")[:_MAX_TEXT_CHARS]
        whole = {
            "alert": name,
            "labels": _short(self.labels),
            "annotations": _short(self.annotations),
            "generator": self.generator[:_MAX_TEXT_CHARS],
        }
        fits = len(json.dumps(whole)) <= MAX_EVIDENCE_BYTES
        return whole if fits else {"alert": name}


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal["4"]
    alerts: list[Alert] = Field(max_length=MAX_ALERTS)


def read_alerts(body: bytes) -> list[Alert]:
    """The alerts of a message.

    Raises:
        InvalidRequest: It is no message of Alertmanager's.
    """
    try:
        return _Message.model_validate_json(body).alerts
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part)[:100] for part in first["loc"])
        raise InvalidRequest(
            f"This is no message of Alertmanager's webhook: {first['msg']}",
            "Send its version 4, with at most 1,000 alerts.",
            where or None,
        ) from None


def _short(pairs: Mapping[str, str]) -> dict[str, str]:
    kept = list(pairs.items())[:_MAX_PAIRS]
    return {name[:_MAX_TEXT_CHARS]: value[:_MAX_TEXT_CHARS] for name, value in kept}
