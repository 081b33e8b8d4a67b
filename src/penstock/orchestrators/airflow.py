"""A recipe as an Airflow DAG.

A DAG file needs three lines::

    from penstock.orchestrators.airflow import build_dag

    dag = build_dag("/srv/support/recipe.yaml")

Only Airflow's own libraries have to be installed beside Penstock's code: the
stages run in the environments that the recipe names. ``penstock export airflow``
writes the same DAG as a file of its own. Providers are imported where a recipe
uses them: a worker reads the DAG file for each task, and some take seconds.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator, ShortCircuitOperator
from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    BaseOperator,
    CronTriggerTimetable,
    Param,
    chain,
)

from penstock.orchestrators.airflow_plan import (
    EVENTS,
    HTML,
    KEY,
    SET_VALUES,
    START,
    SUBJECT,
    asset_uri,
    command_here,
    pod_resources,
    set_schema,
)
from penstock.orchestrators.airflow_tasks import (
    is_due,
    post_notice,
    run_stage,
)
from penstock.orchestrators.base import (
    LAST_OF_DATA,
    Databricks,
    Flow,
    Kubernetes,
    Task,
    read_flow,
)


def build_dag(recipe: Path | str) -> DAG:
    """The DAG of a recipe.

    Args:
        recipe: Its file; a relative path starts at the folder of the DAG file.

    Raises:
        RecipeError: It is wrong; Airflow shows the message as an import error.
    """
    calls_from = Path(sys._getframe(1).f_globals.get("__file__", ".")).resolve().parent
    flow = read_flow(calls_from / recipe)
    settings = flow.settings
    with DAG(
        dag_id=flow.name,
        description=f"Penstock: {flow.recipe}",
        schedule=_schedule(flow),
        start_date=datetime(*START, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        tags=list(settings.tags),
        params={"set": Param({}, **set_schema(settings.settable))},
        default_args={
            "owner": settings.owner,
            "retries": settings.retries,
            "retry_delay": timedelta(seconds=settings.retry_delay_s),
            "on_failure_callback": _notices(flow),
        },
    ) as dag:
        chain(*(one for task in flow.tasks for one in _operators(flow, task)))
    return dag


def _schedule(flow: Flow) -> Any:
    events = [Asset(name=f"{flow.name}/{one}", uri=asset_uri(flow.name, one)) for one in EVENTS]
    cron, on_events = flow.settings.schedule, flow.settings.on_events
    any_event = functools.reduce(lambda left, right: left | right, events)
    if cron is None:
        return any_event if on_events else None
    timetable = CronTriggerTimetable(cron, timezone="UTC")
    return AssetOrTimeSchedule(timetable=timetable, assets=any_event) if on_events else timetable


def _notices(flow: Flow) -> list[Callable[[Any], None]]:
    notify = flow.settings.notify
    told: list[Callable[[Any], None]] = [
        functools.partial(post_notice, variable=name) for name in notify.webhooks
    ]
    if notify.email:
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        told.append(
            SmtpNotifier(
                to=list(notify.email),
                from_email=notify.email_from,
                subject=SUBJECT,
                html_content=HTML,
                smtp_conn_id=notify.smtp_connection,
            )
        )
    return told


def _operators(flow: Flow, task: Task) -> list[BaseOperator]:
    """A stage's operator, and after the stages of the data the one that may end the run."""
    stage, executor = task.stage, task.executor
    if isinstance(executor, Databricks):
        one = _on_databricks(flow, task, executor)
    elif isinstance(executor, Kubernetes):
        one = _in_a_pod(flow, task, executor)
    else:
        one = _here(flow, task)
    if stage != LAST_OF_DATA:
        return [one]
    command = [*flow.program("due"), *flow.command("due", KEY)]
    return [
        one,
        ShortCircuitOperator(task_id="due", python_callable=is_due, op_kwargs={"command": command}),
    ]


def _here(flow: Flow, task: Task) -> BaseOperator:
    arguments: dict[str, Any] = {"command": command_here(flow, task.stage)}
    if not task.after:  # what is set for a run is remembered by the one who opens it
        arguments["set_values"] = SET_VALUES
    return PythonOperator(task_id=task.stage, python_callable=run_stage, op_kwargs=arguments)


def _on_databricks(flow: Flow, task: Task, there: Databricks) -> BaseOperator:
    from airflow.providers.databricks.operators.databricks import DatabricksRunNowOperator

    return DatabricksRunNowOperator(
        task_id=task.stage,
        databricks_conn_id=there.connection,
        job_id=str(there.job_id),
        python_params=flow.command(task.stage, KEY),
        polling_period_seconds=there.poll_s,
    )


def _in_a_pod(flow: Flow, task: Task, there: Kubernetes) -> BaseOperator:
    from kubernetes.client import models as k8s

    from penstock.orchestrators.airflow_pod import StagePod

    wanted = pod_resources(there)
    return StagePod(
        task_id=task.stage,
        kubernetes_conn_id=there.connection,
        name=f"penstock-{task.stage}",
        namespace=there.namespace,
        image=there.image,
        cmds=["penstock"],
        arguments=flow.command(task.stage, KEY),
        get_logs=True,
        startup_timeout_seconds=there.startup_timeout_s,
        service_account_name=there.service_account,
        env_from=[
            k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name=name))
            for name in there.secrets
        ],
        container_resources=k8s.V1ResourceRequirements(**wanted) if wanted else None,
    )
