"""What Penstock adds on a GPU: to training, beside TRL alone, and to generation.

``python -m benchmarks.gpu [ROUNDS]`` trains a Llama of 85 million parameters in bf16 by
TRL alone and by the local launcher, interleaved, each in a process of its own; then once
more by the launcher, killed in the middle. Then the backend `transformers` answers 1, 16
and 64 requests at once beside ``transformers.generate`` on one static batch of the same
prompts. Medians of the rounds' ratios, as Markdown.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import generation, training
from benchmarks.machine import machine

HOME = Path(__file__).resolve().parent.parent
NUM_ROWS, NUM_STEPS, BATCH_SIZE, ROW_TOKENS = 6_400, 200, 32, 512
MAX_TOKENS = 128
CONCURRENCIES = (1, 16, 64)


def prepare(folder: Path) -> Any:
    """Rows and a base for the trainings below."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=768,
        intermediate_size=2_048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        vocab_size=training.VOCAB_SIZE,
        max_position_embeddings=1_024,
        tie_word_embeddings=True,
    )
    if not (folder / "base").exists():
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
        for name, count in (("train", NUM_ROWS), ("validation", 256)):
            write_rows(folder / f"{name}.arrow", count)
        from penstock.tokenizer import train_tokenizer

        train_tokenizer(["a few words to begin with"], 300, None, folder / "tokenizer")
    return replace(training.training(folder), checkpoint_every_steps=NUM_STEPS // 4)


def write_rows(path: Path, count: int) -> None:
    """Rows of equal length in which each token has a favourite successor."""
    draw, rows, size = random.Random(count), [], training.VOCAB_SIZE
    for _ in range(count):
        row = [draw.randrange(5, size)]
        for _ in range(ROW_TOKENS - 1):
            follows = (row[-1] * 7) % (size - 5) + 5
            row.append(follows if draw.random() < 0.8 else draw.randrange(5, size))
        rows.append(row)
    column = pa.array(rows, pa.list_(pa.int32()))
    with pa.ipc.new_stream(str(path), pa.schema([(n, column.type) for n in COLUMNS])) as writer:
        writer.write_table(pa.table(dict.fromkeys(COLUMNS, column)))


COLUMNS = ("input_ids", "labels")


def ours(folder: Path, kill_at: int | None) -> dict[str, Any]:
    """By the local launcher."""
    from penstock.launchers.loop import train

    it, times = prepare(folder), {}
    if kill_at is not None:
        training.after_a_kill(it, kill_at)
    trained = train(it, lambda step, *_: times.setdefault(step, time.monotonic()))
    return {
        "steps_s": times[NUM_STEPS] - min(times.values()),
        "steps": NUM_STEPS - min(times),
        "validation_loss": trained.validation_loss,
        "resumed_from": trained.resumed_from_step,
    }


def plain(folder: Path) -> dict[str, Any]:
    """As anybody would write it with TRL."""
    import datasets
    import torch
    import transformers
    import trl

    times: dict[int, float] = {}

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]  # untyped base
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            times[state.global_step] = time.monotonic()

    it = prepare(folder)
    transformers.set_seed(it.seed)
    trainer = trl.SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(it.base, dtype=torch.float32),
        args=trl.SFTConfig(
            output_dir=str(it.checkpoints),
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            weight_decay=0.01,
            num_train_epochs=1,
            save_steps=it.checkpoint_every_steps,
            gradient_checkpointing=False,
            bf16=torch.cuda.is_available(),
            report_to=[],
            disable_tqdm=True,
            seed=it.seed,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_steps=10,
        ),
        train_dataset=datasets.Dataset.from_file(str(it.examples)),
        eval_dataset=datasets.Dataset.from_file(str(it.validation)),
        processing_class=transformers.AutoTokenizer.from_pretrained(it.tokenizer),
        callbacks=[Clock()],
    )
    trainer.train()
    return {
        "steps_s": times[NUM_STEPS] - times[1],
        "steps": NUM_STEPS - 1,
        "validation_loss": trainer.evaluate()["eval_loss"],
        "resumed_from": 0,
    }


def measured(name: str, folder: Path, kill_at: int | None = None) -> dict[str, Any]:
    """One training in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", name, str(folder)]
    done = subprocess.run(
        [*command, str(kill_at or "")], cwd=HOME, stdout=subprocess.PIPE, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def trainings(folder: Path, rounds: int) -> None:
    """Measure the trainings, and print a table."""
    prepare(folder)
    found = [
        {name: measured(name, folder) for name in ("TRL alone", "local")} for _ in range(rounds)
    ]
    killed = measured("local", folder, NUM_STEPS * 6 // 10)
    speed = [
        {
            name: BATCH_SIZE * ROW_TOKENS * one["steps"] / one["steps_s"]
            for name, one in each.items()
        }
        for each in found
    ]
    print("| | tokens/s | beside TRL alone | validation loss |\n|---|---|---|---|")
    for name in found[0]:
        ratio = statistics.median(each[name] / each["TRL alone"] for each in speed)
        median = statistics.median(each[name] for each in speed)
        loss = found[0][name]["validation_loss"]
        print(f"| {name} | {median:,.0f} | {ratio:.2f} | {loss:.6f} |")
    loss = killed["validation_loss"]
    print(f"| local, killed, resumed from step {killed['resumed_from']} | | | {loss:.6f} |\n")


def generations(folder: Path, rounds: int) -> None:
    """Measure the backend, and print a table."""
    import torch

    from penstock.serving.backends.base import ModelFiles
    from penstock.serving.backends.transformers import TransformersBackend

    model = generation.save_llama_6m(folder / "model").to("cuda").to(torch.bfloat16)
    options = {"max_batch": max(CONCURRENCIES)}
    backend = TransformersBackend(ModelFiles(folder / "model", folder / "cache", options))
    backend.load()
    print("| requests at once | Penstock, tokens/s | transformers.generate | ratio |")
    print("|---|---|---|---|")
    for concurrency in CONCURRENCIES:
        pairs = [once(backend, model, concurrency) for _ in range(rounds + 1)][1:]
        ratio = statistics.median(one / other for one, other in pairs)
        ours_read, theirs_read = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {concurrency} | {ours_read:,.0f} | {theirs_read:,.0f} | {ratio:.2f} |")
    backend.close()


def once(backend: Any, model: Any, concurrency: int) -> tuple[float, float]:
    """Tokens a second of ours and of theirs, on the same prompts."""
    import torch

    draw = random.Random(concurrency)
    prompts = [
        tuple(draw.randrange(3, model.config.vocab_size) for _ in range(generation.PROMPT_TOKENS))
        for _ in range(concurrency)
    ]
    began = time.perf_counter()
    num_tokens = asyncio.run(generation.ours(backend, prompts, MAX_TOKENS))
    ours_speed = num_tokens / (time.perf_counter() - began)
    began = time.perf_counter()
    ids = torch.tensor(prompts, device="cuda")
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            pad_token_id=2,
        )
    num_tokens = int((output[:, generation.PROMPT_TOKENS :] != 2).sum())
    return ours_speed, num_tokens / (time.perf_counter() - began)


def main(rounds: int) -> None:
    """Measure and print."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("There is no GPU here that PyTorch can use.")
    print(f"{machine()}; {torch.cuda.get_device_name()}, PyTorch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as name:
        trainings(Path(name), rounds)
        generations(Path(name), rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _, _, chosen, place, step = sys.argv
        at = int(step) if step else None
        print(json.dumps(plain(Path(place)) if chosen == "TRL alone" else ours(Path(place), at)))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
