"""What people made of each version's answers, by the last opinions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from penstock.day_tables import RESPONSE_ID, day_of, id_ms
from penstock.gates.shifts import share_interval
from penstock.ledger import ModelVersion
from penstock.opinions import Opinion, counted, judged
from penstock.serving.response_id import DIGEST_PREFIX_LENGTH
from penstock.traffic import Traffic

# What was said in words is not read.
_SAID = (RESPONSE_ID, "kind", "rater", "score", "tenant", "received_at")
_NO_WORDS = {"text": None, "comment": None}


@dataclass(frozen=True)
class VersionScore:
    """Opinions about one version's answers; answers count, not opinions.

    Attributes:
        version: Which.
        num_scored: Answers with a score.
        num_good: Of these, those with a mean score that is high enough.
        mean: Of the scores; None without any.
        share: Wilson's 95 % interval of the share that is good.
        num_corrected: Answers that somebody corrected.
    """

    version: int
    num_scored: int
    num_good: int
    mean: float | None
    share: tuple[float, float]
    num_corrected: int


@dataclass(frozen=True)
class Scores:
    """Opinions by version.

    Attributes:
        versions: The newest first.
        num_opinions: How many were looked at: the last ones.
        num_left_out: Answers with opinions that do not count, or that are not in the log, or
            of other models.
    """

    versions: tuple[VersionScore, ...]
    num_opinions: int
    num_left_out: int


def version_scores(
    traffic: Traffic,
    models: Iterable[ModelVersion],
    limit: int,
    min_score: float,
    reviewers: Collection[str] = (),
) -> Scores:
    """Sum up the last opinions by the version whose answers they are about.

    Args:
        traffic: The log and the feedback.
        models: Versions of one model.
        limit: Of opinions; no more are read.
        min_score: From which mean score an answer is good.
        reviewers: Tenants whose opinions count for answers to others.
    """
    versions = {one.digest[:DIGEST_PREFIX_LENGTH]: one.version for one in models}
    rows = traffic.feedback.newest(limit, _SAID)
    said: dict[str, list[Opinion]] = defaultdict(list)
    for row in rows:
        said[row[RESPONSE_ID]].append(Opinion.of({**row, **_NO_WORDS}))
    ours = [name for name in said if _prefix(name) in versions]
    asked_by = _tenants(traffic, ours)
    kept: dict[int, list[list[Opinion]]] = defaultdict(list)
    for name in ours:
        opinions = counted(said[name], asked_by[name], reviewers) if name in asked_by else []
        if opinions:
            kept[versions[_prefix(name)]].append(opinions)
    scores = [_score(version, kept[version], min_score) for version in sorted(kept, reverse=True)]
    return Scores(tuple(scores), len(rows), len(said) - sum(map(len, kept.values())))


def _score(version: int, answers: Sequence[list[Opinion]], min_score: float) -> VersionScore:
    judgements = [judged(opinions) for opinions in answers]
    scores = [one.score for one in judgements if one.score is not None]
    num_good = sum(score >= min_score for score in scores)
    return VersionScore(
        version,
        len(scores),
        num_good,
        sum(scores) / len(scores) if scores else None,
        share_interval(num_good, len(scores)),
        sum(one.correction is not None for one in judgements),
    )


def _tenants(traffic: Traffic, names: Sequence[str]) -> dict[str, str | None]:
    """Who asked, of answers that are in the log."""
    found: dict[str, Any] = {}
    for day, some in groupby(sorted(names, key=id_ms), key=lambda name: day_of(id_ms(name))):
        rows: Sequence[Mapping[str, Any]] = traffic.log.find(
            list(some), day, columns=["tenant"]
        ).to_pylist()
        found |= {row[RESPONSE_ID]: row["tenant"] for row in rows}
    return found


def _prefix(response_id: str) -> str:
    return response_id.split("-")[-2]
