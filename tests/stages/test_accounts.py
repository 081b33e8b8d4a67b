"""What becomes of every piece of input, added up over ingest, validate and prepare."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml

from penstock.pipeline import open_pipeline
from penstock.stages import ingest, prepare, validate

pytestmark = pytest.mark.slow  # imports transformers and Great Expectations

RECIPE = {
    "name": "demo",
    "sources": {"rows": {"type": "files", "paths": ["data/*.jsonl"]}},
    "ingest": {"min_new_examples": 0},
    "validate": {
        "not_null": ["instruction", "response"],
        "length": {},
        "range": {"score": {"min": 0, "max": 1}},
        "max_bad_rows": 0.9,
    },
    "prepare": {
        "transforms": ["normalise", "dedupe", {"split": {"validation": 0.2}}],
        "tokenizer": {"vocab_size": 300},
        "max_length": 64,
    },
    "evaluate": {"tasks": ["word_order"]},
    "gate": {"min": {"word_order": 0.6}},
}


def row(number, **fields):
    response = f"It is so, for the reason {number}."
    return {"instruction": f"Is it {number}?", "response": response, "score": 0.5} | fields


GOOD = [row(n) for n in range(20)]
NO_ROWS = ["not json", "[1, 2]", '{"instruction": "cut o', row(100, _row_id=1)]
OTHER_TYPES = [row(101, score="high"), row(102, response=7), row(103, instruction=["a"])]
BREAKERS = [row(104, score=7.5), row(105, response=None), row(106, instruction=None)]
REPEATED = [row(3), row(3), row(7)]
TOO_LONG = [row(107, response="word " * 500)]


def write(path, *lines):
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def summaries(folder):
    """What the stages say of themselves; removed and kept are of all rows there are."""
    pipeline = open_pipeline(folder / "recipe.yaml")
    try:
        artifacts = pipeline.run(until="prepare").artifacts
    finally:
        pipeline.ledger.close()
    return [artifacts[name].summary for name in ("ingest", "validate", "prepare")]


def tables(folder):
    """Where each origin or row id is found, by what became of it."""
    pipeline = open_pipeline(folder / "recipe.yaml")
    try:
        made = pipeline.store.folder(pipeline.ledger.latest("demo", "prepare"))
        raw, dead = ingest.tables_of(pipeline.recipe, pipeline.store, "rows")
        held = pipeline.store.table("demo", validate.QUARANTINE)
    finally:
        pipeline.ledger.close()
    origins = {one["_row_id"]: one["_origin"] for batch in raw.scan() for one in batch.to_pylist()}
    kept = pq.read_table(made / prepare.EXAMPLES)["_row_id"].to_pylist()
    removed = pq.read_table(made / prepare.REMOVED)["_row_id"].to_pylist()
    return {
        "kept": [origins[i] for i in kept],
        "removed": [origins[i] for i in removed],
        "quarantined": [one for batch in held.scan() for one in batch["_origin"].to_pylist()],
        "dead-lettered": [one for batch in dead.scan() for one in batch["_origin"].to_pylist()],
    }


def test_every_line_is_kept_removed_quarantined_or_dead_lettered_and_only_one_of_these(folder):
    first = [*GOOD, *NO_ROWS, *OTHER_TYPES, *BREAKERS]
    write(folder / "data" / "a.jsonl", *first)
    ingested, validated, prepared = summaries(folder)
    assert len(first) == ingested["rows"]["out"] + ingested["dead_letters"]
    assert ingested["dead_letters"] == len(NO_ROWS) + len(OTHER_TYPES)
    assert validated["rows"] == {"in": 23, "quarantined": len(BREAKERS), "out": len(GOOD)}
    assert prepared["rows"] == {"in": 20, "removed": 0, "out": 20}

    # A file later: its types are those of the table, and its repeats those of the first file.
    second = [*REPEATED, *TOO_LONG, *NO_ROWS, row(200), *OTHER_TYPES, *BREAKERS]
    write(folder / "data" / "b.jsonl", *second)
    ingested, validated, prepared = summaries(folder)
    dead = len(NO_ROWS) + len(OTHER_TYPES)
    assert (ingested["dead_letters"], ingested["dead_total"]) == (dead, 2 * dead)
    quarantined = 2 * validated["rows"]["quarantined"]
    assert quarantined == 2 * len(BREAKERS)
    removed, kept = prepared["rows"]["removed"], prepared["rows"]["out"]
    assert removed == len(REPEATED) + len(TOO_LONG)
    lines = len(first) + len(second)
    assert lines == kept + removed + quarantined + ingested["dead_total"]

    found = tables(folder)
    assert {what: len(origins) for what, origins in found.items()} == {
        "kept": kept,
        "removed": removed,
        "quarantined": quarantined,
        "dead-lettered": ingested["dead_total"],
    }
    assert Counter(origin for origins in found.values() for origin in origins) == Counter(
        [f"data/a.jsonl:{i + 1}" for i in range(len(first))]
        + [f"data/b.jsonl:{i + 1}" for i in range(len(second))]
    )
