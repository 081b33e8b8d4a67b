"""A classifier's training and evaluation, where they differ from those of a model that writes.

The training makes a head on the vectors of an encoder; the version's folder holds both, so
that it can be served and compared by itself.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penstock.artifacts import digest_of, file_digest, store_errors
from penstock.classifier_section import HELD_OUT, Classifier
from penstock.encoder import (
    PACKAGED,
    Encoder,
    Vectors,
    is_cross_encoder,
    model_files,
    packaged_folder,
)
from penstock.errors import EvaluationError, RecipeError, TrainingError
from penstock.head import ENCODER, Head, fit, is_classifier
from penstock.hub import require_commit
from penstock.launchers.base import Trained
from penstock.recipe import Recipe
from penstock.stages.base import Advance, Base, Job
from penstock.stages.prepare import EXAMPLES, SPLIT, encoder_folder
from penstock.version_files import MODEL

# More labels than this are names or ids, not kinds: the wrong column.
MAX_LABELS = 1000
# So many rows' vectors are kept at once; a training that was killed goes on after them.
_CHUNK_ROWS = 2048
_ADVANCE_ROWS = 256
_SHOWN = 5
_LIBRARIES = ("sentence-transformers", "transformers", "torch")


def encoder_base(recipe: Recipe, classifier: Classifier) -> Base:
    """The encoder as what the training starts from.

    Raises:
        RecipeError: A folder without a model, or a hub name without a commit.
    """
    name, field = classifier.encoder, "train.classifier.encoder"
    folder = packaged_folder(name) if name in PACKAGED else (recipe.folder / name).resolve()
    if not folder.is_dir():
        commit = require_commit(name, classifier.encoder_revision, field, f"{field}_revision")
        return Base(name, f"{name}@{commit}", name, commit)
    if is_cross_encoder(folder):
        raise RecipeError(
            f"{field}: {name!r} reads texts in pairs and gives no vectors.",
            "Name an embedding model.",
        )
    identity = digest_of(
        {path.as_posix(): file_digest(folder / path) for path in model_files(folder)}
    )
    return Base(name, identity, str(folder))


def settings(classifier: Classifier) -> dict[str, Any]:
    """What of the section makes a head what it is; the encoder enters by its identity."""
    return {
        "text": classifier.text,
        "label": classifier.label,
        "regularisation": classifier.regularisation,
    }


def train_head(job: Job, classifier: Classifier) -> tuple[Trained, int]:
    """Train a head into the job's folder; returns also how many rows it learned from.

    Raises:
        TrainingError: The labels cannot be learned, or a text is longer than the encoder reads.
    """
    texts, labels = _rows(job, classifier, "train")
    held_texts, held_labels = _rows(job, classifier, "validation")
    names = _known(Counter(labels), Counter(held_labels), classifier.label)
    folder = encoder_folder(job)
    encoder = Encoder.load(folder)
    kept = job.store.checkpoints(job.fingerprint)
    with job.progress.track("encode", len(texts) + len(held_texts)) as advance:
        vectors = _vectors(encoder, texts, kept / "train", advance)
        held = _vectors(encoder, held_texts, kept / "validation", advance)
    with job.progress.track("train"):
        head, losses = fit(vectors, _places(labels, names), names, classifier.regularisation)
    head.save(job.folder / MODEL)
    for path in model_files(folder):
        to = job.folder / MODEL / ENCODER / path
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, to)
    size = head.weight.size + head.bias.size
    return Trained(
        num_steps=len(losses),
        num_parameters=encoder.num_parameters + size,
        num_trained_parameters=size,
        train_loss=_loss(head, vectors, labels),
        validation_loss=_loss(head, held, held_labels) if held_labels else None,
        history=[{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)],
        resumed_from_step=0,
    ), len(texts)


def measure(job: Job, classifier: Classifier, model: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a classifier says of the rows of the validation split, in lm-eval's form.

    A text that its encoder cannot read whole, it would refuse while it serves: that is
    no right answer either.

    Returns:
        The results with their samples, and the versions of the libraries that computed them.

    Raises:
        EvaluationError: No row is in the validation split, or the model is no classifier.
    """
    if not is_classifier(model):
        raise EvaluationError(
            f"{job.recipe.model_name} is served by a version that is no classifier.",
            "Register classifiers under a name of their own: register.model.",
        )
    texts, labels = _rows(job, classifier, "validation")
    texts, labels = texts[: job.recipe.evaluate.limit], labels[: job.recipe.evaluate.limit]
    if not texts:
        raise EvaluationError(
            f"evaluate.tasks: {HELD_OUT!r} needs a validation split, and no row is in it.",
            "Raise `validation` of the split under prepare.transforms, or wait for more rows.",
        )
    head, encoder = Head.load(model), Encoder.load(model / ENCODER)
    with job.progress.track(f"evaluate {HELD_OUT}", len(texts)) as advance:
        vectors = _encoded(encoder, texts, advance)
    fits = [length <= encoder.limit for length in encoder.num_tokens(texts)]
    samples = [
        _sample(number, text, label, head, probabilities, readable)
        for number, (text, label, probabilities, readable) in enumerate(
            zip(texts, labels, head.probabilities(vectors), fits, strict=True)
        )
    ]
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return _results(samples), versions


def _rows(job: Job, classifier: Classifier, split: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a split, in the order in which they were prepared."""
    texts: list[str] = []
    labels: list[str] = []
    columns = [classifier.text, classifier.label, SPLIT]
    with pq.ParquetFile(job.input_folder("prepare") / EXAMPLES) as examples:
        for batch in examples.iter_batches(columns=columns):
            rows = batch.filter(pc.equal(batch[SPLIT], split))
            texts += rows[classifier.text].to_pylist()
            labels += rows[classifier.label].to_pylist()
    return texts, labels


def _known(train: Counter[str], held: Counter[str], column: str) -> list[str]:
    """The labels that a head will tell apart, sorted.

    Raises:
        TrainingError: They cannot be learned.
    """
    field = f"train.classifier.label: the column {column!r}"
    if len(train) < 2:
        raise TrainingError(
            f"{field} holds one label only, {next(iter(train))!r}, in {train.total():,} rows.",
            "There is nothing to tell apart: add examples of another kind.",
        )
    if len(train) > MAX_LABELS:
        raise TrainingError(
            f"{field} holds {len(train):,} labels in {train.total():,} rows, such as "
            f"{_some(train)}; at most {MAX_LABELS:,} are told apart.",
            "Is it the right column? Labels are kinds of text, not names or ids.",
        )
    unknown = Counter({label: count for label, count in held.items() if label not in train})
    if unknown:
        raise TrainingError(
            f"{field} holds labels in the validation split that no training row has: "
            f"{_some(unknown)}.",
            "Add examples of them, or leave those rows out with a filter under prepare.transforms.",
        )
    return sorted(train)


def _some(labels: Counter[str]) -> str:
    shown = ", ".join(f"{label!r} ({count:,})" for label, count in labels.most_common(_SHOWN))
    return shown + (", …" if len(labels) > _SHOWN else "")


def _places(labels: Sequence[str], names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    place = {name: number for number, name in enumerate(names)}
    return np.array([place[label] for label in labels], np.int64)


def _vectors(encoder: Encoder, texts: list[str], folder: Path, advance: Advance) -> Vectors:
    """Vectors of texts; those that an earlier try left in ``folder`` are taken from there.

    Raises:
        TrainingError: A text is longer than the encoder reads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = []
    for start in range(0, len(texts), _CHUNK_ROWS):
        chunk = texts[start : start + _CHUNK_ROWS]
        path = folder / f"{start}.npy"
        if path.is_file():
            chunks.append(np.load(path, allow_pickle=False))
            advance(len(chunk))
            continue
        _refuse_long(encoder, chunk)
        chunks.append(_encoded(encoder, chunk, advance))
        with store_errors(folder):
            with (folder / "part").open("wb") as part:
                np.save(part, chunks[-1])
            os.replace(folder / "part", path)
    return np.concatenate(chunks) if chunks else np.zeros((0, 1), np.float32)


def _refuse_long(encoder: Encoder, texts: list[str]) -> None:
    longest = max(encoder.num_tokens(texts))
    if longest > encoder.limit:
        raise TrainingError(
            f"A text has {longest} tokens, and the encoder reads {encoder.limit}: the rest would "
            "be ignored.",
            "Leave such texts out: lower prepare.max_length.",
        )


def _encoded(encoder: Encoder, texts: list[str], advance: Advance) -> Vectors:
    parts = []
    for start in range(0, len(texts), _ADVANCE_ROWS):
        parts.append(encoder.encode(texts[start : start + _ADVANCE_ROWS]))
        advance(len(parts[-1]))
    return np.concatenate(parts)


def _loss(head: Head, vectors: Vectors, labels: Sequence[str]) -> float:
    """Mean nats by which the right labels surprise the head.

    Raises:
        TrainingError: It is not a number.
    """
    right = head.probabilities(vectors)[np.arange(len(labels)), _places(labels, head.labels)]
    loss = float(-np.log(np.maximum(right, 1e-30)).mean())
    if not math.isfinite(loss):
        raise TrainingError("The head's loss is not a number.", "Raise `regularisation`.")
    return loss


def _sample(
    number: int, text: str, label: str, head: Head, probabilities: Vectors, readable: bool
) -> dict[str, Any]:
    best = int(probabilities.argmax())
    said = head.labels[best] if readable else None
    return {
        "doc_id": number,
        "doc": {"text": text, "label": label},
        "target": label,
        "arguments": [[text]],
        "resps": [[said]],
        "filtered_resps": [said],
        "filter": "none",
        "metrics": ["acc"],
        "acc": float(said == label),
        "probability": round(float(probabilities[best]), 6),
        "doc_hash": _hash(f"{text}\0{label}"),
        "prompt_hash": _hash(text),
        "target_hash": _hash(label),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _results(samples: list[dict[str, Any]]) -> dict[str, Any]:
    count = len(samples)
    accuracy = sum(sample["acc"] for sample in samples) / count
    error = math.sqrt(accuracy * (1 - accuracy) / max(1, count - 1))
    return {
        "results": {HELD_OUT: {"alias": HELD_OUT, "acc,none": accuracy, "acc_stderr,none": error}},
        "configs": {HELD_OUT: {"task": HELD_OUT, "output_type": "classification"}},
        "higher_is_better": {HELD_OUT: {"acc": True}},
        "n-samples": {HELD_OUT: {"original": count, "effective": count}},
        "samples": {HELD_OUT: samples},
    }
