"""Scores of responses: what people, or a model that judges, said of them, ready to be sent on.

Every source of scores is a table of rows by day and a function that reads one row. A
score has an id of its own that a later word of the same rater has too: who receives both
shows the later one, and one that is sent twice appears once.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from penstock.day_tables import RESPONSE_ID, DayTable, day_of, id_ms
from penstock.judged import MARK
from penstock.tables import VERSION
from penstock.traffic import Traffic

# Never to be changed: ids of what was sent before would be others.
_NAMESPACE = uuid.UUID("5b0f6a5e-6d0b-4d6e-9a53-2f3c7a3f9f10")
_AT_ONCE = 500


@dataclass(frozen=True)
class Score:
    """One thing that was said of one response.

    Attributes:
        response_id: Of which.
        name: What was judged, as receivers show it.
        by: Who said it, as one text: tells scores of one name apart.
        annotator: A person or a model.
        value: In [0, 1]; None for what is no number.
        is_yes_or_no: The value is 0 or 1 and nothing between.
        label: In words, where there is no number.
        correction: What the answer should have been.
        comment: What else was said.
        about: Who said it, for people who look at it.
        changed: It is not the first word of this rater.
    """

    response_id: str
    name: str
    by: str
    annotator: Literal["HUMAN", "LLM"]
    value: float | None = None
    is_yes_or_no: bool = False
    label: str | None = None
    correction: str | None = None
    comment: str | None = None
    about: tuple[tuple[str, str], ...] = ()
    changed: bool = False

    @property
    def id(self) -> uuid.UUID:
        """The same for every word of one rater on one thing about one response."""
        return uuid.uuid5(_NAMESPACE, json.dumps([self.response_id, self.name, self.by]))


class ScoreTable:
    """A source of scores.

    Args:
        name: What it is called where it is noted how far it was sent.
        table: Its rows.
        read: Makes a score of a row; None of one that says nothing.
    """

    def __init__(
        self, name: str, table: DayTable, read: Callable[[Mapping[str, Any]], Score | None]
    ) -> None:
        self.name = name
        self._table = table
        self._read = read

    def standing(self) -> tuple[str, int] | None:
        """The table's own id and its last version with rows; None before the first."""
        return self._table.standing()

    def responses(self, after: int, upto: int) -> list[str]:
        """Responses of which something was said in these versions, by the time of their ids."""
        found: set[str] = set()
        for batch in self._table.scan(after, upto, [RESPONSE_ID]):
            found.update(batch[RESPONSE_ID].to_pylist())
        return sorted(found, key=lambda one: (id_ms(one), one))

    def last_words(
        self, response_ids: Sequence[str], after: int = -1
    ) -> Iterator[tuple[list[str], list[Score]]]:
        """The last word of each rater on some responses, some hundred responses at a time.

        Args:
            response_ids: By the time of their ids.
            after: Only words that a later version brought.

        Yields:
            Responses, and the scores of these.
        """
        for day, names in groupby(response_ids, key=lambda one: day_of(id_ms(one))):
            rest = list(names)
            for start in range(0, len(rest), _AT_ONCE):
                some = rest[start : start + _AT_ONCE]
                yield some, self._last(self._table.find(some, day).to_pylist(), after)

    def _last(self, rows: Sequence[Mapping[str, Any]], after: int) -> list[Score]:
        last: dict[uuid.UUID, tuple[Score, int]] = {}
        for row in rows:
            if (score := self._read(row)) is not None:
                changed = score.id in last
                last[score.id] = replace(score, changed=changed), row[VERSION]
        return [score for score, version in last.values() if version > after]


def feedback_scores(traffic: Traffic) -> ScoreTable:
    """What people said: thumbs, scores and corrections."""
    return ScoreTable("feedback", traffic.feedback, _of_opinion)


def _of_opinion(row: Mapping[str, Any]) -> Score:
    kind, tenant, rater = row["kind"], row["tenant"], row["rater"]
    about = {"rater": rater, "tenant": tenant}
    return Score(
        response_id=row[RESPONSE_ID],
        name=f"user_{kind}",
        by=json.dumps([tenant, rater]),
        annotator="HUMAN",
        value=row["score"],
        is_yes_or_no=kind == "thumb",
        label="corrected" if kind == "correction" else None,
        correction=row["text"],
        comment=row["comment"],
        about=tuple((name, value) for name, value in about.items() if value),
    )


def judges_scores(traffic: Traffic) -> ScoreTable:
    """What judges said of single answers; pairs are of two."""
    return ScoreTable("judged", traffic.judged, _of_judge)


def _of_judge(row: Mapping[str, Any]) -> Score | None:
    if row["kind"] != MARK or row["score"] is None:
        return None
    return Score(
        response_id=row[RESPONSE_ID],
        name="judge",
        by=row["judge"],
        annotator="LLM",
        value=row["score"],
        comment=row["reason"],
        about=(("judge_model", row["judge_model"]), ("judge", row["judge"][:16])),
    )
