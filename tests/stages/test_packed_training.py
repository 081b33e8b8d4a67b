"""Plain text and packed chats through prepare, train and evaluate, by the real pipeline."""

import json
import random

import pyarrow.parquet as pq
import pytest
import yaml

from penstock.errors import RecipeError
from penstock.pipeline import open_pipeline
from penstock.recipe_file import load_recipe
from penstock.tokenizer import load_tokenizer
from tiny_project import RECIPE, WORDS

pytestmark = pytest.mark.slow  # trains


def text(chance, num_words):
    return " ".join(chance.choices(WORDS, k=num_words)) + "."


class Project:
    """A folder with a recipe and rows of text, or of chats."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "data").mkdir(parents=True)

    def write(self, rows, prepare, train=None, **sections):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "data" / "rows.jsonl").write_text(lines)
        recipe = RECIPE | {
            "evaluate": {"tasks": ["held_out"], "batch_size": 8},
            "gate": {"max": {"held_out": 99.0}, "on_inconclusive": "point_estimate"},
            "prepare": {"tokenizer": {"vocab_size": 300}, "max_length": 64} | prepare,
            "train": RECIPE["train"] | (train or {}),
        }
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe | sections))
        return path

    def run(self, until):
        """Artifacts by stage, and their folders."""
        pipeline = open_pipeline(self.folder / "recipe.yaml")
        try:
            artifacts = pipeline.run(until=until).artifacts
            return artifacts, {n: pipeline.store.folder(a) for n, a in artifacts.items()}
        finally:
            pipeline.ledger.close()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


TEXT = {
    "text_column": "text",
    "transforms": [
        {"normalise": {"columns": ["text"]}},
        {"dedupe": {"columns": ["text"]}},
        {"split": {"by": ["text"], "validation": 0.2}},
    ],
}
RULES = {"not_null": ["text"], "length": {}, "range": {}, "max_bad_rows": 0.1}


def rows_of_text():
    chance = random.Random(5)
    rows = [{"text": text(chance, chance.choice([3, 12, 120]))} for _ in range(40)]
    return [*rows, {"text": " \n"}, {"text": "a <|end|> b"}]


def pieces_and_examples(folders):
    pieces = pq.read_table(folders["train"] / "blocks.parquet").to_pylist()
    examples = pq.read_table(folders["prepare"] / "examples.parquet").to_pylist()
    return pieces, {row["_row_id"]: row for row in examples}


def test_plain_text_is_learned_whole_in_full_blocks_and_each_row_can_be_found(project):
    project.write(rows_of_text(), TEXT, validate=RULES)
    artifacts, folders = project.run("evaluate")
    pieces, examples = pieces_and_examples(folders)
    tokenizer = load_tokenizer(folders["prepare"] / "tokenizer")
    for row in examples.values():
        assert row["labels"] == row["input_ids"]
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["input_ids"][:-1]) == row["text"]
    for split in ("train", "validation"):
        mine = [piece for piece in pieces if piece["split"] == split]
        taken = {row_id for row_id, row in examples.items() if row["split"] == split}
        assert {piece["_row_id"] for piece in mine} == taken
        sizes = [0] * (max(piece["block"] for piece in mine) + 1)
        for piece in mine:
            sizes[piece["block"]] += piece["length"]
        assert all(size == 64 for size in sizes[:-1])
        assert sum(sizes) == sum(len(examples[row_id]["input_ids"]) for row_id in taken)
    assert artifacts["prepare"].summary["removed"]["tokenize"] == 2
    assert (
        artifacts["train"].summary["rows"]["out"] == artifacts["prepare"].summary["splits"]["train"]
    )
    assert 0 < artifacts["evaluate"].summary["metrics"]["held_out/bits_per_byte"] < 20


def test_packed_chats_stay_whole_and_the_model_is_saved_as_any_other(project):
    chance = random.Random(6)
    rows = [{"instruction": text(chance, 4), "response": text(chance, 3)} for _ in range(40)]
    rules = {"not_null": ["instruction"], "length": {}, "range": {}}
    steps = {"transforms": [{"split": {"validation": 0.2}}]}
    project.write(rows, steps, {"packing": "whole"}, validate=rules)
    _, folders = project.run("train")
    pieces, examples = pieces_and_examples(folders)
    assert sorted(piece["_row_id"] for piece in pieces) == sorted(examples)
    assert max(piece["start"] for piece in pieces) > 0, "no block has two rows"
    config = json.loads((folders["train"] / "model" / "config.json").read_text())
    assert config["use_cache"] is True


def test_rows_may_see_each_other_if_that_is_asked_for(project):
    project.write(rows_of_text(), TEXT, {"packed_attention": "across"}, validate=RULES)
    artifacts, _ = project.run("train")
    assert artifacts["train"].summary["num_steps"] == 6


@pytest.mark.parametrize(
    ("prepare", "train", "message"),
    [
        ({}, {"packing": "split"}, "would cut chats in two"),
        ({}, {"packed_attention": "across"}, "set train.packing"),
    ],
)
def test_packing_that_makes_no_sense_is_refused_with_the_recipe(project, prepare, train, message):
    path = project.write([], prepare | {"transforms": [{"split": {"validation": 0.2}}]}, train)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_features_do_not_go_with_plain_text(project):
    store = {
        "type": "feast", "names": ["v:a"], "entities": {"k": "c"}, "timestamp": "t",
        "template": "{a} {instruction}",
    }  # fmt: skip
    path = project.write([], TEXT, features=store)
    with pytest.raises(RecipeError, match="features are put into prompts"):
        load_recipe(path)
