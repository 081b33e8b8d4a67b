"""Sends traces by OTLP over HTTP, from a thread of its own.

Nothing here is allowed to hold up a request: the event loop appends to a bounded
queue and goes on. What does not fit, or cannot be sent, is dropped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any, Literal

from penstock.errors import MissingExtra
from penstock.monitoring.redaction import redacted_all, storable
from penstock.monitoring.span_attributes import (
    CALL_FACTS,
    SCHEMA_URL,
    TABLE_VERSION,
    StepView,
    attributes,
)
from penstock.monitoring.trace_targets import Target, target
from penstock.monitoring.traces import MAX_CONTENT_CHARS, RecordedSpan, RecordedTrace
from penstock.traces_section import TracesConfig

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

Outcome = Literal["sent", "dropped", "failed"]

_MAX_QUEUED = 2_048
_MAX_QUEUED_CHARS = 32 * 2**20
# Redacted together, for that has a fixed cost.
_MAX_BATCH = 256
# Made, encoded and posted together: encoding is Python, and would hold up the event loop.
_MAX_POST = 32
# A batch waits so long for company; then what is there is sent.
_LINGER_S = 1.0
_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 30.0
_MAX_FACT_CHARS = 1_024


def open_sender(
    config: TracesConfig, registry: CollectorRegistry | None, environ: Mapping[str, str]
) -> Sender:
    """A sender to whom the configuration names; ``start`` it in the process that serves.

    Raises:
        PenstockError: A key is missing.
        MissingExtra: OpenTelemetry is not installed.
    """
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError as error:
        raise MissingExtra("opentelemetry-exporter-otlp-proto-http", "traces") from error
    return Sender(target(config, environ), config.redact, _Counts(registry))


class _Counts:
    """What became of traces, for Prometheus and for tests."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        from prometheus_client import CollectorRegistry, Counter

        self._counter = Counter(
            "penstock_traces",
            "Traces of requests: sent; dropped, because the queue was full or the gateway "
            "ended; or failed, because the receiver did not take them.",
            ["outcome"],
            registry=registry or CollectorRegistry(),
        )
        for outcome in ("sent", "dropped", "failed"):
            self._counter.labels(outcome)

    def add(self, outcome: Outcome, num_traces: int) -> None:
        if num_traces:
            self._counter.labels(outcome).inc(num_traces)


class Sender:
    """A bounded queue, and the thread that empties it.

    Args:
        to: Who receives.
        redact: Whether content loses personal data and secrets.
        counts: Told what became of traces.
    """

    def __init__(self, to: Target, redact: bool, counts: _Counts) -> None:
        self._to = to
        self._redact = redact
        self._counts = counts
        self._queue: deque[RecordedTrace] = deque()
        # Each written by one thread alone: what the loop put in, and what this thread took out.
        self._chars_in = self._chars_out = 0
        self._wake = threading.Event()
        self._give_up_at_s: float | None = None  # set when the gateway ends
        self._num_failures = 0
        self._exporter: OTLPSpanExporter | None = None
        self._spans = _SpanMaker(to)
        self._thread = threading.Thread(target=self._run, name="penstock-traces", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, trace: RecordedTrace) -> None:
        """Have a trace sent; never blocks. Called on the event loop alone."""
        full = (
            len(self._queue) >= _MAX_QUEUED or self._chars_in - self._chars_out > _MAX_QUEUED_CHARS
        )
        if full or self._give_up_at_s is not None:
            self._counts.add("dropped", 1)
            return
        self._chars_in += trace.num_chars
        self._queue.append(trace)
        if len(self._queue) >= _MAX_BATCH and not self._wake.is_set():
            self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Send what is left for at most so long, and drop the rest; blocks."""
        self._give_up_at_s = time.monotonic() + timeout_s
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._exporter is not None:
            # The exporter's method has no annotations.
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
        self._counts.add("dropped", len(self._taken(len(self._queue))))

    # -- the thread --------------------------------------------------------------

    def _run(self) -> None:
        self._exporter = make_exporter(self._to)
        while True:
            self._wake.wait(_LINGER_S)
            self._wake.clear()
            while self._queue and not self._late():
                self._send_all(self._taken(_MAX_BATCH))
            if self._give_up_at_s is not None:
                return

    def _late(self) -> bool:
        return self._give_up_at_s is not None and time.monotonic() >= self._give_up_at_s

    def _pause(self) -> None:
        """Leave a receiver that fails alone for a while; the queue fills, and then drops."""
        pause_s = min(_LONGEST_PAUSE_S, 2.0**self._num_failures)
        end_s = time.monotonic() + pause_s
        while self._give_up_at_s is None and (left_s := end_s - time.monotonic()) > 0:
            self._wake.wait(left_s)
            self._wake.clear()

    def _taken(self, most: int) -> list[RecordedTrace]:
        batch: list[RecordedTrace] = []
        while self._queue and len(batch) < most:
            batch.append(self._queue.popleft())
        self._chars_out += sum(trace.num_chars for trace in batch)
        return batch

    def _send_all(self, batch: list[RecordedTrace]) -> None:
        clean = self._cleaned(batch)
        for start in range(0, len(batch), _MAX_POST):
            part = batch[start : start + _MAX_POST]
            if clean is None or self._late():
                self._counts.add("dropped", len(part))
                continue
            self._send(part, clean)
            if self._num_failures and self._give_up_at_s is None:
                self._pause()

    def _cleaned(self, batch: list[RecordedTrace]) -> dict[str, str] | None:
        try:
            return _cleaned_texts(batch, self._redact)
        except Exception:
            logger.exception("Traces could not be redacted, and are not sent")
            return None

    def _send(self, batch: list[RecordedTrace], clean: Mapping[str, str]) -> None:
        assert self._exporter is not None
        try:
            spans = self._spans.of(batch, clean)
            done = self._exporter.export(spans).name == "SUCCESS"
        except Exception:
            logger.exception("Traces could not be made ready to be sent")
            done = False
        if done and self._num_failures:
            logger.warning("Traces are sent to %s again.", self._to.url)
        if not done and not self._num_failures:
            logger.warning(
                "Traces cannot be sent to %s and are dropped until they can. If it answers "
                "401 or 403, look at %s.",
                self._to.url,
                " and ".join(self._to.credentials),
            )
        self._num_failures = 0 if done else self._num_failures + 1
        # Last: who sees the count may read the log.
        self._counts.add("sent" if done else "failed", len(batch))


# -- spans -----------------------------------------------------------------------


class _SpanMaker:
    """Makes OpenTelemetry's spans of our records."""

    def __init__(self, to: Target) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._vocabularies = to.vocabularies
        ours = {"service.name": "penstock", "service.version": installed("penstock")}
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word.
        self._resource = Resource({**ours, **to.resource}).merge(OTELResourceDetector().detect())
        self._scope = InstrumentationScope("penstock.gateway", str(TABLE_VERSION), SCHEMA_URL)

    def of(self, batch: Sequence[RecordedTrace], clean: Mapping[str, str]) -> list[ReadableSpan]:
        """All spans of some traces.

        Args:
            batch: The traces.
            clean: Each text of theirs that a client chose -> what may be sent of it.
        """
        spans: list[ReadableSpan] = []
        for trace in batch:
            spans.extend(self._of_one(trace, clean))
            time.sleep(0)  # lets the event loop go first
        return spans

    def _of_one(self, trace: RecordedTrace, clean: Mapping[str, str]) -> Iterator[ReadableSpan]:
        shared = _cleaned(trace.facts, clean)
        prompt = _newest([(role, clean[text]) for role, text in trace.asked])
        answer = None if trace.replied is None else clean[trace.replied][:MAX_CONTENT_CHARS]
        answering = trace.answering
        for span in trace.spans:
            facts = shared if span is trace.root else _cleaned(span.facts, clean)
            if span is answering:
                facts = {name: shared[name] for name in CALL_FACTS & shared.keys()} | facts
            elif span.step == "backend" and "model" in facts:
                facts = {"asked": facts["model"]} | facts
            if span.error:
                facts = facts | {"error": storable(span.error)}
            has_content = span is trace.root or span is answering
            view = StepView(
                step=span.step,
                facts=facts,
                shared=shared,
                started_ns=span.started_ns,
                prompt=prompt if has_content else (),
                answer=answer if has_content else None,
            )
            yield self._made(trace, span, view)

    def _made(self, trace: RecordedTrace, span: RecordedSpan, view: StepView) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
        from opentelemetry.trace.status import Status, StatusCode

        number, flags = int(trace.id, 16), TraceFlags(TraceFlags.SAMPLED)
        is_root = span is trace.root
        kinds = {"gateway": SpanKind.SERVER, "backend": SpanKind.CLIENT}
        return ReadableSpan(
            name=_name(view),
            context=SpanContext(number, span.number, is_remote=False, trace_flags=flags),
            parent=SpanContext(number, span.parent, is_remote=is_root, trace_flags=flags)
            if span.parent
            else None,
            resource=self._resource,
            attributes=attributes(view, self._vocabularies),
            kind=kinds.get(view.step, SpanKind.INTERNAL),
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=span.started_ns,
            # A step that was still running when the request ended, ended with it.
            end_time=span.ended_ns or trace.root.ended_ns,
            instrumentation_scope=self._scope,
        )


def _name(view: StepView) -> str:
    if not view.is_call:
        return view.step
    return " ".join(str(view.facts[one]) for one in ("operation", "model") if one in view.facts)


def _cleaned_texts(batch: Sequence[RecordedTrace], redact: bool) -> dict[str, str]:
    """Each text that a client chose or got -> what may be sent of it."""
    found: dict[str, None] = {}
    for trace in batch:
        found.update(dict.fromkeys(text for _, text in trace.asked))
        if trace.replied is not None:
            found[trace.replied] = None
        for span in trace.spans:
            found.update(dict.fromkeys(_client_texts(span.facts)))
    if not redact or not found:
        return {text: storable(text) for text in found}
    return dict(zip(found, redacted_all(list(found)), strict=True))


def _client_texts(facts: Mapping[str, Any]) -> Iterator[str]:
    """What a client chose freely, and may be somebody's address."""
    for name in ("session", "user"):
        if name in facts:
            yield facts[name][:_MAX_FACT_CHARS]


def _cleaned(facts: Mapping[str, Any], clean: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, str):
            text = value[:_MAX_FACT_CHARS]
            value = clean[text] if name in ("session", "user") else storable(text)
        found[name] = value
    return found


def _newest(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The end of a conversation, now that it may be cut anywhere."""
    room = MAX_CONTENT_CHARS
    kept: list[tuple[str, str]] = []
    for role, text in reversed(turns):
        if room <= 0:
            break
        kept.append((role, text[-room:]))
        room -= len(text)
    return kept[::-1]


# -- the exporter ----------------------------------------------------------------


def make_exporter(to: Target) -> OTLPSpanExporter:
    """OpenTelemetry's exporter, held to send our headers alone, and to the URL alone."""
    import requests
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    session = requests.Session()
    session.auth = _OnlyOurs(to.headers)
    session.hooks["response"].append(_looked_at)
    return OTLPSpanExporter(
        endpoint=to.url,
        timeout=_TIMEOUT_S,
        compression=None if to.own_environment else Compression.NoCompression,
        session=session,
    )


class _OnlyOurs:
    """Puts in our headers and takes out others' last of all.

    The exporter sends ``OTEL_EXPORTER_OTLP_HEADERS`` to whomever it sends, and ``requests``
    puts a password from ``~/.netrc`` in the place of our key, unless told otherwise.
    """

    _PLAIN = frozenset(
        {"accept", "accept-encoding", "connection", "content-encoding", "content-length"}
        | {"content-type", "transfer-encoding", "user-agent"}
    )

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: Any) -> Any:
        for name in list(request.headers):
            if name.lower() not in self._PLAIN:
                del request.headers[name]
        request.headers.update(self._headers)
        return request


def _looked_at(response: Any, **_: Any) -> None:
    """Tell what the exporter takes for success: a redirect, and spans that were refused."""
    import requests

    if 300 <= response.status_code < 400:
        raise requests.exceptions.InvalidURL(
            f"the receiver answers {response.status_code}, and redirects are not followed"
        )
    if response.status_code == 200 and "protobuf" in response.headers.get("content-type", ""):
        _check_partial(response.content)


def _check_partial(content: bytes) -> None:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceResponse,
    )

    try:
        partial = ExportTraceServiceResponse.FromString(content).partial_success
    except DecodeError:
        return
    if partial.rejected_spans:
        logger.warning(
            "The receiver of traces refused %d spans: %r",
            partial.rejected_spans,
            partial.error_message[:200],
        )
