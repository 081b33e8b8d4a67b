"""What is known about one request: what metrics, traces, the log and rollouts are told."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from penstock.monitoring.metrics import UNKNOWN, ServingMetrics
from penstock.serving.response_id import uuid7_hex
from penstock.serving.routes import Arm, Draw, ServedVersion


@dataclass(frozen=True)
class FailedTry:
    """A try that gave no answer.

    Attributes:
        model: Who was asked.
        version: Which version; None if there was none to ask.
        arm: As what.
        error: Code of the error.
    """

    model: str
    version: int | None
    arm: Arm
    error: str


@dataclass
class Facts:
    """One request and its answer, filled in on the way.

    Times ending in ``_s`` are on the monotonic clock, but for ``received_at_s``.

    Attributes:
        request_id: The client's own, or one of ours.
        endpoint: A path of the gateway's own, or "other".
        unique: 32 hex digits: the end of the answer's id, and the trace's id unless it
            continues a caller's.
        trace_id: Of the trace that is sent; None before the end, and if none is.
        received_at_s: Unix seconds.
        started_s: When the first byte came.
        asked: The name that was asked for: a model or a route; "unknown" until it is known.
        why: What chose the model: name, rule, intent, split, fallback.
        model: Who answers, a label of metrics.
        served: Which version.
        arm: As what.
        rollout: The trial that it took part in.
        shadow: A copy of a request; no client sees the answer.
        key_id: Whose key it was.
        tenant: Who that is.
        conversation: Requests with the same one belong together.
        response_id: The answer's.
        prompt_tokens: Read.
        completion_tokens: Written.
        max_tokens: Asked for, or what there was room for.
        temperature: Asked for.
        stream: Whether the answer was streamed.
        queued_s: When it began to wait for a slot.
        computing_s: When it had one.
        first_token_s: When the first chunk came.
        ended_s: When the answer's last byte was sent.
        finish_reason: Why the answer ended.
        status: HTTP's; 499 for a client that left.
        error: Code of the error, if there was one.
        num_tries: How often models were asked.
        prompt: What was asked, as turns, if anybody wants to know.
        failed_tries: Tries of models that did not answer, oldest first.
        draws: Its lots in trials, one for each model on trial that was asked.
        answer: What was answered, if anybody wants to know.
    """

    request_id: str
    endpoint: str
    unique: str = field(default_factory=uuid7_hex)
    received_at_s: float = field(default_factory=time.time)
    started_s: float = field(default_factory=time.monotonic)
    asked: str = UNKNOWN
    why: str = ""
    model: str = UNKNOWN
    served: ServedVersion | None = None
    arm: Arm = "champion"
    rollout: str = ""
    shadow: bool = False
    key_id: str | None = None
    tenant: str | None = None
    conversation: str | None = None
    trace_id: str | None = None
    response_id: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    max_tokens: int | None = None
    temperature: float | None = None
    stream: bool = False
    queued_s: float | None = None
    computing_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    finish_reason: str | None = None
    status: int = 0
    error: str | None = None
    num_tries: int = 0
    failed_tries: list[FailedTry] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    prompt: Sequence[Mapping[str, str]] | None = None
    answer: str | None = None

    @property
    def duration_s(self) -> float:
        """From the first byte to the last, or to now."""
        return (self.ended_s or time.monotonic()) - self.started_s

    @property
    def trial(self) -> Draw | None:
        """The lot by which the answer came about; None if there was none, or another answered.

        A score of the answer counts for this arm, share and step.
        """
        last = self.draws[-1] if self.draws else None
        answered = last is not None and last.error is None and last.rollout == self.rollout
        return last if answered else None

    @property
    def token_time_s(self) -> float | None:
        """Mean time between two tokens; None before there are two."""
        if self.first_token_s is None or self.completion_tokens < 2:
            return None
        since_first_s = (self.ended_s or time.monotonic()) - self.first_token_s
        return since_first_s / (self.completion_tokens - 1)

    @property
    def exemplar(self) -> dict[str, str]:
        """What leads from a point in a plot to this request: its trace, and its answer."""
        found = {"trace_id": self.trace_id or self.unique}
        return found if self.response_id is None else found | {"response_id": self.response_id}


class Observer(Protocol):
    """Who wants to know about answered requests."""

    def observe(self, facts: Facts) -> None:
        """A request has ended. Called on the event loop: must return at once, never raise."""
        ...


@runtime_checkable
class Worker(Protocol):
    """Who works beside the event loop, in a thread of its own."""

    def start(self, metrics: ServingMetrics) -> None:
        """Begin; called once, in the process that serves."""
        ...

    def stop(self) -> None:
        """Finish what there is to do, and end; blocking, and soon done."""
        ...
