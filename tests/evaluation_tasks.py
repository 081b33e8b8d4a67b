"""Three small lm-eval tasks of one's own: choices, a given text, and free answers."""

import json

import yaml

WHICH = [
    ("the quick brown", ["fox jumps", "turbine water"], 0),
    ("water flows through the", ["lazy dog", "penstock"], 1),
    ("def main", ["(argument): return", " over the lazy"], 0),
    ("over the lazy", [" penstock into", " dog"], 1),
    ("the quick", [" brown fox jumps over the lazy dog", " x"], 0),
]
NAMES = ("which", "given", "free")


def write(folder):
    """Write the tasks; returns the folder."""
    folder.mkdir(parents=True)
    rows = [
        {"question": question, "choices": choices, "answer": answer, "text": choices[answer]}
        for question, choices, answer in WHICH
    ]
    data = folder.resolve() / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for config in (_which(), _given(), _free()):
        whole = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "metadata": {"version": 1.0},
            **config,
        }
        (folder / f"{config['task']}.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    return folder


def _metric(name):
    return {
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True}],
    }


def _which():
    return {
        "task": "which",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        **_metric("acc"),
    }


def _given():
    return {
        "task": "given",
        "output_type": "loglikelihood",
        "doc_to_target": "text",
        **_metric("acc"),
    }


def _free():
    return {
        "task": "free",
        "output_type": "generate_until",
        "doc_to_target": "text",
        "generation_kwargs": {
            "until": ["\n", "zebra", "quagga", "okapi", "j"],
            "max_gen_toks": 16,
            "do_sample": False,
        },
        **_metric("exact_match"),
    }
