"""What a training starts from: a new model or a base, in full or with LoRA on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.errors import TrainingError
from penstock.hub import fetch
from penstock.launchers.base import Training
from penstock.registry import did_you_mean, require


def starting_model(training: Training, tokenizer: Any) -> Any:
    """The model at step 0, in full precision.

    Raises:
        TrainingError: The base cannot be loaded, the tokenizer does not fit it, or
            LoRA names layers it does not have.
    """
    model = _from_base(training) if training.base else _from_scratch(training, tokenizer)
    num_embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_embeddings:
        raise TrainingError(
            f"The tokenizer does not fit the base model {training.base!r}: it has "
            f"{len(tokenizer):,} tokens, and the model embeds {num_embeddings:,}.",
            "Start from a model together with its own tokenizer.",
        )
    lora = training.settings.get("lora")
    return _with_lora(model, lora) if lora else model


def merged(model: Any) -> Any:
    """The model with what LoRA learned added to its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _from_scratch(training: Training, tokenizer: Any) -> Any:
    import torch
    import transformers

    config = transformers.LlamaConfig(
        **training.shape,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with _whole():
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@contextmanager
def _whole() -> Iterator[None]:
    """Makes a model with all its weights in each worker.

    ZeRO 3 would shard it while it is made, and then it starts from other numbers
    than anywhere else; the engine shards it all the same.
    """
    from transformers.integrations import deepspeed as integration

    # Only transformers itself can say which configuration is in force.
    in_force = integration._hf_deepspeed_config_weak_ref
    config = None if in_force is None else in_force()
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            integration.set_hf_deepspeed_config(config)


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Gives each worker all the weights for a while, if ZeRO 3 sharded them as they were loaded.

    Only the engine gathers them by itself, and there is none before the training.
    """
    weights = list(model.parameters())
    if not any(hasattr(weight, "ds_id") for weight in weights):
        yield
        return
    deepspeed = require("deepspeed", "train")
    with deepspeed.zero.GatheredParameters(weights):
        yield


def _from_base(training: Training) -> Any:
    import torch
    import transformers
    from safetensors import SafetensorError

    folder = _folder(training)
    try:
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,  # never a pickle from outside
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise TrainingError(
            f"The base model {training.base!r} cannot be loaded: "
            f"{_unreadable(folder)} is damaged or cut short ({error}).",
            "Copy or download it again.",
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise TrainingError(
            f"The base model {training.base!r} cannot be loaded: {error}",
            "It must be a causal language model of transformers with safetensors weights.",
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers only warns, and would train on with random ones.
        raise TrainingError(
            f"The base model {training.base!r} lacks {len(missing)} weights, such as {missing[0]}.",
            "Its files belong to another architecture than config.json says, or some are gone.",
        )
    return model


def _folder(training: Training) -> Path:
    """Where the base's files are; a hub model's are fetched at its commit."""
    name, revision = str(training.base), training.base_revision
    if revision is None:
        return Path(name)
    return fetch(name, revision, TrainingError, "train", "base model")


def _unreadable(folder: Path) -> str:
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except SafetensorError:
            return path.name
    return "a weights file"


def _with_lora(model: Any, lora: dict[str, Any]) -> Any:
    peft = require("peft", "train")
    targets = lora["target_modules"]
    valid = _linear_layers(model)
    for name in targets or ():
        if name not in valid:
            raise TrainingError(
                f"train.lora.target_modules: the base model has no linear layer {name!r}."
                f"{did_you_mean(name, valid)}"
            )
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=targets or "all-linear",
    )
    return peft.get_peft_model(model, config)


def _linear_layers(model: Any) -> list[str]:
    """The last part of the names of the layers that LoRA can be put on."""
    import torch

    output = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not output
        }
    )
