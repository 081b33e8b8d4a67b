"""Prepare: valid rows become examples with token ids, a loss mask and a split.

The result is one folder: the examples, a ledger row for every row that was
removed on the way, and the tokenizer. It is made anew from all valid rows, in the
order in which they were let through, so it is a function of the data version and
the recipe alone, byte for byte; with ``features``, also of what the feature store
answers, of which no more is pinned than the store can tell (``FeatureStore.version``).
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penstock.artifacts import store_errors
from penstock.classifier_section import HELD_OUT
from penstock.data_section import Prepare
from penstock.encoder import max_tokens
from penstock.engines.base import Engine, Prepared, Rows, StreamedRows, run_transforms
from penstock.errors import PenstockError, RecipeError, SourceError
from penstock.features.base import FeatureOptions
from penstock.hub import fetch
from penstock.recipe import Recipe, canonical
from penstock.stages.base import Base, Job, Pinned, Stage
from penstock.stages.valid_rows import looks, valid_rows
from penstock.stages.validate import valid_table
from penstock.tables import conform
from penstock.tokenizer import (
    load_tokenizer,
    num_embeddings,
    save_tokenizer,
    train_tokenizer,
)
from penstock.transforms.base import REMOVED_SCHEMA, ROW_ID
from penstock.transforms.features import JoinFeatures
from penstock.transforms.labelled import Labelled, LabelledOptions
from penstock.transforms.preflight import check_chat, check_text, check_vocabulary
from penstock.transforms.redact import COUNTS, REDACTED
from penstock.transforms.tokenize import Tokenize, TokenizeOptions
from penstock.transforms.tokenize_text import TokenizeText, TokenizeTextOptions

EXAMPLES = "examples.parquet"
REMOVED = "removed.parquet"
TOKENIZER = "tokenizer"
SPLIT = "split"

# More rows than this no longer change a vocabulary, and training it holds
# all words it has seen in memory.
TOKENIZER_ROWS = 100_000


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    steps = []
    for config in recipe.prepare.transforms:
        transform, options = recipe.plugin("transforms", config)
        step = [config.type, transform.revision, canonical(options)]
        if _reads_items(transform):
            tasks = sorted(set(recipe.evaluate.tasks) - {HELD_OUT})
            step.append([tasks, pinned.tasks_digest])
        steps.append(step)
    section = canonical(recipe.prepare) | {"transforms": steps, "seed": recipe.seed}
    if recipe.features is not None:
        _, options = recipe.plugin("features", recipe.features)
        section["features"] = [recipe.features.type, JoinFeatures.revision, canonical(options)]
        if pinned.features:
            section["features"].append(pinned.features)
    if pinned.base is not None:
        section["tokenizer"] = {"of": pinned.base.identity}
    if (classifier := recipe.train.classifier) is not None:
        section["classifier"] = {"text": classifier.text, "label": classifier.label}
    return section


def features_version(recipe: Recipe) -> str:
    """What the recipe's feature store holds now, as far as it can tell.

    Raises:
        FeatureError: There is no store where the recipe says.
    """
    if recipe.features is None:
        return ""
    store, options = recipe.plugin("features", recipe.features)
    return str(store(options, recipe.folder).version())


def _run(job: Job) -> dict[str, Any]:
    _preflight(job)
    scratch = job.folder / "scratch"
    with closing(_engine(job, scratch)) as engine:
        return _prepared(job, engine, scratch)


def _prepared(job: Job, engine: Engine, scratch: Path) -> dict[str, Any]:
    transforms = [_build(job, config) for config in job.recipe.prepare.transforms]
    transforms = _with_features(job, transforms)
    with store_errors(scratch), job.progress.track("prepare") as advance:
        cleaned = run_transforms(engine, _valid_rows(job), transforms, advance)
    num_kept = cleaned.num_rows - sum(cleaned.counts.values())
    folder = _tokenizer(job, cleaned.kept, num_kept)
    tokenize = _tokenize(job, folder)
    with store_errors(scratch), job.progress.track("tokenize") as advance:
        tokenized = run_transforms(engine, cleaned.kept, [tokenize], advance)
    redacted = _Redactions()
    splits = _write_examples(job.folder / EXAMPLES, redacted.watch(tokenized.kept))
    removed = _write_removed(job.folder / REMOVED, [cleaned, tokenized])
    shutil.rmtree(scratch, ignore_errors=True)
    return _summary(job, cleaned.num_rows, splits, removed) | redacted.summary()


STAGE = Stage("prepare", 2, ("validate",), _settings, _run)


def _engine(job: Job, scratch: Path) -> Engine:
    engine, options = job.recipe.plugin("engines", job.recipe.prepare.engine)
    built: Engine = engine(scratch, **dict(options))
    return built


def _build(job: Job, config: Any) -> Any:
    transform, options = job.recipe.plugin("transforms", config)
    if not _reads_items(transform):
        return transform(options)
    # That stage reads what this one leaves behind, so it is imported here.
    from penstock.stages.evaluate import check_tasks, evaluation_items

    check_tasks(job)
    with job.progress.track("read evaluation items"):
        built = transform(options, evaluation_items(job.recipe))
    if built.num_skipped:
        job.progress.say(f"{config.type}: {built.num_skipped} items are too short to look for")
    return built


def _reads_items(transform: Any) -> bool:
    """Whether a transform is built with the evaluation's items."""
    return bool(getattr(transform, "reads_items", False))


def _with_features(job: Job, transforms: list[Any]) -> list[Any]:
    """Prompts are made first, so that every other step sees what the model will."""
    if job.recipe.features is None:
        return transforms
    store, options = job.recipe.plugin("features", job.recipe.features)
    assert isinstance(options, FeatureOptions)
    options.prompt.save(job.folder)
    return [JoinFeatures(options, store(options, job.recipe.folder)), *transforms]


def _valid_rows(job: Job) -> StreamedRows:
    """All valid rows in ingest order.

    Raises:
        SourceError: Two sources have a column of one name and different types.
    """
    store, recipe = job.store, job.recipe
    schemas = [valid_table(store, recipe, source).schema() for source in recipe.sources]
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise SourceError(
            f"The sources have a column of the same name but different types: {error}",
            "Rename it in one of them, under `columns`.",
        ) from None

    seen = looks(job.ledger, recipe, job.inputs["validate"])

    def read() -> Iterator[pa.RecordBatch]:
        for batch in valid_rows(store, recipe, seen):
            yield conform(batch, schema)

    return StreamedRows(schema, read)


def _preflight(job: Job) -> None:
    """Refuse a tokenizer or a template that a model could not be trained with, before any work."""
    section, base = job.recipe.prepare, job.pinned.base
    if job.recipe.train.classifier is not None:
        return  # no vocabulary to fit, and nobody to chat with
    owner = "The new tokenizer" if base is None else f"The base model {base.label}"
    tokenizer = _throwaway(section) if base is None else _base_tokenizer(job, base)
    if base is not None:
        check_vocabulary(tokenizer, num_embeddings(base.location, base.revision), owner)
    if section.text_column is not None:
        check_text(tokenizer, owner)
    else:
        check_chat(tokenizer, owner)


def _throwaway(section: Prepare) -> Any:
    """A tokenizer such as the one that is going to be trained, but for its words."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(iter(()), section.tokenizer.vocab_size, section.chat_template, Path(folder))
        return load_tokenizer(folder)


def _base_tokenizer(job: Job, base: Base) -> Any:
    tokenizer = load_tokenizer(base.location, base.revision)
    if job.recipe.prepare.chat_template is not None:
        tokenizer.chat_template = job.recipe.prepare.chat_template
    return tokenizer


def _tokenizer(job: Job, rows: Rows, num_rows: int) -> Path:
    """The tokenizer of the model to start from, or a new one from the training rows."""
    folder = job.folder / TOKENIZER
    section, base = job.recipe.prepare, job.pinned.base
    if base is None:
        with job.progress.track("train tokenizer"):
            share = min(1.0, TOKENIZER_ROWS / max(1, num_rows))
            texts = _texts(rows, text_columns(job.recipe), share)
            train_tokenizer(texts, section.tokenizer.vocab_size, section.chat_template, folder)
        return folder
    save_tokenizer(_base_tokenizer(job, base), folder)
    return folder


def _tokenize(job: Job, folder: Path) -> Tokenize | TokenizeText | Labelled:
    section, classifier = job.recipe.prepare, job.recipe.train.classifier
    if classifier is not None:
        limit = min(section.max_length, max_tokens(encoder_folder(job)))
        return Labelled(
            LabelledOptions(
                folder=folder, text=classifier.text, label=classifier.label, max_length=limit
            )
        )
    if section.text_column is not None:
        return TokenizeText(TokenizeTextOptions(folder=folder, column=section.text_column))
    return Tokenize(TokenizeOptions(folder=folder, max_length=section.max_length))


def encoder_folder(job: Job) -> Path:
    """Where the files of a classifier's encoder are; those of the hub are fetched.

    Raises:
        RecipeError: The hub does not have them.
    """
    base = job.pinned.base
    assert base is not None
    if base.revision is None:
        return Path(base.location)
    return fetch(base.location, base.revision, RecipeError, "train", "encoder")


def text_columns(recipe: Recipe) -> tuple[str, ...]:
    """The columns that a model reads."""
    if recipe.train.classifier is not None:
        return (recipe.train.classifier.text,)
    column = recipe.prepare.text_column
    return ("instruction", "response") if column is None else (column,)


def _texts(rows: Rows, columns: Sequence[str], share: float) -> Iterator[str]:
    """Texts of the training rows, or of an even sample of them, chosen by row id."""
    for table in rows.batches():
        if SPLIT in table.column_names:
            table = table.filter(pc.equal(table[SPLIT], "train"))
        if share < 1:
            draws = [int(row_id[:8], 16) / 2**32 for row_id in table[ROW_ID].to_pylist()]
            table = table.filter(pa.array([draw < share for draw in draws]))
        for column in columns:
            yield from table[column].drop_null().to_pylist()


class _Redactions:
    """Counts what was redacted in the rows that pass by."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def watch(self, rows: Rows) -> Iterator[pa.Table]:
        """The rows as they are."""
        for table in rows.batches():
            if REDACTED in table.column_names and table[REDACTED].type == COUNTS:
                for i, field in enumerate(COUNTS):
                    column = pc.struct_field(table[REDACTED], [i])
                    self._counts[field.name] += pc.sum(column, min_count=0).as_py()
            yield table

    def summary(self) -> dict[str, Any]:
        """Kind -> how often; nothing where nothing was looked for."""
        found = {name: count for name, count in sorted(self._counts.items()) if count}
        return {"redacted": found} if self._counts else {}


def _write_examples(path: Path, batches: Iterable[pa.Table]) -> dict[str, int]:
    """Write the examples; returns how many rows each split has."""
    splits: dict[str, int] = {}
    writer: pq.ParquetWriter | None = None
    with store_errors(path):
        for table in batches:
            if SPLIT not in table.column_names:
                table = table.append_column(SPLIT, pa.repeat("train", table.num_rows))
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            for count in pc.value_counts(table[SPLIT]).to_pylist():
                splits[count["values"]] = splits.get(count["values"], 0) + count["counts"]
        if writer is None or not splits.get("train"):
            raise SourceError(
                "No row is left to train on after preparation.",
                "See which step removed them with: penstock show RUN",
            )
        writer.close()
    return splits


def _write_removed(path: Path, passes: Iterable[Prepared]) -> dict[str, int]:
    """Write the ledger of removed rows; returns how many each step removed."""
    steps: dict[str, int] = {}
    with store_errors(path), pq.ParquetWriter(path, REMOVED_SCHEMA, compression="zstd") as writer:
        for prepared in passes:
            for table in prepared.removed_batches():
                writer.write_table(table.cast(REMOVED_SCHEMA))
            for step, count in prepared.counts.items():
                steps[step] = steps.get(step, 0) + count
    return steps


def _summary(
    job: Job, total: int, splits: dict[str, int], removed: dict[str, int]
) -> dict[str, Any]:
    kept, gone = sum(splits.values()), sum(removed.values())
    if kept + gone != total:
        raise PenstockError(
            f"Rows do not add up: {total:,} in, {kept:,} kept, {gone:,} removed.",
            "A transform lost or doubled rows without saying so; nothing was committed.",
        )
    return {
        "rows": {"in": total, "removed": gone, "out": kept},
        "splits": splits,
        "removed": removed,
        "data": dict(job.inputs["validate"].summary["data"]),
    }
