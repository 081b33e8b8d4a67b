"""What each launcher adds to the plain TRL loop, and what a kill changes.

``python -m benchmarks.training [ROUNDS]`` trains one small model on the same rows in
turn by TRL alone and by each launcher, each in a process of its own, and prints
medians as Markdown: tokens a second between the first and the last step, and the
seconds of the process that are not between them. In one more round each training is
killed in its middle and ends by itself or by a second start; the table says by how
much its losses then differ from those of the undisturbed one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from benchmarks.machine import machine

HOME = Path(__file__).resolve().parent.parent
DEEPSPEED = HOME / ".venvs" / "deepspeed" / "bin" / "python"
NUM_ROWS, NUM_STEPS, BATCH_SIZE, VOCAB_SIZE = 3200, 100, 32, 2048
WORKERS = {"ray": "RayTrainWorker", "deepspeed": "-u -m penstock.launchers.worker"}
LAUNCHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "local": ("local", {}),
    "Ray Train, 1 worker": ("ray", {"workers": 1}),
    "Ray Train, 2 workers": ("ray", {"workers": 2}),
    "DeepSpeed ZeRO 2, 2 workers": ("deepspeed", {"workers": 2, "python": str(DEEPSPEED)}),
}
PLAIN = "TRL alone"


def training(folder: Path) -> Any:
    """The training that all of them do, with its rows in ``folder``."""
    from penstock.launchers.base import Training
    from penstock.tokenizer import train_tokenizer

    if not (folder / "train.arrow").exists():
        train_tokenizer(["a few words to begin with"], 300, None, folder / "tokenizer")
        write_rows(folder / "train.arrow", NUM_ROWS, 1)
        write_rows(folder / "validation.arrow", 200, 2)
    place = Path(tempfile.mkdtemp(dir=folder))
    return Training(
        examples=folder / "train.arrow",
        validation=folder / "validation.arrow",
        tokenizer=folder / "tokenizer",
        base=str(base(folder)),
        base_revision=None,
        shape={},
        settings={
            "learning_rate": 3e-3,
            "epochs": 1.0,
            "max_steps": None,
            "batch_size": BATCH_SIZE,
            "gradient_accumulation": 1,
            "scheduler": "cosine",
            "warmup_steps": 10,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "group_by_length": True,
        },
        seed=17,
        checkpoints=place,
        checkpoint_every_steps=NUM_STEPS // 4,
        output=place / "model",
    )


def base(folder: Path) -> Path:
    """A new Llama of a million parameters; its vocabulary is larger than the tokenizer's."""
    if not (folder / "base").exists():
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=256,
            tie_word_embeddings=True,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
    return folder / "base"


def write_rows(path: Path, count: int, seed: int) -> None:
    """Rows of 32 to 128 tokens in which each token has a favourite successor."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        row = [draw.randrange(5, VOCAB_SIZE)]
        for _ in range(draw.randrange(31, 127)):
            follows = (row[-1] * 7) % (VOCAB_SIZE - 5) + 5
            row.append(follows if draw.random() < 0.8 else draw.randrange(5, VOCAB_SIZE))
        rows.append(row)
    column = pa.array(rows, pa.list_(pa.int32()))
    table = pa.table({"input_ids": column, "labels": column})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def launched(name: str, folder: Path, kill_at: int | None) -> dict[str, Any]:
    """Train by a launcher; returns its losses and when its steps were made."""
    from penstock.registry import resolve

    kind, options = LAUNCHERS[name]
    launcher = resolve("launchers", kind)
    times: dict[int, float] = {}
    killed: list[int] = []

    def report(step: int, num_steps: int, values: dict[str, float]) -> None:
        times.setdefault(step, time.monotonic())
        if kill_at is not None and step >= kill_at and not killed:
            killed.append(worker(kind))
            os.kill(killed[0], signal.SIGKILL)

    it = training(folder)
    if kind == "local" and kill_at is not None:
        it = after_a_kill(it, kill_at)
        kill_at = None
    trained = launcher(launcher.Options(**options), folder).run(it, report)
    return {
        "steps_s": times[NUM_STEPS] - min(times.values()),
        "steps": NUM_STEPS - min(times),
        "train_loss": trained.train_loss,
        "validation_loss": trained.validation_loss,
        "resumed_from": trained.resumed_from_step,
    }


def worker(kind: str) -> int:
    """One of the processes below this one that train."""
    for process in psutil.Process().children(recursive=True):
        if WORKERS[kind] in " ".join(process.cmdline()):
            return int(process.pid)
    raise SystemExit(f"there is no worker of {kind}")


def after_a_kill(it: Any, kill_at: int) -> Any:
    """The same training, after a process that was killed in its middle."""
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(it, kill_at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return it


def train_and_die(it: Any, kill_at: int) -> None:
    """Train, and be killed after so many steps."""
    from penstock.launchers.loop import train

    def report(step: int, num_steps: int, values: dict[str, float]) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(it, report)


def plain(folder: Path) -> dict[str, Any]:
    """The same training as anybody would write it with TRL."""
    import datasets
    import torch
    import transformers
    import trl

    times: dict[int, float] = {}

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]  # untyped base
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            times[state.global_step] = time.monotonic()

    it = training(folder)
    transformers.set_seed(it.seed)
    args = trl.SFTConfig(
        output_dir=str(it.checkpoints),
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        weight_decay=0.01,
        num_train_epochs=1,
        save_steps=it.checkpoint_every_steps,
        train_sampling_strategy="group_by_length",
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        seed=it.seed,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=10,
        dataloader_pin_memory=False,
    )
    trainer = trl.SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(it.base, dtype=torch.float32),
        args=args,
        train_dataset=datasets.Dataset.from_file(str(it.examples)),
        eval_dataset=datasets.Dataset.from_file(str(it.validation)),
        processing_class=transformers.AutoTokenizer.from_pretrained(it.tokenizer),
        callbacks=[Clock()],
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(it.output))
    return {
        "steps_s": times[NUM_STEPS] - times[1],
        "steps": NUM_STEPS - 1,
        "train_loss": [one["loss"] for one in trainer.state.log_history if "loss" in one][-1],
        "validation_loss": loss,
    }


def measured(name: str, folder: Path, kill_at: int | None = None) -> dict[str, Any]:
    """Run one in a process of its own; returns what it came to, with the process's seconds."""
    command = [sys.executable, "-m", "benchmarks.training", "--one", name, str(folder)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, str(kill_at or "")], cwd=HOME, stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "wall_s": time.monotonic() - began}


def main(rounds: int) -> None:
    """Measure all in turn, and print the tables."""
    subprocess.run([str(HOME / "scripts" / "make-env.sh"), "deepspeed"], check=True)
    names = [PLAIN, *LAUNCHERS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training(folder)
        with pa.ipc.open_stream(str(folder / "train.arrow")) as rows:
            num_tokens = sum(map(len, rows.read_all()["input_ids"].to_pylist()))
        found = [{one: measured(one, folder) for one in names} for _ in range(rounds)]
        killed = {one: measured(one, folder, NUM_STEPS * 6 // 10) for one in LAUNCHERS}
    speeds = [
        {one: num_tokens / NUM_STEPS * r["steps"] / r["steps_s"] for one, r in each.items()}
        for each in found
    ]
    print_costs(names, found, speeds)
    print_kills(found[0], killed)


def print_costs(
    names: list[str], found: list[dict[str, Any]], speeds: list[dict[str, float]]
) -> None:
    """Print medians of speed and fixed cost."""
    median = statistics.median
    print(f"{machine()}; medians of {len(found)} interleaved rounds of {NUM_STEPS} steps\n")
    print("| | tokens/s | beside TRL alone | fixed cost, s | validation loss |")
    print("|---|---|---|---|---|")
    for one in names:
        speed = median(each[one] for each in speeds)
        ratio = median(each[one] / each[PLAIN] for each in speeds)
        fixed = median(each[one]["wall_s"] - each[one]["steps_s"] for each in found)
        loss = found[0][one]["validation_loss"]
        print(f"| {one} | {speed:,.0f} | {ratio:.2f} | {fixed:.1f} | {loss:.6f} |")


def print_kills(undisturbed: dict[str, Any], killed: dict[str, Any]) -> None:
    """Print what a kill changed."""
    print("\n| killed in the middle | resumed from step | train loss | validation loss |")
    print("|---|---|---|---|")
    for one, found in killed.items():
        differences = [
            f"{abs(found[loss] - undisturbed[one][loss]):.1e}"
            for loss in ("train_loss", "validation_loss")
        ]
        print(f"| {one} | {found['resumed_from']} | {' | '.join(differences)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _, _, chosen, place, step = sys.argv
        at = int(step) if step else None
        came_to = plain(Path(place)) if chosen == PLAIN else launched(chosen, Path(place), at)
        print(json.dumps(came_to))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
