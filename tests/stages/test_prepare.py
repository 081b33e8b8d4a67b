"""Prepare, by the real pipeline, on rows of a few words."""

import json

import pyarrow.parquet as pq
import pytest
import yaml

import memory_store
from penstock.errors import RecipeError
from penstock.pipeline import open_pipeline
from penstock.quarantine import decide
from penstock.stages import prepare as prepare_stage

pytestmark = pytest.mark.slow  # imports transformers and Great Expectations

RECIPE = {
    "name": "demo",
    "sources": {"rows": {"type": "files", "paths": ["data/*.jsonl"]}},
    "ingest": {"min_new_examples": 0},
    "validate": {"length": {}, "range": {}, "not_null": ["instruction", "response"]},
    "prepare": {"tokenizer": {"vocab_size": 300}, "max_length": 64},
    "evaluate": {"tasks": ["word_order"]},
    "gate": {"min": {"word_order": 0.6}},
}


class Project:
    """A folder with a recipe and rows."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "data").mkdir(parents=True)

    def rows(self, *rows, name="rows.jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "data" / name).write_text(text)

    def prepare(self, prepare=None, **sections):
        """Run until prepare; returns its summary and its tables by name."""
        recipe = RECIPE | sections
        recipe["prepare"] = recipe["prepare"] | (prepare or {})
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        pipeline = open_pipeline(path)
        try:
            artifact = pipeline.run(until="prepare").artifacts["prepare"]
            folder = pipeline.store.folder(artifact)
            tables = {file.stem: pq.read_table(file) for file in folder.glob("*.parquet")}
            return artifact.summary, tables
        finally:
            pipeline.ledger.close()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


def row(instruction, response="It is so."):
    return {"instruction": instruction, "response": response}


def test_what_was_redacted_is_counted_in_the_summary(project):
    project.rows(row("Ask a@b.org or c@d.org"), row("Call +49 30 901820"), row("Go to 8.8.8.8"))
    steps = [{"redact": {"remove": ["ipv4"]}}]
    summary, tables = project.prepare({"transforms": steps})
    assert summary["redacted"] == {"email": 2, "phone": 1}
    assert summary["removed"] == {"redact": 1, "tokenize": 0}
    assert tables["examples"]["instruction"].to_pylist() == [
        "Ask [EMAIL] or [EMAIL]",
        "Call [PHONE]",
    ]
    assert tables["removed"]["evidence"].to_pylist() == ["1 in instruction"]


def test_without_the_step_the_summary_says_nothing_of_it(project):
    project.rows({**row("Ask a@b.org"), "redacted": {"email": "yes"}})
    summary, _ = project.prepare({"transforms": []})
    assert "redacted" not in summary


def near(number):
    """A pair of rows that differ in one word of many, and from other pairs in all but a few."""
    words = " ".join(f"gate{number}x{i}" for i in range(15))
    return row("Which gates?", f"{words} today."), row("Which gates?", f"{words} again.")


@pytest.fixture
def two_sources(tmp_path):
    """Sources ``first`` and ``second``, each the lines of all files that begin so."""
    sources = {
        name: {"type": "files", "paths": [f"data/{name}*.jsonl"]} for name in ("first", "second")
    }
    return Project(tmp_path / "project"), {"sources": sources}


BY_CLUSTER = {
    "transforms": [
        {"near_dedupe": {"keep": "all"}},
        {"split": {"by": ["_cluster"], "validation": 0.5}},
    ],
    "max_length": 512,
}


def by_text(table, column):
    return dict(zip(table["response"].to_pylist(), table[column].to_pylist(), strict=True))


def test_a_new_row_of_the_first_source_never_pushes_out_one_of_the_second(two_sources):
    project, sources = two_sources
    old, new = near(1)
    project.rows(row("What is it?"), name="first.jsonl")
    project.rows(old, row("What is that?"), name="second.jsonl")
    steps = {"transforms": ["dedupe", "near_dedupe"], "max_length": 512}
    before = project.prepare(steps, **sources)[1]["examples"]
    project.rows(new, row("What is that?"), name="first_2.jsonl")
    summary, tables = project.prepare(steps, **sources)
    assert tables["examples"]["_row_id"].to_pylist() == before["_row_id"].to_pylist()
    assert summary["removed"] == {"dedupe": 1, "near_dedupe": 1, "tokenize": 0}


def test_no_row_changes_sides_when_one_like_it_comes_from_a_source_before(two_sources):
    project, sources = two_sources
    pairs = [near(i) for i in range(20)]
    project.rows(row("What is it?"), name="first.jsonl")
    project.rows(*(old for old, _ in pairs), name="second.jsonl")
    before = by_text(project.prepare(BY_CLUSTER, **sources)[1]["examples"], "split")
    project.rows(*(new for _, new in pairs), name="first_2.jsonl")
    after = by_text(project.prepare(BY_CLUSTER, **sources)[1]["examples"], "split")
    assert set(before.values()) == {"train", "validation"}
    assert before.items() <= after.items()
    assert all(after[new["response"]] == after[old["response"]] for old, new in pairs)


def test_no_row_changes_sides_around_a_released_one(project):
    pairs = [near(i) for i in range(20)]
    held = {"score": -1.0}
    contract = {
        "length": {}, "range": {"score": {"min": 0, "max": 1}}, "not_null": [], "max_bad_rows": 0.9
    }  # fmt: skip

    def sides():
        return by_text(project.prepare(BY_CLUSTER, validate=contract)[1]["examples"], "split")

    # Ten rows are released after their like was prepared, and ten before it.
    project.rows(*(a | {"score": 1.0} for a, _ in pairs[:10]), name="a.jsonl")
    project.rows(*(b | held for _, b in pairs), name="b.jsonl")
    first = sides()
    pipeline = open_pipeline(project.folder / "recipe.yaml")
    decide(pipeline, "release")
    pipeline.ledger.close()
    second = sides()
    project.rows(*(a | {"score": 1.0} for a, _ in pairs[10:]), name="c.jsonl")
    third = sides()
    assert (len(first), len(second), len(third)) == (10, 30, 40)
    assert first.items() <= second.items() <= third.items()


def base_model(folder, vocab_size, template="default"):
    """A model folder whose tokenizer has 300 tokens."""
    import transformers

    from penstock.tokenizer import train_tokenizer

    train_tokenizer(iter(["It is so."]), 300, None, folder)
    if template is None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = None
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return {"base": str(folder)}


@pytest.fixture
def no_work(monkeypatch):
    """Preparation that fails if a transform is run at all."""

    def run_transforms(*_):
        raise AssertionError("rows were prepared")

    monkeypatch.setattr(prepare_stage, "run_transforms", run_transforms)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("vocab_size", "template", "message"),
    [(400, None, "has no chat template"), (200, "default", "has 200 embeddings")],
)
def test_a_base_model_that_cannot_be_trained_on_chats_is_refused_before_any_work(
    project, tmp_path, vocab_size, template, message
):
    project.rows(row("What is it?"))
    train = base_model(tmp_path / "base", vocab_size, template)
    with pytest.raises(RecipeError, match=message):
        project.prepare(train=train)


@pytest.mark.usefixtures("no_work")
def test_a_template_of_the_recipe_is_tried_before_any_work(project):
    project.rows(row("What is it?"))
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    with pytest.raises(RecipeError, match="ends generation"):
        project.prepare({"chat_template": template})


def test_a_template_of_the_recipe_makes_a_base_model_without_one_fit(project, tmp_path):
    project.rows(row("What is it?"), row("What is that?"))
    template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    train = base_model(tmp_path / "base", 400, None)
    summary, _ = project.prepare({"chat_template": template, "transforms": []}, train=train)
    assert summary["rows"]["out"] == 2


def test_rows_are_prepared_again_once_the_feature_store_says_that_it_has_changed(
    project, monkeypatch
):
    features = {
        "type": "memory_store:MemoryStore",
        "names": ["profile:plan"],
        "entities": {"user_id": "user_id"},
        "timestamp": "asked_at",
        "template": "{plan}: {instruction}",
    }
    asked = {"user_id": "a", "asked_at": "2026-02-01T00:00:00Z"}
    project.rows(*(row(f"What is number {i}?") | asked for i in range(3)))

    def prompts():
        _, tables = project.prepare(features=features)
        return {text.partition(":")[0] for text in tables["examples"]["instruction"].to_pylist()}

    assert prompts() == {"free"}
    changed = [{**known, "plan": "gold"} for known in memory_store.KNOWN]
    monkeypatch.setattr(memory_store, "KNOWN", changed)
    assert prompts() == {"free"}, "nobody said so"
    monkeypatch.setattr(memory_store.MemoryStore, "version", lambda self: "2")
    assert prompts() == {"gold"}
