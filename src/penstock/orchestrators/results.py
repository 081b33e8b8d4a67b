"""What a task tells its orchestrator, read from the ledger: numbers, links, and what is next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from penstock.errors import StoreError, ValidationFailed
from penstock.orchestrators.base import TaskResult
from penstock.run_page import page_of

if TYPE_CHECKING:
    from penstock.artifacts import Artifact
    from penstock.pipeline import Pipeline, Report

# Longer texts are for the pages that the links lead to.
_MOST_CHARS = 500


def step_as_task(pipeline: Pipeline, stage: str, run_id: str) -> TaskResult:
    """Run a stage, and say what it came to.

    Data that break the contract are a result here: the tasks that follow are not due.
    """
    try:
        report = pipeline.step(stage, run_id)
    except ValidationFailed as failure:
        links = dict(_run_page(pipeline, run_id))
        return TaskResult(run_id, "FAILED", False, failure.message, stage, "failed", links=links)
    done = next(one for one in report.stages if one.stage == stage)
    artifact = report.artifacts.get(stage)
    return TaskResult(
        run_id=report.run_id,
        status=report.status,
        goes_on=not _is_skipped(report),
        reason=report.message,
        stage=stage,
        outcome=done.outcome,
        note=done.note,
        numbers={} if artifact is None else dict(_numbers(artifact.summary)),
        links=dict(_run_page(pipeline, run_id))
        | dict(_console_pages(pipeline, run_id, artifact))
        | ({} if artifact is None else dict(_links(pipeline, artifact))),
    )


def due_as_task(pipeline: Pipeline, run_id: str) -> TaskResult:
    """Say whether the stages after validate are due."""
    due = pipeline.due(run_id)
    status = pipeline.ledger.run(run_id).status
    return TaskResult(run_id, status, due.goes_on, due.reason, "due", "ran")


def _is_skipped(report: Report) -> bool:
    return any(one.stage == "prepare" and one.outcome == "skipped" for one in report.stages)


def _numbers(summary: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float | str]]:
    """The summary's numbers, and its words of one line, by dotted names."""
    for name, value in summary.items():
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int | float):
            yield f"{path}{name}", value
        elif isinstance(value, str) and name in ("verdict", "reason", "message", "base", "model"):
            yield f"{path}{name}", value[:_MOST_CHARS]
        elif isinstance(value, Mapping) and name in ("rows", "splits", "metrics", "data"):
            yield from _numbers(value, f"{path}{name}.")


def _run_page(pipeline: Pipeline, run_id: str) -> Iterator[tuple[str, str]]:
    """The page about the run so far, written anew; no room for it stops no run."""
    with suppress(StoreError):
        yield "run", pipeline.store.write_page(f"{run_id}.html", page_of(pipeline, run_id))


def _console_pages(
    pipeline: Pipeline, run_id: str, artifact: Artifact | None
) -> Iterator[tuple[str, str]]:
    """Pages of the console, if the recipe says where it is: they show what is so now."""
    recipe = pipeline.recipe
    console = None if recipe.orchestrate is None else recipe.orchestrate.console
    if console is None:
        return
    yield "console", f"{console}/runs/{run_id}"
    if recipe.observe.drift is not None:
        yield "drift", f"{console}/drift"
    if artifact is not None and artifact.stage == "gate":
        yield "gate", f"{console}/gates/{artifact.fingerprint}"
    if artifact is not None and "rollout" in artifact.summary:
        yield "rollout", f"{console}/rollouts/{artifact.summary['rollout']}"


def _links(pipeline: Pipeline, artifact: Artifact) -> Iterator[tuple[str, str]]:
    """Pages about a result: reports in the store, and the model in MLflow."""
    for page in ("decision.html", "data_docs.html", "row_rules.html"):
        if (pipeline.store.root / artifact.path / page).is_file():
            yield page.removesuffix(".html"), pipeline.store.url(f"{artifact.path}/{page}")
    tracking = urlsplit(pipeline.recipe.tracking or "")
    if artifact.stage == "register" and tracking.scheme in ("http", "https"):
        host = tracking.netloc.rpartition("@")[2]  # never a password
        name = quote(str(artifact.summary["model"]), safe="")
        page = f"{tracking.path.rstrip('/')}/#/models/{name}/versions/{artifact.summary['version']}"
        yield "mlflow", f"{tracking.scheme}://{host}{page}"
