"""What runs the loop when a run is due: a process of the watcher's own, or an orchestrator."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from penstock import child_process
from penstock.errors import MissingExtra
from penstock.pipeline import Pipeline
from penstock.retrain import Starter

# Recipe's file, key and conf -> what the orchestrator calls the run. However often it is
# asked for a key, there is one run.
Trigger = Callable[[Path, str, Mapping[str, Any]], str]
# Where each is, and the key under which the tasks of the run that it starts open it.
_TRIGGERS = {
    "airflow": ("penstock.orchestrators.airflow_api:trigger", "airflow:{}"),
    "dagster": ("penstock.orchestrators.dagster_api:trigger", "dagster:{}"),
    "prefect": ("penstock.orchestrators.prefect_api:trigger", "prefect:{}"),
}


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
        trigger: Starts a run under a key.
        named: How its tasks name the run to Penstock, with a place for its own name.
    """

    is_here = False

    def __init__(self, pipeline: Pipeline, trigger: Trigger, named: str) -> None:
        self._pipeline = pipeline
        self._trigger = trigger
        self._named = named

    def carry_on(self, key: str, conf: Mapping[str, Any]) -> str | None:
        """Tell the orchestrator; returns what its tasks will call the run."""
        return self._named.format(self._trigger(self._pipeline.path.resolve(), key, dict(conf)))

    def close(self) -> None:
        """Leave the run to its orchestrator."""


def starter(pipeline: Pipeline, through: str) -> Starter:
    """What the recipe's ``observe.retrain.through`` names.

    Raises:
        MissingExtra: What it needs is not installed.
    """
    if through == "here":
        return Here(pipeline)
    address, named = _TRIGGERS[through]
    module, _, name = address.partition(":")
    try:
        trigger = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise MissingExtra(through, through) from None
    return Orchestrated(pipeline, trigger, named)
