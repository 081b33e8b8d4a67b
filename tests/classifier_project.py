"""A project that trains a classifier: two topics, and an encoder of two narrow random layers."""

import json
import random
import sys
from pathlib import Path

import yaml

sys.path.append(str(Path(__file__).parent / "serving"))

from tiny_encoders import save_encoder

WORDS = {
    "billing": [
        *("invoice", "charged", "refund", "price", "payment", "card"),
        *("receipt", "bank", "tax", "euros", "monthly", "fee"),
    ],
    "technical": [
        *("crash", "error", "screen", "login", "update", "printer"),
        *("driver", "network", "freeze", "restart", "app", "cable"),
    ],
}
FILLER = [
    *("please", "why", "my", "is", "the", "again", "today", "help"),
    *("not", "for", "since", "with", "after", "on", "it"),
]
RECIPE = {
    "name": "intent",
    "store": "store",
    "sources": {"rows": {"type": "files", "paths": ["data/*.jsonl"]}},
    "ingest": {"min_new_examples": 20},
    "validate": {"not_null": ["text", "label"], "length": {}, "range": {}, "max_bad_rows": 0.1},
    "prepare": {
        "transforms": [
            {"normalise": {"columns": ["text"]}},
            {"dedupe": {"columns": ["text"]}},
            {"split": {"by": ["text"], "validation": 0.3}},
        ]
    },
    "train": {"classifier": {"encoder": "encoder"}},
    "evaluate": {"tasks": ["held_out"]},
    "gate": {"min": {"held_out": 0.8}, "max_regression": 0.05},
}
# A step as somebody might write it: it gives the rows that are learned from any label.
SPOIL = """
import pyarrow as pa
from penstock.section import Section
from penstock.transforms.base import REMOVED_SCHEMA, Outcome


class Spoil:
    name = "spoil"
    revision = 1
    Options = Section

    def __init__(self, options):
        pass

    def open(self):
        pass

    def __call__(self, rows):
        place = rows.column_names.index("label")
        labels = [
            label if split == "validation" else ["billing", "technical"][int(row_id[-1], 16) % 2]
            for label, split, row_id in zip(
                *(rows[name].to_pylist() for name in ("label", "split", "_row_id")), strict=True
            )
        ]
        rows = rows.set_column(place, "label", pa.array(labels, pa.string()))
        return Outcome(rows, REMOVED_SCHEMA.empty_table())
"""


def write_project(folder: Path, rows: int = 400) -> Path:
    """Write encoder, rows and recipe; returns the recipe's path."""
    save_encoder(folder / "encoder")
    (folder / "data").mkdir()
    write_rows(folder / "data" / "first.jsonl", rows, seed=1)
    return write_recipe(folder, RECIPE)


def write_recipe(folder: Path, recipe: dict) -> Path:
    """Write the recipe; returns its path."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def write_rows(path: Path, count: int, seed: int) -> None:
    """Write rows of both topics."""
    chance = random.Random(seed)
    path.write_text("".join(json.dumps(row(chance)) + "\n" for _ in range(count)))


def row(chance: random.Random) -> dict[str, str]:
    """A text of one of the topics."""
    label = chance.choice(sorted(WORDS))
    words = [*chance.choices(WORDS[label], k=4), *chance.choices(FILLER, k=4)]
    chance.shuffle(words)
    return {"text": " ".join(words), "label": label}
