"""What a training may start from, and what is said when it cannot."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

import tiny_training
from hub_server import COMMIT, hub_server
from penstock.errors import TrainingError
from penstock.launchers.loop import train

pytestmark = pytest.mark.slow
NO_REPORT = lambda *_: None  # noqa: E731


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished training. Not to be changed."""
    training = tiny_training.training(tmp_path_factory.mktemp("trained"), max_steps=2)
    train(training, NO_REPORT)
    return training


@pytest.fixture
def training(trained, tmp_path):
    """One that starts from a copy of it."""
    subprocess.run(["cp", "-r", str(trained.output), str(tmp_path / "base")], check=True)
    (tmp_path / "checkpoints").mkdir()
    return replace(
        trained,
        base=str(tmp_path / "base"),
        checkpoints=tmp_path / "checkpoints",
        output=tmp_path / "model",
    )


def refusal(training):
    with pytest.raises(TrainingError) as refused:
        train(training, NO_REPORT)
    assert refused.value.hint
    assert not training.output.exists(), "no partial artifact"
    return refused.value.message


def test_a_training_starts_from_a_folder(training, tmp_path):
    assert train(training, NO_REPORT).num_steps == 2


def test_a_truncated_weights_file_is_named(training, tmp_path):
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is damaged or cut short" in refusal(training)


def test_weights_of_another_architecture_are_not_filled_up_at_random(training, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "base" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "layers.1" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    assert "lacks 9 weights, such as model.layers.1." in refusal(training)


def test_a_pickle_is_not_loaded(training, tmp_path):
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    assert "cannot be loaded" in refusal(training)


def test_a_config_that_is_no_json_is_an_error_of_the_base(training, tmp_path):
    (tmp_path / "base" / "config.json").write_text("{")
    assert "cannot be loaded" in refusal(training)


def test_a_tokenizer_with_more_tokens_than_the_base_embeds_does_not_fit(training, tmp_path):
    from penstock.tokenizer import train_tokenizer

    words = [f"{one}{two}" for one in "abcdefgh" for two in "ijklmnop"] * 3
    size = train_tokenizer(words, 400, None, tmp_path / "larger")
    message = refusal(replace(training, tokenizer=tmp_path / "larger"))
    assert f"has {size} tokens, and the model embeds" in message


def test_examples_longer_than_the_base_reads_are_refused(training, tmp_path):
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "max_position_embeddings": 16}))
    assert "and the base model reads 16" in refusal(training)


def test_a_training_that_diverges_ends_with_the_loss_and_leaves_no_model(training):
    fast = {**training.settings, "learning_rate": 1e39, "warmup_steps": 0, "max_steps": 20}
    assert "loss is nan" in refusal(replace(training, settings=fast))


def test_a_training_that_diverges_after_its_last_logged_step_leaves_no_model(training):
    late = {**training.settings, "learning_rate": 1e39, "warmup_steps": 0, "max_steps": 1}
    assert "weights are not finite at the end" in refusal(
        replace(training, settings=late, validation=None)
    )


# -- from a hub -----------------------------------------------------------------------

_FROM_HUB = """
import pickle, sys
from penstock.errors import TrainingError
from penstock.launchers.loop import train
try:
    print(train(pickle.load(open(sys.argv[1], "rb")), lambda *_: None).num_steps)
except TrainingError as error:
    print(error.message, "|", error.hint)
"""


def trained_from_hub(training, tmp_path, url):
    """What a process says that trains from a model of a hub at ``url``."""
    import pickle

    order = tmp_path / "order.pickle"
    order.write_bytes(pickle.dumps(replace(training, base="team/base", base_revision=COMMIT)))
    place = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", _FROM_HUB, str(order)],
        env={**os.environ, **place, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def hub(tmp_path):
    """A hub with one model at one commit, from the files in ``tmp_path/base``."""
    with hub_server(tmp_path / "base") as running:
        yield running


def test_a_training_starts_from_a_hub_model_at_its_commit(training, tmp_path, hub):
    url, asked = hub
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"a pickle")
    assert trained_from_hub(training, tmp_path, url) == "2"
    assert f"/team/base/resolve/{COMMIT}/model.safetensors" in asked
    assert not any("pytorch_model.bin" in path for path in asked)


def test_a_hub_model_without_safetensors_is_refused_and_not_converted(training, tmp_path, hub):
    url, asked = hub
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    said = trained_from_hub(training, tmp_path, url)
    assert said.startswith(f"The base model 'team/base' at {COMMIT} has no safetensors weights.")
    of_models = [path for path in asked if "team" in path or "discussions" in path]
    assert all(COMMIT in path for path in of_models), "nothing that is not pinned"


def test_a_hub_that_cannot_be_reached_is_said(training, tmp_path):
    said = trained_from_hub(training, tmp_path, "http://127.0.0.1:9")
    assert "'team/base' at" in said
    assert "cannot be fetched from the hub" in said
    assert "give a local folder" in said
