"""A recipe as Prefect's flow: one task for each stage, artifacts with what came of it.

In a file of yours::

    from penstock.orchestrators.prefect import build_flow, deployment

    flow = build_flow("recipe.yaml")

    if __name__ == "__main__":
        flow.serve(**deployment("recipe.yaml"))

A run that is skipped, blocked or inconclusive is completed, and its state says which. One
whose data break the contract has failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import prefect
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.schedules import Cron
from prefect.states import Completed, Failed

from penstock.orchestrators.base import Flow, TaskFailed, TaskResult
from penstock.orchestrators.in_place import Run, cron, in_place_flow, verdict
from penstock.orchestrators.prefect_api import DEPLOYMENT


def build_flow(recipe: Path | str) -> prefect.Flow[..., Any]:
    """A recipe's stages as a flow.

    It takes ``set``, values of the recipe for one run, of those that are
    ``orchestrate.settable``; and ``reason``, which is for people to read.

    Args:
        recipe: The recipe's file.

    Raises:
        RecipeError: It cannot be read, or wants a stage to run on Databricks or Kubernetes.
    """
    stages = in_place_flow(recipe, "Prefect")
    tasks = {task.stage: _task(stages, task.stage) for task in stages.tasks}

    def loop(set: dict[str, Any] | None = None, reason: str | None = None) -> Any:
        name = f"prefect:{flow_run.id}"
        results: list[TaskResult] = []
        for task in tasks.values():
            results.append(task(name, set or {}))
            if not results[-1].goes_on:
                break
        _show_run(stages, results)
        return _state(results[-1])

    return prefect.flow(
        loop, name=stages.name, description=f"The loop of {stages.recipe}.", persist_result=False
    )


def deployment(recipe: Path | str) -> dict[str, Any]:
    """What ``flow.serve`` and ``flow.to_deployment`` take: name, schedule and tags.

    Raises:
        RecipeError: The recipe cannot be read.
    """
    settings = in_place_flow(recipe, "Prefect").settings
    starts = settings.schedule
    return {
        "name": DEPLOYMENT,
        "schedules": [] if starts is None else [Cron(cron(starts), timezone="UTC")],
        "tags": [*settings.tags, f"owner:{settings.owner}"],
    }


def _task(flow: Flow, stage: str) -> Callable[..., TaskResult]:
    def run(key: str, set_: Mapping[str, Any]) -> TaskResult:
        result = Run(flow, key, set_, get_run_logger().info).stage(stage)
        if verdict(result):
            _show_verdict(flow, result)
        return result

    task: Callable[..., TaskResult] = prefect.task(
        run,
        name=stage,
        task_run_name=stage,
        retries=flow.settings.retries,
        retry_delay_seconds=flow.settings.retry_delay_s,
        retry_condition_fn=_is_transient,
        # Penstock knows itself what has to be done again.
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return task


def _is_transient(task: Any, task_run: Any, state: Any) -> bool:
    failure = state.result(raise_on_failure=False)
    return failure.transient if isinstance(failure, TaskFailed) else True


def _state(last: TaskResult) -> Any:
    """How the flow's run ends; Prefect shows the name."""
    if last.status == "FAILED":
        return Failed(message=last.reason)
    return Completed(name=last.status.capitalize(), message=last.reason)


def _show_verdict(flow: Flow, result: TaskResult) -> None:
    numbers = {name: value for name, value in result.numbers.items() if name != "reason"}
    lines = [
        f"# {flow.name}: {verdict(result)}",
        _plain(result.numbers.get("reason", "")),
        "| | |\n|---|---|\n"
        + "\n".join(f"| {_plain(n)} | {_plain(v)} |" for n, v in numbers.items()),
        *(_link(name, where) for name, where in result.links.items()),
        f"Penstock's run: `{result.run_id}`",
    ]
    text = "\n\n".join(lines)
    create_markdown_artifact(text, key=f"{_slug(flow)}-gate", description=result.reason or None)


def _show_run(flow: Flow, results: list[TaskResult]) -> None:
    rows = [
        {
            "stage": one.stage,
            "outcome": one.outcome,
            "note": one.note or one.reason,
            "numbers": ", ".join(f"{name} {value}" for name, value in one.numbers.items()),
        }
        for one in results
    ]
    create_table_artifact(rows, key=f"{_slug(flow)}-run", description=results[-1].run_id)


def _slug(flow: Flow) -> str:
    """The recipe's name as artifacts are named."""
    return re.sub(r"[^a-z0-9]+", "-", flow.name.lower()).strip("-")


def _plain(value: float | str) -> str:
    """A value as one cell of a table, and as nothing else."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))


def _link(name: str, where: str) -> str:
    if where.startswith(("http://", "https://")):
        return f"[{name}](<{where}>)"
    return f"{name}: `{where}`"
