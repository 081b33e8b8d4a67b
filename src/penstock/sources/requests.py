"""Training rows from requests that people have judged.

The gateway logs requests and keeps feedback in two tables that grow (see ``traffic.py``).
A response whose score is high enough gives a row with its answer, and one that somebody
corrected a row with the correction. A unit is a pair of versions, one of each table, as
one number: what is known at the later pair and was not at the earlier is new.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from penstock.day_tables import RESPONSE_ID, day_of, id_ms
from penstock.errors import SourceError, SourceUnavailable, StoreError
from penstock.folders import Folder, LocalFolder, ObjectFolder
from penstock.opinions import Opinion, counted, judged
from penstock.section import Later
from penstock.sources.base import (
    OFFSET,
    ORIGIN,
    ROW_KEY,
    AnyOptions,
    DeadLetter,
    Fate,
    Options,
    Piece,
    Place,
    Unit,
)
from penstock.tables import VERSION
from penstock.traffic import FOLDER, Traffic

_FEEDBACK_BITS = 32
# Prompts and answers of so many responses are in memory at once.
_AT_ONCE = 1_000
_SCHEMA = pa.schema(
    [
        ("instruction", pa.string()),
        ("response", pa.string()),
        ("messages", pa.string()),
        (RESPONSE_ID, pa.string()),
        ("score", pa.float64()),
        ("origin", pa.string()),
        ("model", pa.string()),
        (ORIGIN, pa.string()),
        (OFFSET, pa.int64()),
        (ROW_KEY, pa.string()),
    ]
)


class RequestsOptions(Options):
    """Which judged responses become rows."""

    store: Annotated[str, Place()] = Field(
        ".penstock", description="The `store` of the recipe that serves, as it is said there."
    )
    min_score: float = Field(
        0.75, ge=0, le=1, description="Mean of scores and thumbs from which an answer is a row."
    )
    corrections: bool = Field(
        True, description="A corrected answer is a row, whatever its score; null scores nothing."
    )
    models: list[str] = Field([], description="Names clients asked for; empty is all.")
    reviewers: list[str] = Field(
        [], description="Tenants whose feedback counts for responses to others."
    )
    max_rows_per_rater: Annotated[int | None, Later()] = Field(
        None,
        ge=1,
        description="Rows that rest on the word of one rater alone, of each rater, that a run "
        "takes; the rest are dead letters. Null: no limit.",
    )
    long_chats: Literal["refuse", "last_turn"] = Field(
        "refuse",
        description="A chat of several user turns makes a dead letter; or a row whose "
        "`instruction` is the last turn alone, with the whole in `messages`.",
    )
    redact: bool = Field(
        True, description="Take out personal data and secrets, also where the log kept them."
    )


class _Point(NamedTuple):
    """A version of each table."""

    log: int
    feedback: int

    @classmethod
    def at(cls, position: int) -> _Point:
        """The versions of a position; those before the first are -1."""
        if position < 0:
            return cls(-1, -1)
        return cls((position >> _FEEDBACK_BITS) - 1, position % 2**_FEEDBACK_BITS - 1)

    @property
    def position(self) -> int:
        """One number, which grows when one of the versions does and none falls."""
        return (self.log + 1) << _FEEDBACK_BITS | (self.feedback + 1)


@dataclass(frozen=True)
class _Verdict:
    """Why a response becomes a row.

    Attributes:
        origin: Whether with its answer or a correction of it.
        score: The mean of all that was said in numbers.
        text: The correction.
        key: Tells this row from others of the same response.
        rater: Whose word it is, with the tenant; None if several have spoken for it.
    """

    origin: Literal["answer", "correction"]
    score: float | None
    text: str | None
    key: str
    rater: tuple[str | None, str] | None


class RequestsSource:
    """Rows of responses that people found good, or corrected."""

    Options: ClassVar[AnyOptions] = RequestsOptions

    def __init__(self, options: RequestsOptions, folder: Path) -> None:
        self._options = options
        self._root = folder / options.store
        self._is_far = "://" in options.store
        store: Folder = ObjectFolder(options.store) if self._is_far else LocalFolder(self._root)
        self._traffic = Traffic(store / FOLDER)
        self._before: tuple[Unit, ...] = ()

    def recall(self, units: Sequence[Unit]) -> None:
        """Take note of what was pinned last: without a new word, there is nothing new."""
        self._before = tuple(units)

    def snapshot(self) -> tuple[Unit, ...]:
        """Pin what was logged and said by now; nothing before the first word."""
        if not self._is_far and not self._root.is_dir():
            raise SourceError(
                f"There is no store at {self._options.store!r}.",
                "Set `store` to what the recipe that serves says.",
            )
        log, feedback = self._traffic.log.standing(), self._traffic.feedback.standing()
        if log is None or feedback is None:
            return ()
        stream = f"{FOLDER}:{log[0]}/{feedback[0]}"
        for unit in self._before:
            if unit.stream == stream and _Point.at(unit.position).feedback == feedback[1]:
                return (unit,)
        return (Unit(stream, _Point(log[1], feedback[1]).position, "requests"),)

    def read(self, unit: Unit) -> Iterator[Piece]:
        """Yield rows of what became good enough, or was corrected, after ``unit.after``."""
        since, upto = _Point.at(unit.after), _Point.at(unit.position)
        self._refuse_another(unit, upto)
        opinions = self._opinions(self._candidates(since, upto), upto)
        taken: Counter[tuple[str | None, str]] = Counter()
        days = groupby(sorted(opinions, key=lambda one: (id_ms(one), one)), key=_day)
        for day, names in days:
            while some := list(islice(names, _AT_ONCE)):
                yield from self._pieces(day, some, opinions, since, upto, taken)

    def stream(self) -> str | None:
        """Names the two tables; None before the first word."""
        return self._traffic.stream()

    def review(self, names: Sequence[str], after: int) -> dict[str, Fate]:
        """What the next run would make of some responses; only theirs is read."""
        since = _Point.at(after)
        fates: dict[str, Fate] = {}
        for day, some in groupby(sorted(set(names), key=id_ms), key=_day):
            found = list(some)
            logged = {
                row[RESPONSE_ID]: row for row in self._traffic.log.find(found, day).to_pylist()
            }
            opinions: dict[str, list[Opinion]] = defaultdict(list)
            for row in self._traffic.feedback.find(found, day).to_pylist():
                opinions[row[RESPONSE_ID]].append(Opinion.of(row))
            fates |= {name: self._fate(logged.get(name), opinions[name], since) for name in found}
        return fates

    def _fate(
        self, request: Mapping[str, Any] | None, opinions: Sequence[Opinion], since: _Point
    ) -> Fate:
        if request is None:
            return Fate(False, "it is not in the request log")
        if request["status"] != 200:
            return Fate(False, f"its request ended with status {request['status']}")
        if not self._is_wanted(request):
            return Fate(False, f"answers of {request['model']} are not taken")
        verdict = next(self._verdicts(request, opinions, since), None)
        if verdict is None:
            return Fate(False, self._why_nothing_new(request, opinions))
        reason = self._misfit(request, verdict)
        if reason is not None:
            return Fate(False, reason)
        limit = self._options.max_rows_per_rater
        alone = f", unless its rater alone has given {limit} rows before it"
        as_what = "the answer" if verdict.origin == "answer" else "the correction"
        return Fate(True, as_what + (alone if limit and verdict.rater else ""))

    def _why_nothing_new(self, request: Mapping[str, Any], opinions: Iterable[Opinion]) -> str:
        said = counted(opinions, request["tenant"], self._options.reviewers)
        if not said:
            return "nobody whose word counts has judged it"
        now = judged(said)
        if now.correction is not None and self._options.corrections:
            return "an earlier run has read the correction"
        if now.score is None:
            return "nobody has scored it, and corrections are not taken"
        if not self._is_good(now.score):
            return f"its score {now.score:.2f} is below {self._options.min_score:g}"
        return "an earlier run has read it"

    def _refuse_another(self, unit: Unit, upto: _Point) -> None:
        if unit.stream != self._traffic.stream():
            raise SourceUnavailable(
                "The request log was deleted, or made anew, since it was pinned.",
                "Run again to read what there is now.",
            )
        if self._traffic.log.version() < upto.log:
            raise StoreError("The request log has lost its newest versions.", "Restore it.")

    def _candidates(self, since: _Point, upto: _Point) -> pa.Array:
        """Responses that were judged, and logged or judged again after ``since``."""
        said = _ids(self._traffic.feedback.scan(upto=upto.feedback, columns=[RESPONSE_ID]))
        newly_said = _ids(
            self._traffic.feedback.scan(since.feedback, upto.feedback, columns=[RESPONSE_ID])
        )
        batches = self._traffic.log.scan(since.log, upto.log, columns=[RESPONSE_ID])
        known = (batch.filter(pc.is_in(batch[RESPONSE_ID], value_set=said)) for batch in batches)
        return pc.unique(pa.concat_arrays([newly_said, _ids(known)]))

    def _opinions(self, names: pa.Array, upto: _Point) -> dict[str, list[Opinion]]:
        out: dict[str, list[Opinion]] = defaultdict(list)
        for batch in self._traffic.feedback.scan(upto=upto.feedback):
            for row in batch.filter(pc.is_in(batch[RESPONSE_ID], value_set=names)).to_pylist():
                out[row[RESPONSE_ID]].append(Opinion.of(row))
        return out

    def _pieces(
        self,
        day: date,
        names: list[str],
        opinions: Mapping[str, list[Opinion]],
        since: _Point,
        upto: _Point,
        taken: Counter[tuple[str | None, str]],
    ) -> Iterator[Piece]:
        position = upto.position
        found = self._traffic.log.find(names, day, upto.log).to_pylist()
        logged = {row[RESPONSE_ID]: row for row in reversed(found)}
        rows = []
        for name in names:
            if name not in logged or not self._is_wanted(logged[name]):
                continue
            for verdict in self._verdicts(logged[name], opinions[name], since):
                reason = self._misfit(logged[name], verdict) or self._too_many(verdict, taken)
                if reason is None:
                    rows.append(_row(logged[name], verdict, position))
                else:
                    yield DeadLetter(_origin(name), reason, "", position)
        if rows:
            yield pa.RecordBatch.from_pylist(self._cleaned(rows), schema=_SCHEMA)

    def _is_wanted(self, request: Mapping[str, Any]) -> bool:
        models = self._options.models
        return request["status"] == 200 and (not models or request["model"] in models)

    def _verdicts(
        self, request: Mapping[str, Any], opinions: Iterable[Opinion], since: _Point
    ) -> Iterator[_Verdict]:
        """What is new about a response; each thing is once, wherever units end."""
        said = counted(opinions, request["tenant"], self._options.reviewers)
        now, name = judged(said), request[RESPONSE_ID]
        was_known = request[VERSION] <= since.log
        correction = now.correction if self._options.corrections else None
        if correction is not None:
            if not was_known or correction.place[0] > since.feedback:
                key = "{}/{}.{}".format(name, *correction.place)
                whose = correction.tenant, correction.rater
                yield _Verdict("correction", now.score, correction.text, key, whose)
        elif self._is_good(now.score) and not (was_known and self._was_good(said, since)):
            raters = {(one.tenant, one.rater) for one in said if one.score is not None}
            by = next(iter(raters)) if len(raters) == 1 else None
            yield _Verdict("answer", now.score, None, name, by)

    def _was_good(self, said: Sequence[Opinion], since: _Point) -> bool:
        """Whether the answer was good enough at any moment until then, and may be a row already."""
        before = [one for one in said if one.place[0] <= since.feedback]
        return any(self._is_good(judged(before[: i + 1]).score) for i in range(len(before)))

    def _is_good(self, score: float | None) -> bool:
        return score is not None and score >= self._options.min_score

    def _misfit(self, request: Mapping[str, Any], verdict: _Verdict) -> str | None:
        """Why a judged response cannot be a row."""
        if request["prompt"] is None:
            return "what was asked is not in the log: serve.log.content was off"
        if verdict.origin == "answer" and request["finish_reason"] != "stop":
            return f"the answer ended early: {request['finish_reason']}"
        turns = json.loads(request["prompt"])
        num_users = sum(turn["role"] == "user" for turn in turns)
        if num_users == 0:
            return "no user said anything"
        if num_users > 1 and self._options.long_chats == "refuse":
            return f"a chat of {num_users} user turns, of which a row holds one"
        return None

    def _too_many(self, verdict: _Verdict, taken: Counter[tuple[str | None, str]]) -> str | None:
        """Why a rater alone cannot have one more row; otherwise it is counted."""
        limit = self._options.max_rows_per_rater
        if limit is None or verdict.rater is None:
            return None
        if taken[verdict.rater] >= limit:
            return f"more than {limit} rows on the word of one rater"
        taken[verdict.rater] += 1
        return None

    def _cleaned(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self._options.redact:
            return [{**row, "messages": _as_json(row["messages"])} for row in rows]
        from penstock.monitoring.redaction import redacted_all

        texts = [turn["content"] for row in rows for turn in row["messages"]]
        clean = iter(redacted_all(texts))
        out = []
        for row in rows:
            turns = [{**turn, "content": next(clean)} for turn in row["messages"]]
            out.append({**row, **_texts(turns), "messages": _as_json(turns)})
        return out


def _row(request: Mapping[str, Any], verdict: _Verdict, position: int) -> dict[str, Any]:
    response = request["answer"] if verdict.text is None else verdict.text
    turns = [*json.loads(request["prompt"]), {"role": "assistant", "content": response or ""}]
    return {
        **_texts(turns),
        "messages": turns,
        RESPONSE_ID: request[RESPONSE_ID],
        "score": verdict.score,
        "origin": verdict.origin,
        "model": request["model"],
        ORIGIN: _origin(request[RESPONSE_ID]),
        OFFSET: position,
        ROW_KEY: verdict.key,
    }


def _texts(turns: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The last thing the user said, and the answer to it."""
    asked = next(turn["content"] for turn in reversed(turns) if turn["role"] == "user")
    return {"instruction": asked, "response": turns[-1]["content"]}


def _as_json(turns: object) -> str:
    return json.dumps(turns, ensure_ascii=False)


def _origin(response_id: str) -> str:
    return f"requests:{response_id}"


def _day(response_id: str) -> date:
    return day_of(id_ms(response_id))


def _ids(batches: Iterable[pa.RecordBatch]) -> pa.Array:
    """The distinct response ids of some rows."""
    columns = [pc.unique(batch[RESPONSE_ID]) for batch in batches]
    ids = pa.concat_arrays([pa.array([], pa.string()), *columns])
    return pc.unique(ids.drop_null())
