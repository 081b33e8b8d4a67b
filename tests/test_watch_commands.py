"""``penstock watch`` and ``penstock alarms``, and watchers as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import get_args

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from penstock import registry
from penstock.cli import app
from penstock.errors import LedgerError, RecipeError
from penstock.pipeline import open_pipeline
from penstock.retrain import Loop
from penstock.retrain_section import RetrainSection

RECIPE = {
    "name": "support",
    "store": "store",
    "sources": {"rows": {"type": "waiting:Waiting", "paths": ["rows.jsonl"]}},
    "validate": {"range": {}},
    "prepare": {"transforms": ["normalise", {"split": {"validation": 0.2}}]},
    "evaluate": {"tasks": ["held_out"]},
    "gate": {"max": {"held_out": 8.0}},
    "observe": {"retrain": {"debounce_s": 0, "cooldown_s": 0}},
}
# Its data come when a file says so: a run can be caught in the middle.
WAITING = """
import time
from pathlib import Path
from penstock.sources.files import FilesSource


class Waiting(FilesSource):
    def snapshot(self):
        while not Path(__file__).with_name("go").exists():
            time.sleep(0.02)
        return super().snapshot()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "waiting.py").write_text(WAITING)
    row = {"instruction": "What does it give?", "response": "It gives a list."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.fixture
def penstock(folder):
    def call(*words):
        done = CliRunner().invoke(app, [*map(str, words)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return call


def test_an_alarm_is_raised_listed_shown_and_closed(penstock):
    raised = json.loads(penstock("alarms", "raise", "quality", "--key", "q1", "--json"))
    assert raised["number"] == 1
    penstock("alarms", "raise", "quality", "--key", "q1", "--evidence", '{"score": 0.4}')
    penstock("alarms", "acknowledge", 1, "--reason", "looking")
    assert len(json.loads(penstock("alarms", "list", "--json"))) == 1
    penstock("alarms", "close", 1, "--reason", "a test")
    assert json.loads(penstock("alarms", "list", "--json")) == []
    shown = json.loads(penstock("alarms", "show", 1, "--json"))
    assert [event["state"] for event in shown["events"]] == ["open", "acknowledged", "closed"]
    assert shown["alarm"]["alarm"]["evidence"] == {}
    assert "q1" in penstock("alarms", "list", "--all")
    with pytest.raises(LedgerError, match="closed already"):
        penstock("alarms", "close", 1, "--reason", "again")
    with pytest.raises(RecipeError, match="no JSON object"):
        penstock("alarms", "raise", "quality", "--key", "q2", "--evidence", "[1]")


def test_a_pause_a_veto_and_their_reasons_are_kept(penstock):
    penstock("watch", "start", "--reason", "new labels")
    penstock("watch", "pause", "--reason", "the disk is full")
    assert "paused: the disk is full" in penstock("watch", "--once")
    status = json.loads(penstock("watch", "status", "--json"))
    assert status["decision"]["why"] == "paused"
    assert [one["kind"] for one in status["situation"]["waiting"]] == ["person"]
    penstock("watch", "veto", "--reason", "the labels are wrong")
    penstock("watch", "resume", "--reason", "there is room")
    assert json.loads(penstock("watch", "--once", "--json"))["move"] == "idle"
    lines = json.loads(penstock("watch", "log", "--json"))
    assert [(one["action"], one["same"]) for one in lines] == [
        ("pause", None),
        ("refuse", True),
        ("resume", None),
    ]
    assert "the disk is full" in penstock("watch", "log")
    with pytest.raises(RecipeError, match="--reason is empty"):
        penstock("watch", "pause", "--reason", " ")


def test_a_start_that_needs_approval_gets_it_for_the_alarms_that_are_open(penstock, folder):
    asked = RECIPE | {"observe": {"retrain": {"debounce_s": 0, "approval": "person"}}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asked))
    assert "No alarm is open" in penstock("watch", "approve", "--reason", "yes")
    penstock("alarms", "raise", "drift", "--key", "1")
    assert "a person has to agree" in penstock("watch", "status")
    penstock("watch", "approve", "--reason", "yes")
    assert "start: 1 alarms (drift)" in penstock("watch", "status")


def test_a_recipe_that_says_nothing_of_retraining_is_not_watched(penstock, folder):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"observe": {}}))
    with pytest.raises(RecipeError, match=r"no observe\.retrain"):
        penstock("watch", "--once")


def test_a_veto_of_an_alarm_that_is_not_there_forbids_no_other(penstock):
    penstock("watch", "start", "--reason", "new labels")
    for number in (0, 2, 2**70):
        with pytest.raises(LedgerError, match=f"no alarm {number}"):
            penstock("watch", "veto", number, "--reason", "no")
    assert len(json.loads(penstock("alarms", "list", "--json"))) == 1


def through(orchestrator, folder):
    retrain = {"debounce_s": 0, "through": orchestrator}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"observe": {"retrain": retrain}}))


def test_the_alarm_of_another_recipe_is_neither_shown_nor_decided(penstock, folder):
    penstock("alarms", "raise", "quality", "--key", "q1")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"name": "another"}))
    for words in (
        ("alarms", "show", 1),
        ("alarms", "close", 1, "--reason", "over"),
        ("watch", "veto", 1, "--reason", "no"),
    ):
        with pytest.raises(LedgerError, match="another recipe"):
            penstock(*words)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert len(json.loads(penstock("alarms", "list", "--json"))) == 1


def test_a_recipe_may_name_the_orchestrators_of_the_registry_and_no_others():
    named = get_args(RetrainSection.model_fields["through"].annotation)
    assert set(named) == {"here", *registry.BUILTIN["orchestrators"]}


@pytest.mark.parametrize("orchestrator", registry.BUILTIN["orchestrators"])
def test_an_orchestrator_is_asked_by_what_the_registry_has(
    penstock, folder, monkeypatch, orchestrator
):
    (folder / "asked_here.py").write_text(
        "def trigger(recipe, key, conf):\n"
        "    assert recipe.is_file() and conf['alarms'] == [1]\n"
        "    return f'run of {key}'\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "asked_here", raising=False)
    monkeypatch.setitem(registry.BUILTIN["orchestrators"], orchestrator, "asked_here:trigger")
    through(orchestrator, folder)
    penstock("alarms", "raise", "drift", "--key", "1")
    penstock("watch", "--once")
    start, told = json.loads(penstock("watch", "log", "--json"))
    assert told["action"] == "started"
    assert told["evidence"] == {"key": f"{orchestrator}:run of {start['start_key']}"}


def test_an_orchestrator_that_cannot_be_loaded_is_said(penstock, folder, monkeypatch):
    monkeypatch.setitem(registry.BUILTIN["orchestrators"], "dagster", "not_there:trigger")
    through("dagster", folder)
    with pytest.raises(RecipeError, match="no module 'not_there'"):
        penstock("watch", "--once")


def started(folder, *words):
    command = [sys.executable, "-m", "penstock.cli", "watch", "--poll-s", "0.05", *words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    log = (folder / "watch.log").open("a")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def until(what, process, folder):
    end_s = time.monotonic() + 120
    while not (found := what()):
        assert process.poll() is None, (folder / "watch.log").read_text()
        assert time.monotonic() < end_s, (folder / "watch.log").read_text()
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_a_watcher_killed_in_the_middle_of_a_run_is_followed_by_one_that_ends_the_same_run(
    penstock, folder
):
    penstock("watch", "start", "--reason", "new labels")
    pipeline = open_pipeline(folder / "recipe.yaml")
    loop = Loop(pipeline.recipe, pipeline.ledger, pipeline.recipe.observe.retrain.policy())

    def running():
        return pipeline.ledger.runs("support")

    first = started(folder)
    [run] = until(running, first, folder)
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    psutil.wait_procs(family, timeout=60)
    assert not any(one.is_running() for one in family)
    second = started(folder)
    until(lambda: psutil.Process(second.pid).children(), second, folder)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0, (folder / "watch.log").read_text()
    assert [one.status for one in running()] == ["RUNNING"]
    (folder / "go").touch()
    assert started(folder, "--once").wait(120) == 0, (folder / "watch.log").read_text()
    [ended] = running()
    assert (ended.id, ended.status) == (run.id, "SKIPPED")
    assert [str(line.action) for line in loop.log.lines()] == ["start", "ended"]
    assert [start.outcome for start in loop.story().starts] == ["SKIPPED"]
    pipeline.ledger.close()
