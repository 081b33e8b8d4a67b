"""What every launcher must do; a new one is added to ``CASES``.

Workers are two where a launcher has workers, and one of them is killed on the way:
what comes out must be what one undisturbed process makes.
"""

import os
import signal
from dataclasses import replace

import psutil
import pytest
import torch

import deepspeed_environment
import tiny_training
from penstock.errors import TrainingError
from penstock.launchers.loop import train
from penstock.registry import names, resolve

pytestmark = pytest.mark.slow
NO_REPORT = lambda *_: None  # noqa: E731

# Options, and what a worker's process is called.
CASES = {
    "local": ({}, None),
    "ray": ({"workers": 2, "cpus_per_worker": 1}, "RayTrainWorker"),
    "deepspeed": ({"workers": 2, "zero_stage": 2}, "-u -m penstock.launchers.worker"),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """A training, and what it comes to in one process."""
    training = tiny_training.training(
        tmp_path_factory.mktemp("expected"), max_steps=150, epochs=99, learning_rate=0.003
    )
    training = replace(training, checkpoint_every_steps=20)
    return training, train(training, NO_REPORT)


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    options, worker = CASES[request.param]
    if request.param == "deepspeed":
        why_not = deepspeed_environment.why_not()
        if why_not:
            pytest.skip(f"DeepSpeed's environment cannot be made: {why_not}")
        options = {**options, "python": str(deepspeed_environment.PYTHON)}
    launcher = resolve("launchers", request.param)
    return launcher(launcher.Options(**options), tmp_path), worker


def test_every_launcher_is_a_case():
    assert set(CASES) == set(names("launchers"))


def elsewhere(training, folder):
    (folder / "checkpoints").mkdir(parents=True)
    return replace(training, checkpoints=folder / "checkpoints", output=folder / "model")


def workers_of(name):
    """The processes below this one that train."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_launcher_comes_to_what_one_process_does_also_when_a_worker_is_killed(
    case, expected, tmp_path, monkeypatch
):
    launcher, worker = case
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    training, alone = expected
    steps, killed = [], []

    def report(step, num_steps, values):
        steps.append(step)
        assert num_steps == 150
        if step >= 50 and worker and not killed:
            killed.append(max(workers_of(worker)))
            os.kill(killed[0], signal.SIGKILL)

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    mine = elsewhere(training, tmp_path / "run")
    trained = launcher.run(mine, report)

    assert trained.num_steps == 150
    assert steps[-1] == 150
    assert bool(killed) == (worker is not None)
    assert (trained.resumed_from_step >= 40) == bool(killed)
    assert trained.train_loss == pytest.approx(alone.train_loss, abs=1e-4)
    assert trained.validation_loss == pytest.approx(alone.validation_loss, abs=1e-4)
    assert trained.num_parameters == alone.num_parameters
    weights = tiny_training.weights(mine.output)
    for name, weight in tiny_training.weights(training.output).items():
        assert torch.allclose(weight, weights[name], atol=1e-3), name
    left = {p.pid for p in psutil.Process().children(recursive=True)} - before
    assert not left, "no process stays behind"
    for written in (".ray", "ray_results"):
        assert not (tmp_path / "home" / written).exists()


def test_what_a_worker_cannot_do_is_the_launchers_error(case, expected, tmp_path):
    launcher, _ = case
    broken = replace(elsewhere(expected[0], tmp_path / "run"), base=str(tmp_path / "nowhere"))
    with pytest.raises(TrainingError) as refused:
        launcher.run(broken, NO_REPORT)
    assert "nowhere' cannot be loaded" in refused.value.message
    assert "safetensors" in refused.value.hint
    assert not broken.output.exists()
