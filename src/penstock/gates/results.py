"""What an evaluation measured: per task, per metric, and per item.

These are plain records; ``lm_eval_results`` fills them from lm-eval's output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.errors import EvaluationError, RecipeError
from penstock.gates.resampling import Link
from penstock.registry import did_you_mean


class ItemKey(NamedTuple):
    """What makes two models' answers answers to the same question.

    Attributes:
        task: The task the item belongs to (a group's items come from several).
        doc_hash: lm-eval's hash of the document.
        prompt_hash: lm-eval's hash of what the model was actually shown.
        target_hash: lm-eval's hash of the right answer.
        occurrence: 0, or the how-manieth copy, where a data set repeats a document.
    """

    task: str
    doc_hash: str
    prompt_hash: str
    target_hash: str
    occurrence: int = 0


@dataclass(frozen=True, eq=False)
class ItemScores:
    """One metric's per-item values, in the order of their keys.

    The metric is ``link(totals.sum() / weights.sum())``.

    Attributes:
        keys: One per item, sorted, shape (n,).
        totals: Shape (n,); for a plain mean the item's value.
        weights: Shape (n,), positive; for a plain mean all 1.
        link: What turns the ratio into the metric.
        clusters: Name of the passage (or other origin) each item shares with
            others, shape (n,); None when the documents carry none.
    """

    keys: tuple[ItemKey, ...]
    totals: NDArray[np.float64]
    weights: NDArray[np.float64]
    link: Link = Link.IDENTITY
    clusters: tuple[str, ...] | None = None

    @cached_property
    def is_plain_mean(self) -> bool:
        """Whether the metric is the unweighted mean of its items."""
        return self.link is Link.IDENTITY and bool(np.all(self.weights == 1))

    @cached_property
    def is_binary(self) -> bool:
        """Whether every item is simply right (1) or wrong (0)."""
        return self.is_plain_mean and bool(np.all((self.totals == 0) | (self.totals == 1)))

    @cached_property
    def is_bounded(self) -> bool:
        """Whether every item lies in [0, 1]."""
        return self.is_plain_mean and bool(np.all((self.totals >= 0) & (self.totals <= 1)))


@dataclass(frozen=True)
class MetricResult:
    """One metric of one task.

    Attributes:
        name: As lm-eval calls it, such as ``acc``.
        filter: The filter applied to the answers, ``none`` by default.
        mean: The aggregate, in the metric's unit; may be NaN, which is refused on use.
        higher_is_better: None when the evaluation does not say.
        items: Per-item scores, when they are known and reproduce ``mean``.
        why_no_items: Why ``items`` is None, as a clause that goes on from "the model's".
    """

    name: str
    filter: str
    mean: float
    higher_is_better: bool | None
    items: ItemScores | None = None
    why_no_items: str = ""

    @property
    def key(self) -> str:
        """lm-eval's own key, ``NAME,FILTER``."""
        return f"{self.name},{self.filter}"

    @property
    def label(self) -> str:
        """``NAME``, with the filter only where one was applied."""
        return self.name if self.filter == "none" else self.key


@dataclass(frozen=True)
class TaskResult:
    """One task, or a group of tasks.

    Attributes:
        name: The task's name.
        metrics: By ``MetricResult.key``, in lm-eval's order.
        parent: The group that is compared in this task's place, if any.
        aggregate_only: True for a group that cannot stand for its tasks (its mean
            is not the mean over their items); floors may still name it.
    """

    name: str
    metrics: Mapping[str, MetricResult]
    parent: str | None = None
    aggregate_only: bool = False

    def metric(self, name: str) -> MetricResult:
        """The metric called ``NAME`` or ``NAME,FILTER``.

        Raises:
            RecipeError: There is none, or several filters go by that name.
        """
        if name in self.metrics:
            return self.metrics[name]
        named = [metric for metric in self.metrics.values() if metric.name == name]
        if len(named) == 1:
            return named[0]
        labels = [metric.label for metric in named or self.metrics.values()]
        if named:
            raise RecipeError(
                f"{self.name}/{name} is ambiguous: it was scored after several filters.",
                f"Name one: {', '.join(f'{self.name}/{label}' for label in labels)}.",
            )
        raise RecipeError(f"Task {self.name!r} has no metric {name!r}.{did_you_mean(name, labels)}")

    def primary(self) -> MetricResult:
        """``acc`` if the task has it, else its first metric."""
        accuracy = [metric for metric in self.metrics.values() if metric.name == "acc"]
        return (accuracy or list(self.metrics.values()))[0]


@dataclass(frozen=True)
class EvalResults:
    """Everything one evaluation of one model measured.

    Attributes:
        label: What to call this side in messages and reports.
        model: The model's name as the evaluation recorded it; may be empty.
        tasks: By name; groups included.
    """

    label: str
    model: str
    tasks: Mapping[str, TaskResult] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what was measured: the same wherever and however it is stored."""
        digest = hashlib.sha256()
        for name in sorted(self.tasks):
            for key, metric in sorted(self.tasks[name].metrics.items()):
                head = [name, key, repr(metric.mean), metric.higher_is_better]
                digest.update(json.dumps(head).encode())
                if metric.items is not None:
                    _update_with_items(digest, metric.items)
        return digest.hexdigest()

    def judged(self) -> dict[str, TaskResult]:
        """The tasks that are compared: a group in place of its tasks, if it can stand for them."""
        return {
            name: task
            for name, task in self.tasks.items()
            if task.parent is None and not task.aggregate_only
        }

    def find(self, name: str) -> tuple[TaskResult, MetricResult | None]:
        """What ``TASK`` or ``TASK/METRIC`` names.

        Returns:
            The task, and the metric if one was named. A task whose own name
            contains a slash is found too.

        Raises:
            RecipeError: No such task or metric; the message lists the valid ones.
        """
        if name in self.tasks:
            return self.tasks[name], None
        task, _, metric = name.rpartition("/")
        if task in self.tasks:
            return self.tasks[task], self.tasks[task].metric(metric)
        unknown = task or name
        raise RecipeError(
            f"{unknown!r} is not one of the tasks of {self.label}."
            f"{did_you_mean(unknown, sorted(self.tasks))}"
        )


@dataclass(frozen=True, eq=False)
class PairedScores:
    """Two models' scores on the same items, row by row.

    Attributes:
        sums: Candidate total, candidate weight, baseline total, baseline weight of
            each item, shape (n, 4).
        link: What turns a ratio into the metric.
        clusters: Cluster number of each item, shape (n,), from 0; None without.
    """

    sums: NDArray[np.float64]
    link: Link
    clusters: NDArray[np.intp] | None

    @property
    def differences(self) -> NDArray[np.float64]:
        """Each item's candidate value minus its baseline value, shape (n,)."""
        candidate, baseline = self.sums[:, 0] / self.sums[:, 1], self.sums[:, 2] / self.sums[:, 3]
        return np.asarray(candidate - baseline)

    def swapped(self) -> PairedScores:
        """The two sides exchanged, so that less becomes more."""
        return PairedScores(self.sums[:, [2, 3, 0, 1]], self.link, self.clusters)


def pair(candidate: ItemScores, baseline: ItemScores, name: str) -> PairedScores:
    """Join two models' scores on their items' keys.

    Args:
        candidate: Scores of the model that wants to serve.
        baseline: Scores of the model that serves.
        name: Task and metric, for the message.

    Raises:
        EvaluationError: The two were not measured on the same items.
    """
    if candidate.keys != baseline.keys:
        raise EvaluationError(*_mismatch(candidate.keys, baseline.keys, name))
    if candidate.link is not baseline.link:
        raise EvaluationError(
            f"{name}: the candidate's and the baseline's numbers were aggregated differently.",
            "Evaluate both with the same version of the task.",
        )
    sums = [candidate.totals, candidate.weights, baseline.totals, baseline.weights]
    clusters = None
    if candidate.clusters is not None:
        clusters = np.unique(np.asarray(candidate.clusters), return_inverse=True)[1]
    return PairedScores(np.stack(sums, axis=1), candidate.link, clusters)


def _mismatch(
    candidate: tuple[ItemKey, ...], baseline: tuple[ItemKey, ...], name: str
) -> tuple[str, str]:
    """Message and hint for two sets of items that are not the same set."""
    common = len(set(candidate) & set(baseline))
    docs = {(key.task, key.doc_hash) for key in candidate} & {
        (key.task, key.doc_hash) for key in baseline
    }
    message = (
        f"{name}: only {common} of the candidate's {len(candidate)} and the baseline's "
        f"{len(baseline)} items match. The two models can only be compared on the same "
        f"documents, shown in the same prompt and scored against the same answer"
    )
    if len(docs) > common:
        message += f"; {len(docs)} documents are shared, but their prompts or answers differ"
    hint = (
        "Evaluate the baseline again with the candidate's task version, few-shot examples, "
        "prompt template, chat template and limit."
    )
    return message + ".", hint


def _update_with_items(digest: hashlib._Hash, items: ItemScores) -> None:
    digest.update(json.dumps([items.keys, items.clusters, items.link]).encode())
    digest.update(np.stack([items.totals, items.weights]).tobytes())
