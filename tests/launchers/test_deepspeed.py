"""What is particular about the DeepSpeed launcher."""

import sys
from dataclasses import replace

import pytest
from pydantic import ValidationError

import deepspeed_environment
import tiny_training
from penstock.errors import MissingExtra, TrainingError
from penstock.launchers.deepspeed import DeepSpeedLauncher, DeepSpeedOptions
from penstock.launchers.loop import check_engine, train
from penstock.launchers.mailbox import Mailbox

NO_REPORT = lambda *_: None  # noqa: E731
TORCHRUN = [
    *("{python}", "-m", "torch.distributed.run", "--nnodes", "1", "--rdzv-backend", "c10d"),
    *("--rdzv-endpoint", "127.0.0.1:0", "--nproc-per-node", "{workers}"),
    *("--module", "{module}", "{mailbox}"),
]


@pytest.fixture
def python():
    why_not = deepspeed_environment.why_not()
    if why_not:
        pytest.skip(f"DeepSpeed's environment cannot be made: {why_not}")
    return str(deepspeed_environment.PYTHON)


def launcher(folder, **options):
    return DeepSpeedLauncher(DeepSpeedOptions(**options), folder)


LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}


def tuned(training, folder, **settings):
    """The same model trained on, with rows packed in blocks."""
    train(training, NO_REPORT)
    tiny_training.pack(training.examples)
    tiny_training.pack(training.validation)
    folder.mkdir()
    return replace(
        training,
        base=str(training.output),
        settings={**training.settings, **settings},
        checkpoints=folder,
        output=folder / "tuned",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "zero_stage"), [("scratch", 3), ("packed", 3), ("packed with LoRA", 2)]
)
def test_sharded_weights_come_to_the_same_and_are_saved_whole(python, tmp_path, start, zero_stage):
    training = tiny_training.training(tmp_path / "one")
    if start != "scratch":
        lora = {"lora": LORA} if "LoRA" in start else {}
        training = tuned(training, tmp_path / "two", **lora)
    alone = train(training, NO_REPORT)
    (tmp_path / "other").mkdir()
    mine = replace(training, checkpoints=tmp_path / "other", output=tmp_path / "model")
    sharded = launcher(tmp_path, python=python, zero_stage=zero_stage, command=TORCHRUN)
    trained = sharded.run(mine, NO_REPORT)
    assert trained.train_loss == pytest.approx(alone.train_loss, abs=1e-4)
    assert trained.validation_loss == pytest.approx(alone.validation_loss, abs=1e-4)
    assert trained.num_parameters == alone.num_parameters
    assert trained.num_trained_parameters == alone.num_trained_parameters
    shapes = {name: weight.shape for name, weight in tiny_training.weights(mine.output).items()}
    whole = {name: weight.shape for name, weight in tiny_training.weights(training.output).items()}
    assert shapes == whole


@pytest.mark.slow
def test_a_python_without_deepspeed_says_how_to_get_it(tmp_path):
    training = tiny_training.training(tmp_path)
    with pytest.raises(MissingExtra) as refused:
        launcher(tmp_path).run(training, NO_REPORT)
    assert refused.value.message == f"deepspeed is not installed in {sys.executable}."
    assert "scripts/make-env.sh deepspeed" in refused.value.hint


@pytest.mark.slow
def test_a_python_that_is_not_there_says_so(tmp_path):
    with pytest.raises(TrainingError, match=r"envs/ds/bin/python cannot be started"):
        launcher(tmp_path, python="envs/ds/bin/python").run(
            tiny_training.training(tmp_path), NO_REPORT
        )


@pytest.mark.slow
def test_lora_on_sharded_weights_is_refused(tmp_path):
    training = tiny_training.training(tmp_path, lora={"rank": 2})
    with pytest.raises(TrainingError, match="sharded weights cannot be merged") as refused:
        launcher(tmp_path, zero_stage=3).run(training, NO_REPORT)
    assert "stage 2" in refused.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "DeepSpeedEngine with ZeRO 2 was"),
        ({"num_workers": 2}, "DistributedDataParallel was"),
    ],
)
def test_another_engine_than_the_one_asked_for_does_not_train(tmp_path, asked, said):
    import torch

    training = replace(tiny_training.training(tmp_path), **asked)
    with pytest.raises(TrainingError, match=f"^{said} asked for, and Linear would train"):
        check_engine(torch.nn.Linear(1, 1), training)


def test_another_stage_than_the_one_asked_for_does_not_train(tmp_path):
    class DeepSpeedEngine:
        def zero_optimization_stage(self):
            return 1

    training = Mailbox(tmp_path)  # stands for anything: only these two fields are read
    training.deepspeed, training.num_workers = {"zero_optimization": {"stage": 2}}, 2
    with pytest.raises(
        TrainingError, match="ZeRO 2 was asked for, and DeepSpeedEngine with ZeRO 1"
    ):
        check_engine(DeepSpeedEngine(), training)
    training.deepspeed = {"zero_optimization": {"stage": 1}}
    check_engine(DeepSpeedEngine(), training)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"optimizer": {}}, r"set train\.learning_rate"),
        ({"gradient_clipping": 2}, r"set train\.max_grad_norm"),
        ({"zero_optimization": {"stage": 1}}, "set zero_stage"),
        ({"zero_optimization": None}, "zero_optimization: received None; it takes keys"),
        ({"zero_optimization": 3}, "zero_optimization: received 3; it takes keys"),
    ],
)
def test_what_the_recipe_says_is_not_said_twice(config, said):
    with pytest.raises(ValidationError, match=said):
        DeepSpeedOptions(config=config)
