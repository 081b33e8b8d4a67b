"""What a judge said of answers: a table beside the log, and the cache of every question.

::

    requests/judged/day=2026-11-27/...     a row for each answer, or order of a pair, and judge

A row belongs to the day of its answer. Nothing here asks anybody; ``monitoring.judge``
does, and writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from penstock.day_tables import DAY, ID_MS, RESPONSE_ID, DayTable
from penstock.tables import ROW, VERSION

MARK = "mark"
PAIR = "pair"

JUDGED_SCHEMA = pa.schema(
    [
        (DAY, pa.date32()),
        (ID_MS, pa.int64()),
        (RESPONSE_ID, pa.string()),
        ("kind", pa.string()),  # mark: of one answer; pair: of two, in one order
        ("key", pa.string()),  # digest of judge, question and answers in their order
        ("judge", pa.string()),  # digest of model, criteria and prompt
        ("judge_model", pa.string()),
        ("sampled", pa.bool_()),  # chosen by chance, not because somebody had scored it
        ("tenant", pa.string()),
        ("conversation", pa.string()),
        ("rollout", pa.string()),
        ("model", pa.string()),
        ("version", pa.int64()),
        ("digest", pa.string()),
        ("other_id", pa.string()),  # of a pair: the answer that no client saw
        ("other_model", pa.string()),
        ("other_version", pa.int64()),
        ("swapped", pa.bool_()),  # of a pair: the other one was shown first
        # In [0, 1]; of a pair 1 if this answer is better than the other, 0.5 for a tie. Null:
        # there is no verdict, and ``note`` says why.
        ("score", pa.float64()),
        ("reason", pa.string()),
        ("note", pa.string()),
        ("cached", pa.bool_()),  # the same question had been answered before
        ("num_asked", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("nanousd", pa.int64()),
        ("judged_at", pa.timestamp("us", "UTC")),
        (VERSION, pa.int64()),
        (ROW, pa.int64()),
    ]
)


class JudgedScore(NamedTuple):
    """A judge's score of one answer.

    Attributes:
        response_id: The answer's.
        score: In [0, 1]; 1 is best.
        judge_model: The model that judged.
        judge: Digest of that model's name, the criteria and the prompt.
        reason: In its words.
        version: Of the table, that brought the row.
    """

    response_id: str
    score: float
    judge_model: str
    judge: str
    reason: str
    version: int


def judged_scores(
    table: DayTable, since: int = -1, judge: str | None = None
) -> Iterator[JudgedScore]:
    """Scores that came after a version of the table, in their order.

    Args:
        table: ``Traffic.judged``.
        since: The last version that was read; -1 for all.
        judge: Only of this one's; None for all judges'.

    Raises:
        StoreError: The table cannot be read.
    """
    columns = [*JudgedScore._fields[:-1], "kind", VERSION]
    for batch in table.scan(since, columns=columns):
        kept = pc.and_(pc.equal(batch["kind"], MARK), pc.is_valid(batch["score"]))
        for row in batch.filter(kept).to_pylist():
            if judge in (None, row["judge"]):
                yield JudgedScore(
                    row[RESPONSE_ID],
                    row["score"],
                    row["judge_model"],
                    row["judge"],
                    row["reason"] or "",
                    row[VERSION],
                )
