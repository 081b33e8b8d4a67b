"""The local launcher: the training loop in this process."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from penstock.launchers.base import Report, Trained, Training
from penstock.section import Section


class LocalOptions(Section):
    """The local launcher has nothing to choose."""


class LocalLauncher:
    """The training loop, in the process that runs the stage."""

    Options: ClassVar[type[Section]] = LocalOptions

    def __init__(self, options: LocalOptions, folder: Path) -> None:
        pass

    def run(self, training: Training, report: Report) -> Trained:
        """Train to the end; see ``Launcher``."""
        from penstock.launchers.loop import train

        return train(training, report)
