"""A recipe as Dagster's assets: one for each stage, with checks, a schedule and a sensor.

In a file that Dagster loads::

    from penstock.orchestrators.dagster import build_definitions

    defs = build_definitions("recipe.yaml")

A contract that is broken fails its check and the run. A verdict other than PASS fails the
gate's check and nothing else: what comes after it is not materialized, and Penstock's run
is closed. Checks are not ``blocking`` in Dagster's sense, which would fail and retry the
step that has found the answer.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from penstock.orchestrators.base import LAST_OF_DATA, Flow, Task, TaskFailed, TaskResult
from penstock.orchestrators.dagster_api import KEY_TAG, REASON_TAG, job_name, settings_name
from penstock.orchestrators.in_place import PASSED, Run, cron, in_place_flow, verdict

_ROOT_TAG = "dagster/root_run_id"
_ASK_EVERY_S = 300
_CHECKS = {LAST_OF_DATA: "contract", "gate": "gate"}
# A step only waits for a command: a fork that has Dagster imported does, and saves each seconds.
_EXECUTOR = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": ["dagster", __name__]}}}
)
_ABOUT = {
    "ingest": "Rows as the sources have them.",
    "validate": "The rows that keep the contract.",
    "prepare": "Rows ready for training.",
    "train": "The candidate.",
    "evaluate": "What the candidate can do.",
    "baseline": "What the serving model can do, on the same items.",
    "gate": "Whether the candidate may be served: PASS, BLOCK or INCONCLUSIVE.",
    "register": "The candidate as a version of its model.",
    "deploy": "What serves.",
}


class RunSettings(dg.ConfigurableResource):  # type: ignore[misc]  # Dagster is elsewhere
    """What one run does otherwise than the recipe.

    Attributes:
        set: Values of the recipe for this run, of those that are ``orchestrate.settable``.
    """

    set: dict[str, Any] = Field(default_factory=dict)


def build_definitions(recipe: Path | str) -> dg.Definitions:
    """A recipe's stages as assets, the job that makes them all, and what starts it.

    Args:
        recipe: The recipe's file.

    Raises:
        RecipeError: It cannot be read, or wants a stage to run on Databricks or Kubernetes.
    """
    flow = in_place_flow(recipe, "Dagster")
    assets = [_asset(flow, task) for task in flow.tasks]
    job = dg.define_asset_job(
        job_name(flow),
        dg.AssetSelection.assets(*assets),
        tags=_tags(flow),
        description=flow.name,
        executor_def=_EXECUTOR,
    )
    starts = flow.settings.schedule
    return dg.Definitions(
        assets=assets,
        jobs=[job],
        schedules=[] if starts is None else [_schedule(flow, job, starts)],
        sensors=[_sensor(flow, job)] if flow.settings.on_events else [],
        resources={settings_name(flow): RunSettings()},
    )


def _tags(flow: Flow) -> dict[str, str]:
    return {"penstock/owner": flow.settings.owner, "penstock/tags": ", ".join(flow.settings.tags)}


def _schedule(flow: Flow, job: Any, starts: str) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=f"{job_name(flow)}_schedule",
        job=job,
        cron_schedule=cron(starts),
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def _asset(flow: Flow, task: Task) -> dg.AssetsDefinition:
    name, check = job_name(flow), _CHECKS.get(task.stage)
    key = dg.AssetKey([name, task.stage])
    specs = [dg.AssetCheckSpec(check, asset=key)] if check else []

    def stage(context: dg.AssetExecutionContext) -> Iterator[Any]:
        result = _run(flow, task.stage, context)
        metadata = _metadata(result)
        if check:
            yield dg.AssetCheckResult(
                passed=_is_good(result), check_name=check, asset_key=key, metadata=metadata
            )
        if result.status == "FAILED":
            raise dg.Failure(result.reason, metadata, allow_retries=False)
        if result.goes_on:
            yield dg.MaterializeResult(asset_key=key, metadata=metadata)
            return
        context.log.warning(f"What comes after {task.stage} is not due: {result.reason}")
        if result.outcome != "skipped":
            context.log_event(dg.AssetMaterialization(key, metadata=metadata))

    asset = dg.asset(
        key=key,
        deps=[dg.AssetKey([name, before]) for before in task.after],
        group_name=name,
        description=_ABOUT[task.stage],
        tags={"penstock/stage": task.stage},
        metadata={"owner": flow.settings.owner, "recipe": dg.MetadataValue.path(flow.recipe)},
        kinds={"penstock"},
        check_specs=specs,
        required_resource_keys={settings_name(flow)},
        retry_policy=dg.RetryPolicy(
            max_retries=flow.settings.retries, delay=flow.settings.retry_delay_s
        ),
        # Without it, what comes after is skipped, which is no failure.
        output_required=False,
    )
    return asset(stage)


def _run(flow: Flow, stage: str, context: dg.AssetExecutionContext) -> TaskResult:
    tags = context.run.tags
    # A run that is executed again is the same run for Penstock: it goes on where it was.
    key = tags.get(KEY_TAG) or f"dagster:{tags.get(_ROOT_TAG) or context.run.run_id}"
    set_ = getattr(context.resources, settings_name(flow)).set
    try:
        return Run(flow, key, set_, context.log.info).stage(stage)
    except TaskFailed as failure:
        raise dg.Failure(failure.message, allow_retries=failure.transient) from None


def _is_good(result: TaskResult) -> bool:
    return result.status != "FAILED" and verdict(result) in ("", PASSED)


def _metadata(result: TaskResult) -> dict[str, Any]:
    """Numbers, words and links, as Dagster shows them."""
    texts = {
        "penstock run": result.run_id,
        "outcome": result.outcome,
        "note": result.note,
        "reason": result.reason,
    }
    links = {name: _link(where) for name, where in result.links.items()}
    return {**{name: text for name, text in texts.items() if text}, **result.numbers, **links}


def _link(where: str) -> dg.MetadataValue[Any]:
    if where.startswith(("http://", "https://")):
        return dg.MetadataValue.url(where)
    return dg.MetadataValue.path(where)


def _sensor(flow: Flow, job: Any) -> dg.SensorDefinition:
    def news() -> Iterator[dg.RunRequest | dg.SkipReason]:
        starts = _ask(flow)
        for key, reason in starts.items():
            yield dg.RunRequest(run_key=key, tags={KEY_TAG: key, REASON_TAG: reason})
        if not starts:
            yield dg.SkipReason("Nothing is new, and no alarm is open.")

    sensor = dg.sensor(
        name=f"{job_name(flow)}_news",
        job=job,
        minimum_interval_seconds=_ASK_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Starts a run when sources have something new, or an alarm is open.",
    )
    return sensor(news)


def _ask(flow: Flow) -> dict[str, str]:
    """What ``penstock news`` says: key of a run -> why it is due."""
    command = [*flow.program("due"), "news", "--recipe", str(flow.recipe)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise dg.Failure(f"penstock news: exit code {done.returncode}: {done.stderr.strip()}")
    starts: dict[str, str] = json.loads(done.stdout.splitlines()[-1])["starts"]
    return starts
