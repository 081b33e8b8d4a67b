"""A recipe as assets in a real Dagster: doubled, killed, skipped, blocked, refused, asked for."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

import watched
from penstock.child_process import free_port
from penstock.errors import PenstockError
from penstock.exported import write_file
from penstock.ledger.alarms import Alarm, Alarms
from penstock.orchestrators import short_files
from penstock.orchestrators.base import read_flow
from penstock.orchestrators.dagster_api import KEY_TAG, trigger
from penstock.pipeline import NAMES, open_pipeline
from tiny_project import write_project, write_rows
from twice import Twice

HOME = Path(__file__).parents[2]
BIN = HOME / ".venvs" / "dagster" / "bin"
DRIVER = HOME / "tests" / "dagster_run.py"
# No queue: a run begins when it is asked for, without a daemon.
INSTANCE = """\
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
telemetry: {enabled: false}
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # beside other tests
    pytest.mark.skipif(
        not (BIN / "dagster").exists(), reason="scripts/make-env.sh dagster makes its environment"
    ),
]


class World:
    """A project, its file for Dagster, and a Dagster home."""

    def __init__(self, folder, penstock):
        self._driver = None
        self.home = folder / "dagster"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(INSTANCE)
        self.twice = Twice(folder, penstock)
        self.port = free_port()
        self.recipe = write_project(folder / "project")
        tree = yaml.safe_load(self.recipe.read_text())
        tree["orchestrate"] = {
            "penstock": str(self.twice.path),
            "retries": 1,
            "retry_delay_s": 0.1,
            "settable": [
                "ingest.min_new_examples",
                "validate.max_bad_rows",
                "train.max_steps",
                "gate.min",
            ],
            "dagster": {"url": f"http://127.0.0.1:{self.port}"},
        }
        self.recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
        self.file = folder / "tiny_dagster.py"
        write_file(self.file, short_files.text_of(read_flow(self.recipe), "dagster"))
        self.environment = os.environ | {
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
        }

    @property
    def pipeline(self):
        return open_pipeline(self.recipe)

    def drive(self, **wanted):
        """What the job or the sensor came to."""
        if self._driver is None:
            self._driver = subprocess.Popen(
                [BIN / "python", DRIVER, self.file],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(self.home / "driver.txt").open("w"),
                text=True,
                env=self.environment,
                cwd=self.home,
            )
        self._driver.stdin.write(json.dumps(wanted) + "\n")
        self._driver.stdin.flush()
        answer = self._driver.stdout.readline()
        assert answer, (self.home / "driver.txt").read_text()[-3000:]
        return json.loads(answer)

    def close(self):
        if self._driver is not None:
            self._driver.communicate()


def stages(run, kind):
    return [one["stage"] for one in run["events"] if one["type"] == kind]


def checks(run):
    found = [one for one in run["events"] if one["type"] == "ASSET_CHECK_EVALUATION"]
    return {one["check"]: one["passed"] for one in found}


def metadata(run, stage):
    """What a stage's newest materialization says."""
    return [
        one["metadata"]
        for one in run["events"]
        if one["type"] == "ASSET_MATERIALIZATION" and one["stage"] == stage
    ][-1]


@pytest.fixture(scope="module")
def world(tmp_path_factory, penstock_program):
    made = World(tmp_path_factory.mktemp("dagster"), penstock_program)
    yield made
    made.close()


@pytest.fixture(scope="module")
def turned(world):
    """The loop, each command twice at once, and the training killed once."""
    assert [one["tags"]["penstock/reason"] for one in world.drive(sensor=True)]
    world.twice.take_calls()
    world.twice.kill_once("train")
    world.twice.double(True)
    try:
        return world.drive()
    finally:
        world.twice.double(False)


def test_a_loop_is_turned_once_though_commands_are_doubled_and_one_is_killed(world, turned):
    assert turned["success"]
    assert stages(turned, "ASSET_MATERIALIZATION") == list(NAMES)
    assert stages(turned, "STEP_UP_FOR_RETRY") == ["train"]
    assert world.twice.take_calls().count("train") == 2
    assert checks(turned) == {"contract": True, "gate": True}
    (run,) = world.pipeline.ledger.runs()
    assert run.status == "SUCCEEDED"
    assert metadata(turned, "ingest")["rows.total"] == "60"
    assert metadata(turned, "gate")["verdict"] == "PASS"
    assert metadata(turned, "gate")["decision"].endswith("decision.html")
    assert metadata(turned, "deploy")["penstock run"] == run.id


def test_a_run_that_is_executed_again_is_the_same_run(world, turned):
    before = len(world.pipeline.ledger.runs())
    again = world.drive(tags={"dagster/root_run_id": turned["run_id"]}, only=[["tiny", "train"]])
    assert stages(again, "ASSET_MATERIALIZATION") == ["train"]
    assert metadata(again, "train")["penstock run"] == metadata(turned, "train")["penstock run"]
    assert len(world.pipeline.ledger.runs()) == before


def test_too_few_new_examples_end_a_run_without_failing_it(world, turned):
    skipped = world.drive()
    assert skipped["success"]
    assert stages(skipped, "STEP_SKIPPED") == list(NAMES[2:])
    assert checks(skipped) == {"contract": True}
    assert "20 needed" in metadata(skipped, "validate")["reason"]
    assert world.pipeline.ledger.runs()[0].status == "SKIPPED"


def test_a_verdict_of_block_fails_its_check_and_leaves_production_alone(world, turned):
    serving = world.pipeline.ledger.pointer("tiny", "production")
    blocked = world.drive(set={"gate.min": {"which": 1.1}})
    assert blocked["success"]
    assert checks(blocked) == {"contract": True, "gate": False}
    assert stages(blocked, "STEP_SKIPPED") == ["register", "deploy"]
    assert metadata(blocked, "gate")["verdict"] == "BLOCK"
    assert world.pipeline.ledger.runs()[0].status == "BLOCKED"
    assert world.pipeline.ledger.pointer("tiny", "production") == serving


def test_what_retrying_cannot_help_is_not_retried(world, turned):
    world.twice.take_calls()
    wrong = world.drive(set={"train.max_steps": "many"})
    assert not wrong["success"]
    assert stages(wrong, "STEP_FAILURE") == ["ingest"]
    assert world.twice.take_calls() == ["ingest"]


def test_the_sensor_asks_for_one_run_for_new_data_and_for_one_of_many_alarms(world, turned):
    assert world.drive(sensor=True) == []
    alarms = Alarms(world.pipeline.ledger)
    for number in range(5):
        alarms.raise_(Alarm("tiny", "drift", f"window {number}", time.time()))
    write_rows(world.recipe.parent / "data" / "later.jsonl", 3, seed=9)
    asked = world.drive(sensor=True)
    assert [one["key"].split(":")[0] for one in asked] == ["alarm", "data"]
    assert world.drive(sensor=True) == asked
    started = world.drive(tags=asked[0]["tags"])
    assert started["success"]
    assert world.drive(sensor=True) == []
    assert alarms.open("tiny") == []
    assert {one.start_key for one in alarms.of("tiny")} == {asked[0]["key"]}


@pytest.fixture(scope="module")
def webserver(world):
    """A real webserver, which runs what it is asked for."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((world.home / "log").open("w"))
        server = subprocess.Popen(
            [BIN / "dagster-webserver", "-f", world.file, "-p", str(world.port)],
            env=world.environment,
            cwd=world.home,
            stdout=log,
            stderr=log,
        )
        stack.callback(server.wait)
        stack.callback(server.terminate)
        url = f"http://127.0.0.1:{world.port}"
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/server_info").is_success:
                    break
            assert server.poll() is None, (world.home / "log").read_text()
            time.sleep(0.2)
        yield url


def runs_of(url, key):
    query = "query($t: [ExecutionTag!]) { runsOrError(filter: {tags: $t}) { ... on Runs {"
    query += " results { runId status tags { key value } } } } }"
    variables = {"t": [{"key": KEY_TAG, "value": f"dagster:{key}"}]}
    answer = httpx.post(f"{url}/graphql", json={"query": query, "variables": variables}, timeout=60)
    return answer.json()["data"]["runsOrError"]["results"]


def test_a_run_is_asked_for_by_its_key_and_is_one_run_however_often(world, turned, webserver):
    conf = {"set": {"ingest.min_new_examples": 1000}, "reason": "drift"}
    assert trigger(world.recipe, "alarm-1", conf) == "alarm-1"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: trigger(world.recipe, "alarm-1", conf), range(2)))
    (run,) = runs_of(webserver, "alarm-1")
    assert {"key": "penstock/reason", "value": "drift"} in run["tags"]
    while runs_of(webserver, "alarm-1")[0]["status"] not in ("SUCCESS", "FAILURE"):
        time.sleep(0.5)
    assert runs_of(webserver, "alarm-1")[0]["status"] == "SUCCESS"
    ledger = world.pipeline.ledger
    newest = ledger.runs()[0]
    assert newest.status == "SKIPPED"
    assert "1,000 needed" in newest.message


def test_a_watcher_has_dagster_run_what_an_alarm_asks_for(world, turned, webserver):
    key = watched.start_for_an_alarm(world.recipe, "dagster")
    assert watched.outcome_of_the_run(world.recipe, "dagster") == "SKIPPED"
    # Dagster closes a run a moment after Penstock has.
    while runs_of(webserver, key)[0]["status"] == "STARTED":
        time.sleep(0.5)
    assert [one["status"] for one in runs_of(webserver, key)] == ["SUCCESS"]


def test_an_edited_file_goes_on_working_and_is_not_overwritten(world, turned):
    text = world.file.read_text() + "assert defs.schedules\n"
    edited = world.file.with_name("edited_dagster.py")
    shutil.copy(world.file, edited)
    edited.write_text(text)
    done = subprocess.run(
        [BIN / "dagster", "definitions", "validate", "-f", edited],
        capture_output=True,
        text=True,
        env=world.environment,
        cwd=world.home,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with pytest.raises(PenstockError, match="changed by hand"):
        write_file(edited, world.file.read_text())


def test_data_that_break_the_contract_fail_the_check_and_the_run_once(world, turned):
    write_rows(world.recipe.parent / "data" / "bad.jsonl", 60, seed=5)
    world.twice.take_calls()
    broken = world.drive(set={"validate.max_bad_rows": 0.0})
    assert not broken["success"]
    assert checks(broken) == {"contract": False}
    assert stages(broken, "STEP_FAILURE") == ["validate"]
    assert world.twice.take_calls() == ["ingest", "validate"]
