"""How a launcher and its workers speak."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.errors import MissingExtra, TrainingError
from penstock.launchers.base import Trained, Training
from penstock.launchers.mailbox import Mailbox

NO_REPORT = lambda *_: None  # noqa: E731


@pytest.fixture
def training(tmp_path):
    return Training(
        examples=tmp_path / "train.arrow",
        validation=None,
        tokenizer=tmp_path / "tokenizer",
        base=None,
        base_revision=None,
        shape={"hidden_size": 8},
        settings={"learning_rate": 0.1, "lora": {"rank": 2, "target_modules": ["q_proj"]}},
        seed=1,
        checkpoints=tmp_path / "checkpoints",
        checkpoint_every_steps=2,
        output=tmp_path / "model",
    )


def test_a_training_arrives_as_it_was_sent(training):
    sent = replace(training, num_workers=2, deepspeed={"zero_optimization": {"stage": 2}})
    mailbox = Mailbox.beside(training)
    with mailbox.opened(sent, NO_REPORT):
        assert Mailbox(mailbox.folder).training() == sent


def test_relative_paths_arrive_as_absolute_ones(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mailbox = Mailbox.beside(training)
    with mailbox.opened(replace(training, output=Path("model")), NO_REPORT):
        assert mailbox.training().output == tmp_path / "model"


def test_reports_arrive_in_order_and_none_is_lost(training):
    seen = []
    mailbox = Mailbox.beside(training)
    with mailbox.opened(training, lambda *one: seen.append(one)):
        for step in range(200):
            Mailbox(mailbox.folder).report(step, 200, {"loss": 1 / (step + 1)})
    assert seen == [(step, 200, {"loss": 1 / (step + 1)}) for step in range(200)]


@pytest.mark.slow
def test_half_a_report_waits_for_its_other_half(training):
    seen = []
    mailbox = Mailbox.beside(training)
    with mailbox.opened(training, lambda *one: seen.append(one)):
        text = json.dumps([3, 9, {}])
        with (mailbox.folder / "progress.jsonl").open("a") as file:
            file.write(text[:4])
            file.flush()
            time.sleep(0.5)
            assert seen == []
            file.write(text[4:] + "\n")
    assert seen == [(3, 9, {})]


def test_what_it_came_to_is_delivered(training):
    trained = Trained(3, 10, 4, 0.5, None, [{"step": 3, "loss": 0.5}], 2)
    mailbox = Mailbox.beside(training)
    assert mailbox.answer() is None
    mailbox.deliver(trained)
    assert mailbox.answer() == trained


@pytest.mark.parametrize(
    "error",
    [TrainingError("it diverged", "lower the rate"), MissingExtra("peft", "train")],
    ids=["training", "missing"],
)
def test_an_error_of_a_worker_is_raised_again_as_what_it_was(training, error):
    mailbox = Mailbox.beside(training)
    mailbox.fail(error)
    assert mailbox.has_failure()
    with pytest.raises(type(error)) as raised:
        mailbox.answer()
    assert (raised.value.message, raised.value.hint) == (error.message, error.hint)
    assert str(raised.value) == error.message


def test_the_errors_are_what_is_quoted_of_many_lines(training):
    mailbox = Mailbox.beside(training)
    assert mailbox.last_words() == ""
    mailbox.log.write_text("starting\n[rank1]: ValueError: no\nFile x\n========\n")
    assert mailbox.last_words() == "[rank1]: ValueError: no"
    mailbox.log.write_text("one\n\ntwo\n")
    assert mailbox.last_words() == "one\ntwo"


_WORKER = """
import sys, time
from pathlib import Path
from penstock.launchers.mailbox import Mailbox
Mailbox(Path(sys.argv[1])).end_with_the_launcher()
print("there", flush=True)
time.sleep(60)
"""
_LAUNCHER = """
import pickle, sys, time
from penstock.launchers.mailbox import Mailbox
training = pickle.loads(bytes.fromhex(sys.argv[1]))
mailbox = Mailbox.beside(training)
with mailbox.opened(training, lambda *_: None):
    print(mailbox.folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_worker_ends_when_its_launcher_was_killed(training):
    import pickle

    order = pickle.dumps(training).hex()
    launcher = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, order], stdout=subprocess.PIPE, text=True
    )
    folder = launcher.stdout.readline().strip()
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, folder], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline() == "there\n"
    time.sleep(1.5)
    assert worker.poll() is None, "it works while somebody waits"
    launcher.kill()
    launcher.wait()
    assert worker.wait(timeout=30) == 1
