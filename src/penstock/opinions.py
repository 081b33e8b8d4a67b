"""What people said of a response, and what that comes to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from penstock.tables import ROW, VERSION

OpinionKind = Literal["thumb", "score", "correction"]
KINDS: tuple[OpinionKind, ...] = get_args(OpinionKind)


@dataclass(frozen=True)
class Opinion:
    """One rater's word of one kind about one response.

    Attributes:
        kind: What was said.
        rater: Who said it; the last word of a rater and kind counts.
        score: In [0, 1]; a thumb is 0 or 1, a correction has none.
        text: The corrected answer.
        comment: What else was said.
        tenant: Whose key it came with; None without keys.
        received_at: When.
        place: Version and row in the table: later ones are greater.
    """

    kind: OpinionKind
    rater: str
    score: float | None
    text: str | None
    comment: str | None
    tenant: str | None
    received_at: datetime
    place: tuple[int, int]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Opinion:
        """From a row of the feedback table."""
        said = {key: row[key] for key in cls.__dataclass_fields__ if key != "place"}
        return cls(**said, place=(row[VERSION], row[ROW]))


@dataclass(frozen=True)
class Judgement:
    """What all opinions come to.

    Attributes:
        score: The mean of all that are numbers; None if there is none.
        correction: The last one.
    """

    score: float | None = None
    correction: Opinion | None = None


def counted(
    opinions: Iterable[Opinion], tenant: str | None, reviewers: Collection[str] = ()
) -> list[Opinion]:
    """The opinions that count for a response, in their order.

    An id proves that one has seen a response; whose it is, the log knows. So feedback is
    taken from whoever has an id, and only counts if it came with the key of the tenant
    that asked, or of a reviewer.

    Args:
        opinions: About one response.
        tenant: Who asked.
        reviewers: Tenants that may judge the responses of others.
    """
    kept = (one for one in opinions if one.tenant == tenant or one.tenant in reviewers)
    return sorted(kept, key=lambda one: one.place)


def judged(opinions: Iterable[Opinion]) -> Judgement:
    """Sum up opinions that count, in their order; a rater's last word of each kind holds."""
    last = {(one.tenant, one.rater, one.kind): one for one in opinions}
    scores = [one.score for one in last.values() if one.score is not None]
    corrections = [one for one in last.values() if one.kind == "correction"]
    return Judgement(
        sum(scores) / len(scores) if scores else None,
        max(corrections, key=lambda one: one.place, default=None),
    )
