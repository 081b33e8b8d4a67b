"""Writes the fixtures under ``lm_eval_output/`` by really running lm-eval on a toy model.

Run it again when lm-eval is upgraded::

    python tests/gates/make_lm_eval_output.py

The model is a function of the text and a seed, so the output is reproducible; nothing is
downloaded. Five shapes of result are covered: multiple choice (``sums``, whose documents share
passages), a group of two tasks (``colours``), a rolling likelihood (``prose``, with weighted
metrics), and generation with two filters (``echo``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).parent
OUTPUT = HERE / "lm_eval_output"


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but ``parts``."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def documents() -> dict[str, list[dict[str, Any]]]:
    """The documents of every task, by file name."""
    sums = [
        {
            "question": f"Passage {index // 3}. {index} + {index % 7} =",
            "choices": [str(index + index % 7 + shift) for shift in (0, 1, 2, 10)],
            "label": 0,
            "cluster": f"passage-{index // 3}",
        }
        for index in range(30)
    ]
    colours = {
        name: [
            {"question": f"The {name} {index} is", "choices": ["red", "blue"], "label": index % 2}
            for index in range(count)
        ]
        for name, count in (("car", 16), ("door", 8))
    }
    prose = [{"text": "the river turns the wheel " * (1 + index % 4)} for index in range(12)]
    prose[5] = prose[1]  # a document that appears twice has one hash
    echo = [{"question": f"Say {index}.", "answer": str(index)} for index in range(12)]
    return {"sums": sums, **colours, "prose": prose, "echo": echo}


def write_tasks(folder: Path) -> None:
    """Write each task's JSONL and YAML, and the group's YAML, into ``folder``."""
    import yaml

    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
    }
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        ],
    }
    take_first = {"function": "take_first"}
    number = {"function": "regex", "regex_pattern": "(\\d+)"}
    generation = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"]},
        "filter_list": [
            {"name": "strict", "filter": [take_first]},
            {"name": "flexible", "filter": [number, take_first]},
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    kinds = {"sums": choice, "car": choice, "door": choice, "prose": rolling, "echo": generation}
    for name, rows in documents().items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "num_fewshot": 0,
            "metadata": {"version": 1},
            **kinds[name],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    group = {
        "group": "colours",
        "task": ["car", "door"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1},
    }
    (folder / "colours.yaml").write_text(yaml.safe_dump(group))


def toy_model(seed: int, skill: float) -> Any:
    """A model whose answers depend only on the text, ``seed`` and ``skill``."""
    from lm_eval.api.model import LM

    class ToyModel(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [(self.score(*request.args), False) for request in requests]

        def score(self, context: str, continuation: str) -> float:
            words = [word for word in context.split() if word.isdigit()]
            right = continuation.strip() == str(sum(map(int, words)))
            return skill * right - 4 * unit_hash(seed, context, continuation)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [
                -len(request.args[0]) * (1 + unit_hash(seed, request.args[0])) / (1 + skill)
                for request in requests
            ]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [self.reply(request.args[0]) for request in requests]

        def reply(self, question: str) -> str:
            number = question.removeprefix("Say ").removesuffix(".")
            draw = unit_hash(seed, question)
            return number if draw < 0.5 else f"It is {number}" if draw < 0.8 else "No"

    return ToyModel()


def evaluate(tasks: Path, seed: int, skill: float) -> dict[str, Any]:
    """Run lm-eval; the dict as ``simple_evaluate`` returns it, with samples."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=toy_model(seed, skill),
        tasks=["sums", "colours", "prose", "echo"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    return results


def save(results: dict[str, Any], name: str, folder: Path) -> None:
    """Write ``results`` as lm-eval's own command line does."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args(
        model_source="toy",
        model_args=f"pretrained={name}",
        system_instruction=None,
        chat_template=None,
        fewshot_as_multiturn=False,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])


def main(folder: Path) -> None:
    """Evaluate both toy models into ``folder/baseline`` and ``folder/candidate``."""
    with tempfile.TemporaryDirectory() as scratch:
        write_tasks(Path(scratch))
        for side, seed, skill in (("baseline", 1, 1.0), ("candidate", 2, 1.4)):
            shutil.rmtree(folder / side, ignore_errors=True)
            results = evaluate(Path(scratch), seed, skill)
            results["pretty_env_info"] = results["git_hash"] = ""
            save(results, f"toy-{side}", folder / side)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
