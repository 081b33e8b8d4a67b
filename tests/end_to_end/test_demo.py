"""The demo as a stranger plays it: one command, three acts, a running server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def penstock(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock.cli", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    done = penstock(folder, "demo", "--port", "0", "--metrics-port", "0")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "demo", done.stdout


def runs(project: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(penstock(project, "runs", "--json").stdout)
    return found[::-1]


def test_two_acts_are_promoted_and_the_poison_is_blocked(played: tuple[Path, str]) -> None:
    project, _ = played
    assert [run["status"] for run in runs(project)] == ["SUCCEEDED", "SUCCEEDED", "BLOCKED"]


def test_version_2_serves_at_the_end(played: tuple[Path, str]) -> None:
    project, output = played
    moves = json.loads(penstock(project, "model", "history", "--json").stdout)
    assert [(move["from_version"], move["to_version"]) for move in moves] == [(None, 1), (1, 2)]
    assert "Version 2 keeps serving" in output


def test_no_request_failed_while_version_2_was_promoted(played: tuple[Path, str]) -> None:
    _, output = played
    told = re.search(r"A client sent ([\d,]+) requests meanwhile: (.*); (\d+) failed", output)
    assert told is not None
    assert int(told.group(1).replace(",", "")) > 10
    assert "from version 1" in told.group(2)
    assert "from version 2" in told.group(2)
    assert told.group(3) == "0"


def test_version_2_is_better_than_version_1_on_the_same_items(played: tuple[Path, str]) -> None:
    project, _ = played
    found = [json.loads(penstock(project, "show", r["id"], "--json").stdout) for r in runs(project)]
    first, second, poisoned = (
        run["artifacts"]["evaluate"]["summary"]["metrics"]["word_order/acc"] for run in found
    )
    assert first > 0.4  # guessing gets 0.25
    assert second > first
    assert poisoned < second


def test_an_answer_is_traced_to_its_source_rows(played: tuple[Path, str]) -> None:
    project, output = played
    told = re.search(r"\$ penstock lineage (\S+)", output)
    assert told is not None
    found = json.loads(penstock(project, "lineage", told.group(1), "--json").stdout)
    assert found["model"]["version"] == 1
    assert [source["source"] for source in found["sources"]] == ["stdlib"]
    assert found["sources"][0]["examples"][0]["origin"].count(":") == 1


def test_an_unchanged_recipe_has_nothing_to_do(played: tuple[Path, str]) -> None:
    project, _ = played
    report = json.loads(penstock(project, "run", "--json").stdout)
    assert report["status"] == "SKIPPED"


def test_a_rollback_is_one_step(played: tuple[Path, str]) -> None:
    project, _ = played
    assert "version 1 now" in penstock(project, "model", "rollback").stdout


def test_nothing_is_left_running(played: tuple[Path, str]) -> None:
    project, _ = played
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(project)
    ]
    assert left == []


def test_ctrl_c_leaves_nothing_running_and_nothing_half_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "penstock.cli", "demo", "--port", "0", "--metrics-port", "0"]
    log = tmp_path / "log.txt"
    with log.open("wb") as output:
        demo = subprocess.Popen(
            command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True
        )
        while "tokenize:" not in log.read_text():  # so it is in the training now
            assert demo.poll() is None, log.read_text()
            time.sleep(0.5)
        below = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=60) == 130
    assert "What was finished is kept" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not psutil.wait_procs(below, timeout=10)[1]
    (run,) = runs(tmp_path / "demo")
    assert run["status"] == "INTERRUPTED"
    models = penstock(tmp_path / "demo", "model", "list", "--json")
    assert json.loads(models.stdout) == []
