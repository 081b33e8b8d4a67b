"""The training loop: TRL's supervised fine-tuning on examples that are ready."""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

from penstock.errors import TrainingError
from penstock.launchers.base import Report, Trained, Training
from penstock.launchers.packed import collator, keep_apart
from penstock.registry import require
from penstock.tokenizer import save_tokenizer

_COMPLETE = "penstock-complete"
_LOG_EVERY_STEPS = 10


def train(training: Training, report: Report) -> Trained:
    """Train to the end, from the newest complete checkpoint if there is one.

    Raises:
        MissingExtra: torch, transformers or trl is not installed.
        TrainingError: The loss is no longer a number, or the base cannot be loaded.
    """
    transformers = require("transformers", "train")
    trl = require("trl", "train")
    _quiet(transformers)
    transformers.set_seed(training.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(training.tokenizer)
    model = _model(transformers, training, tokenizer)
    checkpoint = _newest_checkpoint(training.checkpoints)
    resumed_from = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    examples = _dataset(training.examples)
    collate = collator(examples, tokenizer)
    if collate is not None:
        keep_apart(model)
    trainer = _trainer_class(trl)(
        model=model,
        args=_arguments(trl, training),
        data_collator=collate,
        train_dataset=examples,
        eval_dataset=_dataset(training.validation) if training.validation else None,
        processing_class=tokenizer,
        callbacks=[_callback(transformers, report)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if checkpoint is not None and _is_last(transformers, checkpoint):
        # Resumed after its last step, the trainer would take one more.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = _state(transformers, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    validation = trainer.evaluate()["eval_loss"] if training.validation else None
    _save(trainer.model, tokenizer, training.output)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Trained(
        num_steps=trainer.state.global_step,
        num_parameters=sum(p.numel() for p in trainer.model.parameters()),
        train_loss=_finite(history[-1]["loss"] if history else float("nan")),
        validation_loss=None if validation is None else _finite(validation),
        history=[
            {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry["learning_rate"]}
            for entry in history
        ],
        resumed_from_step=resumed_from,
    )


def _trainer_class(trl: Any) -> Any:
    """TRL's trainer, with the plain loss on CPU.

    TRL's own loss also takes entropy and accuracy of every token, by a fused
    head made for GPUs; on CPU that made training of a 1M-parameter model about
    three times slower, for numbers nobody here reads.
    """
    import torch
    import transformers

    if torch.cuda.is_available():
        return trl.SFTTrainer

    class PlainLoss(trl.SFTTrainer):  # type: ignore[misc]  # untyped base
        compute_loss = transformers.Trainer.compute_loss
        prediction_step = transformers.Trainer.prediction_step

    return PlainLoss


def _arguments(trl: Any, training: Training) -> Any:
    import torch

    settings = training.settings
    on_gpu = torch.cuda.is_available()
    grouping = "group_by_length" if settings["group_by_length"] else "random"
    return trl.SFTConfig(
        output_dir=str(training.checkpoints),
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=settings["batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation"],
        gradient_checkpointing=False,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["scheduler"],
        warmup_steps=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        num_train_epochs=settings["epochs"],
        max_steps=settings["max_steps"] or -1,
        train_sampling_strategy=grouping,
        save_strategy="steps",
        save_steps=training.checkpoint_every_steps,
        save_total_limit=2,
        logging_steps=_LOG_EVERY_STEPS,
        logging_first_step=True,
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
    )


def _model(transformers: Any, training: Training, tokenizer: Any) -> Any:
    import torch

    if training.base is None:
        config = transformers.LlamaConfig(
            **training.shape,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            training.base,
            revision=training.base_revision or "main",
            dtype=torch.float32,
            use_safetensors=True,  # never a pickle from outside
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"The base model {training.base!r} cannot be loaded: {error}",
            "It must be a transformers model with safetensors weights.",
        ) from error


def _dataset(path: Path) -> Any:
    datasets = require("datasets", "train")
    return datasets.Dataset.from_file(str(path))


def _callback(transformers: Any, report: Report) -> Any:
    class Follow(transformers.TrainerCallback):  # type: ignore[misc]  # untyped base
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            report(state.global_step, state.max_steps, {})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            if "loss" in logs:
                _finite(logs["loss"])
                report(state.global_step, state.max_steps, {"loss": logs["loss"]})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Called when all of a checkpoint's files are written: without the
            # mark, it is one that a kill cut short.
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / _COMPLETE).touch()

    return Follow()


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones are removed."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / _COMPLETE).exists():
            complete.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _state(transformers: Any, checkpoint: Path) -> Any:
    return transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _is_last(transformers: Any, checkpoint: Path) -> bool:
    state = _state(transformers, checkpoint)
    return bool(state.global_step >= state.max_steps)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.config.use_cache = True
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


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
