"""Evaluations made of numbers, for tests of the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from penstock.gates import EvalResults, ItemKey, ItemScores, MetricResult, TaskResult
from penstock.gates.resampling import Link


def scores(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    clusters: Sequence[str] | None = None,
    order: Sequence[int] | None = None,
    task: str = "task",
) -> ItemScores:
    """Scores of items named by their position; ``order`` permutes positions."""
    count = len(values)
    positions = range(count) if order is None else order
    return ItemScores(
        keys=tuple(ItemKey(task, f"{index:06}", "prompt", "target") for index in range(count)),
        totals=np.asarray([values[index] for index in positions], dtype=float),
        weights=np.ones(count) if weights is None else np.asarray(weights, dtype=float),
        link=Link.IDENTITY,
        clusters=None if clusters is None else tuple(clusters),
    )


def metric(items: ItemScores, name: str = "acc", higher_is_better: bool = True) -> MetricResult:
    """A metric with its items, and the mean they make."""
    mean = float(items.totals.sum() / items.weights.sum())
    return MetricResult(name, "none", mean, higher_is_better, items)


def evaluation(tasks: Mapping[str, MetricResult | Sequence[MetricResult]]) -> EvalResults:
    """An evaluation of one or more metrics per task."""
    results = {}
    for name, metrics in tasks.items():
        listed = [metrics] if isinstance(metrics, MetricResult) else metrics
        results[name] = TaskResult(name, {item.key: item for item in listed})
    return EvalResults("side", "model", results)


def answers(count: int, right: int, better: int = 0, worse: int = 0) -> tuple[MetricResult, ...]:
    """Candidate and baseline on ``count`` items; the baseline gets ``right`` of them.

    Of the items that the baseline gets wrong the candidate gets ``better`` right,
    and of those it gets right the candidate gets ``worse`` wrong.
    """
    baseline = np.zeros(count)
    baseline[:right] = 1
    candidate = baseline.copy()
    candidate[:worse] = 0
    candidate[right : right + better] = 1
    return metric(scores(candidate)), metric(scores(baseline))
