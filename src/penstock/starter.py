"""``penstock init``: a commented recipe to start from, fitted to the user's own files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from string import Template

import pyarrow as pa

from penstock.errors import RecipeError, SourceError
from penstock.recipe_file import load_recipe
from penstock.sources.files import FilesOptions, FilesSource

# Common names for the two columns every recipe needs, the likeliest first.
_INSTRUCTION = ("instruction", "prompt", "question", "query", "input")
_RESPONSE = ("response", "completion", "answer", "output", "target")

_RECIPE = Template("""\
# A Penstock recipe. Check it with `penstock plan`, run it with `penstock run`.
# Every key and its default: `penstock schema`, or docs/recipe.md.
name: $name
seed: 17                       # another seed, another run; the same seed, the same model

sources:
  rows:
    type: files                # JSONL, CSV or Parquet, also .gz and .zst; globs are fine
    paths: [$paths]
$columns
ingest:
  min_new_examples: 1000       # with fewer since the last trained version, a run is SKIPPED

validate:                      # the contract every new row must meet
  not_null: [instruction, response]
  length:                      # in characters
    instruction: {min: 10, max: 4096}
    response: {min: 5, max: 8192}
$quality
  expectations: []             # any of Great Expectations', as {name: ..., kwargs: {...}}
  max_bad_rows: 0.01           # this share may fail and is quarantined; above it, the run fails

prepare:
  transforms:
    - normalise                # Unicode NFC, trimmed, without control characters
    - dedupe                   # exact, on instruction and response
    - split: {by: [instruction], validation: 0.05}
  tokenizer: {vocab_size: 4096}   # trained from the rows; a base model brings its own
  max_length: 512              # longer examples are removed, in tokens

train:
  base: scratch                # or a folder with a model, or a hub name with base_revision
  model: {hidden_size: 128, intermediate_size: 384, num_layers: 3, num_heads: 4, num_kv_heads: 4}
  epochs: 1
  max_steps: 200               # remove it to train for all epochs
  batch_size: 16
  learning_rate: 0.002
  rows: all                    # when continuing from production: all rows, or only new ones
  continue_from_production: true

evaluate:
  tasks: [held_out]            # bits per byte of the validation split; add lm-eval tasks by name
  # task_dir: tasks            # a folder with lm-eval task YAMLs of your own

gate:
  max: {held_out: 6.0}         # the first model must be below this; 8 is knowing nothing
  max_regression: 0.02         # later ones must be shown not worse than what serves now

serve:
  port: 8000                   # on 127.0.0.1
  metrics_port: 9090
""")


def write_starter(folder: Path, data: list[Path]) -> Path:
    """Write ``recipe.yaml`` into ``folder``, which is made if it is not there.

    Args:
        folder: Must not hold a recipe yet.
        data: Files to start from; their columns are mapped where the names are common ones.

    Returns:
        The recipe's path.

    Raises:
        RecipeError: There is a recipe already, or a column cannot be told.
        SourceError: A data file cannot be read.
    """
    path = folder / "recipe.yaml"
    if path.exists():
        raise RecipeError(f"{path} exists already.", "Choose another folder, or edit it.")
    columns = _columns(data) if data else {"instruction", "response", "quality_score"}
    for one in data:
        if "${" in str(one):
            raise RecipeError(f"{one} would be read as a variable in a recipe.", "Rename it.")
    relative = [os.path.relpath(one.resolve(), folder.resolve()) for one in data]
    text = _RECIPE.substitute(
        name=_name(folder),
        paths=", ".join(json.dumps(one) for one in relative or ["data/*.jsonl"]),
        columns=_mapping(columns),
        quality=_quality(columns),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    load_recipe(path)
    return path


def _columns(data: list[Path]) -> set[str]:
    """The columns of the files' first rows."""
    names: set[str] = set()
    for one in data:
        source = FilesSource(FilesOptions(paths=(str(one.resolve()),)), one.resolve().parent)
        (unit, *_) = source.snapshot()
        batch = next((p for p in source.read(unit) if isinstance(p, pa.RecordBatch)), None)
        if batch is None:
            raise SourceError(f"{one} holds no row that can be read.")
        names |= {name for name in batch.schema.names if not name.startswith("_")}
    return names


def _mapping(columns: set[str]) -> str:
    chosen = {}
    for ours, candidates in (("instruction", _INSTRUCTION), ("response", _RESPONSE)):
        found = [name for name in candidates if name in columns]
        if not found:
            raise RecipeError(
                f"No column looks like the {ours}. The files have: {', '.join(sorted(columns))}.",
                f"Rename one to {ours!r}, or run without --data and map it under `columns`.",
            )
        chosen[ours] = found[0]
    renamed = {ours: theirs for ours, theirs in chosen.items() if ours != theirs}
    if not renamed:
        return "    # columns: {instruction: question, response: answer}   # ours: the files' own\n"
    pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in renamed.items())
    return f"    columns: {{{pairs}}}   # ours: the files' own\n"


def _quality(columns: set[str]) -> str:
    if "quality_score" in columns:
        return "  range:\n    quality_score: {min: 0.6, max: 1.0}"
    return "  range: {}                    # such as quality_score: {min: 0.6, max: 1.0}"


def _name(folder: Path) -> str:
    """The folder's name as a recipe may be called."""
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-"
                      for c in folder.resolve().name)  # fmt: skip
    return cleaned if cleaned[:1].isalpha() else f"model-{cleaned}"
