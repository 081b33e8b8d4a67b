"""Keeping what people say about responses: on disk before they are told that it is.

What arrives within a few hundredths of a second is committed together, by a thread.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.day_tables import DAY, ID_MS, RESPONSE_ID, DayTable, day_of, id_ms
from penstock.errors import NotReady, Overloaded
from penstock.monitoring.row_writer import RowWriter, pseudonym
from penstock.traffic import FEEDBACK_SCHEMA

if TYPE_CHECKING:
    from penstock.monitoring.metrics import ServingMetrics

logger = logging.getLogger(__name__)

_GATHER_S = 0.05
_MAX_WAITING = 2_000
_MAX_PER_COMMIT = 500
_STOP_TIMEOUT_S = 10.0
_TEXTS = ("rater", "text", "comment")


@dataclass
class _Waiting:
    rows: Sequence[Mapping[str, Any]]
    done: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop

    def tell(self, error: Exception | None) -> None:
        """Wake who waits, on its own event loop, if it is still there."""

        def wake() -> None:
            if not self.done.done():
                self.done.set_exception(error) if error else self.done.set_result(None)

        self.loop.call_soon_threadsafe(wake)


class FeedbackBook:
    """Writes opinions to a table.

    Args:
        table: Where.
        redact: Take personal data and secrets out of what was said.
        retention_days: Opinions on older responses are dropped; None keeps all.
    """

    def __init__(self, table: DayTable, redact: bool, retention_days: int | None) -> None:
        self._table = table
        self._redact = redact
        self._retention_days = retention_days
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, metrics: ServingMetrics) -> None:
        """Begin to write."""
        self._failures = metrics.log_failures.labels("feedback")
        writer = RowWriter(self._table, FEEDBACK_SCHEMA, self._retention_days)
        self._thread = threading.Thread(
            target=self._run, args=(writer,), name="feedback", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        if self._thread is not None:
            with self._changed:
                self._stopping = True
                self._changed.notify()
            self._thread.join(_STOP_TIMEOUT_S)

    async def keep(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Return when rows of the feedback table are committed.

        Args:
            rows: Columns by name, about one response; day and time are filled in.

        Raises:
            Overloaded: Too much waits to be written.
            NotReady: The store cannot be written now.
        """
        loop = asyncio.get_running_loop()
        mine = _Waiting(rows, loop.create_future(), loop)
        with self._changed:
            if len(self._waiting) >= _MAX_WAITING or self._stopping or self._thread is None:
                raise Overloaded("Feedback comes faster than it can be written.", "Try again.")
            self._waiting.append(mine)
            self._changed.notify()
        await mine.done

    def _run(self, writer: RowWriter) -> None:
        writer.tidy_if_due()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
            if not self._stopping:
                time.sleep(_GATHER_S)
            with self._changed:
                some = self._waiting[:_MAX_PER_COMMIT]
                del self._waiting[:_MAX_PER_COMMIT]
            if some:
                self._commit(writer, some)
            elif self._stopping:
                return

    def _commit(self, writer: RowWriter, some: Sequence[_Waiting]) -> None:
        said: Exception | None = None
        try:
            rows = self._cleaned([row for one in some for row in one.rows])
            writer.append(writer.begin(), rows)
        except Exception as error:
            self._failures.inc()
            logger.warning("Feedback cannot be written: %s", error)
            said = NotReady("Feedback cannot be kept now.", "Send it again later.")
        for one in some:
            one.tell(said)
        if said is None and not self._stopping:
            writer.tidy_if_due()

    def _cleaned(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows with their places, and without what is to be taken out."""
        from penstock.monitoring.redaction import redacted_all, storable  # imports polars

        texts = [row.get(name) or "" for row in rows for name in _TEXTS]
        cleaned = redacted_all(texts) if self._redact else [storable(text) for text in texts]
        clean = iter(cleaned)
        out = []
        for row in rows:
            said = {name: next(clean) or None for name in _TEXTS}
            said["rater"] = pseudonym(row["rater"], str(said["rater"]))
            at_ms = id_ms(row[RESPONSE_ID])
            out.append({**row, **said, DAY: day_of(at_ms), ID_MS: at_ms})
        return out
