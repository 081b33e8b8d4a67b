"""The gate's decision: numbers of two evaluations in, a verdict with its reasons out.

The rules, in order:

1. Every floor and ceiling must hold. The first model has nothing else, so it
   needs at least one, and nothing skips them.
2. Against a baseline, the candidate is blocked by harm (a metric is
   significantly worse after Holm's correction over all metrics, and not shown
   to be within a margin of its own) or by shown inferiority (an upper
   confidence limit below minus the margin).
3. It passes if non-inferiority is shown wherever a margin stands: on the macro
   mean of the accuracy-like metrics, on each metric with a margin of its own,
   and on each metric that cannot enter the macro mean. All must hold, so no
   correction for their number is due (an intersection-union test).
4. Anything else is inconclusive: too few items, or none logged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from penstock.errors import EvaluationError, RecipeError
from penstock.gates.comparison import Comparison, Judgement
from penstock.gates.judging import compare_all, primary_metric, tolerance
from penstock.gates.lm_eval_results import read_results
from penstock.gates.policy import GatePolicy
from penstock.gates.results import EvalResults


class Verdict(StrEnum):
    """What the gate says."""

    PASS = "PASS"  # noqa: S105
    BLOCK = "BLOCK"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_code(self) -> int:
        """The command line's exit code: 0, 3 or 4."""
        return {"PASS": 0, "BLOCK": 3, "INCONCLUSIVE": 4}[self.value]


@dataclass(frozen=True)
class FloorCheck:
    """One demand on the candidate alone.

    Attributes:
        name: As the policy names it.
        metric: ``TASK/METRIC`` it was taken to mean.
        value: What the candidate reached.
        bound: What was demanded.
        is_ceiling: Whether ``value`` must not exceed ``bound``, rather than reach it.
    """

    name: str
    metric: str
    value: float
    bound: float
    is_ceiling: bool

    @property
    def holds(self) -> bool:
        """Whether the demand is met."""
        return self.value <= self.bound if self.is_ceiling else self.value >= self.bound


@dataclass(frozen=True)
class Side:
    """Which evaluation was judged: its label, its model, and a digest of its numbers."""

    label: str
    model: str
    digest: str


@dataclass(frozen=True)
class Decision:
    """A verdict, and everything it rests on.

    Attributes:
        verdict: PASS, BLOCK or INCONCLUSIVE.
        reasons: Why, in sentences; what decided comes first.
        resolved_by: ``test``, or ``point_estimate`` if the tests were inconclusive
            and the policy let the plain difference decide.
        candidate: The side that wants to serve.
        baseline: The side that serves; None for the first model.
        policy: The conditions.
        floors: Every floor and ceiling, and whether it holds.
        comparisons: One per metric compared.
        macro: The macro mean, if two or more metrics enter it.
        notes: What a reader should know besides.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    resolved_by: str
    candidate: Side
    baseline: Side | None
    policy: GatePolicy
    floors: tuple[FloorCheck, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    macro: Comparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Comparison, ...]:
        """The macro mean, if any, then the metrics."""
        return (() if self.macro is None else (self.macro,)) + self.comparisons

    def to_json(self) -> str:
        """The decision as JSON; unknown numbers are null, never NaN."""
        plain = {**asdict(replace(self, policy=GatePolicy())), "policy": self.policy.to_dict()}
        return json.dumps(plain, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Decision:
        """Read back what ``to_json`` wrote.

        Raises:
            EvaluationError: It is not a decision.
        """
        try:
            return _from_plain(json.loads(text))
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(
                f"This is not a gate's decision: {error!r}.", "Run the gate again."
            ) from None


def gate_results(results: Path, baseline: Path | None, policy: GatePolicy) -> Decision:
    """Judge lm-eval output on disk.

    Args:
        results: Directory or file of the candidate's results.
        baseline: The same of the model that serves now; None for the first model.
        policy: The conditions.

    Raises:
        EvaluationError: Results cannot be read or compared.
        RecipeError: The policy does not fit the results.
    """
    field = policy.cluster_field
    candidate = read_results(results, cluster_field=field)
    serving = read_results(baseline, cluster_field=field) if baseline is not None else None
    return decide(candidate, serving, policy)


def decide(candidate: EvalResults, baseline: EvalResults | None, policy: GatePolicy) -> Decision:
    """Judge whether ``candidate`` may replace ``baseline``.

    Args:
        candidate: What was measured of the model that wants to serve.
        baseline: What was measured of the model that serves now, on the same
            items; None for the first model, which only floors can judge.
        policy: The conditions.

    Raises:
        EvaluationError: The two were not measured on the same tasks and items, or
            a number is missing.
        RecipeError: The policy names what was not evaluated, or demands nothing
            of a first model.
    """
    if baseline is None and not policy.has_floors:
        raise RecipeError(
            "There is no baseline and no floor, so nothing could stop any model.",
            "Set at least one floor for the first model, such as min: {TASK: 0.5}.",
        )
    floors = _check_floors(candidate, policy)
    decision = Decision(
        verdict=Verdict.PASS,
        reasons=(),
        resolved_by="test",
        candidate=_side(candidate),
        baseline=None if baseline is None else _side(baseline),
        policy=policy,
        floors=floors,
    )
    if baseline is not None:
        comparisons, macro = compare_all(candidate, baseline, policy)
        decision = replace(
            decision,
            comparisons=comparisons,
            macro=macro,
            notes=_notes(candidate, comparisons, policy),
        )
    return _conclude(decision)


def _side(results: EvalResults) -> Side:
    return Side(results.label, results.model, results.digest)


def _check_floors(candidate: EvalResults, policy: GatePolicy) -> tuple[FloorCheck, ...]:
    demands = [(name, bound, False) for name, bound in policy.min.items()]
    demands += [(name, bound, True) for name, bound in policy.max.items()]
    return tuple(_check_floor(candidate, policy, *demand) for demand in demands)


def _check_floor(
    candidate: EvalResults, policy: GatePolicy, name: str, bound: float, is_ceiling: bool
) -> FloorCheck:
    task, metric = candidate.find(name)
    result = metric or primary_metric(candidate, task.name, policy)
    where = f"{task.name}/{result.label}"
    if not math.isfinite(result.mean):
        raise EvaluationError(
            f"{where}: the candidate's value is {result.mean}, not a number.",
            "Look for empty answers or overflow in its samples, and evaluate again.",
        )
    # None: the results do not say, and the policy's choice of word does.
    if result.higher_is_better is is_ceiling:
        word, right = ("max", "min") if is_ceiling else ("min", "max")
        direction = "higher" if result.higher_is_better else "lower"
        raise RecipeError(
            f"{word}: {name} would bound {where} on its good side: {direction} is better.",
            f"Write it under {right}.",
        )
    return FloorCheck(name, where, result.mean, bound, is_ceiling)


def _conclude(decision: Decision) -> Decision:
    """Fill in verdict and reasons from floors and judgements."""
    rows = decision.rows
    against = [_floor_sentence(check) for check in decision.floors if not check.holds]
    against += [
        _sentence(row, decision.policy)
        for row in rows
        if row.judgement in (Judgement.HARMED, Judgement.INFERIOR)
    ]
    if against:
        return replace(decision, verdict=Verdict.BLOCK, reasons=tuple(against))
    unsettled = [row for row in rows if row.judgement in (Judgement.UNDECIDED, Judgement.UNTESTED)]
    if unsettled and decision.policy.on_inconclusive == "point_estimate":
        return _resolve_by_point_estimate(decision, unsettled)
    if unsettled:
        reasons = tuple(_sentence(row, decision.policy) for row in unsettled)
        return replace(decision, verdict=Verdict.INCONCLUSIVE, reasons=reasons)
    return replace(decision, verdict=Verdict.PASS, reasons=_reasons_to_pass(decision))


def _resolve_by_point_estimate(decision: Decision, unsettled: Sequence[Comparison]) -> Decision:
    lost = [row for row in unsettled if row.difference < -tolerance(row, decision.policy)]
    shown = lost or unsettled
    reasons = [
        f"{row.name}: by point estimate only, the difference of {signed(row.difference)} is "
        f"{'beyond' if lost else 'within'} the margin of {tolerance(row, decision.policy):.4g}."
        for row in shown
    ]
    if not lost:
        reasons += _reasons_to_pass(decision)
    return replace(
        decision,
        verdict=Verdict.BLOCK if lost else Verdict.PASS,
        reasons=tuple(reasons),
        resolved_by="point_estimate",
        notes=(
            *decision.notes,
            "The tests were inconclusive; on_inconclusive: point_estimate let the plain "
            "difference decide, which passes about half of all regressions as large as the margin.",
        ),
    )


def _reasons_to_pass(decision: Decision) -> tuple[str, ...]:
    reasons = [
        _sentence(row, decision.policy)
        for row in decision.rows
        if row.judgement is Judgement.NON_INFERIOR
    ]
    guarded = [row for row in decision.comparisons if row.judgement is Judgement.NO_HARM_SHOWN]
    if guarded:
        reasons.append(f"No significant harm in {_plural(len(guarded), 'other metric')}.")
    if decision.floors:
        reasons.append(f"{_plural(len(decision.floors), 'floor')} checked, all hold.")
    return tuple(reasons)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def signed(value: float) -> str:
    """A difference for people, with its sign."""
    return f"{value:+.4f}" if abs(value) < 10 else f"{value:+.4g}"


def _floor_sentence(check: FloorCheck) -> str:
    side, kind = ("above", "ceiling") if check.is_ceiling else ("below", "floor")
    return f"{check.metric} is {check.value:.4g}, {side} its {kind} of {check.bound:.4g}."


def _sentence(row: Comparison, policy: GatePolicy) -> str:
    """What one comparison has shown."""
    level = f"{100 * (1 - policy.alpha):g} %"
    if row.judgement is Judgement.UNTESTED:
        return f"{row.name}: regression cannot be tested: {row.note}."
    if row.judgement is Judgement.HARMED:
        advice = f" A margin max_regression.{row.task} would tolerate a loss there."
        return (
            f"{row.name}: the candidate is significantly worse: {signed(row.difference)}, "
            f"Holm-adjusted p = {row.harm_p_holm:.2g}.{advice if row.margin is None else ''}"
        )
    difference = f"difference {signed(row.difference)}"
    if row.judgement is Judgement.INFERIOR and row.upper is not None:
        return (
            f"{row.name}: the loss exceeds the margin of {row.margin:.4g}: {difference}, "
            f"upper {level} limit {signed(row.upper)}."
        )
    if row.judgement is Judgement.NON_INFERIOR and row.lower is not None:
        return (
            f"{row.name}: not worse by more than {row.margin:.4g}: {difference}, "
            f"lower {level} limit {signed(row.lower)}."
        )
    lower = "unknown" if row.lower is None else signed(row.lower)
    wanted = f"; about {row.items_needed:,} would" if row.items_needed else ""
    return (
        f"{row.name}: {row.num_items:,} items cannot decide on a margin of {row.margin:.4g}: "
        f"{difference}, lower {level} limit {lower}{wanted}."
    )


def _notes(
    candidate: EvalResults, comparisons: Sequence[Comparison], policy: GatePolicy
) -> tuple[str, ...]:
    """What does not decide, but should not go unsaid."""
    compared = {row.task for row in comparisons}
    notes = [
        f"Task {name} is new: the baseline was not evaluated on it, so only a floor can judge it."
        for name in candidate.judged()
        if name not in compared
    ]
    notes += [
        f"{row.name} is significantly worse ({signed(row.difference)}), but shown to be within "
        f"its margin of {row.margin:.4g}."
        for row in comparisons
        if row.judgement is Judgement.NON_INFERIOR
        and row.harm_p_holm is not None
        and row.harm_p_holm <= policy.alpha
    ]
    return tuple(notes)


def _from_plain(plain: dict[str, Any]) -> Decision:
    return Decision(
        verdict=Verdict(plain["verdict"]),
        reasons=tuple(plain["reasons"]),
        resolved_by=plain["resolved_by"],
        candidate=Side(**plain["candidate"]),
        baseline=Side(**plain["baseline"]) if plain["baseline"] else None,
        policy=GatePolicy(**plain["policy"]),
        floors=tuple(FloorCheck(**floor) for floor in plain["floors"]),
        comparisons=tuple(_comparison(row) for row in plain["comparisons"]),
        macro=_comparison(plain["macro"]) if plain["macro"] else None,
        notes=tuple(plain["notes"]),
    )


def _comparison(plain: dict[str, Any]) -> Comparison:
    return Comparison(**{**plain, "judgement": Judgement(plain["judgement"])})
