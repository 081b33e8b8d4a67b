"""Attaching scores to traces, in the form each tool's documentation asks for.

What a tool is sent is made by a pure function; a class for each tool sends it. All of
them may be sent the same score again: it has an id, and appears once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from penstock.day_tables import id_ms
from penstock.errors import RecipeError
from penstock.monitoring.score_calls import ScoreCalls
from penstock.monitoring.scores import Score
from penstock.monitoring.trace_targets import Target
from penstock.monitoring.traces import root_span_number
from penstock.traces_section import Destination

if TYPE_CHECKING:
    import httpx

_PHOENIX_AT_ONCE = 100
_MOST_CHARS = 300
NOT_THERE = "its trace is not there yet"


class Traced(NamedTuple):
    """A score, and the trace it belongs to: 32 hex digits."""

    score: Score
    trace_id: str


@dataclass(frozen=True)
class Problem:
    """A score that was not taken.

    Attributes:
        score: Which.
        reason: Why, without what anybody wrote.
        refused: The tool will never take it as it is.
    """

    score: Score
    reason: str = NOT_THERE
    refused: bool = False


class ScoreTarget(Protocol):
    """A tool that shows scores beside traces."""

    def send(self, scores: Sequence[Traced]) -> list[Problem]:
        """Have scores shown; returns those that are not.

        Raises:
            ScoresNotSent: The tool does not answer, or does not let us in.
        """
        ...


def score_target(
    to: Destination, target: Target, project: str | None
) -> Callable[[ScoreCalls], ScoreTarget]:
    """What attaches scores, once it is given the tool's calls.

    Args:
        to: Which tool.
        target: Where its traces go.
        project: Its project, by name.

    Raises:
        RecipeError: It has no place for scores.
    """
    if to == "phoenix":
        return PhoenixScores
    if to == "langfuse":
        return LangfuseScores
    if to == "langsmith":
        name = project or target.headers.get("langsmith-project") or "default"
        return lambda calls: LangSmithScores(calls, name)
    raise RecipeError(
        f"serve.traces.to is {to!r}, and OTLP has no place for scores.",
        "Scores go to phoenix, langfuse or langsmith.",
    )


# -- Phoenix ---------------------------------------------------------------------


def phoenix_annotation(one: Traced) -> dict[str, Any]:
    """An element of ``data`` of ``POST /v1/trace_annotations``.

    Documented at https://arize.com/docs/phoenix/sdk-api-reference/rest-api, "Create trace
    annotations": updated by name, trace and identifier.
    """
    score = one.score
    said = "\n\n".join(text for text in (score.comment, score.correction) if text)
    result = {"score": score.value, "label": score.label, "explanation": said or None}
    return {
        "trace_id": one.trace_id,
        "name": score.name,
        "annotator_kind": score.annotator,
        "identifier": str(score.id),
        "result": {name: value for name, value in result.items() if value is not None},
        "metadata": _metadata(score),
    }


class PhoenixScores:
    """Phoenix takes many at once, or none if one trace is missing: then the rest goes alone."""

    def __init__(self, calls: ScoreCalls) -> None:
        self._calls = calls

    def send(self, scores: Sequence[Traced]) -> list[Problem]:
        """Have scores shown; returns those that are not."""
        problems: list[Problem] = []
        for start in range(0, len(scores), _PHOENIX_AT_ONCE):
            problems += self._send(scores[start : start + _PHOENIX_AT_ONCE])
        return problems

    def _send(self, scores: Sequence[Traced]) -> list[Problem]:
        if not scores:
            return []
        body = {"data": [phoenix_annotation(one) for one in scores]}
        # Without `sync`, annotations of unknown traces are taken and thrown away.
        answer = self._calls.post(
            "/v1/trace_annotations", body, {"sync": "true"}, also=(400, 404, 422)
        )
        if answer.is_success:
            self._calls.field_of(answer, "data")
            return []
        if answer.status_code == 404:
            return self._without_missing(scores, answer)
        if len(scores) == 1:
            return [_refused(scores[0], answer)]
        middle = len(scores) // 2
        return self._send(scores[:middle]) + self._send(scores[middle:])

    def _without_missing(self, scores: Sequence[Traced], answer: httpx.Response) -> list[Problem]:
        missing = [one for one in scores if one.trace_id in answer.text]
        if not missing:
            raise self._calls.unexpected(answer)
        rest = [one for one in scores if one.trace_id not in answer.text]
        return [Problem(one.score) for one in missing] + self._send(rest)


# -- Langfuse --------------------------------------------------------------------


def langfuse_score(one: Traced) -> dict[str, Any]:
    """The body of ``POST /api/public/scores``.

    Documented at https://api.reference.langfuse.com and under "Scores via API/SDK": a score
    with the same id, name and day is the same, so its time is that of the response.
    """
    score = one.score
    given = datetime.fromtimestamp(id_ms(score.response_id) / 1000, UTC)
    said = "\n\n".join(text for text in (score.comment, score.correction) if text)
    body = {
        "id": str(score.id),
        "traceId": one.trace_id,
        "name": score.name,
        "timestamp": given.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "metadata": _metadata(score),
        **_langfuse_value(score),
    }
    # What is left out of a later word would stay as it was.
    return body | ({"comment": said} if said or score.changed else {})


def _langfuse_value(score: Score) -> dict[str, Any]:
    if score.value is None:
        return {"value": score.label or "", "dataType": "CATEGORICAL"}
    if score.is_yes_or_no:
        return {"value": int(score.value), "dataType": "BOOLEAN"}
    return {"value": score.value, "dataType": "NUMERIC"}


class LangfuseScores:
    """Langfuse takes scores one by one, also of traces that it does not know yet."""

    def __init__(self, calls: ScoreCalls) -> None:
        self._calls = calls

    def send(self, scores: Sequence[Traced]) -> list[Problem]:
        """Have scores shown; returns those that are not."""
        problems = []
        for one in scores:
            answer = self._calls.post(
                "/api/public/scores", langfuse_score(one), also=(400, 413, 422)
            )
            if answer.is_success:
                self._calls.field_of(answer, "id")
            else:
                problems.append(_refused(one, answer))
        return problems


# -- LangSmith -------------------------------------------------------------------


def langsmith_feedback(one: Traced, session_id: str) -> dict[str, Any]:
    """The body of ``POST /feedback``.

    Documented at https://docs.langchain.com/langsmith/smith-api/feedback/create-feedback. The
    run is the one made of the gateway's own span: LangSmith derives its id from the span's.

    Args:
        one: The score.
        session_id: The id of the project.
    """
    score = one.score
    run = uuid.UUID(int=root_span_number(score.response_id[-32:]))
    kind = "api" if score.annotator == "HUMAN" else "model"
    return {
        "id": str(score.id),
        "run_id": str(run),
        "session_id": session_id,
        "key": score.name,
        "feedback_source": {"type": kind, "metadata": _metadata(score)},
        **{name: value for name, value in _langsmith_words(score).items() if value is not None},
    }


def _langsmith_words(score: Score) -> dict[str, Any]:
    """What a later word may change, or take back. More than four decimals are refused."""
    return {
        "score": None if score.value is None else round(score.value, 4),
        "value": score.label,
        "comment": score.comment,
        "correction": {"answer": score.correction} if score.correction else None,
    }


class LangSmithScores:
    """LangSmith takes scores one by one, of runs that it knows."""

    def __init__(self, calls: ScoreCalls, project: str) -> None:
        self._calls = calls
        self._project = project
        self._session_id: str | None = None

    def send(self, scores: Sequence[Traced]) -> list[Problem]:
        """Have scores shown; returns those that are not."""
        session_id = self._session() if scores else None
        if session_id is None:
            return [Problem(one.score) for one in scores]
        sent = ((one, self._send(one, session_id)) for one in scores)
        return [problem for one, answer in sent for problem in _langsmith_problem(one, answer)]

    def _session(self) -> str | None:
        """The id of the project, which is there from its first trace on."""
        if self._session_id is None:
            named = {"name": self._project, "limit": "1"}
            self._session_id = self._calls.field_of(self._calls.get("/sessions", named), "id")
        return self._session_id

    def _send(self, one: Traced, session_id: str) -> httpx.Response:
        if one.score.changed:
            answer = self._change(one)
            if answer.status_code != 404:
                return answer
        body = langsmith_feedback(one, session_id)
        answer = self._calls.post("/feedback", body, also=(400, 404, 409, 413, 422))
        return self._change(one) if answer.status_code == 409 else answer

    def _change(self, one: Traced) -> httpx.Response:
        words = _langsmith_words(one.score)
        path = f"/feedback/{one.score.id}"
        return self._calls.patch(path, words, also=(400, 404, 413, 422))


def _langsmith_problem(one: Traced, answer: httpx.Response) -> list[Problem]:
    if answer.is_success:
        return []
    return [Problem(one.score) if answer.status_code == 404 else _refused(one, answer)]


# -- all -------------------------------------------------------------------------


def _metadata(score: Score) -> Mapping[str, str]:
    return {"response_id": score.response_id, **dict(score.about)}


def _refused(one: Traced, answer: httpx.Response) -> Problem:
    # A receiver may repeat in its answer what it was sent, so none of it is shown.
    return Problem(one.score, f"it was refused with status {answer.status_code}", refused=True)
