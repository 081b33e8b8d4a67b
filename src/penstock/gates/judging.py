"""Which metrics are compared, by which margin, and what each comparison has shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.errors import EvaluationError
from penstock.gates.comparison import Comparison, compare, judge, macro_mean, with_margin
from penstock.gates.paired import holm
from penstock.gates.policy import MACRO, GatePolicy
from penstock.gates.results import EvalResults, MetricResult
from penstock.registry import did_you_mean


def compare_all(
    candidate: EvalResults, baseline: EvalResults, policy: GatePolicy
) -> tuple[tuple[Comparison, ...], Comparison | None]:
    """Compare and judge every task's primary metric and every metric with a named margin.

    Returns:
        One comparison per metric, and the macro mean if two or more enter it.
        One alone is its own macro mean and takes that margin.

    Raises:
        EvaluationError: Tasks, metrics or items of the two do not match.
        RecipeError: The policy names what was not evaluated.
    """
    margins = _named_margins(candidate, policy)
    primary = _primary_metrics(candidate, baseline, policy)
    rows = [
        _compare(candidate, baseline, task, label, policy)
        for task, label in dict.fromkeys([*primary, *margins])
    ]
    members = [row.name for row in rows if row.is_accuracy_like and _key(row) in primary]
    if len(members) == 1:
        margins[_only(rows, members)] = _margin_alone(margins.get(_only(rows, members)), policy)
        members = []
    rows = [replace(row, in_macro=row.name in members) for row in _with_holm(rows)]
    judged = tuple(_judge(row, margins.get(_key(row)), policy) for row in rows)
    if not members:
        return judged, None
    macro = macro_mean([row for row in judged if row.in_macro])
    return judged, judge(with_margin(macro, policy.macro_margin, policy.alpha), policy.alpha)


def primary_metric(results: EvalResults, task: str, policy: GatePolicy) -> MetricResult:
    """The metric that ``TASK`` stands for.

    The first one that the policy names as ``TASK/METRIC`` (margins before
    floors before ceilings), else ``acc``, else the first.
    """
    for name in (*policy.named_margins, *policy.min, *policy.max):
        if name.startswith(f"{task}/") and name not in results.tasks:
            found, metric = results.find(name)
            if found.name == task and metric is not None:
                return metric
    return results.tasks[task].primary()


def tolerance(row: Comparison, policy: GatePolicy) -> float:
    """The loss tolerated in a comparison: its own margin, else the default.

    The default is relative to the baseline's mean where the metric's unit is not
    that of a proportion.
    """
    if row.margin is not None:
        return row.margin
    return policy.default_margin * (1.0 if row.is_proportion else abs(row.baseline))


def _key(row: Comparison) -> tuple[str, str]:
    return row.task, row.metric


def _named_margins(candidate: EvalResults, policy: GatePolicy) -> dict[tuple[str, str], float]:
    """The margins that name a metric; the tighter one where two name the same."""
    margins: dict[tuple[str, str], float] = {}
    for name, margin in policy.named_margins.items():
        task, metric = candidate.find(name)
        metric = metric or primary_metric(candidate, task.name, policy)
        key = (task.name, metric.label)
        margins[key] = min(margin, margins.get(key, margin))
    return margins


def _primary_metrics(
    candidate: EvalResults, baseline: EvalResults, policy: GatePolicy
) -> list[tuple[str, str]]:
    """Task and metric of each task that both sides were evaluated on.

    Raises:
        EvaluationError: The candidate lacks a task of the baseline's.
    """
    missing = [name for name in baseline.judged() if name not in candidate.tasks]
    if missing:
        raise EvaluationError(
            f"The baseline was evaluated on {', '.join(missing)}, the candidate was not."
            f"{did_you_mean(missing[0], sorted(candidate.tasks))}",
            "Evaluate both on the same tasks; a task that is left out could hide a regression.",
        )
    return [
        (name, primary_metric(candidate, name, policy).label)
        for name in candidate.judged()
        if name in baseline.tasks
    ]


def _compare(
    candidate: EvalResults, baseline: EvalResults, task: str, label: str, policy: GatePolicy
) -> Comparison:
    metrics = baseline.tasks[task].metrics if task in baseline.tasks else {}
    measured = candidate.tasks[task].metric(label)
    if measured.key not in metrics:
        raise EvaluationError(
            f"The baseline has no {task}/{label} to compare with.",
            "Evaluate the baseline again with the candidate's version of the task.",
        )
    return compare(task, measured, metrics[measured.key], policy.alpha, policy.seed)


def _with_holm(rows: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with their harm p-values adjusted over all that have one."""
    p_values = {row.name: row.harm_p for row in rows if row.harm_p is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [replace(row, harm_p_holm=adjusted.get(row.name)) for row in rows]


def _only(rows: Sequence[Comparison], names: Sequence[str]) -> tuple[str, str]:
    return next(_key(row) for row in rows if row.name == names[0])


def _margin_alone(own: float | None, policy: GatePolicy) -> float:
    """The margin of the only accuracy-like metric, which is its own macro mean."""
    named = policy.max_regression
    if own is None or (not isinstance(named, float | int) and MACRO in named):
        return min(policy.macro_margin, own if own is not None else policy.macro_margin)
    return own


def _judge(row: Comparison, named: float | None, policy: GatePolicy) -> Comparison:
    """A metric in the macro mean needs no margin of its own; any other does."""
    if named is not None or not row.in_macro:
        margin = named if named is not None else tolerance(row, policy)
        row = with_margin(row, margin, policy.alpha)
    return judge(row, policy.alpha)
