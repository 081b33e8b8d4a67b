"""Ray Train: workers on one machine or on a Ray cluster, started again when one dies."""

from __future__ import annotations

import json
import os
import secrets
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from penstock.errors import MissingExtra, TrainingError
from penstock.launchers.base import Report, Trained, Training
from penstock.launchers.mailbox import Mailbox
from penstock.launchers.processes import run_group
from penstock.section import Section

_DRIVER = "penstock.launchers.ray_driver"
_NICENESS = "RAY_worker_niceness"  # as Ray spells it


class RayOptions(Section):
    """Where Ray is, and how much of it to use."""

    workers: int = Field(2, ge=1, description="Processes that share each batch.")
    address: str | None = Field(
        None,
        description="Of a running cluster: `auto`, HOST:PORT or ray://HOST:PORT; null starts Ray "
        "on this machine for the time of the training.",
    )
    cpus_per_worker: int | None = Field(
        None, ge=1, description="Null shares this machine's; with an address, it is one."
    )
    gpus_per_worker: float = Field(0, ge=0, description="0 trains on CPU.")
    max_restarts: int = Field(
        3, ge=0, description="How often workers that died are started again, from a checkpoint."
    )


class RayLauncher:
    """Ray Train, on this machine or on a cluster."""

    Options: ClassVar[type[Section]] = RayOptions

    def __init__(self, options: RayOptions, folder: Path) -> None:
        self._options = options

    def run(self, training: Training, report: Report) -> Trained:
        """Train to the end; see ``Launcher``.

        Ray is spoken to by a process of its own: it ends with the training, takes all
        that it started with it, and leaves this process's signals and logs alone.
        """
        if find_spec("ray") is None:
            raise MissingExtra("ray", "ray")
        mailbox = Mailbox.beside(training)
        options = {**self._options.model_dump(), "cpus_per_worker": self._cpus()}
        command = [sys.executable, "-m", _DRIVER, str(mailbox.folder), json.dumps(options)]
        with mailbox.opened(replace(training, num_workers=self._options.workers), report):
            run_group(command, self._settings(), mailbox.log)
        trained = mailbox.answer()
        if trained is None:
            raise TrainingError(
                f"Ray's workers ended before the training did:\n{mailbox.last_words()}",
                "They were started again as often as train.launcher.max_restarts allows; "
                "the next run goes on from the newest checkpoint.",
            )
        return trained

    def _cpus(self) -> int:
        if self._options.cpus_per_worker is not None:
            return self._options.cpus_per_worker
        if self._options.address is not None:
            return 1
        return max(1, len(os.sched_getaffinity(0)) // self._options.workers)

    def _settings(self) -> dict[str, str]:
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1"}
        if self._options.address is None:
            # Nobody else may send it work; and as it is here, Ray writes no token at home.
            settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            # Ray gives way to everything else on the machine; a training is waited for.
            settings |= {_NICENESS: os.environ.get(_NICENESS, "0")}
            # Nobody takes this machine away with a warning; the watcher imports torch to see.
            settings |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
        return settings
