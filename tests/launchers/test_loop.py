"""The training loop in one process."""

import shutil
from dataclasses import replace

import pytest
import torch

import tiny_training
from penstock.launchers.checkpoints import newest_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def train():
    with tiny_training.alone() as train:
        yield train


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    """A training from start to end, and what it came to."""
    training = tiny_training.training(tmp_path_factory.mktemp("undisturbed"))
    return training, train(training)


@pytest.fixture(scope="module")
def killed(undisturbed, tmp_path_factory):
    """The same, killed after eleven steps. Not to be changed: take a copy."""
    training = again(undisturbed[0], tmp_path_factory.mktemp("killed") / "it")
    tiny_training.killed_at(training, 11)
    return training


def copy(killed, folder):
    shutil.copytree(killed.checkpoints, folder / "checkpoints")
    return replace(killed, checkpoints=folder / "checkpoints", output=folder / "model")


def again(training, folder):
    (folder / "checkpoints").mkdir(parents=True)
    return replace(training, checkpoints=folder / "checkpoints", output=folder / "model")


def assert_same(training, trained, other_training, other):
    assert other.num_steps == trained.num_steps
    # What is logged first after a resume is the mean of the steps since, not of ten.
    if other.resumed_from_step < 10 < other.num_steps:
        assert other.train_loss == trained.train_loss
    assert other.validation_loss == trained.validation_loss
    weights = tiny_training.weights(other_training.output)
    for name, weight in tiny_training.weights(training.output).items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("step", [5, 11, 13, 20])
def test_a_training_killed_in_any_epoch_ends_where_an_undisturbed_one_does(
    train, undisturbed, tmp_path, step
):
    disturbed = again(undisturbed[0], tmp_path)
    tiny_training.killed_at(disturbed, step)
    resumed = train(disturbed)
    assert resumed.resumed_from_step == (step - 1) // 3 * 3
    assert_same(*undisturbed, disturbed, resumed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes()[:-9] + b"123456789"),
        lambda path: path.unlink(),
    ],
    ids=["cut short", "other bytes", "gone"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(
    train, undisturbed, killed, tmp_path, damage, name
):
    disturbed = copy(killed, tmp_path)
    damage(disturbed.checkpoints / "checkpoint-9" / name)
    resumed = train(disturbed)
    assert resumed.resumed_from_step == 6
    assert_same(*undisturbed, disturbed, resumed)


def test_without_any_whole_checkpoint_a_training_begins_anew(train, undisturbed, killed, tmp_path):
    disturbed = copy(killed, tmp_path)
    for checkpoint in disturbed.checkpoints.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").write_text("{")
    resumed = train(disturbed)
    assert resumed.resumed_from_step == 0
    assert_same(*undisturbed, disturbed, resumed)


def test_gradient_accumulation_is_resumed_too(train, tmp_path):
    training = tiny_training.training(tmp_path / "one", gradient_accumulation=2, max_steps=9)
    undisturbed = train(training)
    disturbed = again(training, tmp_path / "other")
    tiny_training.killed_at(disturbed, 8)
    resumed = train(disturbed)
    assert resumed.resumed_from_step == 6
    assert_same(training, undisturbed, disturbed, resumed)


def test_the_validation_loss_is_the_mean_over_tokens_whatever_the_batches(
    train, undisturbed, tmp_path
):
    training, trained = undisturbed
    finished = replace(
        training, output=tmp_path / "model", settings={**training.settings, "batch_size": 3}
    )
    assert train(finished).validation_loss == pytest.approx(trained.validation_loss, abs=1e-6)


def test_no_checkpoint_is_newer_than_the_one_that_is_gone_on_from(tmp_path):
    for step in (2, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "manifest.json").write_text("{}")
    (tmp_path / "checkpoint-9" / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path, lambda found: found.name != "checkpoint-10") == (
        tmp_path / "checkpoint-2"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
