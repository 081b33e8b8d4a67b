"""Recipes in a real Airflow, asked by its REST API: the loop, repeats, kills, skips and notices.

One Airflow for all of it. Validate and prepare run as a job of Databricks, and train in a pod;
both are servers of ours that speak those APIs and run what they are given on this host.
"""

import json
import os
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

import airflow_server
import watched
from cluster_servers import Databricks, Kubernetes
from mail_server import MailServer
from penstock.exported import write_file
from penstock.orchestrators import airflow_file
from penstock.orchestrators.airflow_api import report_event, trigger
from penstock.orchestrators.asking import NotStarted
from penstock.orchestrators.base import read_flow
from penstock.pipeline import NAMES, open_pipeline
from tiny_project import write_project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # beside other tests
    pytest.mark.skipif(bool(airflow_server.missing()), reason=airflow_server.missing()),
]

# Each command twice at once, as a tool that doubles tasks does; and where a file says so,
# Airflow's own process for the task is killed in the middle.
TWICE = """\
#!{python}
import os, pathlib, signal, subprocess, sys, time
kill = pathlib.Path(__file__).parent / f"kill-{{sys.argv[2]}}"
command = [{penstock!r}, *sys.argv[1:]]
if kill.exists():
    kill.unlink()
    subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(2)
    os.kill(os.getppid(), signal.SIGKILL)
    os._exit(1)
first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
answers = [one.communicate()[0] for one in (first, second)]
sys.stdout.write(answers[1])
sys.exit(max(first.returncode, second.returncode))
"""
POD = """\
from airflow.sdk import DAG
from penstock.orchestrators.airflow_pod import StagePod

with DAG("pod", schedule=None) as dag:
    StagePod(
        task_id="train", name="train", namespace="default", image="x:1", retries=2,
        kubernetes_conn_id="cluster", cmds=["penstock"],
        arguments=["step", "train", "--task", "--key", "k", "--recipe", "/no/such.yaml"],
    )
"""


class Hook:
    """A webhook that keeps what it is told."""

    def __init__(self):
        told = self.told = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/secret-path"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def write(folder, name, section, **more):
    """A tiny project with an ``orchestrate`` section; returns the recipe's path."""
    path = write_project(folder / name, rows=60)
    tree = yaml.safe_load(path.read_text()) | {"name": name} | more
    notify = {"email": ["team@example.com"], "email_from": "a@example.com", "webhooks": ["HOOK"]}
    common = {"schedule": None, "retry_delay_s": 1, "notify": notify}
    tree["orchestrate"] = common | section
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def insist(recipe, key, conf):
    """Ask until there is an answer: Airflow's SQLite is locked now and then."""
    for _ in range(20):
        try:
            return trigger(recipe, key, conf)
        except NotStarted as error:
            if not error.transient:
                raise
    raise AssertionError(f"no answer about {key}")


class World:
    """The servers, the recipes, and an Airflow that has read their DAGs."""

    def __init__(self, folder, penstock, databricks, kubernetes, mail, hook):
        self.databricks, self.kubernetes, self.mail, self.hook = databricks, kubernetes, mail, hook
        home = folder / "airflow"
        (home / "dags").mkdir(parents=True)
        self.dags = home / "dags"
        self.penstock = folder / "penstock"
        self.penstock.write_text(TWICE.format(python=sys.executable, penstock=str(penstock)))
        self.penstock.chmod(self.penstock.stat().st_mode | stat.S_IXUSR)
        job = {"type": "databricks", "job_id": 7, "poll_s": 1}
        pod = {"type": "kubernetes", "image": "team/penstock:1", "connection": "cluster"}
        pod |= {"gpus": 1, "memory": "4Gi", "namespace": "models", "secrets": ["keys"]}
        executors = {"validate": job, "prepare": job, "train": pod}
        here = {"penstock": str(self.penstock)}
        self.airflow = airflow_server.Airflow(
            home,
            HOOK=hook.url,
            AIRFLOW_CONN_SMTP_DEFAULT=json.dumps(
                {
                    "conn_type": "smtp",
                    "host": "127.0.0.1",
                    "port": mail.port,
                    "extra": {"disable_ssl": True, "disable_tls": True, "retry_limit": 1},
                }
            ),
            AIRFLOW_CONN_DATABRICKS_DEFAULT=json.dumps(
                {
                    "conn_type": "databricks",
                    "host": "127.0.0.1",
                    "port": databricks.port,
                    "schema": "http",
                    "password": "not-a-secret",
                }
            ),
            AIRFLOW_CONN_CLUSTER=json.dumps(
                {
                    "conn_type": "kubernetes",
                    "extra": {"kube_config": json.dumps(kubernetes.config())},
                }
            ),
        )
        here["airflow"] = {"url": self.airflow.url}
        self.loop = write(folder, "loop", here | {"executors": executors})
        bad = {"validate": {"max_bad_rows": 0.0, "range": {}}}
        self.bad_data = write(folder, "bad-data", here, **bad)
        self.refused = write(folder, "refused", here, train={"max_step": 6})
        (self.dags / "loop.py").write_text(
            "from penstock.orchestrators.airflow import build_dag\n\n"
            f"dag = build_dag({os.path.relpath(self.loop, self.dags)!r})\n"
        )
        for recipe in (self.bad_data, self.refused):
            flow = read_flow(recipe)
            write_file(self.dags / f"{flow.name}.py", airflow_file.dag_file(flow))
        (self.dags / "pod.py").write_text(POD)
        self.airflow.start()
        self.airflow.wait_for_dags("loop", "bad-data", "refused", "pod")


@pytest.fixture(scope="module")
def world(tmp_path_factory, penstock_program):
    folder = tmp_path_factory.mktemp("world")
    with (
        Databricks([penstock_program]) as databricks,
        Kubernetes([penstock_program]) as kubernetes,
        MailServer() as mail,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PENSTOCK_AIRFLOW_USER", airflow_server.USER)
        patch.setenv("PENSTOCK_AIRFLOW_PASSWORD", airflow_server.PASSWORD)
        made = World.__new__(World)
        try:
            made.__init__(folder, penstock_program, databricks, kubernetes, mail, Hook())
            yield made
        finally:
            made.airflow.stop()
            made.hook.server.shutdown()


def test_an_alarm_is_one_loop_though_it_is_asked_for_again_doubled_and_killed(world):
    (world.penstock.parent / "kill-evaluate").touch()
    key = watched.start_for_an_alarm(world.loop, "airflow")
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: insist(world.loop, key, {}), range(4)))
    assert len(ids) == len(world.airflow.runs("loop")) == 1
    run_id = ids.pop()
    state, tasks = world.airflow.ended("loop", run_id)
    assert state == "success", world.airflow._said()
    assert tasks.pop("evaluate") == ("success", 2)
    assert tasks == dict.fromkeys({*NAMES, "due"} - {"evaluate"}, ("success", 1))

    pipeline = open_pipeline(world.loop)
    (run,) = pipeline.ledger.runs()
    assert run.status == "SUCCEEDED"
    assert watched.outcome_of_the_run(world.loop, "airflow") == "PROMOTED"
    stages = {one.stage: one.outcome for one in pipeline.ledger.stages(run.id)}
    assert stages.pop("baseline") == "skipped"
    assert set(stages.values()) <= {"ran", "hit"}
    assert len(pipeline.ledger.models()) == len(pipeline.ledger.results("loop", "train")) == 1
    assert world.mail.mails == world.hook.told == []


def test_databricks_and_kubernetes_got_what_the_recipe_says(world):
    runs = [body for _, path, body, _ in world.databricks.asked if path.endswith("/run-now")]
    assert [one["job_id"] for one in runs] == ["7", "7"]
    (start,) = watched.starts(world.loop)
    key = f"airflow:penstock__{start.key}"
    assert runs[0]["python_params"] == [
        *("step", "validate", "--task", "--key", key, "--recipe", str(world.loop))
    ]
    (pod,) = [body for method, _, body, _ in world.kubernetes.asked if method == "POST"]
    assert pod["metadata"]["namespace"] == "models"
    container = pod["spec"]["containers"][0]
    assert [container["image"], container["command"]] == ["team/penstock:1", ["penstock"]]
    assert container["args"][:2] == ["step", "train"]
    assert container["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    log = world.airflow.log("loop", f"penstock__{start.key}", "train")
    assert '\\"stage\\": \\"train\\"' in log  # get_logs: what the pod said


def test_an_event_starts_a_run_which_is_cut_short_when_nothing_is_new(world):
    report_event(world.loop, "drift", {"window": "2026-11-28"})
    run = world.airflow._until(
        lambda: next(
            (r for r in world.airflow.runs("loop") if r["run_type"] == "asset_triggered"), None
        )
    )
    state, tasks = world.airflow.ended("loop", run["dag_run_id"])
    assert [state, tasks["due"][0], tasks["prepare"][0]] == ["success", "success", "skipped"]
    assert {tasks[name][0] for name in NAMES[2:]} == {"skipped"}
    newest = open_pipeline(world.loop).ledger.runs()[0]
    assert [newest.status, "0 new examples" in newest.message] == ["SKIPPED", True]


def test_bad_data_cut_a_run_short_and_people_are_told(world):
    run_id = insist(world.bad_data, "k", {"set": {"ingest.min_new_examples": 25}})
    state, tasks = world.airflow.ended("bad-data", run_id)
    assert [state, tasks["validate"], tasks["due"][0]] == ["success", ("success", 1), "success"]
    assert {tasks[name][0] for name in NAMES[2:]} == {"skipped"}
    (run,) = open_pipeline(world.bad_data).ledger.runs()
    assert [run.status, dict(run.overrides)] == ["FAILED", {"ingest.min_new_examples": 25}]
    (to, mail), (told,) = world.mail.mails.pop(), [world.hook.told.pop()]
    assert [to, mail["subject"]] == [
        ("team@example.com",),
        "Penstock: bad-data failed at due",
    ]
    assert "rows fail" in mail.get_body(("html",)).get_content()
    assert [told["dag"], told["task"], "rows fail" in told["reason"]] == ["bad-data", "due", True]


def test_a_wrong_recipe_fails_without_a_retry_and_people_are_told(world):
    run_id = insist(world.refused, "k", {})
    state, tasks = world.airflow.ended("refused", run_id)
    assert [state, tasks["ingest"]] == ["failed", ("failed", 1)]
    _, mail = world.mail.mails.pop()
    assert "max_step" in mail.get_body(("html",)).get_content()
    told = world.hook.told.pop()
    assert [told["task"], told["try"], "max_step" in told["reason"]] == ["ingest", 1, True]
    assert "secret-path" not in world.airflow.log("refused", run_id, "ingest")


def test_a_wrong_recipe_in_a_pod_fails_without_a_retry(world):
    world.airflow.post("/dags/pod/dagRuns", {"dag_run_id": "p", "logical_date": None})
    state, tasks = world.airflow.ended("pod", "p")
    assert [state, tasks] == ["failed", {"train": ("failed", 1)}]


def test_what_may_not_be_set_is_refused_here_and_there(world):
    body = {"dag_run_id": "x", "logical_date": None, "conf": {"set": {"store": "/elsewhere"}}}
    assert world.airflow.post("/dags/loop/dagRuns", body).status_code == 400


def test_an_edited_export_goes_on_working(world):
    path = world.dags / "refused.py"
    text = path.read_text().replace('"owner": "penstock"', '"owner": "mine"')
    path.write_text(text.replace('dag_id="refused"', 'dag_id="renamed"'))
    world.airflow.wait_for_dags("renamed")
    found = world.airflow.get("/dags/renamed")
    assert [found["owners"], found["has_import_errors"]] == [["mine"], False]


def test_another_password_is_refused(world, monkeypatch):
    monkeypatch.setenv("PENSTOCK_AIRFLOW_PASSWORD", "wrong")
    with pytest.raises(NotStarted, match="refused to log tester in: status 401"):
        trigger(world.loop, "k", {})
