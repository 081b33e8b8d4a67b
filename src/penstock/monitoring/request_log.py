"""The request log: what was asked, who answered, and how it went.

A request pays for a look at the clock and a place in a list. A thread turns what waits
there into rows, takes out personal data, and commits them together. Serving never waits for it:
while the store cannot be written, rows wait up to a limit, and what comes then is dropped
and counted. A kill loses what was waiting, never what was written.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from penstock.day_tables import DAY, ID_MS, RESPONSE_ID, DayTable, day_of, id_ms
from penstock.monitoring.row_writer import RowWriter, pseudonym
from penstock.serve_section import LogConfig
from penstock.serving.facts import Facts
from penstock.traffic import LOG_SCHEMA

if TYPE_CHECKING:
    from penstock.monitoring.metrics import ServingMetrics

logger = logging.getLogger(__name__)

# What waits for the store, at most: so many flushes' worth, and so much text.
_MAX_FLUSHES_WAITING = 20
_MAX_WAITING_CHARS = 32 << 20
# A store that does not answer must not hold a restart up.
_STOP_TIMEOUT_S = 10.0
# Sent by clients, of any length.
_MAX_CONVERSATION_CHARS = 200
_LOGGED = frozenset(
    {
        "/",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/classify",
    }
)


class RequestLog:
    """Writes a row for each request to a table.

    Args:
        table: Where.
        config: What the recipe says about it.

    Attributes:
        wants_content: Whether to fill in prompt and answer.
    """

    def __init__(self, table: DayTable, config: LogConfig) -> None:
        self.wants_content = config.content
        self._table = table
        self._config = config
        self._waiting: deque[Facts] = deque()
        self._num_chars = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._is_broken = False
        self._batch: tuple[int, list[dict[str, Any]]] | None = None
        self._thread: threading.Thread | None = None

    def start(self, metrics: ServingMetrics) -> None:
        """Begin to write."""
        self._rows = metrics.logged_requests
        self._failures = metrics.log_failures.labels("log")
        writer = RowWriter(self._table, LOG_SCHEMA, self._config.retention_days)
        self._thread = threading.Thread(
            target=self._run, args=(writer,), name="request-log", daemon=True
        )
        self._thread.start()

    def observe(self, facts: Facts) -> None:
        """Keep a request's facts until they are written."""
        # Who has no key may ask as often as they like, but not fill our disk.
        if facts.endpoint not in _LOGGED or facts.status == 401 or not self._is_sampled(facts):
            return
        num_chars = _num_chars(facts)
        with self._changed:
            is_full = (
                len(self._waiting) >= _MAX_FLUSHES_WAITING * self._config.flush_rows
                or self._num_chars + num_chars > _MAX_WAITING_CHARS
            )
            if not is_full:
                self._waiting.append(facts)
                self._num_chars += num_chars
                if len(self._waiting) == self._config.flush_rows:
                    self._changed.notify()
        if is_full:
            self._rows.labels("dropped").inc()

    def stop(self) -> None:
        """Write what waits; give up if the store does not take it soon."""
        if self._thread is None:
            return
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(_STOP_TIMEOUT_S)
        lost = len(self._waiting) + (len(self._batch[1]) if self._batch else 0)
        if lost:
            self._rows.labels("dropped").inc(lost)
            logger.warning("The request log lost its last %d rows: they could not be written", lost)

    def _is_sampled(self, facts: Facts) -> bool:
        """By the response's id, so that all who see the same response agree."""
        if self._config.sample == 1:
            return True
        name = facts.response_id or facts.request_id
        place = int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) / 2**64
        return place < self._config.sample

    def _run(self, writer: RowWriter) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due, timeout=self._config.flush_s)
                stopping = self._stopping
            while self._write_some(writer) and (stopping or self._is_due()):
                pass
            if stopping:
                return
            writer.tidy_if_due()

    def _is_due(self) -> bool:
        """Whether not to wait any longer; a store that is away is not asked again at once."""
        is_full = len(self._waiting) >= self._config.flush_rows
        return self._stopping or (is_full and not self._is_broken)

    def _write_some(self, writer: RowWriter) -> bool:
        """Write the rows that could not be written before, or the next ones.

        Returns:
            Whether rows were written.
        """
        try:
            self._batch = self._batch or self._next_batch(writer)
            if self._batch is None:
                return False
            writer.append(*self._batch)
            self._rows.labels("written").inc(len(self._batch[1]))
            self._batch = None
            self._is_broken = False
        except Exception as error:
            self._failures.inc()
            if not self._is_broken:
                logger.warning("The request log cannot be written; serving goes on: %s", error)
            self._is_broken = True
            return False
        return True

    def _next_batch(self, writer: RowWriter) -> tuple[int, list[dict[str, Any]]] | None:
        taken = self._take()
        try:
            return (writer.begin(), rows_of(taken, self._config)) if taken else None
        except Exception:
            # Never as they came: what takes personal data out of them is what failed.
            self._rows.labels("dropped").inc(len(taken))
            raise

    def _take(self) -> list[Facts]:
        with self._changed:
            num = min(len(self._waiting), self._config.flush_rows)
            taken = [self._waiting.popleft() for _ in range(num)]
            self._num_chars -= sum(map(_num_chars, taken))
        return taken


def _num_chars(facts: Facts) -> int:
    return len(facts.answer or "") + sum(len(turn["content"]) for turn in facts.prompt or ())


def rows_of(requests: Sequence[Facts], config: LogConfig) -> list[dict[str, Any]]:
    """Rows of the log's table.

    Args:
        requests: What is known of each; prompts and answers may be there for others' sake.
        config: Whether rows hold them, and without personal data and secrets.
    """
    texts = [text for facts in requests for text in _texts(facts, config.content)]
    clean = iter(_cleaned(texts, config.redact))
    return [_row(facts, clean, config.content) for facts in requests]


def _texts(facts: Facts, content: bool) -> list[str]:
    """Everything in a request that somebody wrote; ``_row`` puts it back in this order."""
    if not content:
        return [_conversation(facts)]
    asked = (turn["content"] for turn in facts.prompt or ())
    return [_conversation(facts), facts.answer or "", *asked]


def _conversation(facts: Facts) -> str:
    return (facts.conversation or "")[:_MAX_CONVERSATION_CHARS]


def _cleaned(texts: list[str], redact: bool) -> list[str]:
    if not any(texts):
        return texts
    # Polars takes a while to import, and most gateways log no content.
    from penstock.monitoring.redaction import redacted_all, storable

    return redacted_all(texts) if redact else [storable(text) for text in texts]


def _row(facts: Facts, clean: Iterator[str], content: bool) -> dict[str, Any]:
    conversation = next(clean)
    received_ms = int(facts.received_at_s * 1000)
    answered_ms = id_ms(facts.response_id) if facts.response_id else None
    return {
        DAY: day_of(received_ms if answered_ms is None else answered_ms),
        ID_MS: answered_ms,
        RESPONSE_ID: facts.response_id,
        "received_at": datetime.fromtimestamp(facts.received_at_s, UTC),
        "conversation": pseudonym(_conversation(facts), conversation) or None,
        **(_content(facts, clean) if content else {}),
        **_version(facts),
        **_times(facts),
        **{name: getattr(facts, name) for name in _AS_THEY_ARE},
    }


def _content(facts: Facts, clean: Iterator[str]) -> Mapping[str, Any]:
    answer = next(clean)
    prompt = [{**turn, "content": next(clean)} for turn in facts.prompt or ()]
    return {
        "prompt": json.dumps(prompt, ensure_ascii=False) if prompt else None,
        "answer": None if facts.answer is None else answer,
    }


_AS_THEY_ARE = (
    "request_id",
    "endpoint",
    "asked",
    "why",
    "model",
    "arm",
    "rollout",
    "shadow",
    "tenant",
    "key_id",
    "trace_id",
    "status",
    "error",
    "finish_reason",
    "num_tries",
    "stream",
    "prompt_tokens",
    "completion_tokens",
    "max_tokens",
    "temperature",
    "duration_s",
)


def _version(facts: Facts) -> Mapping[str, Any]:
    served = facts.served
    if served is None:
        return {}
    return {
        "version": served.version,
        "digest": served.digest,
        "run_id": served.run_id,
        "data_version": served.data_version,
    }


def _times(facts: Facts) -> Mapping[str, float | None]:
    queued_s, computing_s, first_s = facts.queued_s, facts.computing_s, facts.first_token_s
    waited = None if queued_s is None or computing_s is None else computing_s - queued_s
    first = None if first_s is None else first_s - facts.started_s
    return {"queue_s": waited, "ttft_s": first}
