"""Stages as tasks of a tool that runs them on its own host: what Dagster and Prefect share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock.errors import RecipeError
from penstock.orchestrators.base import (
    LAST_OF_DATA,
    Flow,
    Here,
    TaskResult,
    Virtualenv,
    read_flow,
    run_task,
)

PASSED = "PASS"
_JUDGE = "gate"
_AFTER_GATE = ("register", "deploy")
# Some crontab parsers know no @quarterly.
_PRESETS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@quarterly": "0 0 1 */3 *",
    "@yearly": "0 0 1 1 *",
}


@dataclass(frozen=True)
class Run:
    """One run of a flow, as its tool knows it.

    Attributes:
        flow: The recipe's stages.
        key: What the tool calls it.
        set_: Values of the recipe for this run.
        say: Takes each line that a command prints for people.
    """

    flow: Flow
    key: str
    set_: Mapping[str, Any]
    say: Callable[[str], None]

    def stage(self, stage: str) -> TaskResult:
        """Run a stage, and what has to be known before the next one is due.

        After the data are validated, that is whether there are enough new ones. After a
        verdict other than PASS, the stages that remain are recorded as skipped, which closes
        the run: ``goes_on`` is then false, and nothing has been registered or promoted.

        Raises:
            TaskFailed: ``transient`` if the task is to be tried again.
        """
        result = self._command(stage)
        if stage == LAST_OF_DATA and result.goes_on:
            due = self._command("due")
            return replace(result, goes_on=due.goes_on, status=due.status, reason=due.reason)
        if stage == _JUDGE and verdict(result) not in ("", PASSED):
            *_, last = [self._command(one) for one in _AFTER_GATE]
            return replace(result, goes_on=False, status=last.status, reason=last.reason)
        return result

    def _command(self, stage: str) -> TaskResult:
        words = self.flow.command(stage, self.key, self.set_)
        return run_task([*self.flow.program(stage), *words], self.say)


def verdict(result: TaskResult) -> str:
    """What the gate said, or nothing if this is no gate's result or it was not asked."""
    return str(result.numbers.get("verdict", "")) if result.stage == _JUDGE else ""


def in_place_flow(recipe: Path | str, tool: str) -> Flow:
    """A recipe's stages, all of which run on the tool's own host.

    Raises:
        RecipeError: The recipe cannot be read, or wants a stage to run elsewhere.
    """
    flow = read_flow(recipe)
    for task in flow.tasks:
        if not isinstance(task.executor, Here | Virtualenv):
            raise RecipeError(
                f"orchestrate.executors.{task.stage}: {tool} does not run stages on "
                f"{task.executor.type} by itself.",
                f"Take `here` or `virtualenv`, and {tool}'s own launcher or worker there.",
            )
    return flow


def cron(schedule: str) -> str:
    """A schedule in five fields."""
    return _PRESETS.get(schedule, schedule)
