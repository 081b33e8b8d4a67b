"""The training loop: TRL's supervised fine-tuning on examples that are ready.

Runs in every worker of a launcher, and in one process when there is one worker.
Workers share each batch; the numbers are those of one worker, up to the order in
which floats are added.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from penstock.artifacts import write_manifest
from penstock.errors import TrainingError
from penstock.launchers.base import Report, Trained, Training
from penstock.launchers.batches import Order, Shares, loader
from penstock.launchers.checkpoints import newest_checkpoint, step_of
from penstock.launchers.packed import collator, keep_apart
from penstock.launchers.start import gathered, merged, starting_model
from penstock.registry import require
from penstock.tokenizer import IGNORED, save_tokenizer

_LOG_EVERY_STEPS = 10


def train(training: Training, report: Report) -> Trained:
    """Train to the end, from the newest complete checkpoint if there is one.

    Raises:
        MissingExtra: torch, transformers or trl is not installed.
        TrainingError: The loss is no longer a number, the base cannot be loaded, or
            what runs is not what the launcher was asked for.
    """
    transformers = require("transformers", "train")
    trl = require("trl", "train")
    _quiet(transformers)
    args = _arguments(trl, training)
    if training.deepspeed is not None:
        _join_deepspeed()
    _check_workers(args.world_size, training)
    tokenizer = transformers.AutoTokenizer.from_pretrained(training.tokenizer)
    transformers.set_seed(training.seed)
    examples = _dataset(training.examples)
    model = _fitting(starting_model(training, tokenizer), examples)
    collate = collator(examples, tokenizer)
    if collate is not None:
        with gathered(model):
            keep_apart(model)
    trainer = _trainer_class(trl)(
        training,
        model=model,
        args=args,
        data_collator=collate,
        train_dataset=examples,
        eval_dataset=_dataset(training.validation) if training.validation else None,
        processing_class=tokenizer,
        callbacks=[_callback(transformers, report)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(_engine_check(transformers, trainer, training))
    sizes = _num_parameters(trainer.model)
    checkpoint = _agreed(lambda: _checkpoint(transformers, training))
    if checkpoint is not None and _is_last(transformers, checkpoint):
        # Resumed after its last step, the trainer would take one more.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = _state(transformers, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    validation = trainer.validation_loss() if training.validation else None
    _save(trainer, tokenizer, training)
    return _trained(trainer, sizes, validation, step_of(checkpoint) if checkpoint else 0)


def _trained(
    trainer: Any, sizes: tuple[int, int], validation: float | None, resumed_from: int
) -> Trained:
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Trained(
        num_steps=trainer.state.global_step,
        num_parameters=sizes[0],
        num_trained_parameters=sizes[1],
        train_loss=_finite(history[-1]["loss"] if history else float("nan")),
        validation_loss=None if validation is None else _finite(validation),
        history=[
            {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry["learning_rate"]}
            for entry in history
        ],
        resumed_from_step=resumed_from,
    )


def _trainer_class(trl: Any) -> Any:
    """TRL's trainer, with batches of ours, and with the plain loss on CPU.

    TRL's own loss also takes entropy and accuracy of every token, by a fused
    head made for GPUs; on CPU that made training of a 1M-parameter model about
    three times slower, for numbers nobody here reads.
    """
    import torch
    import transformers

    class Trainer(trl.SFTTrainer):  # type: ignore[misc]  # untyped base
        def __init__(self, training: Training, **rest: Any) -> None:
            super().__init__(**rest)
            self._training = training

        def get_train_dataloader(self) -> Any:
            settings, rows = self._training.settings, self.train_dataset
            lengths = _lengths(rows).to_pylist()
            # Rows of one optimizer step should be of similar length.
            together = settings["batch_size"] * settings["gradient_accumulation"]
            grouped = lengths if settings["group_by_length"] else None
            order = Order(len(rows), self._training.seed, grouped, together)
            shares = self._shares(lambda: order.epoch(self._epoch(shares)), len(rows))
            return self._loader(rows, shares)

        def _epoch(self, shares: Shares) -> int:
            """Which epoch begins, known from the step: also after a resume in its middle."""
            per_epoch = math.ceil(len(shares) / self.args.gradient_accumulation_steps)
            return int(self.state.global_step // per_epoch)

        def _shares(self, order: Callable[[], list[int]], num_rows: int) -> Shares:
            batch_size = self._training.settings["batch_size"]
            return Shares(
                order, num_rows, batch_size, self.args.process_index, self.args.world_size
            )

        def _loader(self, rows: Any, shares: Shares) -> Any:
            pad, pin = self.processing_class.pad_token_id, self.args.dataloader_pin_memory
            return loader(rows, shares, self.data_collator, pad or 0, pin)

        def validation_loss(self) -> float:
            """Mean loss of a token, over all of the validation split."""
            rows, model = self.eval_dataset, self.model_wrapped
            shares = self._shares(lambda: list(range(len(rows))), len(rows))
            total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
            model.eval()
            for batch in self._loader(rows, shares):
                with torch.no_grad(), self.compute_loss_context_manager():
                    total += _sum_of_losses(model, self._prepare_inputs(batch))
            losses, tokens = self.accelerator.reduce(total, "sum").tolist()
            return float(losses / tokens) if tokens else float("nan")

    if not torch.cuda.is_available():
        Trainer.compute_loss = transformers.Trainer.compute_loss
        Trainer.prediction_step = transformers.Trainer.prediction_step
    return Trainer


def _sum_of_losses(model: Any, batch: dict[str, Any]) -> Any:
    """Tensor of two: the sum over the labelled tokens, and how many they are."""
    import torch

    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([losses.double().sum(), (labels != IGNORED).sum().double()])


def _arguments(trl: Any, training: Training) -> Any:
    import torch

    settings = training.settings
    on_gpu = torch.cuda.is_available()
    share = math.ceil(settings["batch_size"] / training.num_workers)
    return trl.SFTConfig(
        output_dir=str(training.checkpoints),
        per_device_train_batch_size=share,
        per_device_eval_batch_size=share,
        gradient_accumulation_steps=settings["gradient_accumulation"],
        gradient_checkpointing=False,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["scheduler"],
        warmup_steps=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        num_train_epochs=settings["epochs"],
        max_steps=settings["max_steps"] or -1,
        save_strategy="steps",
        save_steps=training.checkpoint_every_steps,
        save_total_limit=2,
        logging_steps=_LOG_EVERY_STEPS,
        logging_first_step=True,
        # It would show the mean of the losses before in place of one that is no number.
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        seed=training.seed,
        use_cpu=not on_gpu,
        # On CPUs bf16 is emulated and about 80 times slower than fp32.
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=on_gpu,
        max_length=None,
        # The examples are tokenized and masked; TRL has nothing to prepare.
        dataset_kwargs={"skip_prepare_dataset": True},
        deepspeed=training.deepspeed,
    )


def _join_deepspeed() -> None:
    """Give DeepSpeed its process group before there is a model.

    On CPU transformers does so only with the engine; a model whose weights are
    sharded while it is made would be made for one worker.
    """
    import torch

    deepspeed = require("deepspeed", "train")
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")


def _check_workers(num_workers: int, training: Training) -> None:
    if num_workers != training.num_workers:
        raise TrainingError(
            f"{training.num_workers} workers were asked for, and {num_workers} take part.",
            "Unset WORLD_SIZE and RANK; choose workers by train.launcher.",
        )


def _engine_check(transformers: Any, trainer: Any, training: Training) -> Any:
    """Refuses to train by anything else than what was asked for.

    A setting that a library does not understand has been seen to leave plain data
    parallelism in charge, without a word.
    """

    class Check(transformers.TrainerCallback):  # type: ignore[misc]  # untyped base
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            check_engine(trainer.model_wrapped, training)

    return Check()


def check_engine(model: Any, training: Training) -> None:
    """Compare what wraps the model with what should.

    Raises:
        TrainingError: It is something else.
    """
    runs, asked = type(model).__name__, "no engine"
    if training.deepspeed is not None:
        stage = training.deepspeed["zero_optimization"]["stage"]
        asked = f"DeepSpeedEngine with ZeRO {stage}"
        with suppress(AttributeError):
            runs = f"{runs} with ZeRO {model.zero_optimization_stage()}"
    elif training.num_workers > 1:
        asked = "DistributedDataParallel"
    if asked not in ("no engine", runs):
        raise TrainingError(
            f"{asked} was asked for, and {runs} would train.",
            "Nothing was trained. Compare the installed versions with those that are pinned.",
        )


def _dataset(path: Path) -> Any:
    datasets = require("datasets", "train")
    return datasets.Dataset.from_file(str(path))


def _lengths(rows: Any) -> Any:
    return pc.list_value_length(rows.data.column("input_ids"))


def _fitting(model: Any, rows: Any) -> Any:
    """The model, if the examples fit its context."""
    context = getattr(model.config, "max_position_embeddings", None)
    longest = pc.max(_lengths(rows)).as_py() or 0
    if context is not None and longest > context:
        raise TrainingError(
            f"The longest example has {longest:,} tokens, and the base model reads {context:,}.",
            f"Set prepare.max_length to {context} at most.",
        )
    return model


def _callback(transformers: Any, report: Report) -> Any:
    from accelerate import PartialState

    class Follow(transformers.TrainerCallback):  # type: ignore[misc]  # untyped base
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                report(state.global_step, state.max_steps, {})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            if "loss" not in logs:
                return
            _finite(logs["loss"])
            if state.is_world_process_zero:
                report(state.global_step, state.max_steps, {"loss": logs["loss"]})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Some engines write a part of a checkpoint in each worker.
            PartialState().wait_for_everyone()
            if state.is_world_process_zero:
                write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Follow()


def _checkpoint(transformers: Any, training: Training) -> Path | None:
    def usable(checkpoint: Path) -> bool:
        # DeepSpeed loads its parts into an engine, which only a training makes.
        return training.deepspeed is None or not _is_last(transformers, checkpoint)

    return newest_checkpoint(training.checkpoints, usable)


def _agreed(choose: Callable[[], Path | None]) -> Path | None:
    """What the first worker chooses: others might find what it removes."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    chosen = [choose() if PartialState().is_main_process else None]
    broadcast_object_list(chosen)
    return chosen[0]


def _state(transformers: Any, checkpoint: Path) -> Any:
    return transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _is_last(transformers: Any, checkpoint: Path) -> bool:
    state = _state(transformers, checkpoint)
    return bool(state.global_step >= state.max_steps)


def _num_parameters(model: Any) -> tuple[int, int]:
    """Of the model without LoRA's, and of those that are trained."""
    # Sharded by ZeRO 3, a parameter knows its whole size by another name.
    sizes = [(n, p, getattr(p, "ds_numel", p.numel())) for n, p in model.named_parameters()]
    own = sum(size for name, _, size in sizes if ".lora_" not in name)
    return own, sum(size for _, parameter, size in sizes if parameter.requires_grad)


def _save(trainer: Any, tokenizer: Any, training: Training) -> None:
    model, weights, folder = trainer.model, None, training.output
    if training.deepspeed is not None and training.deepspeed["zero_optimization"]["stage"] == 3:
        weights = trainer.accelerator.get_state_dict(trainer.deepspeed)
    if not trainer.is_world_process_zero():
        return
    model = merged(model)
    _check_weights(model.state_dict() if weights is None else weights)
    model.config.use_cache = True
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, state_dict=weights)
    save_tokenizer(tokenizer, folder)


def _check_weights(weights: dict[str, Any]) -> None:
    """A training may also diverge after its last logged step."""
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise TrainingError(
            f"{len(broken)} of {len(weights)} weights are not finite at the end, "
            f"such as {broken[0]}: the training diverged.",
            "Lower train.learning_rate, or look for broken rows.",
        )


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise TrainingError(
            f"The training loss is {loss}: the training diverged.",
            "Lower train.learning_rate, or look for broken rows.",
        )
    return float(loss)


def _quiet(transformers: Any) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="(transformers|trl|torch|accelerate).*")
