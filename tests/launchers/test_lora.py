"""LoRA beside full training."""

from dataclasses import replace

import pytest
import torch

import tiny_training
from penstock.errors import TrainingError
from penstock.launchers.loop import train

pytestmark = pytest.mark.slow

LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.1, "target_modules": ["q_proj", "down_proj"]}
NO_REPORT = lambda *_: None  # noqa: E731


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model to start from."""
    training = tiny_training.training(tmp_path_factory.mktemp("base"), max_steps=4)
    train(training, NO_REPORT)
    return training


def on(base, folder, lora=LORA, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir()
    return replace(
        base,
        base=str(base.output),
        settings={**tiny_training.SETTINGS, "lora": lora, **settings},
        checkpoints=folder / "checkpoints",
        output=folder / "model",
    )


def test_a_lora_training_changes_base_weights_only_by_low_rank_updates(base, tmp_path):
    trained = train(on(base, tmp_path), NO_REPORT)
    before, after = tiny_training.weights(base.output), tiny_training.weights(tmp_path / "model")
    assert before.keys() == after.keys(), "merged: the same files as any model's"
    for name, weight in before.items():
        update = after[name] - weight
        if any(target in name for target in LORA["target_modules"]):
            assert 1 <= torch.linalg.matrix_rank(update, atol=1e-5) <= LORA["rank"]
        else:
            assert torch.equal(update, torch.zeros_like(update)), name
    # Two layers: q_proj 16 -> 16, down_proj 32 -> 16, each with 2 x rank x sides.
    assert trained.num_trained_parameters == 2 * (2 * (16 + 16) + 2 * (32 + 16))
    assert trained.num_parameters == sum(weight.numel() for weight in before.values())


def test_a_full_training_trains_all_parameters(base, tmp_path):
    trained = train(on(base, tmp_path, lora=None), NO_REPORT)
    assert trained.num_trained_parameters == trained.num_parameters


def test_a_lora_model_learns_and_is_loaded_like_any_other(base, tmp_path):
    from transformers import AutoModelForCausalLM

    wide = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": None}
    trained = train(on(base, tmp_path, lora=wide, max_steps=120, epochs=90), NO_REPORT)
    assert trained.history[-1]["loss"] < trained.history[0]["loss"] - 0.03
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not hasattr(model, "peft_config")
    assert not list((tmp_path / "model").glob("adapter*"))


def test_a_killed_lora_training_ends_where_an_undisturbed_one_does(base, tmp_path):
    undisturbed = train(on(base, tmp_path / "one"), NO_REPORT)
    disturbed = on(base, tmp_path / "other")
    tiny_training.killed_at(disturbed, 11)
    resumed = train(disturbed, NO_REPORT)
    assert resumed.resumed_from_step == 9
    assert resumed.history[-1]["loss"] == pytest.approx(undisturbed.history[-1]["loss"], abs=1e-6)
    assert resumed.validation_loss == pytest.approx(undisturbed.validation_loss, abs=1e-6)
    one = tiny_training.weights(tmp_path / "one" / "model")
    other = tiny_training.weights(tmp_path / "other" / "model")
    for name, weight in one.items():
        assert torch.allclose(weight, other[name], atol=1e-6), name


def test_a_lora_training_killed_after_its_last_step_is_only_saved(base, tmp_path):
    training = on(base, tmp_path)
    first = train(training, NO_REPORT)
    weights = tiny_training.weights(training.output)
    again = train(replace(training, output=tmp_path / "again"), NO_REPORT)
    assert again.resumed_from_step == 20
    assert again.validation_loss == first.validation_loss
    for name, weight in tiny_training.weights(tmp_path / "again").items():
        assert torch.equal(weight, weights[name]), name


def test_a_target_module_the_base_does_not_have_is_refused_with_those_it_has(base, tmp_path):
    training = on(base, tmp_path, lora={**LORA, "target_modules": ["q_proy"]})
    with pytest.raises(TrainingError) as refused:
        train(training, NO_REPORT)
    assert "no linear layer 'q_proy'. Did you mean 'q_proj'?" in refused.value.message
    assert "Valid: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj." in str(
        refused.value
    )
