"""What an evaluator is: it runs lm-eval's tasks on one model folder.

To add one, write one file with a class like ``Evaluator`` below, add one line to
``registry.BUILTIN`` (or name it in a recipe as ``"module:Object"``), and pass
``tests/conformance/test_evaluators.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from penstock.errors import EvaluationError
from penstock.evaluators import harness
from penstock.evaluators.harness import Bar, Unusable
from penstock.registry import require
from penstock.section import Section


@dataclass(frozen=True)
class Evaluation:
    """One model to measure, and on what.

    Attributes:
        model: Its folder, as ``save_pretrained`` writes it.
        digest: Of its files, checked before.
        name: What the model is called.
        tasks: lm-eval's names, or tasks as dicts; a function in one uses nothing
            but its arguments, since it may be carried to another process as source.
        task_dirs: Folders of task YAMLs.
        num_fewshot: None takes each task's own.
        limit: Items per task; None takes all.
        batch_size: Requests per batch, for evaluators that batch them themselves.
        apply_chat_template: Ask through the chat template.
        seed: Of few-shot examples and sampling.
    """

    model: Path
    digest: str
    name: str
    tasks: tuple[str | Mapping[str, Any], ...]
    task_dirs: tuple[Path, ...] = ()
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 64
    apply_chat_template: bool = False
    seed: int = 0

    @property
    def asked(self) -> dict[str, Any]:
        """What ``harness.evaluate`` takes: everything but the model."""
        return {
            "tasks": list(self.tasks),
            "task_dirs": [str(folder) for folder in self.task_dirs],
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
            "batch_size": self.batch_size,
            "apply_chat_template": self.apply_chat_template,
            "seed": self.seed,
        }


class Evaluator(Protocol):
    """Runs lm-eval on one model. Built as ``Class(options, folder)``, as sources are."""

    Options: ClassVar[type[Section]]

    def __init__(self, options: Any, folder: Path) -> None: ...

    def versions(self) -> dict[str, str]:
        """Library -> version, of what computes the numbers; part of the fingerprint.

        Raises:
            EvaluationError: It is not installed where the options say.
        """
        ...

    def run(self, evaluation: Evaluation, advance: Bar) -> dict[str, Any]:
        """Measure the model.

        Returns:
            What ``lm_eval.simple_evaluate(log_samples=True)`` returns.

        Raises:
            MissingExtra: lm_eval is not installed.
            EvaluationError: A task does not exist or cannot be run, or what
                computes does not answer as it must.
        """
        ...


@contextmanager
def usable() -> Iterator[None]:
    """Turn the harness' own error into Penstock's."""
    try:
        yield
    except Unusable as error:
        raise EvaluationError(error.message, error.hint) from error


def items_of(tasks: Sequence[str], task_dirs: Sequence[Path]) -> Iterator[tuple[str, int, Any]]:
    """Every item that some tasks ask, without a model.

    Args:
        tasks: By name.
        task_dirs: Folders of tasks of one's own.

    Yields:
        The task's name, the item's number and the item.

    Raises:
        MissingExtra: lm_eval is not installed.
        EvaluationError: A task does not exist, or its items cannot be had here.
    """
    if not tasks:
        return
    require("lm_eval", "evaluate")
    with usable():
        yield from harness.items(tasks, [str(folder) for folder in task_dirs])
