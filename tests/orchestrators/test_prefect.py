"""A recipe as a flow in a real Prefect, asked for by its API: doubled, killed, refused."""

import contextlib
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

import watched
from penstock.child_process import free_port
from penstock.exported import write_file
from penstock.orchestrators import short_files
from penstock.orchestrators.base import read_flow
from penstock.orchestrators.prefect_api import trigger
from penstock.pipeline import NAMES, open_pipeline
from tiny_project import write_project
from twice import Twice

HOME = Path(__file__).parents[2]
BIN = HOME / ".venvs" / "prefect" / "bin"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # beside other tests
    pytest.mark.skipif(
        not (BIN / "prefect").exists(), reason="scripts/make-env.sh prefect makes its environment"
    ),
]


class World:
    """A project, Prefect's server, and the process that serves the project's flow."""

    def __init__(self, folder, stack, penstock):
        self.folder, self.stack = folder, stack
        self.twice = Twice(folder, penstock)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.recipe = write_project(folder / "project")
        tree = yaml.safe_load(self.recipe.read_text())
        tree["orchestrate"] = {
            "penstock": str(self.twice.path),
            "retries": 1,
            "retry_delay_s": 0.1,
            "settable": ["ingest.min_new_examples", "gate.min", "train.max_steps"],
            "prefect": {"url": self.url},
        }
        self.recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
        self.file = folder / "tiny_prefect.py"
        write_file(self.file, short_files.text_of(read_flow(self.recipe), "prefect"))
        self.environment = os.environ | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "DO_NOT_TRACK": "1",
        }
        self.start("server", [BIN / "prefect", "server", "start", "--port", str(port)])
        self.until(lambda: self.get("health"))
        self.start("serve", [BIN / "python", self.file])
        self.until(lambda: self.get("deployments/name/tiny/penstock"))

    def start(self, name, command):
        log = self.stack.enter_context((self.folder / f"{name}.log").open("w"))
        process = subprocess.Popen(
            command, env=self.environment, cwd=self.folder, stdout=log, stderr=log
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)

    def until(self, found):
        for _ in range(1200):
            with contextlib.suppress(httpx.HTTPError):
                if found():
                    return
            time.sleep(0.2)
        logs = [path.read_text()[-3000:] for path in self.folder.glob("*.log")]
        raise AssertionError("\n".join(logs))

    def get(self, path):
        answer = httpx.get(f"{self.url}/{path}")
        return answer.json() if answer.is_success else None

    def find(self, what, run_id):
        """Task runs or artifacts of a flow's run."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}}
        return httpx.post(f"{self.url}/{what}/filter", json=body).raise_for_status().json()

    def run(self, key, **set_):
        """A run that was asked for, when it has ended."""
        run_id = trigger(self.recipe, key, {"set": set_, "reason": "a test"})
        ended = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        self.until(lambda: self.get(f"flow_runs/{run_id}")["state"]["type"] in ended)
        return self.get(f"flow_runs/{run_id}")

    @property
    def pipeline(self):
        return open_pipeline(self.recipe)

    def artifacts(self, run):
        return {one["key"]: one for one in self.find("artifacts", run["id"])}

    def tasks(self, run):
        """Stage -> how often it was tried."""
        found = sorted(self.find("task_runs", run["id"]), key=lambda one: one["start_time"])
        return {one["name"]: one["run_count"] for one in found}


@pytest.fixture(scope="module")
def world(tmp_path_factory, penstock_program):
    with contextlib.ExitStack() as stack:
        yield World(tmp_path_factory.mktemp("prefect"), stack, penstock_program)


@pytest.fixture(scope="module")
def turned(world):
    """The loop, each command twice at once, and the training killed once."""
    world.twice.kill_once("train")
    world.twice.double(True)
    try:
        return world.run("first")
    finally:
        world.twice.double(False)


def test_a_loop_is_turned_once_though_commands_are_doubled_and_one_is_killed(world, turned):
    assert [turned["state"]["type"], turned["state"]["name"]] == ["COMPLETED", "Succeeded"]
    assert world.tasks(turned) == dict.fromkeys(NAMES, 1) | {"train": 2}
    (run,) = world.pipeline.ledger.runs()
    assert run.status == "SUCCEEDED"
    artifacts = world.artifacts(turned)
    assert "# tiny: PASS" in artifacts["tiny-gate"]["data"]
    assert "decision.html" in artifacts["tiny-gate"]["data"]
    assert run.id in artifacts["tiny-run"]["description"]
    assert all(f'"{stage}"' in artifacts["tiny-run"]["data"] for stage in NAMES)


def test_a_run_is_asked_for_by_its_key_and_is_one_run_however_often(world, turned):
    with ThreadPoolExecutor(3) as pool:
        asked = list(pool.map(lambda _: trigger(world.recipe, "first", {}), range(3)))
    assert set(asked) == {turned["id"]}
    assert turned["parameters"] == {"set": {}, "reason": "a test"}


def test_a_watcher_has_prefect_run_what_an_alarm_asks_for(world, turned):
    watched.start_for_an_alarm(world.recipe, "prefect")
    assert watched.outcome_of_the_run(world.recipe, "prefect") == "SKIPPED"


def test_too_few_new_examples_complete_a_run_as_skipped(world, turned):
    skipped = world.run("few")
    assert [skipped["state"]["type"], skipped["state"]["name"]] == ["COMPLETED", "Skipped"]
    assert "20 needed" in skipped["state"]["message"]
    assert list(world.tasks(skipped)) == ["ingest", "validate"]


def test_a_verdict_of_block_completes_a_run_and_leaves_production_alone(world, turned):
    serving = world.pipeline.ledger.pointer("tiny", "production")
    blocked = world.run("block", **{"gate.min": {"which": 1.1}})
    assert [blocked["state"]["type"], blocked["state"]["name"]] == ["COMPLETED", "Blocked"]
    assert "# tiny: BLOCK" in world.artifacts(blocked)["tiny-gate"]["data"]
    assert "register" not in world.tasks(blocked)
    assert world.pipeline.ledger.runs()[0].status == "BLOCKED"
    assert world.pipeline.ledger.pointer("tiny", "production") == serving


def test_what_retrying_cannot_help_is_not_retried(world, turned):
    world.twice.take_calls()
    wrong = world.run("wrong", **{"train.max_steps": "many"})
    assert wrong["state"]["type"] == "FAILED"
    assert world.tasks(wrong) == {"ingest": 1}
    assert world.twice.take_calls() == ["ingest"]


def test_the_deployment_has_the_schedule_and_the_tags_of_the_recipe(world):
    found = world.get("deployments/name/tiny/penstock")
    (schedule,) = found["schedules"]
    assert [schedule["schedule"]["cron"], schedule["active"]] == ["0 0 * * 0", True]
    assert schedule["schedule"]["timezone"] == "UTC"
    assert set(found["tags"]) == {"penstock", "owner:penstock"}
