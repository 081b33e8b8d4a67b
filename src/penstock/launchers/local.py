"""The local launcher: the training loop in this process."""

from __future__ import annotations

from penstock.launchers.base import Report, Trained, Training


class LocalLauncher:
    """Runs the loop where it is called."""

    def run(self, training: Training, report: Report) -> Trained:
        """Train to the end; see ``Launcher``."""
        from penstock.launchers.loop import train

        return train(training, report)
