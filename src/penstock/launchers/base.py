"""What a launcher is: it runs one training loop on N workers.

The loop (``launchers/loop.py``) does not know which launcher runs it. To add
one, write one file with a class like ``Launcher`` and one line in
``registry.BUILTIN``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from penstock.section import Section

Report = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Training:
    """One training, in full; can be sent to another process as it is.

    Attributes:
        examples: Arrow file with ``input_ids`` and ``labels``.
        validation: The same for the validation split, or None.
        tokenizer: Folder of the tokenizer.
        base: Folder or hub name to start from; None starts from ``shape``.
        base_revision: The commit of a hub model.
        shape: Keyword arguments of a Llama configuration.
        settings: The recipe's ``train`` section as plain values, with
            ``learning_rate``, ``epochs`` and ``max_steps`` already chosen.
        seed: Of initialisation, order and dropout.
        checkpoints: Folder that outlives the process; resumed from when it holds any.
        checkpoint_every_steps: How often to write one.
        output: Folder for the finished model.
        num_workers: How many processes share each batch; set by the launcher.
        deepspeed: DeepSpeed's configuration when it is the one to train; set by the launcher.
    """

    examples: Path
    validation: Path | None
    tokenizer: Path
    base: str | None
    base_revision: str | None
    shape: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    checkpoints: Path
    checkpoint_every_steps: int
    output: Path
    num_workers: int = 1
    deepspeed: dict[str, Any] | None = None


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        num_steps: Optimizer steps, those before a resume included.
        num_parameters: Of the model.
        num_trained_parameters: Of those that were trained: all of them, or LoRA's.
        train_loss: At the last logged step, nats per token.
        validation_loss: Nats per token, None without a validation split.
        history: Logged values, oldest first: step -> name -> value.
        resumed_from_step: 0 when it was not resumed.
    """

    num_steps: int
    num_parameters: int
    num_trained_parameters: int
    train_loss: float
    validation_loss: float | None
    history: list[dict[str, float]]
    resumed_from_step: int


class Launcher(Protocol):
    """Runs one training.

    Made with the checked options (``launcher: {type: NAME, ...}`` in the recipe) and
    the recipe's folder. All options say where, and none enters a fingerprint: what comes out must
    not depend on them.
    """

    Options: ClassVar[type[Section]]

    def __init__(self, options: Any, folder: Path) -> None: ...

    def run(self, training: Training, report: Report) -> Trained:
        """Train to the end.

        Args:
            training: What to train.
            report: Called with step, last step and the newest logged values.

        Raises:
            TrainingError: It cannot start, or diverged.
        """
        ...
