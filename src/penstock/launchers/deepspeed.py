"""DeepSpeed: ZeRO shards optimizer, gradients and weights over the workers.

It may live in an environment of its own: workers are processes of the Python that
has it, started by torchrun or by a command of the user's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from penstock.errors import MissingExtra, TrainingError
from penstock.launchers.base import Report, Trained, Training
from penstock.launchers.mailbox import Mailbox
from penstock.launchers.processes import run_group
from penstock.section import Section

_WORKER = "penstock.launchers.worker"
# Where more than one host takes part, something else must start the workers there.
_TORCHRUN = (
    *("{python}", "-m", "torch.distributed.run", "--standalone"),
    *("--nproc-per-node", "{workers}"),
    *("--module", "{module}", "{mailbox}"),
)
# The recipe's own, whatever runs them: with two places to say it, one would be a lie.
_RECIPES = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "gradient_clipping": "max_grad_norm",
    "optimizer": "learning_rate and weight_decay",
    "scheduler": "scheduler",
}


class DeepSpeedOptions(Section):
    """How DeepSpeed divides the work, and where it is."""

    workers: int = Field(2, ge=1, description="Processes that share each batch, over all hosts.")
    zero_stage: int = Field(
        2,
        ge=0,
        le=3,
        description="What is sharded: 1 the optimizer, 2 gradients too, 3 weights too; 0 nothing.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Further keys of DeepSpeed's configuration, such as `zero_optimization: "
        "{offload_optimizer: {device: cpu}}`.",
    )
    python: str | None = Field(
        None,
        description="The Python that has DeepSpeed, relative to the recipe; null is this one.",
    )
    command: list[str] | None = Field(
        None,
        min_length=1,
        description="Starts the workers in place of torchrun on this host; {python}, {workers}, "
        "{module} and {mailbox} are filled in.",
    )
    max_restarts: int = Field(
        3, ge=0, description="How often workers that died are started again, from a checkpoint."
    )

    @field_validator("config")
    @classmethod
    def _is_not_the_recipes(cls, config: dict[str, Any]) -> dict[str, Any]:
        for key, ours in _RECIPES.items():
            if key in config:
                raise ValueError(f"{key} is the recipe's to say: set train.{ours}")
        zero = config.get("zero_optimization", {})
        if not isinstance(zero, dict):
            raise ValueError(
                f"zero_optimization: received {zero!r}; it takes keys, such as offload_optimizer"
            )
        if "stage" in zero:
            raise ValueError("zero_optimization.stage: set zero_stage")
        return config


class DeepSpeedLauncher:
    """DeepSpeed, with the stage of ZeRO that is asked for."""

    Options: ClassVar[type[Section]] = DeepSpeedOptions

    def __init__(self, options: DeepSpeedOptions, folder: Path) -> None:
        self._options = options
        # Not resolved: an environment's Python is a link, and its place says which.
        self._python = str((folder / (options.python or sys.executable)).absolute())

    def run(self, training: Training, report: Report) -> Trained:
        """Train to the end; see ``Launcher``."""
        self._check(training)
        mailbox = Mailbox.beside(training)
        with mailbox.opened(self._prepared(training), report):
            status = self._run_workers(mailbox)
        trained = mailbox.answer()
        if trained is None:
            raise TrainingError(
                f"DeepSpeed's workers ended with status {status} before the training did:\n"
                f"{mailbox.last_words()}",
                "They were started again as often as train.launcher.max_restarts allows; "
                "the next run goes on from the newest checkpoint.",
            )
        return trained

    def _check(self, training: Training) -> None:
        if training.settings.get("lora") and self._options.zero_stage == 3:
            raise TrainingError(
                "train.lora with train.launcher.zero_stage 3: sharded weights cannot be merged.",
                "Use stage 2, which shards all that is trained; or train without LoRA.",
            )
        check = "import importlib.util as u, sys; sys.exit(u.find_spec('deepspeed') is None)"
        try:
            done = subprocess.run(  # noqa: S603  # the Python the user named
                [self._python, "-c", check], capture_output=True, check=False
            )
        except OSError as error:
            raise TrainingError(
                f"train.launcher.python: {self._python} cannot be started: {error.strerror}.",
                "In a checkout of Penstock: scripts/make-env.sh deepspeed makes "
                ".venvs/deepspeed/bin/python.",
            ) from None
        if done.returncode:
            raise _Missing(self._python)

    def _prepared(self, training: Training) -> Training:
        options = self._options
        # Its checkpoints are in as many parts as there are workers.
        folder = training.checkpoints / f"zero{options.zero_stage}-{options.workers}"
        folder.mkdir(parents=True, exist_ok=True)
        zero = {
            **options.config.get("zero_optimization", {}),
            "stage": options.zero_stage,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        config = {
            **{key: "auto" for key in _RECIPES if key not in ("optimizer", "scheduler")},
            **options.config,
            "zero_optimization": zero,
        }
        return replace(training, num_workers=options.workers, checkpoints=folder, deepspeed=config)

    def _run_workers(self, mailbox: Mailbox) -> int:
        threads = max(1, len(os.sched_getaffinity(0)) // self._options.workers)
        settings = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            "TOKENIZERS_PARALLELISM": "false",
        }
        status = 0
        # Workers that torchrun itself starts again look for those that died, in what
        # is left of the meeting before: every time begins anew.
        for _ in range(1 + self._options.max_restarts):
            status = run_group(self._command(mailbox), settings, mailbox.log)
            if mailbox.is_answered():
                break
        return status

    def _command(self, mailbox: Mailbox) -> list[str]:
        values = {
            "python": self._python,
            "workers": str(self._options.workers),
            "module": _WORKER,
            "mailbox": str(mailbox.folder),
        }
        return [part.format_map(values) for part in self._options.command or _TORCHRUN]


class _Missing(MissingExtra):
    """DeepSpeed is not where it is looked for."""

    def __init__(self, python: str) -> None:
        super().__init__("deepspeed", "train")
        self.message = f"deepspeed is not installed in {python}."
        self.args = (self.message,)
        self.hint = (
            "In a checkout of Penstock: scripts/make-env.sh deepspeed, and "
            "train.launcher.python: .venvs/deepspeed/bin/python. Elsewhere, after torch: "
            "DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed"
        )
