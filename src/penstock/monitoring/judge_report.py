"""What there is to say of a judge, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.gates.agreement import Calibration, Standing
from penstock.gates.quality import GoodShare, Preference
from penstock.judged import MARK
from penstock.ledger.alarms import Alarms
from penstock.ledger.judge_budget import Spent
from penstock.monitoring import judge_standing as standing
from penstock.monitoring.judge import Judge
from penstock.monitoring.judge_standing import Raters
from penstock.monitoring.judge_work import Outcome
from penstock.serving.prices import to_dollars

# What Krippendorff (2004) asks for, and the least from which he would draw careful conclusions.
_RELIABLE, _TENTATIVE = 0.8, 0.667


@dataclass(frozen=True)
class Status:
    """A judge now.

    Attributes:
        num_marked: Answers with a mark.
        num_no_verdict: Answers to which it said nothing that is a mark.
        spent: Of today's budget.
        calibration: Of the judge beside people.
        left_out: Answers whose raters had spoken too often.
        quality: By version.
        raters: Of the same answers.
        alarm: Number of the last ``quality`` alarm, if it is open.
    """

    num_marked: int
    num_no_verdict: int
    spent: Spent
    calibration: Calibration
    left_out: int
    quality: Mapping[int, GoodShare]
    raters: Raters
    alarm: int | None


def status_of(judge: Judge) -> Status:
    """Put together what is known; nobody is asked, and nothing is written."""
    rows = standing.marked(judge)
    said = standing.labels(judge, rows)
    calibration = standing.calibration(judge, rows, said)
    alarm = Alarms(judge.ledger).last(judge.recipe.name, "quality")
    return Status(
        len(rows),
        sum(row["score"] is None for row in judge.rows(MARK, ("score",))),
        judge.budget.today(),
        calibration,
        said.left_out,
        standing.quality(judge, rows),
        standing.raters(judge),
        alarm.number if alarm is not None and alarm.is_open else None,
    )


def standing_words(judge: Judge, status: Status) -> str:
    """Whether the judge counts, and why."""
    kappa, section = status.calibration.kappa, judge.section
    if status.calibration.standing is Standing.TOO_FEW_LABELS:
        return (
            f"It does not count yet: people have scored {kappa.num_items:,} of the answers that it "
            f"judged, and {section.min_labels:,} are needed."
        )
    if kappa.value is None:
        return (
            f"It does not count: on {kappa.num_items:,} answers it, or people, said only good or "
            "only bad, which tells nothing."
        )
    found = (
        f"kappa with people is {kappa.value:.2f} on {kappa.num_items:,} answers, 95 % interval "
        f"{kappa.low:.2f} to {kappa.high:.2f}"
    )
    if status.calibration.standing is Standing.COUNTS:
        return f"It counts: {found}."
    return (
        f"It does not count: {found}, and the lower end must reach {section.min_kappa:g}. More "
        "labels make it narrower; other criteria or another model may agree better."
    )


def rater_words(raters: Raters) -> str:
    """What the agreement of people means."""
    if raters.alpha is None:
        return "No answers were scored differently by two people, so how far they agree is unknown."
    found = (
        f"Krippendorff's alpha of {raters.num_raters:,} raters on {raters.num_answers:,} answers "
        f"is {raters.alpha:.2f}"
    )
    if raters.alpha >= _RELIABLE:
        return f"{found}: people agree on what is good."
    if raters.alpha >= _TENTATIVE:
        return f"{found}: people agree roughly; take what rests on their scores with care."
    return (
        f"{found}: people do not agree on what is good, so no judge can agree with them. Tell them "
        "first what a good answer is."
    )


def budget_words(judge: Judge, spent: Spent) -> str:
    """What today has taken."""
    section = judge.section
    questions = f"Today: {spent.questions:,} of {section.max_questions_per_day:,} questions"
    if not (section.price.prompt_per_million or section.price.completion_per_million):
        return f"{questions}."
    of = "" if section.usd_per_day is None else f" of {section.usd_per_day:g}"
    return f"{questions}, {to_dollars(spent.nanousd)}{of} US dollars."


def sentences(judge: Judge, status: Status) -> Iterator[str]:
    """All of it but the table of versions."""
    none = f", {status.num_no_verdict:,} without a verdict" if status.num_no_verdict else ""
    yield f"{judge.section.model} has judged {status.num_marked:,} answers{none}."
    yield standing_words(judge, status)
    if status.left_out:
        yield (
            f"{status.left_out:,} scored answers do not count: their raters have more than "
            f"{judge.section.max_labels_per_rater:,} each."
        )
    yield rater_words(status.raters)
    yield budget_words(judge, status.spent)
    if status.alarm is not None:
        yield (
            "Fewer answers are good since the last promotion than before it: see "
            f"penstock alarms show {status.alarm}"
        )


HEADERS = ("version", "judged", "good", "95 % interval")


def version_rows(status: Status) -> list[tuple[str, ...]]:
    """One row for each version."""
    return [
        (str(version), f"{one.num:,}", f"{one.share:.1%}", f"{one.low:.1%} to {one.high:.1%}")
        for version, one in status.quality.items()
    ]


PAIR_HEADERS = ("users saw", "beside it", "pairs", "better", "worse", "tied", "p")


def pair_rows(found: Mapping[tuple[str, str], Preference]) -> list[tuple[str, ...]]:
    """One row for each two versions."""
    return [
        (
            *sides,
            f"{one.wins + one.losses + one.ties:,}",
            *(f"{count:,}" for count in (one.wins, one.losses, one.ties)),
            f"{one.p:.3f}",
        )
        for sides, one in found.items()
    ]


def outcome_words(outcome: Outcome) -> str:
    """What a run came to, in one line."""
    if outcome.busy:
        return "Another process is judging; nothing was asked here."
    parts = [f"{outcome.judged:,} verdicts"]
    told = (
        (outcome.cached, "known before"),
        (outcome.no_verdict, "questions without a verdict"),
        (outcome.failed, "unanswered, which are asked again next time"),
        (outcome.too_long, "answers too long"),
        (outcome.no_text, "answers whose texts the log does not hold"),
        (outcome.left, "left, as today's budget is spent"),
        (outcome.counted, "scores for the version on trial"),
    )
    parts += [f"{count:,} {what}" for count, what in told if count]
    trouble = f" The last failure: {outcome.trouble}" if outcome.trouble else ""
    return f"{', '.join(parts)}.{trouble}"


def summary(judge: Judge, status: Status) -> dict[str, Any]:
    """All of it as JSON values."""
    section, kappa = judge.section, status.calibration.kappa
    return {
        "judge": {"model": section.model, "digest": judge.digest, "criteria": section.criteria},
        "judged": status.num_marked,
        "no_verdict": status.num_no_verdict,
        "today": {
            "questions": status.spent.questions,
            "max_questions": section.max_questions_per_day,
            "usd": str(to_dollars(status.spent.nanousd)),
            "max_usd": section.usd_per_day,
        },
        "calibration": {
            "standing": status.calibration.standing,
            "kappa": kappa.value,
            "low": kappa.low,
            "high": kappa.high,
            "labels": kappa.num_items,
            "left_out": status.left_out,
            "min_labels": section.min_labels,
            "min_kappa": section.min_kappa,
        },
        "raters": {
            "alpha": status.raters.alpha,
            "answers": status.raters.num_answers,
            "raters": status.raters.num_raters,
            "means": rater_words(status.raters),
        },
        "quality": {
            str(version): {"judged": one.num, "good": one.share, "low": one.low, "high": one.high}
            for version, one in status.quality.items()
        },
        "alarm": status.alarm,
    }
