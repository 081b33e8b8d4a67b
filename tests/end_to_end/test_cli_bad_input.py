"""Whatever a user gets wrong or the machine refuses: words, the right exit code, nothing lost."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import tiny_project
from penstock.cli import main
from penstock.ledger import Ledger
from penstock.tables import Table

pytestmark = pytest.mark.slow
_ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", *arguments],
        cwd=folder,
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def ended(process, timeout_s=240):
    """What a command said and its exit code, after checks that hold for all."""
    said, _ = process.communicate(timeout=timeout_s)
    assert "Traceback" not in said, said
    return process.returncode, said


def in_a_new_process(folder, *arguments):
    return ended(start(folder, *arguments))


def penstock(folder, *arguments):
    """The same in this process: a new one spends seconds on its imports."""
    said, before, code = io.StringIO(), sys.argv, 0
    sys.argv = ["penstock", *arguments]
    try:
        with contextlib.chdir(folder), redirect_stdout(said), redirect_stderr(said):
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    assert "Traceback" not in said.getvalue(), said.getvalue()
    return code, said.getvalue()


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def ledger(folder):
    return Ledger(f"sqlite:///{folder / 'store' / 'ledger.db'}")


def table(folder, name):
    (path,) = (folder / "store" / "tables" / "tiny").glob(f"{name}*")
    return Table(path)


@pytest.fixture
def project(tmp_path):
    tiny_project.write_project(tmp_path / "project")
    return tmp_path / "project"


@pytest.mark.parametrize(
    ("arguments", "message", "what_next"),
    [
        (("run", "-r", "nope.yaml"), "There is no recipe at nope.yaml", "penstock init"),
        (("run", "--set", "train.learning_rat=1"), "line 22, train.learning_rat: unknown key",
         "Did you mean 'learning_rate'?"),
        (("plan", "--set", "train.learning_rate=fast"), "train.learning_rate: received 'fast'",
         "valid number"),
        (("run", "--set", "seed"), "--set 'seed' has no '='", "--set train.max_steps=10"),
        (("run", "--until", "trian"), "There is no stage 'trian'", "Did you mean 'train'?"),
        (("run", "--from", "deplyo"), "There is no stage 'deplyo'", "Did you mean 'deploy'?"),
        (("run", "--force", "x"), "There is no stage 'x'", "Valid: ingest, validate"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_recipe_or_a_flag_ends_with_2(project, arguments, message, what_next):
    code, said = penstock(project, *arguments)
    assert code == 2, said
    assert message in said
    assert what_next in said


@pytest.mark.parametrize("arguments", [("show", "nope"), ("step", "train", "--run", "nope")])
def test_an_unknown_run_is_told(project, arguments):
    code, said = penstock(project, *arguments)
    assert code == 1
    assert "There is no run 'nope'." in said
    assert "penstock runs" in said


def _wrong_files(folder):
    """Name -> what the message says about the file, and what to do next."""
    (folder / "empty.jsonl").touch()
    (folder / "columns.jsonl").write_text('{"question": "why?", "answer": "because"}\n')
    (folder / "binary.jsonl").write_bytes(bytes(range(256)) * 400)
    (folder / "latin.jsonl").write_bytes(b'{"instruction": "caf\xe9 au lait", "response": "oui"}\n')
    with (folder / "long.jsonl").open("w") as file:
        file.write('{"instruction": "')
        file.writelines("x" * 1_000_000 for _ in range(50))
        file.write('", "response": "y"}\n')
    return {
        "missing.jsonl": ("There is no file 'data/missing.jsonl'", "relative to the recipe's"),
        "empty.jsonl": ("0 bytes", "Check what writes these files"),
        "columns.jsonl": ("have no column 'instruction'", "sources.rows.columns"),
        "binary.jsonl": ("looks like binary data", "suffix of what it is"),
        "latin.jsonl": ("latin.jsonl:1: not UTF-8", "JSON Lines has one whole object"),
        "long.jsonl": ("long.jsonl:1: longer than", "JSON Lines has one whole object"),
    }


def test_a_file_that_cannot_be_used_is_named_and_spoils_nothing(project):
    for name, (message, what_next) in _wrong_files(project / "data").items():
        code, said = penstock(project, "run", "--set", f"sources.rows.paths=[data/{name}]")
        # Rows that break the contract are told apart: trying again changes nothing.
        assert code == (5 if name == "columns.jsonl" else 1), said
        assert message in said
        assert what_next in said
    code, said = penstock(
        project, "run", "--until", "validate", "--set", "sources.rows.paths=[data/first.jsonl]"
    )
    assert code == 0, said
    # Both other files and this one are read in the same way, into the same table.
    first = (project / "data" / "first.jsonl").read_text().splitlines()
    assert table(project, "raw-rows").count_rows() == len(first) + 1


def test_bad_lines_among_good_ones_are_kept_aside(project):
    with (project / "data" / "first.jsonl").open("ab") as file:
        file.write(b'{"instruction": "caf\xe9"}\nnot json\n{"instruction": "cut of')
    code, said = penstock(project, "run", "--until", "validate")
    assert code == 0, said
    assert table(project, "raw-rows").count_rows() == 60
    assert table(project, "dead_letters").count_rows() == 3


def test_a_port_in_use_is_told(project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = penstock(project, "serve", "--port", str(port))
    assert code == 1, said
    assert str(port) in said
    assert "in use" in said


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system on a folder; what was mounted is taken away afterwards."""
    places = []

    def mount(place, *options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)],
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip("file systems cannot be mounted here")
        places.append(place)

    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_told_and_the_next_run_goes_on(project, mounted):
    store = project / "store"
    store.mkdir()
    mounted(store, "size=700k")
    code, said = in_a_new_process(project, "run")
    assert code == 1, said
    assert "disk is full" in said or "disk" in said
    assert "space" in said
    subprocess.run(["mount", "-o", "remount,size=64m", str(store)], check=True)
    code, said = in_a_new_process(project, "run", "--until", "prepare")
    assert code == 0, said
    assert table(project, "raw-rows").count_rows() == 60
    assert table(project, "valid-rows").count_rows() == 58


def test_a_read_only_store_is_told(project, mounted):
    store = project / "store"
    store.mkdir()
    mounted(store, "ro")
    code, said = in_a_new_process(project, "run")
    assert code == 1, said
    assert "read-only" in said
    assert "`store`" in said


def _wait_until(condition, process, timeout_s=200):
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_during_training_ends_with_130_and_the_next_run_continues(project):
    training = project / "store" / "checkpoints"
    first = start(project, "run", "--set", "train.max_steps=3000", "--set", "train.epochs=600")
    _wait_until(lambda: list(training.glob("*/checkpoint-*/manifest.json")), first)
    first.send_signal(signal.SIGINT)
    code, said = ended(first)
    assert code == 130, said
    assert "the next run goes on" in said
    opened = ledger(project)
    (run,) = opened.runs("tiny")
    assert run.status == "INTERRUPTED"
    assert {stage.stage for stage in opened.stages(run.id)} == {"ingest", "validate", "prepare"}
    assert opened.live_claims() == []
    assert not (project / "store" / "artifacts" / "train").exists()
    # The checkpoints belong to that training: with the same settings it goes on from there.
    steps = sorted(int(p.name.partition("-")[2]) for p in training.glob("*/checkpoint-*"))
    second = start(project, "run", "--set", "train.max_steps=3000", "--set", "train.epochs=600")
    _wait_until(
        lambda: any(
            int(p.parent.name.partition("-")[2]) > steps[-1]
            for p in training.glob("*/checkpoint-*/manifest.json")
        ),
        second,
    )
    # Had it begun anew, there would be earlier ones.
    now = [int(p.name.partition("-")[2]) for p in training.glob("*/checkpoint-*")]
    assert min(now) >= steps[0]
    second.send_signal(signal.SIGINT)
    assert ended(second)[0] == 130
    code, said = penstock(project, "run")
    assert code == 0, said
    assert [model.version for model in ledger(project).models()] == [1]


def test_a_table_of_runs_is_there_for_machines_after_all_that(project):
    penstock(project, "run", "--until", "ingest")
    penstock(project, "run", "--set", "sources.rows.paths=[data/none.jsonl]")
    code, said = penstock(project, "runs", "--json")
    assert code == 0
    assert [one["status"] for one in json.loads(said)] == ["FAILED", "SUCCEEDED"]
    assert Path(project / "store" / "ledger.db").exists()
