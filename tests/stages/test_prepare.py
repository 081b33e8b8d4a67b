"""Prepare, by the real pipeline, on rows of a few words."""

import json

import pyarrow.parquet as pq
import pytest
import yaml

from penstock.pipeline import open_pipeline

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
