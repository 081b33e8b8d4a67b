"""What an Airflow DAG of a recipe holds, without Airflow: names, templates, resources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.orchestrate_section import Kubernetes
from penstock.orchestrators.base import Flow

# Airflow's own name for the run is ours too: however often a task comes, it is the same run.
KEY = "airflow:{{ run_id }}"
SET_VALUES = "{{ params.set | tojson }}"
# Before anything was scheduled, and never again touched: it would move the schedule.
START = (2026, 1, 1)
EVENTS = ("new-data", "drift")

SUBJECT = "Penstock: {{ ti.dag_id }} failed at {{ ti.task_id }}"
HTML = (
    "<p>{{ ti.dag_id }}, run {{ ti.run_id | e }}, failed at {{ ti.task_id }} "
    "(try {{ ti.try_number }}).</p><pre>{{ exception | string | e }}</pre>"
    '<p><a href="{{ ti.log_url | e }}">log</a></p>'
)


def asset_uri(name: str, event: str) -> str:
    """The asset whose events start a recipe's runs."""
    return f"penstock://{name}/{event}"


def command_here(flow: Flow, stage: str) -> list[str]:
    """The whole command line of a stage, or of ``due``, on Airflow's host."""
    return [*flow.program(stage), *flow.command(stage, KEY)]


def set_schema(settable: Sequence[str]) -> dict[str, Any]:
    """JSON Schema of ``set`` in a run's conf: values of the recipe for that run alone."""
    return {
        "type": "object",
        "description": f"Values for this run alone: {', '.join(settable) or 'none'}.",
        "properties": {name: {} for name in settable},
        "additionalProperties": False,
    }


def pod_resources(there: Kubernetes) -> dict[str, dict[str, str]]:
    """Requests and limits; memory and GPUs are limits too, CPU is not held back."""
    gpus = {there.gpu_resource: str(there.gpus)} if there.gpus else {}
    memory = {"memory": there.memory} if there.memory else {}
    cpu = {"cpu": there.cpu} if there.cpu else {}
    wanted = {"requests": cpu | memory | gpus, "limits": memory | gpus}
    return {kind: amounts for kind, amounts in wanted.items() if amounts}
