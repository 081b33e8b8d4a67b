"""What people said of answers, beside the answers, and what the next run makes of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from penstock.day_tables import RESPONSE_ID, day_of, id_ms
from penstock.errors import PenstockError
from penstock.monitoring.logged_texts import last_asked
from penstock.monitoring.redaction import redacted_all
from penstock.pipeline import Pipeline
from penstock.sources.base import Fate, Reviews
from penstock.stages.ingest import reach
from penstock.traffic import Traffic

_CHARACTERS = 1_000
_LOGGED = ("model", "version", "status", "prompt", "answer")
_TEXTS = ("rater", "text", "comment")


@dataclass(frozen=True)
class Reviewed:
    """One response that somebody judged.

    Attributes:
        response_id: Its id.
        request: Model, version and status, if it is in the log.
        asked: What the user said last; cut short, without personal data, empty if not kept.
        answer: What was answered, likewise.
        opinions: The last ones about it, newest first, their texts likewise.
        fates: Source -> what its next run makes of it.
    """

    response_id: str
    request: Mapping[str, Any] | None
    asked: str
    answer: str
    opinions: Sequence[Mapping[str, Any]]
    fates: Mapping[str, Fate]


@dataclass(frozen=True)
class Review:
    """The last opinions.

    Attributes:
        responses: What they are about, the one with the newest first.
        sources: Names of the recipe's sources that read this project's feedback.
    """

    responses: tuple[Reviewed, ...]
    sources: tuple[str, ...]


def review(pipeline: Pipeline, limit: int) -> Review:
    """Look the last opinions over; no more than their responses are read.

    Args:
        pipeline: The project.
        limit: Of opinions.
    """
    traffic = Traffic.of(pipeline.store)
    said: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in traffic.feedback.newest(limit):
        said[row[RESPONSE_ID]].append(row)
    names = list(said)
    logged = _logged(traffic, names)
    fates = _fates(pipeline, traffic, names)
    texts = [text for name in names for text in _texts(logged.get(name), said[name])]
    # Cut twice, for what is cut in the middle is no longer known for an address.
    clean = iter(map(_short, redacted_all([text[: 2 * _CHARACTERS] for text in texts])))
    responses = []
    for name in names:
        asked, answer = next(clean), next(clean)
        opinions = [{**row, **{key: next(clean) for key in _TEXTS}} for row in said[name]]
        known = {source: found[name] for source, found in fates.items()}
        responses.append(Reviewed(name, logged.get(name), asked, answer, opinions, known))
    return Review(tuple(responses), tuple(fates))


def _logged(traffic: Traffic, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for day, some in groupby(sorted(names, key=id_ms), key=lambda name: day_of(id_ms(name))):
        for row in traffic.log.find(list(some), day, columns=_LOGGED).to_pylist():
            found.setdefault(row[RESPONSE_ID], row)
    return found


def _fates(
    pipeline: Pipeline, traffic: Traffic, names: Sequence[str]
) -> dict[str, Mapping[str, Fate]]:
    """What each source that reads this project's feedback makes of responses."""
    recipe, found = pipeline.recipe, {}
    here = traffic.stream()
    for name, config in recipe.sources.items():
        if config.type != "requests":
            continue  # others may need libraries that are not here
        adapter, options = recipe.plugin("sources", config)
        source = adapter(options, recipe.folder)
        if isinstance(source, Reviews) and here is not None and _reads(source, here):
            after = reach(recipe, pipeline.store, name)(here)
            found[name] = source.review(names, after)
    return found


def _reads(source: Reviews, stream: str) -> bool:
    try:
        return source.stream() == stream
    except PenstockError:  # it reads another store, which cannot be reached now
        return False


def _texts(request: Mapping[str, Any] | None, opinions: Sequence[Mapping[str, Any]]) -> list[str]:
    """All that somebody wrote, in the order in which it is taken up again."""
    asked = "" if request is None else last_asked(request["prompt"]) or ""
    answer = "" if request is None else request["answer"] or ""
    return [asked, answer, *(row[key] or "" for row in opinions for key in _TEXTS)]


def _short(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"
