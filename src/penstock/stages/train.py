"""Train: examples become a model version's files.

What a training starts from, and which rows it sees, was decided and pinned
before; the launcher decides where the loop runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penstock.artifacts import (
    digest_of,
    file_digest,
    store_errors,
    write_manifest,
)
from penstock.errors import RecipeError, TrainingError
from penstock.hub import require_commit
from penstock.launchers.base import Trained, Training
from penstock.prompt import Prompt
from penstock.recipe import Recipe, canonical
from penstock.stages import classify
from penstock.stages.base import Base, Job, Pinned, Stage
from penstock.stages.blocks import BlockWriter, RowWriter, join_pieces
from penstock.stages.prepare import EXAMPLES, SPLIT, TOKENIZER
from penstock.tracking import log_training
from penstock.transforms.base import ROW_ID, SOURCE, VERSION
from penstock.transforms.pack import Packer
from penstock.version_files import MODEL

# Which rows are in which block, if rows are packed.
BLOCKS = "blocks.parquet"


def named_base(recipe: Recipe) -> Base | None:
    """The base model a recipe names, or None for one from scratch.

    Raises:
        RecipeError: A folder without a model, or a hub name without a commit.
    """
    if recipe.train.classifier is not None:
        return classify.encoder_base(recipe, recipe.train.classifier)
    name, revision = recipe.train.base, recipe.train.base_revision
    if name == "scratch":
        return None
    folder = (recipe.folder / name).resolve()
    if folder.is_dir():
        return Base(label=name, identity=_folder_identity(folder), location=str(folder))
    if name.startswith((".", "/")) or name.count("/") > 1:
        raise RecipeError(f"train.base: there is no folder {folder}.")
    revision = require_commit(name, revision, "train.base", "train.base_revision")
    return Base(name, f"{name}@{revision}", name, revision)


def _folder_identity(folder: Path) -> str:
    """SHA-256 over a model folder's files.

    Raises:
        RecipeError: There is no safetensors model in it.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise RecipeError(
            f"train.base: {folder} holds no model.",
            "It needs config.json and *.safetensors, as save_pretrained writes them.",
        )
    return digest_of({p.name: file_digest(p) for p in sorted(folder.iterdir()) if p.is_file()})


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    if recipe.train.classifier is not None:
        assert pinned.base is not None
        head = classify.settings(recipe.train.classifier)
        return {"classifier": head, "seed": recipe.seed, "base": pinned.base.identity}
    section = canonical(recipe.train)
    for key in ("base", "base_revision", "continue_from_production"):
        section.pop(key)
    continues = pinned.base is not None and pinned.base.version is not None
    for key in ("learning_rate", "epochs", "max_steps"):
        other = section.pop(f"continue_{key}")
        if continues and other is not None:
            section[key] = other
    if pinned.base is not None:
        section.pop("model")
    else:
        section.pop("lora", None)  # there is nothing yet that could stay as it is
    if not continues:
        section.pop("rows")
        section.pop("replay")
    return section | {
        "seed": recipe.seed,
        "base": pinned.base and pinned.base.identity,
        "since": dict(pinned.base.tables) if pinned.base and continues else {},
    }


def _run(job: Job) -> dict[str, Any]:
    classifier = job.recipe.train.classifier
    if classifier is None:
        trained, num_train = _train(job)
    else:
        trained, num_train = classify.train_head(job, classifier)
    digest = write_manifest(job.folder / MODEL)
    (job.folder / "history.json").write_text(json.dumps(trained.history, indent=1))
    mlflow_run = log_training(job.recipe, job.store, job.fingerprint, dict(job.settings), trained)
    return _summary(job, trained, digest, num_train, mlflow_run)


def _train(job: Job) -> tuple[Trained, int]:
    """Train a model that writes; returns also how many rows it learned from."""
    scratch = job.folder / "scratch"
    scratch.mkdir()
    num_train, num_validation = _select(job, scratch)
    training = _training(job, scratch, num_validation > 0)
    kind, options = job.recipe.plugin("launchers", job.recipe.train.launcher)
    launcher = kind(options, job.recipe.folder)
    last = 0
    with job.progress.track("train") as advance:

        def report(step: int, num_steps: int, values: Mapping[str, float]) -> None:
            nonlocal last
            if last == 0:
                advance.expect(num_steps)
            advance(step - last)
            last = step

        trained = launcher.run(training, report)
    shutil.rmtree(scratch)
    prompt = Prompt.load(job.input_folder("prepare"))
    if prompt is not None:
        prompt.save(job.folder / MODEL)
    return trained, num_train


def _reconcile(job: Job) -> None:
    """Once a training is recorded, its checkpoints are of no more use."""
    shutil.rmtree(job.store.checkpoints(job.fingerprint), ignore_errors=True)


STAGE = Stage("train", 1, ("prepare",), _settings, _run, _reconcile)


def _training(job: Job, scratch: Path, has_validation: bool) -> Training:
    base, settings = job.pinned.base, dict(job.settings)
    shape = job.recipe.train.model
    checkpoints = job.store.checkpoints(job.fingerprint)
    checkpoints.mkdir(parents=True, exist_ok=True)
    return Training(
        examples=scratch / "train.arrow",
        validation=scratch / "validation.arrow" if has_validation else None,
        tokenizer=job.input_folder("prepare") / TOKENIZER,
        base=base.location if base else None,
        base_revision=base.revision if base else None,
        shape={
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "max_position_embeddings": shape.max_position_embeddings,
            "tie_word_embeddings": shape.tie_embeddings,
        },
        settings=settings,
        seed=job.recipe.seed,
        checkpoints=checkpoints,
        checkpoint_every_steps=job.recipe.train.checkpoint_every_steps,
        output=job.folder / MODEL,
    )


def _select(job: Job, scratch: Path) -> tuple[int, int]:
    """Write the rows this training sees as Arrow files; returns how many there are."""
    writers = {split: _writer(job, scratch, split) for split in ("train", "validation")}
    path = job.input_folder("prepare") / EXAMPLES
    columns = ["input_ids", "labels", SPLIT, SOURCE, VERSION, ROW_ID]
    with store_errors(scratch):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=columns):
                for split, writer in writers.items():
                    rows = batch.filter(pc.equal(batch[SPLIT], split))
                    if split == "train" and job.settings.get("rows") == "new":
                        rows = rows.filter(is_due(rows, job.settings))
                    writer.write(rows)
        for writer in writers.values():
            writer.close()
    # Preparation leaves no training split empty; that none of its rows is new is seen here.
    if not writers["train"].num_rows:
        raise TrainingError("There are no new rows to train on.", "Use train.rows: all.")
    if job.recipe.packing is not None:
        join_pieces(scratch, job.folder / BLOCKS)
    return writers["train"].num_rows, writers["validation"].num_rows


def _writer(job: Job, scratch: Path, split: str) -> RowWriter | BlockWriter:
    recipe = job.recipe
    if recipe.packing is None:
        return RowWriter(scratch, split)
    apart = recipe.train.packed_attention != "across"
    return BlockWriter(scratch, split, Packer(recipe.prepare.max_length, recipe.packing, apart))


def is_due(rows: pa.RecordBatch, settings: Mapping[str, Any]) -> pa.Array:
    """New rows, and the share of older ones that is replayed.

    Which older rows that are depends on their id alone (16 bits of it), so it
    is the same on every host and for every batch size.
    """
    since = pa.array(
        [settings["since"].get(source, -1) for source in rows[SOURCE].to_pylist()], pa.int64()
    )
    draws = pa.array([int(row_id[:4], 16) / 65536 for row_id in rows[ROW_ID].to_pylist()])
    return pc.or_(pc.greater(rows[VERSION], since), pc.less(draws, settings["replay"]))


def _summary(
    job: Job, trained: Trained, digest: str, num_train: int, mlflow_run: str
) -> dict[str, Any]:
    values = asdict(trained)
    values.pop("history")
    # How often it was interrupted is about this machine, not about the model.
    values.pop("resumed_from_step")
    return values | {
        "model_digest": digest,
        "base": job.pinned.base and job.pinned.base.label,
        "data": dict(job.inputs["prepare"].summary["data"]),
        "mlflow_run": mlflow_run,
        "rows": {"in": job.inputs["prepare"].summary["splits"]["train"], "out": num_train},
    }
