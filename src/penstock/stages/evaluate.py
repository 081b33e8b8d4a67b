"""Evaluate: lm-eval measures a model on the recipe's tasks, item by item.

The same stage measures the baseline: what serves now, on the same items with
the same settings. It is identified by the model's digest, as any evaluation
is, so it is nearly always a hit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from penstock.artifacts import digest_of, file_digest
from penstock.classifier_section import HELD_OUT
from penstock.errors import EvaluationError, RecipeError
from penstock.evaluators.base import Evaluation, Evaluator, items_of
from penstock.recipe import DEFAULT_EVALUATOR, Recipe, canonical
from penstock.stages import classify
from penstock.stages.base import Job, Pinned, Stage
from penstock.stages.prepare import EXAMPLES, SPLIT, TOKENIZER, text_columns
from penstock.tokenizer import load_tokenizer
from penstock.transforms.decontaminate import Item
from penstock.transforms.templates import render
from penstock.version_files import MODEL, check_model

# lm-eval's own file names end in the time; an artifact's must not.
RESULTS = "results_0.json"
# What lm-eval's results say about the time and the machine, not about the model.
_VOLATILE = (
    "date", "git_hash", "pretty_env_info", "start_time", "end_time", "model_source", "config",
    "total_evaluation_time_seconds", "upper_git_hash", "samples", "model_name",
    "model_name_sanitized",
)  # fmt: skip


def tasks_digest(recipe: Recipe) -> str:
    """SHA-256 over the files of the recipe's own tasks.

    Raises:
        RecipeError: The folder is not there.
    """
    folder = _task_folder(recipe)
    if folder is None:
        return ""
    files = sorted(path for path in folder.rglob("*") if _is_task_file(path))
    return digest_of({str(path.relative_to(folder)): file_digest(path) for path in files})


def check_tasks(job: Job) -> None:
    """Check that the tasks are those that the run has pinned.

    Raises:
        EvaluationError: They have changed.
    """
    if tasks_digest(job.recipe) != job.pinned.tasks_digest:
        raise EvaluationError(
            "The evaluation tasks have changed since this run began.", "Start another run."
        )


def _is_task_file(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")


def _task_folder(recipe: Recipe) -> Path | None:
    if recipe.evaluate.task_dir is None:
        return None
    folder = (recipe.folder / recipe.evaluate.task_dir).resolve()
    if not folder.is_dir():
        raise RecipeError(
            f"evaluate.task_dir: there is no folder {folder}.",
            "Put lm-eval's task YAMLs there, or leave task_dir out.",
        )
    return folder


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    settings = {"tasks_digest": pinned.tasks_digest, "seed": recipe.seed}
    return canonical(recipe.evaluate) | settings | backend_settings(recipe)


def uses_examples(recipe: Recipe) -> bool:
    """Whether the evaluation depends on the prepared examples: ``held_out`` does."""
    return HELD_OUT in recipe.evaluate.tasks


def _run(job: Job) -> dict[str, Any]:
    check_tasks(job)
    trained = job.inputs["train"]
    digest = trained.summary["model_digest"]
    model = check_model(job.store.fetch(f"{trained.path}/{MODEL}", digest), digest)
    classifier = job.recipe.train.classifier
    if classifier is None:
        results, versions = _measure(job, model)
    else:
        results, versions = classify.measure(job, classifier, model)
    samples = results.get("samples", {})
    stable = {key: value for key, value in results.items() if key not in _VOLATILE}
    stable["model_name"] = job.inputs["train"].summary["model_digest"]
    for config in stable["configs"].values():
        config.get("metadata", {}).pop("config_source", None)  # where the task's file is
    stable["configs"].get(HELD_OUT, {}).pop("dataset_kwargs", None)
    _write_json(job.folder / RESULTS, stable)
    for task, items in samples.items():
        lines = [json.dumps(item, default=str, sort_keys=True) for item in items]
        (job.folder / f"samples_{task}_0.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "metrics": _metrics(results["results"]),
        "num_items": {task: len(items) for task, items in samples.items()},
        "model_digest": job.inputs["train"].summary["model_digest"],
        "versions": versions,
    }


def _measure(job: Job, model: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What lm-eval says of a model that writes, and the versions of what computed it."""
    evaluation = _evaluation(job, model)
    measures = evaluator(job.recipe)
    versions = measures.versions()
    with job.progress.track(f"evaluate {', '.join(job.recipe.evaluate.tasks)}") as advance:
        results = measures.run(evaluation, advance)
    shutil.rmtree(job.folder / HELD_OUT, ignore_errors=True)
    return results, versions


STAGE = Stage("evaluate", 1, ("train", "prepare"), _settings, _run)


def _held_out(job: Job) -> dict[str, Any]:
    """The validation split as an lm-eval task.

    A row's split never changes, so no version under comparison was trained on it.

    Raises:
        EvaluationError: No row is in the validation split.
    """
    data = job.folder / HELD_OUT / "items.jsonl"
    data.parent.mkdir()
    count = 0
    with data.open("w", encoding="utf-8") as file:
        for item in _held_out_items(job):
            file.write(json.dumps(item) + "\n")
            count += 1
    if not count:
        raise EvaluationError(
            f"evaluate.tasks: {HELD_OUT!r} needs a validation split, and no row is in it.",
            "Raise `validation` of the split under prepare.transforms, or wait for more rows.",
        )
    # Plain text has no prompt, and may be longer than a model can read at once.
    is_text = job.recipe.prepare.text_column is not None
    return {
        "task": HELD_OUT,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(data.parent)},
        "test_split": "test",
        "output_type": "loglikelihood_rolling" if is_text else "loglikelihood",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{completion}}",
        "target_delimiter": "",
        "process_results": _bits_per_byte,
        "metric_list": [
            {
                "metric": "bits_per_byte",
                "aggregation": "bits_per_byte",
                "higher_is_better": False,
            }
        ],
    }


def _held_out_items(job: Job) -> Iterator[dict[str, str]]:
    """What the model is asked, and what should come, for each row of the validation split."""
    folder = job.input_folder("prepare")
    tokenizer = load_tokenizer(folder / TOKENIZER)
    columns = text_columns(job.recipe)
    with pq.ParquetFile(folder / EXAMPLES) as examples:
        for batch in examples.iter_batches(columns=[*columns, SPLIT]):
            for row in batch.filter(pc.equal(batch[SPLIT], "validation")).to_pylist():
                texts = [row[column] for column in columns]
                prompt, completion = render(tokenizer, *texts) if len(texts) > 1 else ("", texts[0])
                yield {"prompt": prompt, "completion": completion}


def _bits_per_byte(doc: dict[str, Any], results: Any) -> dict[str, tuple[float, int]]:
    """One item's log-likelihood and size, as lm-eval's ``bits_per_byte`` adds them up."""
    first = results[0]
    log_likelihood = first[0] if isinstance(first, tuple) else first
    return {"bits_per_byte": (log_likelihood, len(doc["completion"].encode()))}


def _evaluation(job: Job, model: Path) -> Evaluation:
    section, folder = job.recipe.evaluate, _task_folder(job.recipe)
    return Evaluation(
        model=model,
        digest=job.inputs["train"].summary["model_digest"],
        name=job.recipe.model_name,
        tasks=tuple(_held_out(job) if task == HELD_OUT else task for task in section.tasks),
        task_dirs=() if folder is None else (folder,),
        num_fewshot=section.num_fewshot,
        limit=section.limit,
        batch_size=section.batch_size,
        apply_chat_template=section.apply_chat_template,
        seed=job.recipe.seed,
    )


def evaluator(recipe: Recipe) -> Evaluator:
    """What the recipe's ``evaluate.backend`` stands for."""
    made, options = recipe.plugin("evaluators", recipe.evaluate.backend)
    built: Evaluator = made(options, recipe.folder)
    return built


def backend_settings(recipe: Recipe) -> dict[str, Any]:
    """What of the backend enters a fingerprint: nothing of ``hf``, which was there first."""
    config = recipe.evaluate.backend
    if config.type == DEFAULT_EVALUATOR:
        return {}
    _, options = recipe.plugin("evaluators", config)
    versions = evaluator(recipe).versions()
    return {"backend": {"type": config.type, "options": canonical(options), "versions": versions}}


def _metrics(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """``TASK/METRIC`` -> value, without standard errors and filters' names."""
    return {
        f"{task}/{key.split(',')[0]}": float(value)
        for task, metrics in sorted(results.items())
        for key, value in sorted(metrics.items())
        if "," in key and "stderr" not in key and isinstance(value, int | float)
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, default=str), encoding="utf-8")


def evaluation_items(recipe: Recipe) -> Iterator[Item]:
    """Every item of the recipe's tasks but ``held_out``, which is made of rows itself.

    Raises:
        MissingExtra: lm_eval is not installed.
        EvaluationError: A task does not exist, or its items cannot be had here.
    """
    names = [task for task in recipe.evaluate.tasks if task != HELD_OUT]
    folder = _task_folder(recipe)
    for name, number, doc in items_of(names, () if folder is None else (folder,)):
        yield Item(f"{name} item {number}", tuple(_texts_in(doc)))


def _texts_in(value: Any) -> Iterator[str]:
    """Every text in an item, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts_in(part)
