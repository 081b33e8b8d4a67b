"""A training of seconds, without a pipeline around it: 50 rows, two layers, ten steps."""

import pickle
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from penstock.launchers.base import Trained, Training

SETTINGS = {
    "learning_rate": 0.01,
    "epochs": 9.0,
    "max_steps": 20,
    "batch_size": 8,
    "gradient_accumulation": 1,
    "scheduler": "cosine",
    "warmup_steps": 1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "group_by_length": True,
}
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def training(folder: Path, num_rows=50, num_validation=11, **settings) -> Training:
    """A training in a folder, with rows of 4 to 30 tokens; 50 are no multiple of a batch."""
    from penstock.tokenizer import train_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = folder / "tokenizer"
    size = train_tokenizer(["a few words to begin with"], 300, None, tokenizer)
    write_rows(folder / "train.arrow", num_rows, size, seed=1)
    write_rows(folder / "validation.arrow", num_validation, size, seed=2)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    return Training(
        examples=folder / "train.arrow",
        validation=folder / "validation.arrow",
        tokenizer=tokenizer,
        base=None,
        base_revision=None,
        shape=SHAPE,
        settings={**SETTINGS, **settings},
        seed=5,
        checkpoints=checkpoints,
        checkpoint_every_steps=3,
        output=folder / "model",
    )


def write_rows(path: Path, count: int, vocab_size: int, seed: int) -> None:
    """Rows in which each token has a favourite successor; the first third has no label."""
    chance = random.Random(seed)
    ids, labels = [], []
    for _ in range(count):
        row = [chance.randrange(5, vocab_size)]
        for _ in range(chance.randrange(3, 29)):
            follows = (row[-1] * 7) % (vocab_size - 5) + 5
            row.append(follows if chance.random() < 0.8 else chance.randrange(5, vocab_size))
        masked = len(row) // 3
        ids.append(row)
        labels.append([-100] * masked + row[masked:])
    column = pa.list_(pa.int32())
    table = pa.table({"input_ids": pa.array(ids, column), "labels": pa.array(labels, column)})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def pack(path: Path) -> None:
    """Put the rows of a file into blocks of two."""
    with pa.ipc.open_stream(str(path)) as reader:
        rows = reader.read_all().to_pylist()
    blocks = []
    for pair in (rows[i : i + 2] for i in range(0, len(rows), 2)):
        block = {name: [token for row in pair for token in row[name]] for name in pair[0]}
        blocks.append(block | {"seq_lengths": [len(row["input_ids"]) for row in pair]})
    column = pa.list_(pa.int32())
    names = ("input_ids", "labels", "seq_lengths")
    table = pa.Table.from_pylist(blocks, pa.schema([(name, column) for name in names]))
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


_TRAIN_AND_DIE = """
import os, pickle, signal, sys
from penstock.launchers.loop import train

def report(step, num_steps, values):
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

train(pickle.load(open(sys.argv[1], "rb")), report)
"""


@contextmanager
def alone():
    """A function that trains in a process of its own, the same one each time.

    What a process has loaded before decides the last bits of a sum: compare only
    what processes make that have loaded nothing else.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield lambda training: pool.submit(_train, training).result()


def _train(training: Training) -> Trained:
    from penstock.launchers.loop import train

    return train(training, lambda *_: None)


def killed_at(training: Training, step: int) -> None:
    """Train in a process of its own, which is killed when it has made so many steps."""
    order = training.checkpoints / "order.pickle"
    order.write_bytes(pickle.dumps(training))
    command = [sys.executable, "-c", _TRAIN_AND_DIE, str(order), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr


def weights(folder: Path) -> dict:
    """The tensors of a model's folder."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
