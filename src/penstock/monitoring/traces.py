"""Traces: what became of each request, step by step, and how long it took.

While a request runs, its trace is a few plain records on the event loop: a request
pays microseconds. They become OpenTelemetry spans, in the words of whoever receives
them, redacted, in the thread that sends them (``trace_export``). A trace is kept or
dropped as a whole, when it is known how the request ended: failures are always kept.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Unpack

from penstock.errors import ServingError
from penstock.monitoring.span_attributes import SpanFacts, Step
from penstock.traces_section import TracesConfig

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from penstock.monitoring.trace_export import Sender

TRACE_HEADER = "x-penstock-trace"

# Of prompt and answer each; longer ones are cut. Redaction looks a little further, so
# that nothing it would take out is cut in two.
MAX_CONTENT_CHARS = 16_384
_MARGIN_CHARS = 4_096

# W3C Trace Context, https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# The 56 lowest bits of a trace id are random, says Trace Context level 2; of a UUID version 7
# they are, while the 8 bits above them are not all.
_RANDOM_BITS = 56


class Span:
    """One step of a request. This one is of a request that is not traced, and keeps nothing."""

    __slots__ = ()

    @property
    def traceparent(self) -> str | None:
        """The header by which a backend's own spans become part of the trace; None if off."""
        return None

    def note(self, **facts: Unpack[SpanFacts]) -> None:
        """Tell more about this step."""

    def failed(self, error: BaseException) -> None:
        """The step failed, where no exception leaves its ``with`` block."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class Trace:
    """One request. This one is not traced, and keeps nothing.

    Attributes:
        id: 32 hex digits; empty if there is no trace.
        wants_content: Whether ``prompt`` and ``answer`` are of any use.
    """

    __slots__ = ()
    id: str = ""
    wants_content: bool = False

    def headers(self, status: int) -> dict[str, str]:
        """For a response with this status: the trace id, if the trace will be there to look at."""
        return {}

    def note(self, **facts: Unpack[SpanFacts]) -> None:
        """Tell about the request; later facts replace earlier ones."""

    def span(self, step: Step, parent: Span | None = None, **facts: Unpack[SpanFacts]) -> Span:
        """Begin a step; use it in a ``with`` block.

        Args:
            step: Which one. ``backend`` is a call of a model, with its ``operation`` and
                ``model`` if they are not the request's.
            parent: The step it is a part of; None is the request itself.
            facts: About this step alone.
        """
        return _NO_SPAN

    def prompt(self, turns: Sequence[tuple[str, str]]) -> None:
        """What was asked, as (role, text); of a long one the end is kept."""

    def answer(self, text: str) -> None:
        """What was answered; of a long one the beginning is kept."""

    def end(self, status: int, error: str | None = None) -> bool:
        """The last byte is sent, or the client has left; only the first call counts.

        Args:
            status: HTTP status; 499 if the client left.
            error: What kind of failure: a class or a code, never a message.

        Returns:
            Whether the trace is kept, to be sent.
        """
        return False


_NO_SPAN = Span()
_NO_TRACE = Trace()


class RecordedSpan(Span):
    """A step that is kept.

    Attributes:
        step: Which one.
        number: Its span id.
        parent: The span id it is under; 0 for a request that continues nobody's trace.
        facts: What was told about it.
        started_ns: Since the epoch.
        ended_ns: Likewise; 0 while it runs.
        error: What kind of failure, if it failed.
    """

    __slots__ = ("_trace", "ended_ns", "error", "facts", "number", "parent", "started_ns", "step")

    def __init__(self, trace: RecordedTrace, step: Step, parent: int, facts: SpanFacts) -> None:
        self._trace = trace
        self.step = step
        self.number = random.getrandbits(64) or 1
        self.parent = parent
        self.facts = facts
        self.started_ns = trace.now_ns()
        self.ended_ns = 0
        self.error: str | None = None

    @property
    def traceparent(self) -> str:
        """For a backend, which follows our choice to sample."""
        flag = "01" if self._trace.sampled else "00"
        return f"00-{self._trace.id}-{self.number:016x}-{flag}"

    def note(self, **facts: Unpack[SpanFacts]) -> None:
        """Tell more about this step."""
        if not self._trace.ended:
            self.facts.update(facts)

    def failed(self, error: BaseException) -> None:
        """Keep what kind of failure it was; being cancelled or refused with reason is none."""
        if not isinstance(error, Exception):
            self.note(cancelled=True)
        elif isinstance(error, ServingError) and error.status < 500:
            self.note(error=type(error).__name__)
        else:
            self.error = type(error).__name__

    def __enter__(self) -> RecordedSpan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.failed(error)
        self.ended_ns = self._trace.now_ns()


class RecordedTrace(Trace):
    """A request whose trace is kept until it ends, and then sent or dropped."""

    __slots__ = (
        "_offset_ns",
        "_sender",
        "asked",
        "facts",
        "id",
        "replied",
        "root",
        "sampled",
        "spans",
        "wants_content",
    )

    def __init__(
        self, sender: Sender, trace_id: str, parent: int, sampled: bool, content: bool
    ) -> None:
        self._sender = sender
        # One look at the wall clock, so that no step ends before it began.
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self.id = trace_id
        self.sampled = sampled
        self.wants_content = content
        self.facts: SpanFacts = {}
        self.asked: tuple[tuple[str, str], ...] = ()
        self.replied: str | None = None
        self.root = RecordedSpan(self, "gateway", parent, self.facts)
        self.spans: list[RecordedSpan] = [self.root]

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return time.monotonic_ns() + self._offset_ns

    def headers(self, status: int) -> dict[str, str]:
        """The trace id, if this trace is sampled or the status says that it will be kept."""
        return {TRACE_HEADER: self.id} if self.sampled or status >= 500 else {}

    @property
    def ended(self) -> bool:
        """From then on nothing changes: the thread that sends it reads it."""
        return self.root.ended_ns != 0

    def note(self, **facts: Unpack[SpanFacts]) -> None:
        """Tell about the request."""
        if not self.ended:
            self.facts.update(facts)

    def span(self, step: Step, parent: Span | None = None, **facts: Unpack[SpanFacts]) -> Span:
        """Begin a step."""
        if self.ended:
            return _NO_SPAN
        above = parent if isinstance(parent, RecordedSpan) else self.root
        span = RecordedSpan(self, step, above.number, facts)
        self.spans.append(span)
        return span

    def prompt(self, turns: Sequence[tuple[str, str]]) -> None:
        """Keep the end of the conversation, as far as it fits."""
        if not self.wants_content or self.ended:
            return
        room = MAX_CONTENT_CHARS + _MARGIN_CHARS
        kept: list[tuple[str, str]] = []
        for role, text in reversed(turns):
            if room <= 0:
                break
            kept.append((role, text[-room:]))
            room -= len(text)
        self.asked = tuple(reversed(kept))

    def answer(self, text: str) -> None:
        """Keep the beginning of the answer."""
        if self.wants_content and not self.ended:
            self.replied = text[: MAX_CONTENT_CHARS + _MARGIN_CHARS]

    @property
    def num_chars(self) -> int:
        """How much content it holds."""
        return sum(len(text) for _, text in self.asked) + len(self.replied or "")

    @property
    def answering(self) -> RecordedSpan | None:
        """The last call of a model for the request itself: the one that answered it, if any."""
        calls = (one for one in reversed(self.spans) if one.step == "backend")
        return next((call for call in calls if call.parent == self.root.number), None)

    def end(self, status: int, error: str | None = None) -> bool:
        """Hand the trace over to be sent, if it is sampled or something failed."""
        if self.ended:
            return False
        self.facts["status"] = status
        self.root.error = error if status >= 500 else None
        if status >= 500 and error is None:
            self.root.error = str(status)
        self.root.ended_ns = self.now_ns()
        kept = self.sampled or any(span.error for span in self.spans)
        if kept:
            self._sender.put(self)
        return kept


class Tracer:
    """Begins traces and has them sent.

    Args:
        config: What the user set; None turns traces off.
        registry: Where to count what became of traces.
        environ: Where the receiver's keys are.

    Raises:
        PenstockError: A key is missing.
        MissingExtra: OpenTelemetry is not installed.
    """

    def __init__(
        self,
        config: TracesConfig | None,
        registry: CollectorRegistry | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._config = config
        self._sender: Sender | None = None
        if config is not None:
            from penstock.monitoring.trace_export import open_sender

            self._sender = open_sender(config, registry, environ)

    def start(self) -> None:
        """Start the thread that sends; after any fork, for threads do not survive one."""
        if self._sender is not None:
            self._sender.start()

    def close(self, timeout_s: float) -> None:
        """Send what is left, for at most this long; blocks."""
        if self._sender is not None:
            self._sender.close(timeout_s)

    def begin(self, traceparent: str | None = None, unique: str | None = None) -> Trace:
        """The trace of a request that begins now.

        Args:
            traceparent: The request's header; ignored unless it is to be trusted.
            unique: 32 hex digits for the trace id, random in the last 14, as of a UUID
                version 7. A response id that ends in the same digits says which trace it is of.
        """
        config, sender = self._config, self._sender
        if config is None or sender is None:
            return _NO_TRACE
        own = trace_id = unique or f"{random.getrandbits(128) or 1:032x}"
        parent, sampled = 0, None
        if traceparent is not None and config.trust_traceparent:
            trace_id, parent, sampled = _continued(traceparent, own)
        if sampled is None:
            sampled = in_sample(trace_id, config.sample)
        trace = RecordedTrace(sender, trace_id, parent, sampled, config.content)
        trace.root.number = root_span_number(own)
        return trace


def _continued(traceparent: str, unique: str) -> tuple[str, int, bool | None]:
    """Trace id, parent's span id and whether it is sampled, by a header that may be malformed."""
    match = _TRACEPARENT.fullmatch(traceparent.strip())
    if match is None or (match[1] == "00" and match[5]):
        return unique, 0, None
    if int(match[2], 16) == 0 or int(match[3], 16) == 0:
        return unique, 0, None
    return match[2], int(match[3], 16), bool(int(match[4], 16) & 1)


def root_span_number(unique: str) -> int:
    """The span id of a whole request: the end of its response id says it too.

    LangSmith names what it makes of a span by the span's id, so what is said of a response
    later can be attached to it without a look-up.
    """
    return int(unique[-16:], 16) or 1


def in_sample(trace_id: str, share: float) -> bool:
    """Whether a trace is sampled: the same for the same id in every process."""
    low: int = int(trace_id[-_RANDOM_BITS // 4 :], 16)
    return low < share * (1 << _RANDOM_BITS)
