"""What was asked, answered and said of it: three tables beside those of the stages.

::

    requests/log/day=2026-11-27/...        a row for each request
    requests/feedback/day=2026-11-27/...   a row for each opinion, by the day of its response
    requests/judged/day=2026-11-27/...     what a judge said of it; see ``judged.py``

All recipes of a store share them. The gateway writes them (``monitoring``), the
``requests`` source and ``penstock lineage`` read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.day_tables import DAY, ID_MS, RESPONSE_ID, DayTable, day_of, id_ms
from penstock.folders import Folder
from penstock.opinions import Opinion
from penstock.store import Store
from penstock.tables import ROW, VERSION

FOLDER = "requests"

LOG_SCHEMA = pa.schema(
    [
        (DAY, pa.date32()),
        (ID_MS, pa.int64()),
        (RESPONSE_ID, pa.string()),
        ("request_id", pa.string()),
        ("received_at", pa.timestamp("us", "UTC")),
        ("endpoint", pa.string()),
        ("asked", pa.string()),
        ("why", pa.string()),
        ("model", pa.string()),
        ("version", pa.int64()),
        ("digest", pa.string()),
        ("run_id", pa.string()),
        ("data_version", pa.string()),
        ("arm", pa.string()),
        ("rollout", pa.string()),
        ("shadow", pa.bool_()),  # a copy whose answer no client saw
        ("tenant", pa.string()),
        ("key_id", pa.string()),
        ("conversation", pa.string()),
        ("trace_id", pa.string()),  # null: no trace was sent, or it was not yet told here
        ("status", pa.int64()),
        ("error", pa.string()),
        ("finish_reason", pa.string()),
        ("num_tries", pa.int64()),
        ("stream", pa.bool_()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("max_tokens", pa.int64()),
        ("temperature", pa.float64()),
        ("queue_s", pa.float64()),
        ("ttft_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("prompt", pa.string()),  # turns as JSON: [{"role": ..., "content": ...}]
        ("answer", pa.string()),
        (VERSION, pa.int64()),
        (ROW, pa.int64()),
    ]
)

FEEDBACK_SCHEMA = pa.schema(
    [
        (DAY, pa.date32()),
        (ID_MS, pa.int64()),
        (RESPONSE_ID, pa.string()),
        ("kind", pa.string()),
        ("rater", pa.string()),
        ("score", pa.float64()),
        ("text", pa.string()),
        ("comment", pa.string()),
        ("tenant", pa.string()),
        ("key_id", pa.string()),
        ("model", pa.string()),
        ("received_at", pa.timestamp("us", "UTC")),
        (VERSION, pa.int64()),
        (ROW, pa.int64()),
    ]
)


@dataclass(frozen=True)
class Known:
    """What is known of one response, beside what its id says.

    Attributes:
        request: Its row of the log, without columns of Penstock's own; None if it was not logged.
        opinions: What was said of it, in order, whether it counts or not.
    """

    request: Mapping[str, Any] | None
    opinions: tuple[Opinion, ...]


class Traffic:
    """The log, the feedback and the judged answers of one store."""

    def __init__(self, folder: Folder) -> None:
        self.log = DayTable(folder / "log")
        self.feedback = DayTable(folder / "feedback")
        self.judged = DayTable(folder / "judged")

    @classmethod
    def of(cls, store: Store) -> Traffic:
        """That of a project."""
        return cls(store.table_at(FOLDER).folder)

    def stream(self) -> str | None:
        """Names the two tables, as units of the ``requests`` source do; None before the first word.

        Tables made anew in the same place have another name.
        """
        log, feedback = self.log.standing(), self.feedback.standing()
        return None if log is None or feedback is None else f"{FOLDER}:{log[0]}/{feedback[0]}"

    def known(self, response_id: str) -> Known:
        """Look one response up.

        Args:
            response_id: One that is well formed.
        """
        day = day_of(id_ms(response_id))
        logged = self.log.find([response_id], day).to_pylist()
        opinions = self.feedback.find([response_id], day).to_pylist()
        request = _shown(logged[0]) if logged else None
        return Known(request, tuple(map(Opinion.of, opinions)))


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    ours = (DAY, ID_MS, VERSION, ROW)
    return {key: value for key, value in row.items() if key not in ours}
