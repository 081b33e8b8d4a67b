"""A recipe as tasks, for any orchestrator; what their exit codes and their output mean.

A flow is read from the recipe's file alone: where DAG files are parsed, none of
what the stages need has to be installed. Each task is one command line::

    penstock step STAGE --key KEY --task --recipe FILE

KEY is what the orchestrator calls its own run. The first command that has it opens
Penstock's run, all others join it, so that tasks which are repeated, doubled or
restarted find what was done. ``penstock due --key KEY`` comes between validate and
prepare, and says whether the rest is worth doing.
"""

from __future__ import annotations

import enum
import json
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import Field, ValidationError

from penstock.errors import PenstockError, RecipeError
from penstock.mistakes import mistakes_of, report
from penstock.orchestrate_section import (
    STAGES,
    Databricks,
    Executor,
    Here,
    Kubernetes,
    Orchestrate,
    Virtualenv,
)
from penstock.recipe_file import expanded_tree
from penstock.section import Section

# After this stage a run may turn out not to be worth going on with.
LAST_OF_DATA = "validate"
_KEY = re.compile(r"[!-~]{1,300}")


class Outcome(enum.Enum):
    """What an exit code means to a task."""

    GO_ON = "go on"
    RETRY = "retry"
    FAIL = "fail"


def outcome(exit_code: int) -> Outcome:
    """What an exit code of ``penstock`` means to a task.

    3 and 4 are verdicts, and 5 is one about the data: later tasks see to them.
    """
    if exit_code in (0, 3, 4, 5):
        return Outcome.GO_ON
    return Outcome.FAIL if exit_code == 2 else Outcome.RETRY


class TaskFailed(PenstockError):
    """A task's command failed; ``transient`` tells whether the task is to be tried again."""

    def __init__(self, message: str, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


@dataclass(frozen=True)
class TaskResult:
    """What a task came to: the one line of JSON that ``--task`` prints.

    Attributes:
        run_id: Penstock's own run.
        status: Of the run: RUNNING until its last stage; FAILED if the data break the contract.
        goes_on: Whether the tasks after this one are due.
        reason: Why they are not; or the run's message.
        stage: The stage, or ``due``.
        outcome: ran, hit, skipped or failed.
        note: Why it ran, or which run made the hit.
        numbers: Rows, losses, metrics, the verdict: name -> number or text.
        links: Name -> address or path of a page about it.
    """

    run_id: str
    status: str
    goes_on: bool
    reason: str = ""
    stage: str = ""
    outcome: str = ""
    note: str = ""
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, output: str) -> TaskResult:
        """Read what a task's command printed; keys of later versions are left out.

        Raises:
            TaskFailed: It is no such line.
        """
        line = (output.strip().splitlines() or [""])[-1]
        known = {one.name for one in fields(cls)}
        try:
            values = json.loads(line)
            return cls(**{key: value for key, value in values.items() if key in known})
        except (ValueError, TypeError, AttributeError):
            raise TaskFailed(f"penstock printed no result: {line[:200]!r}", True) from None


@dataclass(frozen=True)
class Task:
    """One stage as a task.

    Attributes:
        stage: The stage.
        after: The stages that come before it.
        executor: Where it runs.
    """

    stage: str
    after: tuple[str, ...]
    executor: Executor


@dataclass(frozen=True)
class Flow:
    """A recipe's loop as tasks.

    Attributes:
        name: The recipe's.
        recipe: Its file.
        settings: Its ``orchestrate`` section.
        tasks: In order.
    """

    name: str
    recipe: Path
    settings: Orchestrate
    tasks: tuple[Task, ...]

    def task(self, stage: str) -> Task:
        """The task of a stage."""
        return next(one for one in self.tasks if one.stage == stage)

    def command(self, stage: str, key: str, set_: Mapping[str, Any] | None = None) -> list[str]:
        """The command line of a stage, or of ``due``, without the program in front.

        Args:
            stage: The stage, or ``due``.
            key: What the orchestrator calls its run; or its template for that.
            set_: Values of the recipe for this run.

        Raises:
            RecipeError: A value may not be set.
        """
        executor = self.task(stage).executor if stage != "due" else Here()
        there = getattr(executor, "recipe", None)
        words = ["due"] if stage == "due" else ["step", stage, "--task"]
        words += ["--key", key, "--recipe", there or str(self.recipe)]
        return words + self.set_flags(set_ or {})

    def set_flags(self, set_: Mapping[str, Any]) -> list[str]:
        """``--set`` flags of what who starts a run wants, if he may.

        Raises:
            RecipeError: He may not, and the message says what he may.
        """
        flags = []
        for name, value in set_.items():
            if name not in self.settings.settable:
                allowed = ", ".join(self.settings.settable) or "nothing"
                raise RecipeError(
                    f"{name!r} may not be set for one run.",
                    f"orchestrate.settable allows: {allowed}",
                )
            flags += ["--set", f"{name}={json.dumps(value)}"]
        return flags

    def program(self, stage: str) -> list[str]:
        """What runs a stage's command on this host, as words."""
        executor = Here() if stage == "due" else self.task(stage).executor
        if isinstance(executor, Virtualenv):
            return [executor.python, "-m", "penstock.cli"]
        return [self.settings.penstock or _beside_python()]


class _Read(Section):
    """What a flow needs of a recipe."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,99}$")
    orchestrate: Orchestrate = Orchestrate()


def read_flow(recipe: Path | str) -> Flow:
    """Read a recipe as a flow. What does not concern one is not looked at.

    Raises:
        RecipeError: There is no such file, or its ``orchestrate`` section is wrong.
    """
    path = Path(os.path.abspath(recipe))  # as it is called, also where that is a link
    written, tree, expanded, mistakes = expanded_tree(path, ("name", "orchestrate"))
    if not mistakes:
        try:
            read = _Read.model_validate(expanded)
        except ValidationError as error:
            mistakes = list(mistakes_of(error, _Read, tree))
    if mistakes:
        raise RecipeError(report(path, written, mistakes))
    settings = read.orchestrate
    tasks = [
        Task(stage, STAGES[max(0, i - 1) : i], settings.executors.get(stage, Here()))  # type: ignore[call-overload]
        for i, stage in enumerate(STAGES)
    ]
    return Flow(read.name, path, settings, tuple(tasks))


def checked_key(key: str) -> str:
    """A name for a run, if it is one.

    Raises:
        RecipeError: It is not 1 to 300 printable characters of ASCII without spaces.
    """
    if not _KEY.fullmatch(key):
        raise RecipeError(
            f"--key {key[:80]!r} cannot name a run.", "1 to 300 characters of ASCII, no spaces."
        )
    return key


def run_task(
    command: Sequence[str], say: Callable[[str], None], environment: Mapping[str, str] | None = None
) -> TaskResult:
    """Run a task's command on this host, and tell what it says as it says it.

    The command ends with the process that started it (``--task``).

    Raises:
        TaskFailed: It failed; ``transient`` if the task is to be tried again.
    """
    say(shlex.join(command))
    try:
        process = subprocess.Popen(  # noqa: S603  # what the recipe names
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=None if environment is None else dict(environment),
        )
    except OSError as error:
        raise TaskFailed(f"{command[0]} cannot be started: {error.strerror}.", False) from None
    with process:
        said = _Told(process.stderr, say)
        output = process.stdout.read() if process.stdout else ""
        said.join()
        code = process.wait()
    if outcome(code) is not Outcome.GO_ON:
        raise TaskFailed(f"exit code {code}: {said.last}", outcome(code) is Outcome.RETRY)
    return TaskResult.read(output)


class _Told(threading.Thread):
    """Passes lines on; remembers the last ones, which say what went wrong."""

    def __init__(self, lines: IO[str] | None, say: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._lines, self._say = lines, say
        self._kept: list[str] = []
        self.start()

    @property
    def last(self) -> str:
        """The last words, on one line."""
        return " ".join(self._kept)

    def run(self) -> None:
        for line in self._lines or ():
            line = line.rstrip()
            if line:
                self._kept = [*self._kept, line][-3:]
                self._say(line)


def _beside_python() -> str:
    import shutil
    import sys

    beside = Path(sys.executable).with_name("penstock")
    return str(beside) if beside.exists() else shutil.which("penstock") or "penstock"


class Trigger(Protocol):
    """How an orchestrator is asked for a run; named in the registry under ``orchestrators``."""

    def __call__(self, recipe: Path, key: str, conf: Mapping[str, Any]) -> str:
        """Start a run, once for each key.

        Args:
            recipe: The recipe's file.
            key: The same key is the same run, however often it is asked for.
            conf: ``{"set": {...}}``: values of the recipe for this run, of those that are
                ``settable``; and whatever the reason was, for people to read.

        Returns:
            What the orchestrator calls the run. Its tasks open Penstock's run under the key
            ``NAME:`` and this, with the orchestrator's name in the registry.

        Raises:
            PenstockError: It cannot be reached (transient), or refuses.
        """


__all__ = [
    "LAST_OF_DATA",
    "Databricks",
    "Flow",
    "Here",
    "Kubernetes",
    "Outcome",
    "Task",
    "TaskFailed",
    "TaskResult",
    "Trigger",
    "Virtualenv",
    "checked_key",
    "outcome",
    "read_flow",
    "run_task",
]
