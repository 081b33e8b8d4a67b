"""The same DAG as a file of its own, which needs Airflow and nothing of Penstock to be read."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from penstock.exported import marked
from penstock.orchestrators import airflow_plan as plan
from penstock.orchestrators.airflow_plan import command_here
from penstock.orchestrators.base import LAST_OF_DATA, Databricks, Flow, Kubernetes, Task

_HEAD = """\
# Written by: penstock export airflow
# Edit it as you like: edited files are not overwritten, and go on working.
"""
_TASKS = Path(__file__).with_name("airflow_tasks.py")
_POD = Path(__file__).with_name("airflow_pod.py")


def path_of(flow: Flow) -> Path:
    """Where the file goes, if nothing else is asked for."""
    return Path("dags") / f"{flow.name}.py"


def dag_file(flow: Flow) -> str:
    """The DAG file's text."""
    body = "\n\n\n".join([_imports(flow), *_functions(flow), _dag(flow)])
    return marked(_HEAD, body)


def _is(flow: Flow, kind: type) -> bool:
    return any(isinstance(task.executor, kind) for task in flow.tasks)


def _imports(flow: Flow) -> str:
    webhooks, mail = flow.settings.notify.webhooks, flow.settings.notify.email
    standard = ["json", "logging", "subprocess", "tempfile", *(["os"] if webhooks else [])]
    lines = [f"import {name}" for name in sorted(standard)]
    lines += ["from datetime import UTC, datetime, timedelta"]
    lines += ["from functools import partial"] if webhooks else []
    lines += ["from typing import Any", ""]
    third = ["import httpx"] if webhooks else []
    if _is(flow, Kubernetes):
        third += [
            "from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator"
        ]
    if _is(flow, Databricks):
        third += [
            "from airflow.providers.databricks.operators.databricks import DatabricksRunNowOperator"
        ]
    if mail:
        third += ["from airflow.providers.smtp.notifications.smtp import SmtpNotifier"]
    third += [
        "from airflow.providers.standard.operators.python import (",
        "    PythonOperator,",
        "    ShortCircuitOperator,",
        ")",
        f"from airflow.sdk import {', '.join(_sdk(flow))}",
        "from airflow.sdk.exceptions import AirflowException, AirflowFailException",
    ]
    if _is(flow, Kubernetes):
        third += ["from kubernetes.client import models as k8s"]
    return "\n".join([*lines, *third, "", "log = logging.getLogger(__name__)"])


def _sdk(flow: Flow) -> list[str]:
    names = ["DAG", "Param", "chain"]
    if flow.settings.on_events:
        names.append("Asset")
    if flow.settings.schedule is not None:
        names.append("CronTriggerTimetable")
        names += ["AssetOrTimeSchedule"] if flow.settings.on_events else []
    return sorted(names)


def _functions(flow: Flow) -> Iterator[str]:
    """What tasks do, in the words of the module that does it otherwise."""
    left_out = set() if flow.settings.notify.webhooks else {"post_notice"}
    for path in [_TASKS, _POD] if _is(flow, Kubernetes) else [_TASKS]:
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name not in left_out:
                yield re.sub(r"  # (noqa|type): .*", "", ast.get_source_segment(source, node) or "")


def _dag(flow: Flow) -> str:
    settings = flow.settings
    lines = [
        *_notices(flow),
        f"schedule = {_schedule(flow)}",
        "with DAG(",
        f"    dag_id={_text(flow.name)},",
        f"    description={_text(f'Penstock: {flow.recipe}')},",
        "    schedule=schedule,",
        f"    start_date=datetime({', '.join(map(str, plan.START))}, tzinfo=UTC),",
        "    catchup=False,",
        "    max_active_runs=1,",
        f"    tags={_list(settings.tags)},",
        f'    params={{"set": Param({{}}, **{_literal(plan.set_schema(settings.settable))})}},',
        "    default_args={",
        f'        "owner": {_text(settings.owner)},',
        f'        "retries": {settings.retries},',
        f'        "retry_delay": timedelta(seconds={settings.retry_delay_s:g}),',
        '        "on_failure_callback": notices,',
        "    },",
        ") as dag:",
        "    # Airflow's own name for the run: tasks that come twice join the same one.",
        f"    run = {_text(plan.KEY)}",
        f"    recipe = {_text(str(flow.recipe))}",
        f"    penstock = {_text(flow.program('due')[0])}",
    ]
    for task in flow.tasks:
        lines += [f"    {line}" for line in _operator(flow, task)]
        if task.stage == LAST_OF_DATA:
            lines += [f"    {line}" for line in _due(flow)]
    names = [name for task in flow.tasks for name in _names(task)]
    lines += ["    chain(", *(f"        {name}," for name in names), "    )"]
    return "\n".join(lines) + "\n"


def _names(task: Task) -> list[str]:
    return [task.stage, "due"] if task.stage == LAST_OF_DATA else [task.stage]


def _notices(flow: Flow) -> Iterator[str]:
    notify = flow.settings.notify
    yield "notices: list[Any] = ["
    for name in notify.webhooks:
        yield f"    partial(post_notice, variable={_text(name)}),"
    if notify.email:
        yield "    SmtpNotifier("
        yield f"        to={_list(notify.email)},"
        if notify.email_from:
            yield f"        from_email={_text(notify.email_from)},"
        yield f"        subject={_text(plan.SUBJECT)},"
        yield f"        html_content={_text(plan.HTML)},"
        yield f"        smtp_conn_id={_text(notify.smtp_connection)},"
        yield "    ),"
    yield "]"


def _schedule(flow: Flow) -> str:
    settings = flow.settings
    timetable = f'CronTriggerTimetable({_text(settings.schedule or "")}, timezone="UTC")'
    if not settings.on_events:
        return timetable if settings.schedule else "None"
    assets = "\n    | ".join(
        f"Asset(name={_text(f'{flow.name}/{one}')}, uri={_text(plan.asset_uri(flow.name, one))})"
        for one in plan.EVENTS
    )
    if settings.schedule is None:
        return f"(\n    {assets}\n)"
    return f"AssetOrTimeSchedule(\n    timetable={timetable},\n    assets={assets},\n)"


def _operator(flow: Flow, task: Task) -> Iterator[str]:
    executor = task.executor
    if isinstance(executor, Databricks):
        yield f"{task.stage} = DatabricksRunNowOperator("
        yield f'    task_id="{task.stage}",'
        yield f"    databricks_conn_id={_text(executor.connection)},"
        yield f"    job_id={_text(str(executor.job_id))},"
        yield f"    python_params={_command(flow, flow.command(task.stage, plan.KEY))},"
        yield f"    polling_period_seconds={executor.poll_s},"
    elif isinstance(executor, Kubernetes):
        yield from _pod(flow, task, executor)
    else:
        set_values = "" if task.after else f', "set_values": {_text(plan.SET_VALUES)}'
        yield f"{task.stage} = PythonOperator("
        yield f'    task_id="{task.stage}",'
        yield "    python_callable=run_stage,"
        command = _command(flow, command_here(flow, task.stage))
        yield f'    op_kwargs={{"command": {command}{set_values}}},'
    yield ")"


def _pod(flow: Flow, task: Task, there: Kubernetes) -> Iterator[str]:
    yield f"{task.stage} = StagePod("
    yield f'    task_id="{task.stage}",'
    yield f"    kubernetes_conn_id={there.connection!r},"
    yield f'    name="penstock-{task.stage}",'
    yield f"    namespace={_text(there.namespace)},"
    yield f"    image={_text(there.image)},"
    yield '    cmds=["penstock"],'
    yield f"    arguments={_command(flow, flow.command(task.stage, plan.KEY))},"
    yield "    get_logs=True,"
    yield f"    startup_timeout_seconds={there.startup_timeout_s},"
    if there.service_account:
        yield f"    service_account_name={_text(there.service_account)},"
    if there.secrets:
        yield "    env_from=["
        for name in there.secrets:
            reference = f"k8s.V1SecretEnvSource(name={_text(name)})"
            yield f"        k8s.V1EnvFromSource(secret_ref={reference}),"
        yield "    ],"
    wanted = plan.pod_resources(there)
    if wanted:
        amounts = ", ".join(f"{kind}={_literal(some)}" for kind, some in wanted.items())
        yield f"    container_resources=k8s.V1ResourceRequirements({amounts}),"


def _due(flow: Flow) -> Iterator[str]:
    yield "due = ShortCircuitOperator("
    yield '    task_id="due",'
    yield "    python_callable=is_due,"
    yield f'    op_kwargs={{"command": {_command(flow, command_here(flow, "due"))}}},'
    yield ")"


def _command(flow: Flow, words: list[str]) -> str:
    """A command line with the names that the file gives to what it often says."""
    shown = {plan.KEY: "run", str(flow.recipe): "recipe", flow.program("due")[0]: "penstock"}
    return f"[{', '.join(shown.get(word) or _text(word) for word in words)}]"


def _list(values: list[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _literal(value: object) -> str:
    return repr(value).replace("'", '"')


def _text(value: str) -> str:
    """A string of Python's, in double quotes: JSON's escapes are Python's too."""
    return json.dumps(value)
