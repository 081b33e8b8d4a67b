"""The DAG that is built from a recipe, and the one that is exported, read by Airflow itself."""

import json
import subprocess

import pytest

import airflow_server
from penstock.orchestrate_section import STAGES
from penstock.orchestrators.airflow_file import dag_file
from penstock.orchestrators.base import read_flow

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(airflow_server.missing()), reason=airflow_server.missing()),
]
RECIPE = """\
name: support
orchestrate:
  penstock: /opt/penstock/bin/penstock
  notify: {email: [a@b.example], email_from: c@d.example, webhooks: [HOOK]}
  executors:
    validate: {type: databricks, job_id: 7}
    train: {type: kubernetes, image: x:1, gpus: 2, memory: 4Gi, secrets: [keys]}
    evaluate: {type: virtualenv, python: /venv/bin/python}
"""
SHOW = """\
import json, runpy, sys
def shown(path):
    dag = runpy.run_path(path)["dag"]
    tasks = [
        {
            "task": one.task_id, "kind": type(one).__name__, "owner": one.owner,
            "retries": one.retries, "delay_s": one.retry_delay.total_seconds(),
            "after": sorted(one.upstream_task_ids), "notices": len(one.on_failure_callback),
            "does": repr([getattr(one, name, None) for name in (
                "op_kwargs", "arguments", "python_params", "image", "container_resources",
                "env_from", "job_id", "get_logs", "startup_timeout_seconds")]),
        }
        for one in dag.topological_sort()
    ]
    return [dag.dag_id, dag.catchup, dag.max_active_runs, repr(dag.timetable), tasks]
print(json.dumps([shown(path) for path in sys.argv[1:]]))
"""


def test_the_built_and_the_exported_dag_are_the_same(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    (tmp_path / "built.py").write_text(
        "from penstock.orchestrators.airflow import build_dag\n\ndag = build_dag('recipe.yaml')\n"
    )
    (tmp_path / "plain.py").write_text(dag_file(read_flow(recipe)))
    (tmp_path / "show.py").write_text(SHOW)
    done = subprocess.run(
        [airflow_server.PYTHON, "show.py", tmp_path / "built.py", tmp_path / "plain.py"],
        env=airflow_server.environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    built, plain = json.loads(done.stdout.splitlines()[-1])
    assert built == plain
    assert built[:3] == ["support", False, 1]
    assert [one["task"] for one in built[4]] == [*STAGES[:2], "due", *STAGES[2:]]
    assert {(one["retries"], one["delay_s"], one["notices"]) for one in built[4]} == {(2, 600.0, 2)}
