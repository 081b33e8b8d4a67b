"""Which answers of the log a judge is asked about, and in which words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import blake2b
from itertools import groupby, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.day_tables import RESPONSE_ID, DayTable, day_of, id_ms
from penstock.judged import MARK, PAIR
from penstock.monitoring.judge_prompts import Turns, question_key

DAY_MS = 86_400_000
_ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions"})
_COLUMNS = (
    *(RESPONSE_ID, "request_id", "endpoint", "status", "shadow", "digest"),
    *("model", "version", "tenant", "conversation", "rollout"),
)
# Of a row of the log, what the judged row says again.
_TOLD = ("tenant", "conversation", "rollout", "model", "version", "digest")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """What may be asked about.

    Attributes:
        row: Of the log: the answer that a client saw.
        other: Of the log: the answer of a shadow to the same request, for a pair.
        sampled: Chosen by chance, not because somebody has scored it.
        done: Orders in which it was asked about: whether the answers were swapped.
    """

    row: Row
    other: Row | None
    sampled: bool
    done: frozenset[bool] = frozenset()

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the responses: one, or two of a pair."""
        first: str = self.row[RESPONSE_ID]
        return (first,) if self.other is None else (first, self.other[RESPONSE_ID])


@dataclass(frozen=True)
class Question:
    """One question to the judge.

    Attributes:
        turns: What was asked.
        answers: In the order in which they are shown.
        key: Names the question.
        row: Columns of the judged table that are known before the reply.
    """

    turns: Turns
    answers: tuple[str, ...]
    key: str
    row: Row


def is_sampled(response_id: str, share: float) -> bool:
    """Whether an answer is in the sample: everywhere the same ones, and not those of the log's."""
    return lot(response_id) < share * 2**64


def lot(response_id: str) -> int:
    """A place by chance that is always the same, below 2 to the 64."""
    drawn = blake2b(response_id.encode(), digest_size=8, person=b"judge").digest()
    return int.from_bytes(drawn)


def answered(
    log: DayTable, start_ms: int, end_ms: int, digests: Collection[str]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Generated answers of a span, day by day, the newest day first.

    Args:
        log: The request log.
        start_ms: The first millisecond, Unix.
        end_ms: The first one after the span.
        digests: Of the versions whose answers count.

    Yields:
        Rows of answers that clients saw, and of shadows of any model.
    """
    while start_ms < end_ms:
        begin_ms = max(start_ms, (end_ms - 1) // DAY_MS * DAY_MS)
        rows = log.between(begin_ms, end_ms, _COLUMNS)
        end_ms = begin_ms
        if rows.num_rows:
            kept = pc.and_(pc.equal(rows["status"], 200), _is_in(rows["endpoint"], _ENDPOINTS))
            rows = rows.filter(kept)
            ours = pc.and_(pc.invert(rows["shadow"]), _is_in(rows["digest"], digests))
            yield rows.filter(ours), rows.filter(rows["shadow"])


def sampled(rows: pa.Table, share: float) -> list[Candidate]:
    """Answers that the sample has, newest first."""
    drawn = [is_sampled(name, share) for name in rows[RESPONSE_ID].to_pylist()]
    found = rows.filter(pa.array(drawn, pa.bool_())).to_pylist()
    return [Candidate(row, None, True) for row in sorted(found, key=_newest)]


def labelled(
    log: DayTable, ids: Collection[str], digests: Collection[str], share: float
) -> list[Candidate]:
    """Answers that people have scored, newest first."""
    rows = [
        row
        for day, names in _by_day(ids)
        for row in log.find(names, day).to_pylist()
        if row["status"] == 200
        and row["endpoint"] in _ENDPOINTS
        and not row["shadow"]
        and row["digest"] in digests
    ]
    found = [{name: row[name] for name in _COLUMNS} for row in rows]
    return [
        Candidate(row, None, is_sampled(row[RESPONSE_ID], share))
        for row in sorted(found, key=_newest)
    ]


def by_turns(first: Sequence[Candidate], second: Sequence[Candidate]) -> list[Candidate]:
    """One of each by turns: many of one kind must not take the whole budget."""
    mixed = zip_longest(first, second)
    return [one for both in mixed for one in both if one is not None]


def pairs(rows: pa.Table, shadows: pa.Table, share: float) -> list[Candidate]:
    """Answers with that of a shadow to the same request; clients' own ids may stand for several."""
    copies = Counter(shadows["request_id"].to_pylist())
    twins = {row["request_id"]: row for row in shadows.to_pylist()}
    seen = rows.filter(_is_in(rows["request_id"], twins)).to_pylist()
    times = Counter(row["request_id"] for row in seen)
    return [
        Candidate(row, twins[row["request_id"]], True)
        for row in sorted(seen, key=_newest)
        if times[row["request_id"]] == copies[row["request_id"]] == 1
        and is_sampled(row[RESPONSE_ID], share)
    ]


def questions(
    log: DayTable, candidates: Sequence[Candidate], judge: str, max_characters: int
) -> Iterator[list[Question] | None]:
    """What to ask about each candidate, in order.

    Args:
        log: The request log.
        candidates: Some, whose texts are read at once.
        judge: Its digest.
        max_characters: Of what was asked and answered.

    Yields:
        One question; two for a pair, in both orders; none where the log holds no text; None
        for what is too long.
    """
    texts = _texts(log, [name for one in candidates for name in one.ids])
    for one in candidates:
        found = [texts[name] for name in one.ids if name in texts]
        asked = {prompt for prompt, _ in found}
        answers = tuple(answer for _, answer in found)
        if len(found) < len(one.ids) or len(asked) > 1:  # or two requests under one id
            yield []
        elif sum(map(len, (*asked, *answers))) > max_characters:
            yield None
        else:
            turns, orders = json.loads(asked.pop()), (False, True)[: len(answers)]
            yield [
                _question(one, turns, answers, judge, swapped)
                for swapped in orders
                if swapped not in one.done
            ]


def _question(
    one: Candidate, turns: Turns, answers: tuple[str, ...], judge: str, swapped: bool
) -> Question:
    shown = answers[::-1] if swapped else answers
    row = {RESPONSE_ID: one.row[RESPONSE_ID], "sampled": one.sampled, "swapped": swapped}
    row |= {name: one.row[name] for name in _TOLD} | {"kind": MARK}
    if one.other is not None:
        row |= {"kind": PAIR, "other_id": one.other[RESPONSE_ID]}
        row |= {f"other_{name}": one.other[name] for name in ("model", "version")}
    return Question(turns, shown, question_key(judge, turns, shown), row)


def _texts(log: DayTable, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What was asked, as turns in JSON, and answered, by response id."""
    found = {}
    for day, names in _by_day(ids):
        for row in log.find(names, day).to_pylist():
            if row["prompt"] and (row["answer"] or "").strip():
                found[row[RESPONSE_ID]] = (row["prompt"], row["answer"])
    return found


def _by_day(ids: Iterable[str]) -> Iterator[tuple[date, list[str]]]:
    for day, names in groupby(sorted(ids, key=id_ms), key=lambda name: day_of(id_ms(name))):
        yield day, list(names)


def _is_in(column: Any, values: Iterable[str]) -> Any:
    return pc.is_in(column, pa.array(list(values), pa.string()))


def _newest(row: Row) -> int:
    return -id_ms(row[RESPONSE_ID])
