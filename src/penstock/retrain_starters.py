"""What runs the loop when a run is due: a process of the watcher's own, or an orchestrator."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from penstock import child_process, registry
from penstock.pipeline import Pipeline
from penstock.retrain import Starter

if TYPE_CHECKING:
    from penstock.orchestrators.base import Trigger


class Here:
    """Runs the loop as a process of its own, which ends when the watcher does.

    Args:
        pipeline: Whose; the process reads the same recipe with the same overrides.
    """

    is_here = True

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._running: tuple[str, child_process.Running] | None = None
        self._stack = ExitStack()

    def carry_on(self, key: str, conf: Mapping[str, Any]) -> str | None:
        """Begin the run of this name or go on with it, unless a process of ours is at it."""
        if self._running is None or self._running[0] != key:
            self.close()
            child = self._stack.enter_context(child_process.running(self._command(key)))
            self._running = key, child
            return None
        child = self._running[1]
        code = child.process.poll()
        if code is None:
            return None
        words = f"its process ended with code {code}: {child.last_words()}"
        self.close()
        return words

    def close(self) -> None:
        """End the process; what it has finished is kept, and the next one goes on from there."""
        self._running = None
        self._stack.close()

    def _command(self, key: str) -> list[str]:
        import json

        sets = [
            word
            for name, value in self._pipeline.overrides.items()
            for word in ("--set", f"{name}={json.dumps(value)}")
        ]
        path = str(self._pipeline.path.resolve())
        command = [sys.executable, "-m", "penstock.cli", "run", "--recipe", path, "--key", key]
        return [*command, "--json", *sets]


class Orchestrated:
    """Has an orchestrator run the loop.

    Args:
        pipeline: Whose.
        orchestrator: Its name.
        trigger: Starts a run under a key.
    """

    is_here = False

    def __init__(self, pipeline: Pipeline, orchestrator: str, trigger: Trigger) -> None:
        self._pipeline = pipeline
        self._orchestrator = orchestrator
        self._trigger = trigger

    def carry_on(self, key: str, conf: Mapping[str, Any]) -> str | None:
        """Tell the orchestrator; returns what its tasks will call the run."""
        name = self._trigger(self._pipeline.path.resolve(), key, dict(conf))
        return f"{self._orchestrator}:{name}"

    def close(self) -> None:
        """Leave the run to its orchestrator."""


def starter(pipeline: Pipeline, through: str) -> Starter:
    """What the recipe's ``observe.retrain.through`` names.

    Raises:
        PenstockError: It cannot be loaded.
    """
    if through == "here":
        return Here(pipeline)
    trigger = registry.resolve("orchestrators", through, pipeline.path.parent)
    return Orchestrated(pipeline, through, trigger)
