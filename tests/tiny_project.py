"""A project so small that the whole loop turns in seconds: 60 rows, one layer, six steps."""

import json
import random
from pathlib import Path

import yaml

WORDS = [
    *("list", "text", "file", "number", "value", "index", "string", "object", "key", "pair"),
    *("line", "row", "path", "name", "time", "item", "sorted", "empty", "first", "last"),
    *("maximum", "minimum", "open", "close", "read", "write", "copy", "join", "split"),
]

RECIPE = {
    "name": "tiny",
    "store": "store",
    "sources": {"rows": {"type": "files", "paths": ["data/*.jsonl"]}},
    "ingest": {"min_new_examples": 20},
    "validate": {"max_bad_rows": 0.1, "range": {}},
    "prepare": {
        "transforms": ["normalise", "dedupe", {"split": {"validation": 0.2}}],
        "tokenizer": {"vocab_size": 300},
        "max_length": 256,
    },
    "train": {
        "model": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 2,
            "max_position_embeddings": 256,
        },
        "max_steps": 6,
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.01,
        "warmup_steps": 1,
        "checkpoint_every_steps": 2,
    },
    "evaluate": {"tasks": ["which"], "task_dir": "tasks", "batch_size": 8},
    # Eight items decide nothing, and these tests are not about the statistics.
    "gate": {"min": {"which": 0.0}, "max_regression": 1.0, "on_inconclusive": "point_estimate"},
}


def write_project(folder: Path, rows: int = 60, tasks: Path | None = None) -> Path:
    """Write recipe, rows and an evaluation task; returns the recipe's path.

    Args:
        folder: Made.
        rows: How many.
        tasks: Another project's tasks, to be evaluated on the same.
    """
    (folder / "data").mkdir(parents=True)
    write_rows(folder / "data" / "first.jsonl", rows, seed=1)
    evaluate = dict(RECIPE["evaluate"])
    if tasks is None:
        _write_task(folder / "tasks")
    else:
        evaluate["task_dir"] = str(tasks)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "evaluate": evaluate}, sort_keys=False))
    return path


def write_rows(path: Path, count: int, seed: int) -> None:
    """Write valid rows, and one in thirty that is not."""
    chance = random.Random(seed)
    lines = []
    for i in range(count):
        subject = " ".join(chance.choices(WORDS, k=6))
        answer = f"It returns the {' '.join(chance.choices(WORDS, k=5))}."
        response = "no" if i % 30 == 29 else answer
        row = {"instruction": f"What does {subject} give? ({seed}.{i})", "response": response}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def _write_task(folder: Path) -> None:
    folder.mkdir()
    chance = random.Random(7)
    items = [
        {
            "instruction": f"What does {' '.join(chance.choices(WORDS, k=3))} give?",
            "choices": [" ".join(chance.choices(WORDS, k=4)) for _ in range(2)],
            "answer": chance.randrange(2),
        }
        for _ in range(8)
    ]
    (folder / "which.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    # lm-eval takes data files relative to the working directory, so the path is whole.
    config = {
        "task": "which",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder.resolve() / "which.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{instruction}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "which.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
