"""What preparation removes, seen through the stages that come before it."""

import json
import os

import pyarrow.parquet as pq
import pytest
import yaml

import spark_environment
import tiny_project
from penstock.errors import EvaluationError
from penstock.pipeline import open_pipeline
from penstock.recipe_file import load_recipe
from penstock.stages import prepare
from penstock.stages.base import Pinned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def quiet():
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    tiny_project.write_project(folder)
    return folder


def with_steps(folder, *steps, **sections):
    path = folder / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text()) | sections
    recipe["prepare"]["transforms"] = ["normalise", *steps]
    path.write_text(yaml.safe_dump(recipe))


def prepared(folder, force=(), **overrides):
    """Run until prepare; returns the kept rows, the ledger of the others, and the outcome."""
    dotted = {f"prepare.{key}": value for key, value in overrides.items()}
    pipeline = open_pipeline(folder / "recipe.yaml", dotted)
    try:
        report = pipeline.run(until="prepare", force=force)
        artifact = pipeline.ledger.latest("tiny", "prepare")
        made = pipeline.store.folder(artifact)
    finally:
        pipeline.ledger.close()
    kept = pq.read_table(made / prepare.EXAMPLES).to_pylist()
    gone = pq.read_table(made / prepare.REMOVED).to_pylist()
    return kept, gone, report.stages[-1].outcome


def write_rows(path, rows):
    lines = [json.dumps({"instruction": a, "response": b}) for a, b in rows]
    path.write_text("\n".join(lines) + "\n")


def test_a_new_row_is_compared_with_all_that_earlier_runs_kept(project):
    with_steps(project, "near_dedupe", {"split": {"validation": 0.2}})
    before, _, _ = prepared(project)
    old = before[7]
    write_rows(
        project / "data" / "second.jsonl",
        [
            (old["instruction"].upper(), old["response"]),
            *((f"Number {i} asks what {'so ' * i} means", f"It means {i}.") for i in range(30)),
        ],
    )
    after, gone, _ = prepared(project)
    entries = {entry["_row_id"]: entry["evidence"] for entry in gone if "near" in entry["step"]}
    assert f"like {old['_row_id']}, similarity 1.0" in entries.values()
    # The tokenizer is trained anew; what a row says, and on which side it is, stays.
    stable = ("_row_id", "instruction", "response", "split")
    assert [[row[key] for key in stable] for row in before] == [
        [row[key] for key in stable] for row in after[: len(before)]
    ]


# Steps of which each removes a row of ``hard_rows``.
STEPS = (
    {"filter": {"min_characters": {"response": 8}}},
    {"language": {"among": ["de", "en"]}},
    {"quality": {"min_words": 4, "min_stop_words": None, "min_sentences": None}},
    {"redact": {"remove": ["ipv4"]}},
    "dedupe",
    "near_dedupe",
    {"decontaminate": {"shortest": 4}},
    {"split": {"validation": 0.2}},
)
FEATURES = {
    "type": "memory_store:MemoryStore",
    "names": ["profile:plan"],
    "entities": {"user_id": "user_id"},
    "timestamp": "asked_at",
    "template": "{plan}: {instruction}",
}


def hard_rows(project):
    """The project's rows, and for each step one that it removes."""
    path, asked = project / "data" / "first.jsonl", {"user_id": "a", "asked_at": "2026-02-01"}
    rows = [json.loads(line) | asked for line in path.read_text().splitlines()]
    item = json.loads((project / "tasks" / "which.jsonl").read_text().splitlines()[3])
    question = "What is in the list that we read?"
    rows += [
        asked | {"instruction": question, "response": response}
        for response in (
            "Short.",
            "It returns nothing.",
            "Write to a@b.org and wait for the answer.",
            "The server is at 8.8.8.8 and waits for us.",
            f"It is said to be: {item['choices'][1]}!",
            "It ends with <|end|> here and nowhere else.",
        )
    ]
    german = "Das ist der erste Eintrag der ganzen Liste, und danach kommt keiner mehr."
    rows.append(asked | {"instruction": "Was steht in der Liste?", "response": german})
    rows.append(rows[7] | {"user_id": "nobody"})
    rows.append(rows[8])
    rows.append(rows[9] | {"instruction": rows[9]["instruction"].upper()})
    return rows


@pytest.mark.parametrize("engine", ["ray", "spark"])
def test_every_engine_prepares_the_same_rows_under_the_same_fingerprint(
    project, engine, monkeypatch
):
    if engine == "ray":
        pytest.importorskip("ray")
    elif reason := spark_environment.missing():
        pytest.skip(f"Spark: {reason}")
    monkeypatch.setenv("PENSTOCK_SPARK_PYTHON", str(spark_environment.PYTHON))
    lines = [json.dumps(row) + "\n" for row in hard_rows(project)]
    (project / "data" / "first.jsonl").write_text("".join(lines))
    with_steps(project, *STEPS, features=FEATURES)
    here = prepared(project)
    assert {entry["step"] for entry in here[1]} == {
        *("features", "filter", "language", "quality", "redact"),
        *("dedupe", "near_dedupe", "decontaminate", "tokenize"),
    }
    assert sum(row["redacted"]["email"] for row in here[0]) == 1
    assert prepared(project, engine=engine)[2] == "hit"
    there = prepared(project, force=("prepare",), engine=engine)
    assert there[2] == "ran"
    assert there[:2] == here[:2]


def test_near_duplicates_that_are_kept_stay_on_one_side(project):
    rows = [
        (f"What does part {i} of the old dam do?", "It holds " + "water " * i) for i in range(9)
    ]
    variants = [(a.replace("What", word), b) for a, b in rows for word in ("What", "what", "WHAT")]
    write_rows(project / "data" / "second.jsonl", variants)
    with_steps(
        project,
        {"near_dedupe": {"keep": "all"}},
        {"split": {"by": ["_cluster"], "validation": 0.5}},
    )
    kept, _, _ = prepared(project)
    sides = {}
    for row in kept:
        sides.setdefault(row["_cluster"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert set().union(*sides.values()) == {"train", "validation"}
    assert len(sides) < len(kept)


def test_rows_that_quote_an_evaluation_item_are_removed_and_a_changed_item_counts_at_once(project):
    with_steps(project, {"decontaminate": {"shortest": 4}}, {"split": {"validation": 0.2}})
    data = project / "tasks" / "which.jsonl"
    items = [json.loads(line) for line in data.read_text().splitlines()]
    answer = items[3]["choices"][1]
    write_rows(project / "data" / "quotes.jsonl", [("What is in the test?", f"It is: {answer}!")])
    _, gone, outcome = prepared(project)
    (entry,) = (entry for entry in gone if entry["step"] == "decontaminate")
    assert entry["evidence"] == f"which item 3: {answer}"
    assert outcome == "ran"
    assert prepared(project)[2] == "hit"
    items[3]["choices"][1] = "other words than those before"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    _, gone, outcome = prepared(project)
    assert outcome == "ran"
    assert [entry for entry in gone if entry["step"] == "decontaminate"] == []


def test_items_of_a_hub_task_without_the_network_are_missed_clearly(project):
    with_steps(project, "decontaminate", {"split": {"validation": 0.2}})
    path = project / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["evaluate"] = {"tasks": ["hellaswag"]}
    recipe["gate"]["min"] = {"hellaswag": 0.0}
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(EvaluationError, match=r"hellaswag.*on the Hub") as caught:
        prepared(project)
    assert "cannot be reached from here" in caught.value.hint


def test_only_a_recipe_that_decontaminates_is_prepared_anew_when_tasks_change(project):
    recipe = load_recipe(project / "recipe.yaml")
    assert prepare.STAGE.settings(recipe, Pinned(tasks_digest="a")) == prepare.STAGE.settings(
        recipe, Pinned(tasks_digest="b")
    )
    with_steps(project, "decontaminate", "split")
    recipe = load_recipe(project / "recipe.yaml")
    assert prepare.STAGE.settings(recipe, Pinned(tasks_digest="a")) != prepare.STAGE.settings(
        recipe, Pinned(tasks_digest="b")
    )
