"""Read what lm-eval 0.4 writes, from wherever it comes.

Two forms are read: a directory anywhere under which ``results_*.json`` and
``samples_*.jsonl`` lie (as ``lm_eval --output_path DIR --log_samples`` leaves
them), and the dict that ``lm_eval.simple_evaluate(log_samples=True)`` returns.
lm-eval itself is not imported.

lm-eval does not record how it aggregates a metric. So each known aggregation is
tried on the per-item values, and the one that reproduces the reported number is
believed; if none does (F1, BLEU, files that were changed), the metric has no
items here: its floor can be checked, but not its regression.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.errors import EvaluationError
from penstock.gates.resampling import Link
from penstock.gates.results import EvalResults, ItemKey, ItemScores, MetricResult, TaskResult

_NO_SAMPLES = "evaluation did not log its samples"
_NO_AGGREGATION = (
    "per-item values do not add up to the reported number by any aggregation known here"
)
_WHAT_TO_RUN = "Write them with: lm_eval ... --output_path DIR --log_samples"


class _Sample(NamedTuple):
    """The little of a logged sample that a comparison needs."""

    doc_id: int
    hashes: tuple[str, str, str]
    filter: str
    cluster: str | None
    values: Mapping[str, Any]


class _Raw(NamedTuple):
    """One evaluation's parts, by task; several files are merged into one."""

    model: str
    results: dict[str, dict[str, Any]]
    higher_is_better: dict[str, dict[str, bool | None]]
    subtasks: dict[str, list[str]]
    num_samples: dict[str, int]
    samples: dict[str, list[_Sample]]


def read_results(path: Path, label: str = "", cluster_field: str = "cluster") -> EvalResults:
    """Read an evaluation from files.

    Where a task was evaluated more than once, its newest result counts.

    Args:
        path: A directory anywhere under which lm-eval's files lie, or one
            aggregated results file.
        label: What to call the evaluation in messages; the path by default.
        cluster_field: The field of a document that names what it shares with others.

    Raises:
        EvaluationError: There is nothing to read, a file is damaged or cut short,
            or the files are of more than one model.
    """
    label = label or str(path)
    files = [path] if path.is_file() else list(path.rglob("results_*.json"))
    if not files:
        what = "is empty of lm-eval results" if path.is_dir() else "does not exist"
        raise EvaluationError(f"{label}: {path} {what}; need a results_*.json.", _WHAT_TO_RUN)
    # A name ends in the time of writing, which sorts as text.
    files.sort(key=lambda file: file.stem.rpartition("_")[2])
    raws = [_read_file(file, cluster_field) for file in files]
    models = {raw.model: file for raw, file in zip(raws, files, strict=True)}
    if len(models) > 1:
        folders = ", ".join(str(file.parent) for file in models.values())
        raise EvaluationError(
            f"{label}: {path} holds results of {len(models)} models: {', '.join(sorted(models))}.",
            f"Name the directory of one: {folders}.",
        )
    merged = raws[0]
    for raw in raws[1:]:
        _merge(merged, raw)
    return _build(merged, label)


def results_from_dict(
    results: Mapping[str, Any], label: str = "", cluster_field: str = "cluster"
) -> EvalResults:
    """Take over the dict that ``lm_eval.simple_evaluate`` returns.

    Args:
        results: That dict; with ``samples`` if it was called with ``log_samples=True``.
        label: What to call the evaluation in messages; the model's name by default.
        cluster_field: The field of a document that names what it shares with others.

    Raises:
        EvaluationError: The dict is not an evaluation's, or is incomplete.
    """
    label = label or _model_name(results) or "results"
    raw = _raw(results, label)
    for task, samples in (results.get("samples") or {}).items():
        raw.samples[task] = [_sample(sample, cluster_field, label) for sample in samples]
    return _build(raw, label)


def _read_file(path: Path, cluster_field: str) -> _Raw:
    """One aggregated results file and the samples files written with it."""
    raw = _raw(_parse(path.read_bytes(), str(path)), str(path))
    written = path.stem.rpartition("_")[2]
    for task in raw.results:
        samples = path.with_name(f"samples_{task}_{written}.jsonl")
        if samples.exists():
            raw.samples[task] = _read_samples(samples, cluster_field)
    return raw


def _read_samples(path: Path, cluster_field: str) -> list[_Sample]:
    samples = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            samples.append(_sample(_parse(line, where), cluster_field, where))
    return samples


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # bad JSON, or bytes that are not text
        raise EvaluationError(
            f"{where} is not JSON: {error}.", "The file was cut short or edited; evaluate again."
        ) from None


def _raw(parsed: Any, where: str) -> _Raw:
    if not isinstance(parsed, Mapping) or not isinstance(parsed.get("results"), Mapping):
        raise EvaluationError(f"{where}: not an lm-eval result: it has no 'results'.", _WHAT_TO_RUN)
    try:
        counts = parsed.get("n-samples") or {}
        return _Raw(
            model=_model_name(parsed),
            results={task: dict(metrics) for task, metrics in parsed["results"].items()},
            higher_is_better=dict(parsed.get("higher_is_better") or {}),
            subtasks=dict(parsed.get("group_subtasks") or {}),
            num_samples={task: int(count["effective"]) for task, count in counts.items()},
            samples={},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{where}: not shaped as lm-eval 0.4 writes it: {error!r}.", _WHAT_TO_RUN
        ) from None


def _model_name(parsed: Mapping[str, Any]) -> str:
    config = parsed.get("config") or {}
    return str(parsed.get("model_name") or config.get("model") or "")


def _merge(older: _Raw, newer: _Raw) -> None:
    for task in newer.results:
        older.samples.pop(task, None)
    older.results.update(newer.results)
    older.higher_is_better.update(newer.higher_is_better)
    older.subtasks.update(newer.subtasks)
    older.num_samples.update(newer.num_samples)
    older.samples.update(newer.samples)


def _sample(sample: Mapping[str, Any], cluster_field: str, where: str) -> _Sample:
    try:
        hashes = (sample["doc_hash"], sample["prompt_hash"], sample["target_hash"])
    except (KeyError, TypeError):
        raise EvaluationError(
            f"{where}: a sample without doc_hash, prompt_hash and target_hash.",
            "Evaluate again with lm-eval 0.4.13 or newer.",
        ) from None
    doc = sample.get("doc")
    cluster = doc.get(cluster_field) if isinstance(doc, Mapping) else None
    return _Sample(
        doc_id=int(sample.get("doc_id", 0)),
        hashes=hashes,
        filter=sample.get("filter", "none"),
        cluster=None if cluster is None else str(cluster),
        values={name: sample[name] for name in sample.get("metrics", ()) if name in sample},
    )


def _build(raw: _Raw, label: str) -> EvalResults:
    tasks = {name: _task(name, raw, label) for name in raw.results}
    tasks = {name: task for name, task in tasks.items() if task.metrics}
    if not tasks:
        raise EvaluationError(f"{label}: no task has a metric.", "Evaluate at least one task.")
    leaves = {group: _leaves(group, raw.subtasks) for group in raw.subtasks if group in tasks}
    # The widest group first: it stands for the groups inside it, too.
    for group in sorted(leaves, key=lambda name: -len(leaves[name])):
        _fold(group, leaves[group], raw.subtasks, tasks)
    return EvalResults(label, raw.model, tasks)


def _task(name: str, raw: _Raw, label: str) -> TaskResult:
    samples = sorted(raw.samples.get(name, ()), key=lambda sample: sample.doc_id)
    _require_complete(name, samples, raw.num_samples.get(name), label)
    directions = raw.higher_is_better.get(name) or {}
    metrics = {}
    for key, mean in raw.results[name].items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(mean):
            continue
        scored = [row for row in samples if row.filter == filter_name and metric in row.values]
        items = _item_scores(name, metric, scored, float(mean))
        why = "" if items else _NO_AGGREGATION if scored else _NO_SAMPLES
        metrics[key] = MetricResult(
            metric, filter_name, float(mean), directions.get(metric), items, why
        )
    return TaskResult(name, metrics)


def _require_complete(
    name: str, samples: Sequence[_Sample], expected: int | None, label: str
) -> None:
    """A samples file that was cut short must not pass for a smaller evaluation."""
    for filter_name in {sample.filter for sample in samples}:
        found = sum(sample.filter == filter_name for sample in samples)
        if expected is not None and found != expected:
            raise EvaluationError(
                f"{label}: task {name!r} was evaluated on {expected} items, but {found} samples "
                f"are logged for filter {filter_name!r}.",
                "The samples file was cut short or edited; evaluate again.",
            )


def _item_scores(
    task: str, metric: str, samples: Sequence[_Sample], mean: float
) -> ItemScores | None:
    parts = _parts([sample.values[metric] for sample in samples])
    fitted = parts and _fit_aggregation(*parts, mean)
    if not fitted:
        return None
    totals, weights, link = fitted
    keys = _keys(task, samples)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    clusters = None
    if any(sample.cluster is not None for sample in samples):
        # A document that names no cluster is one by itself.
        names = [sample.cluster or f"(item {index})" for index, sample in enumerate(samples)]
        clusters = tuple(names[index] for index in order)
    return ItemScores(
        tuple(keys[index] for index in order), totals[order], weights[order], link, clusters
    )


def _keys(task: str, samples: Iterable[_Sample]) -> list[ItemKey]:
    seen: dict[tuple[str, str, str], int] = {}
    keys = []
    for sample in samples:
        occurrence = seen.get(sample.hashes, 0)
        seen[sample.hashes] = occurrence + 1
        keys.append(ItemKey(task, *sample.hashes, occurrence))
    return keys


def _parts(values: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Totals and weights of numbers, or of (total, weight) pairs; None for anything else."""
    if values and all(_is_number(value) for value in values):
        return np.asarray(values, dtype=np.float64), np.ones(len(values))
    if values and all(_is_pair(value) for value in values):
        pairs = np.asarray(values, dtype=np.float64)
        return pairs[:, 0], pairs[:, 1]
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number, np.bool_))


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(map(_is_number, value))
        and value[1] > 0
    )


def _fit_aggregation(
    totals: NDArray[np.float64], weights: NDArray[np.float64], mean: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], Link] | None:
    """The aggregation that reproduces ``mean``, as totals, weights and link.

    In lm-eval's terms: mean; perplexity and weighted_perplexity; bits_per_byte.
    """
    for scale, link in ((1.0, Link.IDENTITY), (-1.0, Link.EXP), (-1 / math.log(2), Link.IDENTITY)):
        scaled = totals * scale
        with np.errstate(over="ignore"):
            fitted = float(link.of(scaled.sum() / weights.sum()))
        if math.isclose(fitted, mean, rel_tol=1e-6, abs_tol=1e-9):
            return scaled, weights, link
    return None


def _leaves(name: str, subtasks: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks, not groups, under ``name``, each once."""
    below = subtasks.get(name)
    if not below:
        return [name]
    return list(dict.fromkeys(leaf for child in below for leaf in _leaves(child, subtasks)))


def _fold(
    group: str,
    leaves: Sequence[str],
    subtasks: Mapping[str, Sequence[str]],
    tasks: dict[str, TaskResult],
) -> None:
    """Let ``group`` stand for its tasks, if its numbers are the means over their items.

    Fifty-seven subjects of one benchmark are then one comparison with many items,
    not fifty-seven votes in the macro mean.
    """
    pooled = {
        key: _pooled(metric, [tasks[leaf].metrics.get(key) for leaf in leaves if leaf in tasks])
        for key, metric in tasks[group].metrics.items()
    }
    if any(metric is None for metric in pooled.values()):
        tasks[group] = replace(tasks[group], aggregate_only=True)
        return
    metrics = {key: metric for key, metric in pooled.items() if metric is not None}
    tasks[group] = replace(tasks[group], metrics=metrics)
    for member in {*leaves, *_groups_inside(group, subtasks)} & tasks.keys():
        if tasks[member].parent is None:
            tasks[member] = replace(tasks[member], parent=group)


def _groups_inside(group: str, subtasks: Mapping[str, Sequence[str]]) -> set[str]:
    inside = {child for child in subtasks.get(group, ()) if subtasks.get(child)}
    return inside.union(*(_groups_inside(child, subtasks) for child in inside))


def _pooled(metric: MetricResult, parts: Sequence[MetricResult | None]) -> MetricResult | None:
    """The group's metric over all its tasks' items; None if that is not what it is."""
    if not parts or any(part is None for part in parts):
        return None
    found = [part.items for part in parts if part is not None]
    items = [part for part in found if part is not None]
    if not items:
        return replace(metric, why_no_items=_NO_SAMPLES)
    if len(items) < len(found) or not all(part.is_plain_mean for part in items):
        return None
    pooled = _concatenated(items)
    if not math.isclose(float(pooled.totals.mean()), metric.mean, rel_tol=1e-6, abs_tol=1e-9):
        return None
    return replace(metric, items=pooled, why_no_items="")


def _concatenated(parts: Sequence[ItemScores]) -> ItemScores:
    keys = [key for part in parts for key in part.keys]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    clusters = None
    if any(part.clusters is not None for part in parts):
        names = [
            f"{key.task} {name}"
            for part in parts
            for key, name in zip(part.keys, part.clusters or map(str, part.keys), strict=True)
        ]
        clusters = tuple(names[index] for index in order)
    totals = np.concatenate([part.totals for part in parts])[order]
    return ItemScores(
        tuple(keys[index] for index in order), totals, np.ones(len(order)), clusters=clusters
    )
