"""``penstock step --key --task`` and ``penstock due``: retried, doubled, skipped, refused."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from console_browser import Browser
from console_project import ConsoleProject
from penstock.cli import main
from penstock.console import create_console
from penstock.orchestrators.results import _console_pages
from penstock.pipeline import open_pipeline
from tiny_project import write_project, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path):
    return write_project(tmp_path / "project", rows=40)


def call(capfd, *words):
    """What the command prints as its last line."""
    old, sys.argv = sys.argv, ["penstock", *words]
    try:
        with contextlib.suppress(SystemExit):
            main()
    finally:
        sys.argv = old
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def exit_code(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["penstock", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


def step(capfd, recipe, stage, key="k", *more):
    return call(capfd, "step", stage, "--key", key, "--task", "--recipe", str(recipe), *more)


def due(capfd, recipe, key="k", *more):
    return call(capfd, "due", "--key", key, "--recipe", str(recipe), *more)


def runs(recipe):
    return open_pipeline(recipe).ledger.runs()


def test_a_first_task_that_is_repeated_joins_its_own_run(capfd, recipe):
    first = step(capfd, recipe, "ingest")
    again = step(capfd, recipe, "ingest")
    assert first["run_id"] == again["run_id"] == runs(recipe)[0].id
    assert [first["outcome"], again["outcome"]] == ["ran", "hit"]
    assert len(runs(recipe)) == 1
    assert first["numbers"]["rows.total"] == 40


def test_tasks_link_to_the_console_where_the_recipe_says_where_it_is(capfd, recipe):
    tree = yaml.safe_load(recipe.read_text())
    tree["orchestrate"] = {"console": "https://gateway.example.org/console/"}
    recipe.write_text(yaml.safe_dump(tree | {"observe": {"drift": {}}}))
    told = step(capfd, recipe, "ingest")
    console = "https://gateway.example.org/console"
    assert told["links"]["console"] == f"{console}/runs/{told['run_id']}"
    assert told["links"]["drift"] == f"{console}/drift"


def test_a_tasks_pages_are_those_that_the_console_has(tmp_path):
    project = ConsoleProject(tmp_path)
    orchestrated = open_pipeline(project.recipe, {"orchestrate.console": "http://h/console"})
    browser, found = Browser(create_console(project.pipeline)), {}
    trial = project.start_trial()
    for stage, summary in (("gate", {}), ("deploy", {"rollout": trial.id})):
        artifact = project.ledger.find(project.prints[stage])
        told = replace(artifact, summary={**artifact.summary, **summary})
        found |= dict(_console_pages(orchestrated, project.run_id, told))
    assert found.keys() == {"console", "gate", "rollout"}
    for name, url in found.items():
        assert browser.get(url.removeprefix("http://h/console")).status_code == 200, name


def test_first_tasks_in_two_processes_at_once_open_one_run(recipe):
    open_pipeline(recipe)
    command = [sys.executable, "-m", "penstock.cli", "step", "ingest", "--key", "k", "--task"]
    racing = [
        subprocess.Popen([*command, "-r", recipe], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [json.loads(one.communicate()[0]) for one in racing]
    assert len({one["run_id"] for one in results}) == len(runs(recipe)) == 1
    assert sorted(one["outcome"] for one in results) == ["hit", "ran"]


def test_enough_new_examples_are_due_and_too_few_close_the_run(capfd, recipe):
    for stage in ("ingest", "validate"):
        assert step(capfd, recipe, stage)["goes_on"]
    assert due(capfd, recipe)["goes_on"]
    few = ["--set", "ingest.min_new_examples=1000"]
    for stage in ("ingest", "validate"):
        step(capfd, recipe, stage, "k2", *few)
    told = due(capfd, recipe, "k2", *few)
    assert not told["goes_on"]
    assert told["status"] == "SKIPPED"
    assert "1,000 needed" in told["reason"]
    assert due(capfd, recipe, "k2", *few) == told
    # A task that comes too late changes nothing either.
    assert step(capfd, recipe, "prepare", "k2", *few)["goes_on"] is False
    assert runs(recipe)[0].status == "SKIPPED"


def test_data_that_break_the_contract_are_no_reason_to_try_again(capfd, recipe):
    write_rows(recipe.parent / "data" / "first.jsonl", 60, seed=1)
    tree = yaml.safe_load(recipe.read_text()) | {"validate": {"max_bad_rows": 0.0, "range": {}}}
    recipe.write_text(yaml.safe_dump(tree))
    step(capfd, recipe, "ingest")
    told = step(capfd, recipe, "validate")
    assert [told["goes_on"], told["status"], told["outcome"]] == [False, "FAILED", "failed"]
    assert "rows fail" in told["reason"]
    page = Path(unquote(urlsplit(told["links"]["run"]).path)).read_text()
    assert "rows fail" in page
    assert f"Run {told['run_id']}" in page
    asked = due(capfd, recipe)
    assert [asked["goes_on"], asked["reason"]] == [False, told["reason"]]
    assert runs(recipe)[0].status == "FAILED"


def test_without_task_broken_data_have_an_exit_code_of_their_own(recipe):
    tree = yaml.safe_load(recipe.read_text()) | {"validate": {"max_bad_rows": 0.0, "range": {}}}
    recipe.write_text(yaml.safe_dump(tree))
    assert exit_code("run", "-r", str(recipe)) == 5


@pytest.mark.parametrize("words", [[], ["--key", "a", "--run", "b"], ["--key", "two words"]])
def test_which_run_is_meant_must_be_said_once(recipe, words):
    assert exit_code("step", "ingest", "-r", str(recipe), *words) == 2
    assert runs(recipe) == []


def test_a_task_ends_when_the_process_that_started_it_is_killed(tmp_path, recipe):
    waiting = tmp_path / "waiting.py"
    waiting.write_text(
        "import subprocess, sys\n"
        "one = subprocess.Popen([sys.executable, '-m', 'penstock.cli', *sys.argv[1:]])\n"
        "print(one.pid, flush=True)\none.wait()\n"
    )
    pipeline = open_pipeline(recipe)
    run = pipeline.start(key="k").id
    claim = pipeline.ledger.try_claim("tiny/ingest")
    command = ["step", "ingest", "--key", "k", "--task", "-r", str(recipe)]
    parent = subprocess.Popen(
        [sys.executable, waiting, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = int(parent.stdout.readline())
    assert any("waiting for" in line for line in parent.stderr)
    parent.kill()
    parent.wait()
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        os.sched_yield()
    with claim:
        pass  # given back
    assert pipeline.step("ingest", run).stages[0].outcome == "ran"
