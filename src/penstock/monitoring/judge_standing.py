"""What a judge's marks come to: beside people's, for each version, and where they may count.

A judge that does not agree with people counts nowhere: its marks enter no rollout, and
raise no alarm.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

from penstock.artifacts import digest_of
from penstock.day_tables import RESPONSE_ID, day_of, id_ms
from penstock.gates.agreement import Calibration, Standing, calibrate, krippendorff_alpha
from penstock.gates.quality import FIRST_LOOK, GoodShare, Preference, looks, worse_p
from penstock.judged import MARK, PAIR
from penstock.ledger.alarms import Alarm, AlarmRecord, Alarms
from penstock.ledger.records import Move
from penstock.ledger.rollouts import Rollouts
from penstock.monitoring.judge import Judge
from penstock.monitoring.judge_questions import lot
from penstock.monitoring.judge_work import Outcome
from penstock.opinions import Opinion, counted, judged
from penstock.stages.base import Progress
from penstock.tables import ROW, VERSION

_COLUMNS = (
    *(RESPONSE_ID, "score", "sampled", "tenant", "conversation", "rollout", "version"),
    *(VERSION, ROW),
)
_SIDES = ("model", "version", "other_model", "other_version")
_RATED = (RESPONSE_ID, "tenant", "rater", "kind", "score", VERSION, ROW)

Marked = Mapping[str, Any]


class Labels(NamedTuple):
    """What people said of answers that the judge has marked.

    Attributes:
        scores: By response id, in [0, 1].
        left_out: Answers of which only raters have spoken who had spoken too often.
    """

    scores: Mapping[str, float]
    left_out: int


@dataclass(frozen=True)
class Raters:
    """How far people agree about the same answers.

    Attributes:
        alpha: Krippendorff's; None where there is nothing to tell it by.
        num_answers: That at least two have scored.
        num_raters: Who have scored them.
    """

    alpha: float | None
    num_answers: int
    num_raters: int


def run_and_settle(judge: Judge, progress: Progress) -> Outcome:
    """Judge what was sampled, and let marks count where they may: in a rollout, in an alarm.

    Raises:
        PenstockError: As ``Judge.run``; what was judged before counts all the same.
    """
    outcome, num_counted = Outcome(), 0
    try:
        outcome = judge.run(progress=progress)
    finally:
        rows = marked(judge)
        standing = calibration(judge, rows, labels(judge, rows)).standing
        look(judge, rows, standing)
        num_counted = count_in_rollouts(judge, rows, standing)
    return replace(outcome, counted=num_counted)


def marked(judge: Judge) -> list[Marked]:
    """Answers with a mark, once each, in the order in which they got it."""
    rows = [row for row in judge.rows(MARK, _COLUMNS) if row["score"] is not None]
    rows.sort(key=lambda row: (row[VERSION], row[ROW]))
    first: dict[str, Marked] = {}
    for row in rows:
        first.setdefault(row[RESPONSE_ID], row)
    return list(first.values())


def labels(judge: Judge, rows: Iterable[Marked]) -> Labels:
    """What people said of marked answers; of one rater no more than the recipe allows."""
    tenants = {row[RESPONSE_ID]: row["tenant"] for row in rows}
    limit, reviewers = judge.section.max_labels_per_rater, judge.section.reviewers
    taken: Counter[tuple[str | None, str]] = Counter()
    scores: dict[str, float] = {}
    left_out = 0
    said = _opinions(judge, tenants)
    for name in sorted(said, key=lot):
        theirs = [
            one for one in counted(said[name], tenants[name], reviewers) if one.score is not None
        ]
        heard = [one for one in theirs if taken[one.tenant, one.rater] < limit]
        score = judged(heard).score
        left_out += bool(theirs) and score is None
        if score is not None:
            scores[name] = score
            taken.update({(one.tenant, one.rater) for one in heard})
    return Labels(scores, left_out)


def calibration(judge: Judge, rows: Iterable[Marked], said: Labels) -> Calibration:
    """Whether judge and people call the same answers good."""
    table, section = [[0, 0], [0, 0]], judge.section
    for row in rows:
        label = said.scores.get(row[RESPONSE_ID])
        if label is not None:
            table[row["score"] >= section.good_from][label >= section.good_from] += 1
    return calibrate(table, section.min_labels, section.min_kappa)


def quality(judge: Judge, rows: Iterable[Marked]) -> dict[int, GoodShare]:
    """The share of good answers by version: of sampled ones, one of each conversation."""
    by_version: dict[int, list[bool]] = defaultdict(list)
    for row in _independent(rows):
        by_version[row["version"]].append(row["score"] >= judge.section.good_from)
    return {version: GoodShare.of(each) for version, each in sorted(by_version.items())}


def raters(judge: Judge, now_s: float | None = None) -> Raters:
    """How far people agree, over the feedback of the days that the judge looks at."""
    prefixes = {digest[:16] for digest in judge.digests}
    last: dict[str, dict[tuple[Any, ...], float]] = defaultdict(dict)
    rows = judge.traffic.feedback.between(*judge.span(now_s), _RATED).to_pylist()
    for row in sorted(rows, key=lambda row: (row[VERSION], row[ROW])):
        if row["score"] is not None and row[RESPONSE_ID].split("-")[1] in prefixes:
            last[row[RESPONSE_ID]][row["tenant"], row["rater"], row["kind"]] = row["score"]
    units: list[dict[tuple[Any, ...], float]] = []
    for said in last.values():
        by_rater: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for (*who, _), score in said.items():
            by_rater[tuple(who)].append(score)
        if len(by_rater) > 1:
            units.append({who: sum(some) / len(some) for who, some in by_rater.items()})
    alpha = krippendorff_alpha([list(unit.values()) for unit in units])
    return Raters(alpha, len(units), len({who for unit in units for who in unit}))


def preferences(judge: Judge) -> dict[tuple[str, str], Preference]:
    """Which version is preferred, by the names of what users saw and of the shadow."""
    columns = (RESPONSE_ID, "other_id", "swapped", "score", *_SIDES)
    both: dict[tuple[str, str], dict[bool, Any]] = defaultdict(dict)
    for row in judge.rows(PAIR, columns):
        both[row[RESPONSE_ID], row["other_id"]].setdefault(row["swapped"], row)
    scores: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for orders in both.values():
        values = [row["score"] for row in orders.values() if row["score"] is not None]
        if len(values) == 2:
            row = orders[False]
            seen = f"{row['model']} version {row['version']}"
            shadow = f"{row['other_model']} version {row['other_version']}"
            scores[seen, shadow].append((values[0], values[1]))
    return {sides: Preference.of(each) for sides, each in sorted(scores.items())}


def count_in_rollouts(judge: Judge, rows: Iterable[Marked], standing: Standing) -> int:
    """Let marks of answers on trial count there; those that came since it was last done.

    Returns:
        How many entered an open rollout. None do before the judge counts.
    """
    if standing is not Standing.COUNTS:
        return 0
    key = f"judge-counted/{judge.recipe.name}/{judge.digest}"
    since = judge.ledger.watermark(key)
    fresh = [row for row in rows if since is None or row[VERSION] > since]
    rollouts = Rollouts(judge.ledger.database)
    open_ = {one.id for one in rollouts.open_ones()}
    counts = [
        rollouts.score(row[RESPONSE_ID][-32:], row["score"])
        for row in fresh
        if row["sampled"] and row["rollout"] in open_
    ]
    if fresh:
        judge.ledger.set_watermark(key, max(row[VERSION] for row in fresh))
    return sum(counts)


def look(judge: Judge, rows: Sequence[Marked], standing: Standing) -> AlarmRecord | None:
    """Raise an alarm if fewer answers are good since the last promotion than before it.

    Each look is taken once, on the first so many answers that were judged, and its result
    stands; see ``gates.quality.looks``.

    Returns:
        The alarm, which may be an old one; None if there is nothing to say, or the judge
        does not count.
    """
    moves = judge.ledger.history(judge.recipe.model_name, judge.recipe.deploy.alias)
    if standing is not Standing.COUNTS or not moves or moves[-1].from_version is None:
        return None
    move = moves[-1]
    before, after = _sides(judge, rows, move)
    if len(before) < FIRST_LOOK:
        return None
    section = judge.section
    series = digest_of([judge.recipe.name, judge.digest, section.good_from, move.epoch])[:40]
    for size, level in looks(len(after), section.alpha):
        found = judge.ledger.pin(f"judge-look/{series}/{size}", _look(before, after[:size]))
        if found["p"] <= level:
            key = f"version {move.to_version}, move {move.epoch}, after {size} answers"
            evidence = {**found, "level": level, "judge": section.model}
            alarm = Alarm(judge.recipe.name, "quality", key, time.time(), evidence=evidence)
            return Alarms(judge.ledger).raise_(alarm)
    return None


# -- inside ------------------------------------------------------------------


def _sides(judge: Judge, rows: Iterable[Marked], move: Move) -> tuple[list[bool], list[bool]]:
    """Whether answers were good: of the version before a move, and of the one since then."""
    before: list[bool] = []
    after: list[bool] = []
    for row in _independent(rows):
        is_late = id_ms(row[RESPONSE_ID]) >= 1000 * move.at_s
        side = after if is_late else before
        if row["version"] == (move.to_version if is_late else move.from_version):
            side.append(row["score"] >= judge.section.good_from)
    return before, after


def _look(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    old, new = GoodShare.of(before), GoodShare.of(after)
    return {
        "p": worse_p(old, new),
        "good_before": old.good,
        "num_before": old.num,
        "good_after": new.good,
        "num_after": new.num,
    }


def _independent(rows: Iterable[Marked]) -> list[Marked]:
    """Sampled answers, the first of each conversation."""
    first: dict[str, Marked] = {}
    for row in rows:
        if row["sampled"]:
            first.setdefault(row["conversation"] or row[RESPONSE_ID], row)
    return list(first.values())


def _opinions(judge: Judge, names: Iterable[str]) -> dict[str, list[Opinion]]:
    said: dict[str, list[Opinion]] = defaultdict(list)
    for day, some in groupby(sorted(names, key=id_ms), key=lambda name: day_of(id_ms(name))):
        for row in judge.traffic.feedback.find(list(some), day).to_pylist():
            said[row[RESPONSE_ID]].append(Opinion.of(row))
    return said
