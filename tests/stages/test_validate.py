import json
import math
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.errors import RecipeError, RegistryError, SourceError, ValidationFailed
from penstock.ledger import ModelVersion
from penstock.pipeline import open_pipeline
from penstock.stages.validate import QUARANTINE, expectations, valid_tables
from penstock.tokenizer import train_tokenizer

# Importing Great Expectations takes seconds.
slow = pytest.mark.slow

RECIPE = """
name: demo
sources:
  files:
    type: files
    paths: data/*
    columns: {COLUMNS}
validate:
  not_null: [instruction]
  length: {instruction: {min: 3, max: 20}}
  range: {score: {min: 0, max: 1}}
  expectations: EXPECTATIONS
  max_bad_rows: MAX_BAD_ROWS
evaluate:
  tasks: [word_order]
gate:
  min: {word_order: 0.6}
"""


def good(number, **fields):
    return {"instruction": f"question {number}", "score": 0.5, **fields}


class Project:
    """A folder with a recipe and files, validated by the real pipeline."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        self.set()

    def set(self, columns="", expectations="[]", max_bad_rows=0, text=RECIPE):
        text = text.replace("COLUMNS", columns).replace("EXPECTATIONS", expectations)
        text = text.replace("MAX_BAD_ROWS", str(max_bad_rows))
        (self.folder / "recipe.yaml").write_text(text)

    def jsonl(self, name, *rows):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "data" / name).write_text(text)

    def validate(self):
        pipeline = open_pipeline(self.folder / "recipe.yaml")
        try:
            report = pipeline.run(until="validate")
            return report.stages[1].outcome, report.artifacts["validate"].summary
        finally:
            pipeline.ledger.close()

    def open(self):
        pipeline = open_pipeline(self.folder / "recipe.yaml")
        pipeline.ledger.close()
        return pipeline

    def rows(self, source="files"):
        pipeline = self.open()
        table = pipeline.store.table("demo", valid_tables(pipeline.recipe)[source])
        return [row for batch in table.scan() for row in batch.to_pylist()]

    def asked(self):
        return [row["instruction"] for row in self.rows()]

    def quarantine(self):
        table = self.open().store.table("demo", QUARANTINE)
        return [row for batch in table.scan() for row in batch.to_pylist()]

    def runs(self):
        pipeline = open_pipeline(self.folder / "recipe.yaml")
        try:
            return pipeline.ledger.runs()
        finally:
            pipeline.ledger.close()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_the_short_forms_and_the_named_expectations_are_one_list_of_rules(project):
    project.set(expectations="[{name: expect_x, kwargs: {column: y}}]")
    found = [str(rule) for rule in expectations(project.open().recipe.validate_)]
    assert found == [
        "expect_column_values_to_not_be_null(column='instruction')",
        "expect_column_value_lengths_to_be_between("
        "column='instruction', min_value=3, max_value=20)",
        "expect_column_values_to_be_between(column='score', min_value=0.0, max_value=1.0)",
        "expect_x(column='y')",
    ]


def test_the_valid_table_is_named_by_what_decides_about_rows_and_nothing_else(project):
    before = valid_tables(project.open().recipe)
    project.set(max_bad_rows=0.5)
    assert valid_tables(project.open().recipe) == before
    project.set(expectations="[{name: expect_x}]")
    assert valid_tables(project.open().recipe) != before


@slow
def test_rows_that_meet_the_contract_go_on_unchanged_and_in_order(project):
    project.jsonl("a.jsonl", good(1, extra=[1]), good(2, extra=[2, 3]))
    outcome, summary = project.validate()
    assert outcome == "ran"
    assert summary["rows"] == {"in": 2, "quarantined": 0, "out": 2}
    assert project.asked() == ["question 1", "question 2"]
    assert [row["extra"] for row in project.rows()] == [[1], [2, 3]]
    assert project.quarantine() == []


@slow
def test_every_row_is_either_kept_or_quarantined_with_the_rule_it_broke(project):
    project.set(max_bad_rows=0.9)
    bad = [
        good(1, instruction=None),
        good(2, instruction="no"),
        good(3, score=7.5),
        good(4, instruction="x" * 21, score=-1),
    ]
    project.jsonl("a.jsonl", good(0), *bad, good(5))
    _, summary = project.validate()
    assert summary["rows"] == {"in": 6, "quarantined": 4, "out": 2}
    assert project.asked() == ["question 0", "question 5"]
    found = project.quarantine()
    assert [row["_origin"] for row in found] == [f"data/a.jsonl:{i}" for i in (2, 3, 4, 5)]
    assert [row["rule"].split("(")[0] for row in found] == [
        "expect_column_values_to_not_be_null",
        "expect_column_value_lengths_to_be_between",
        "expect_column_values_to_be_between",
        "expect_column_value_lengths_to_be_between",
    ]
    assert [row["value"] for row in found] == ["null", "no", "7.5", "x" * 21]
    assert [json.loads(row["row"]) for row in found] == bad
    kept = {row["_row_id"] for row in project.rows()}
    assert kept.isdisjoint(row["_row_id"] for row in found)


@slow
def test_a_failing_row_is_charged_to_the_rule_it_broke_whatever_the_order_of_rules(project):
    """Rules about one column stand apart here, and the engine groups them."""
    more = (
        "[{name: expect_column_values_to_not_be_null, kwargs: {column: score}}, "
        "{name: expect_column_values_to_match_regex, kwargs: {column: instruction, regex: '^q'}}, "
        "{name: expect_column_values_to_be_in_set, kwargs: {column: kind, value_set: [a]}}, "
        "{name: expect_column_mean_to_be_between, kwargs: {column: score, max_value: 100}}]"
    )
    project.set(expectations=more, max_bad_rows=0.9)
    bad = [
        good(1, score=None, kind="a"),
        good(2, instruction="answer", kind="a"),
        good(3, kind="b"),
        good(4, score=9, kind="a"),
    ]
    project.jsonl("a.jsonl", good(0, kind="a"), *bad)
    project.validate()
    rules_by_row = {row["_origin"][-1]: row["rule"] for row in project.quarantine()}
    assert rules_by_row == {
        "2": "expect_column_values_to_not_be_null(column='score')",
        "3": "expect_column_values_to_match_regex(column='instruction', regex='^q')",
        "4": "expect_column_values_to_be_in_set(column='kind', value_set=['a'])",
        "5": "expect_column_values_to_be_between(column='score', min_value=0.0, max_value=1.0)",
    }


@slow
def test_too_many_bad_rows_stop_the_run_with_the_whole_list_and_nothing_goes_on(project):
    project.jsonl("a.jsonl", good(1), good(2, score=7.5), good(3, instruction="no", score=8.5))
    with pytest.raises(ValidationFailed) as error:
        project.validate()
    first, *unmet, last = error.value.message.splitlines()
    assert first == "Data validation failed: 2 expectations not met"
    assert len(unmet) == 2
    assert "files: expect_column_value_lengths_to_be_between" in unmet[0]
    assert "1 rows, such as 'no'" in unmet[0]
    assert "2 rows, such as '7.5'" in unmet[1]
    assert last == "2 of 3 new rows fail (66.67%)."
    assert "max_bad_rows=0.667 (now 0.0)" in error.value.hint
    report = next((project.folder / ".penstock" / "reports").glob("validation-*.html"))
    assert str(report) in error.value.hint
    assert project.rows() == []
    assert len(project.quarantine()) == 2
    (run,) = project.runs()
    assert (run.status, run.message) == ("FAILED", error.value.message)


@slow
def test_the_run_goes_on_once_more_bad_rows_are_allowed_and_quarantines_nothing_twice(project):
    project.jsonl("a.jsonl", good(1), good(2, score=7.5))
    for _ in range(2):
        with pytest.raises(ValidationFailed):
            project.validate()
    project.set(max_bad_rows=0.5)
    _, summary = project.validate()
    assert summary["rows"] == {"in": 2, "quarantined": 1, "out": 1}
    assert project.asked() == ["question 1"]
    assert len(project.quarantine()) == 1


@slow
def test_the_share_of_bad_rows_that_is_allowed_may_just_be_reached(project):
    project.set(max_bad_rows=0.25)
    project.jsonl("a.jsonl", *(good(i) for i in range(3)), good(3, score=7))
    assert project.validate()[1]["rows"]["quarantined"] == 1
    project.jsonl("b.jsonl", *(good(i) for i in range(10, 12)), good(12, score=7))
    with pytest.raises(ValidationFailed, match=r"1 of 3 new rows fail \(33\.33%\)"):
        project.validate()


@slow
def test_of_a_new_file_only_its_rows_are_validated(project):
    project.jsonl("a.jsonl", good(1), good(2))
    project.validate()
    assert project.validate()[0] == "hit"
    project.jsonl("b.jsonl", good(3))
    outcome, summary = project.validate()
    assert outcome == "ran"
    assert summary["rows"] == {"in": 1, "quarantined": 0, "out": 1}
    assert project.asked() == ["question 1", "question 2", "question 3"]


@slow
def test_a_failed_increment_is_looked_at_again_together_with_what_came_since(project):
    project.jsonl("a.jsonl", good(1), good(2, score=7))
    with pytest.raises(ValidationFailed):
        project.validate()
    project.set(max_bad_rows=0.5)
    project.jsonl("b.jsonl", good(3), good(4, score=8))
    _, summary = project.validate()
    assert summary["rows"] == {"in": 4, "quarantined": 2, "out": 2}
    assert [row["value"] for row in project.quarantine()] == ["7.0", "8.0"]
    assert project.asked() == ["question 1", "question 3"]


@slow
def test_another_contract_looks_at_all_rows_again(project):
    project.jsonl("a.jsonl", good(1), good(2, score=0.9))
    project.validate()
    project.set(text=RECIPE.replace("max: 1}}", "max: 0.8}}"), max_bad_rows=0.5)
    _, summary = project.validate()
    assert summary["rows"] == {"in": 2, "quarantined": 1, "out": 1}
    assert project.asked() == ["question 1"]


@slow
def test_a_crash_before_the_record_changes_neither_rows_nor_numbers(project, monkeypatch):
    from penstock.ledger import Ledger

    project.set(max_bad_rows=0.5)
    project.jsonl("a.jsonl", good(1), good(2, score=7))
    record = Ledger.record

    def crash(self, artifact, *arguments):
        if artifact.stage == "validate":
            raise KeyboardInterrupt
        record(self, artifact, *arguments)

    monkeypatch.setattr(Ledger, "record", crash)
    with pytest.raises(KeyboardInterrupt):
        project.validate()
    monkeypatch.undo()
    _, summary = project.validate()
    assert summary["rows"] == {"in": 2, "quarantined": 1, "out": 1}
    assert project.asked() == ["question 1"]
    assert len(project.quarantine()) == 1


@slow
def test_columns_are_validated_and_passed_on_under_our_names(project):
    project.set(columns="instruction: question")
    project.jsonl("a.jsonl", {"question": "how many?", "score": 0.5})
    project.validate()
    assert project.asked() == ["how many?"]
    assert "question" not in project.rows()[0]


@slow
def test_two_names_may_be_swapped(project):
    project.set(columns="instruction: other, other: instruction")
    project.jsonl("a.jsonl", {"instruction": "theirs", "other": "ours", "score": 0.5})
    project.validate()
    assert [(row["instruction"], row["other"]) for row in project.rows()] == [("ours", "theirs")]


def test_mapping_a_column_that_is_not_there_is_answered_with_the_nearest(project):
    project.set(columns="instruction: qestion")
    project.jsonl("a.jsonl", {"question": "how many?", "score": 0.5})
    with pytest.raises(SourceError, match="no column 'qestion' to be 'instruction'") as error:
        project.validate()
    assert "Did you mean 'question'?" in error.value.message


def test_mapping_onto_a_column_that_is_there_is_refused(project):
    project.set(columns="instruction: question")
    project.jsonl("a.jsonl", {"question": "a", "instruction": "b", "score": 0.5})
    with pytest.raises(SourceError, match="already have a column 'instruction'"):
        project.validate()


@slow
def test_a_missing_column_is_named_with_those_there_are_and_what_to_do(project):
    project.jsonl("a.jsonl", {"question": "how many?", "score": 0.5})
    with pytest.raises(ValidationFailed, match="no column 'instruction'") as error:
        project.validate()
    assert "They have: question, score." in error.value.message
    assert "sources.files.columns" in error.value.hint


@slow
def test_a_column_that_came_later_is_null_and_may_be_required_from_then_on(project):
    project.set(max_bad_rows=0.5)
    project.jsonl("a.jsonl", good(1))
    project.validate()
    project.jsonl("b.jsonl", good(2, topic="new"))
    project.validate()
    assert [row["topic"] for row in project.rows()] == [None, "new"]


@slow
def test_an_unknown_expectation_is_answered_with_the_nearest(project):
    project.set(expectations="[{name: expect_column_values_to_be_uniqe, kwargs: {column: score}}]")
    project.jsonl("a.jsonl", good(1))
    with pytest.raises(RecipeError, match="is not an expectation") as error:
        project.validate()
    assert "Did you mean 'expect_column_values_to_be_unique'?" in error.value.message


@slow
def test_arguments_that_do_not_fit_an_expectation_are_said(project):
    project.set(expectations="[{name: expect_column_values_to_match_regex, kwargs: {regx: x}}]")
    project.jsonl("a.jsonl", good(1))
    with pytest.raises(RecipeError, match=r"regx='x'\) does not fit: .*column field required"):
        project.validate()


@slow
def test_an_expectation_about_rows_is_used_by_its_name(project):
    project.set(
        expectations="[{name: expect_column_values_to_match_regex, "
        "kwargs: {column: instruction, regex: '^question'}}]",
        max_bad_rows=0.5,
    )
    project.jsonl("a.jsonl", good(1), good(2, instruction="answer 2"))
    project.validate()
    assert project.asked() == ["question 1"]
    assert "expect_column_values_to_match_regex" in project.quarantine()[0]["rule"]


@slow
def test_a_doubled_value_is_judged_over_all_rows(project):
    project.set(
        expectations="[{name: expect_column_values_to_be_unique, kwargs: {column: instruction}}]",
        max_bad_rows=0.9,
    )
    project.jsonl("a.jsonl", good(1), good(2), good(1))
    project.validate()
    assert project.asked() == ["question 2"]


@slow
def test_an_expectation_about_two_columns_is_used_by_its_name(project):
    project.set(
        expectations="[{name: expect_column_pair_values_to_be_equal, "
        "kwargs: {column_A: score, column_B: again}}]",
        max_bad_rows=0.5,
    )
    project.jsonl("a.jsonl", good(1, again=0.5), good(2, again=0.6))
    project.validate()
    assert project.asked() == ["question 1"]


@slow
@pytest.mark.parametrize(("lowest", "holds"), [(0.4, True), (0.6, False)])
def test_an_expectation_about_a_whole_column_holds_or_stops_the_run(project, lowest, holds):
    project.set(
        expectations="[{name: expect_column_mean_to_be_between, "
        f"kwargs: {{column: score, min_value: {lowest}}}}}]",
        max_bad_rows=0.9,
    )
    project.jsonl("a.jsonl", good(1), good(2))
    if holds:
        assert project.validate()[1]["rows"]["out"] == 2
        return
    with pytest.raises(ValidationFailed, match=r"expect_column_mean.*observed 0\.5"):
        project.validate()
    assert project.rows() == []


@slow
def test_a_failing_value_that_is_a_list_is_shown(project):
    project.set(
        expectations="[{name: expect_column_value_lengths_to_be_between, "
        "kwargs: {column: tags, max_value: 6}}]",
        max_bad_rows=0.5,
    )
    project.jsonl("a.jsonl", good(1, tags=["a"]), good(2, tags=["a", "b"]))
    project.validate()
    (row,) = project.quarantine()
    assert "a" in row["value"]
    assert "b" in row["value"]


@slow
def test_when_every_row_is_bad_and_that_is_nearly_allowed_nothing_goes_on(project):
    project.set(max_bad_rows=0.99)
    project.jsonl("a.jsonl", good(1, score=7))
    with pytest.raises(ValidationFailed):
        project.validate()
    assert project.rows() == []


@slow
def test_a_source_whose_new_rows_are_all_bad_does_not_stop_another(project):
    text = RECIPE.replace("data/*", "data/a*").replace(
        "validate:\n", "  more:\n    type: files\n    paths: data/b*\nvalidate:\n"
    )
    project.set(text=text, max_bad_rows=0.5)
    project.jsonl("a.jsonl", *(good(i) for i in range(3)))
    project.jsonl("b.jsonl", good(9, score=7))
    _, summary = project.validate()
    assert summary["rows"] == {"in": 4, "quarantined": 1, "out": 3}
    assert project.rows("more") == []
    assert project.validate()[0] == "hit"


@slow
def test_the_same_rows_have_the_same_ids_in_another_store(tmp_path):
    one, two = Project(tmp_path / "one"), Project(tmp_path / "two")
    for project in (one, two):
        project.set(max_bad_rows=0.5)
        project.jsonl("a.jsonl", good(1), good(2, score=7), good(3))
        project.validate()
    assert [row["_row_id"] for row in one.rows()] == [row["_row_id"] for row in two.rows()]
    assert one.quarantine()[0]["_row_id"] == two.quarantine()[0]["_row_id"]


@slow
def test_the_page_about_the_data_opens_without_the_network(project):
    project.jsonl("a.jsonl", good(1))
    pipeline = open_pipeline(project.folder / "recipe.yaml")
    artifact = pipeline.run(until="validate").artifacts["validate"]
    pipeline.ledger.close()
    page = (pipeline.store.folder(artifact) / "data_docs.html").read_text()
    assert "expect" in page.lower()
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*https?://[^>]*>""", page, re.I)
    assert loaded == []


RULES = RECIPE.replace("  expectations: EXPECTATIONS\n", "  rules: EXPECTATIONS\n")


@slow
def test_what_is_no_number_lies_in_no_range(project):
    scores = [0.5, math.nan, 7.0, None, 1.0]
    table = pa.table({"instruction": [f"question {i}" for i in range(5)], "score": scores})
    pq.write_table(table, project.folder / "data" / "a.parquet")
    project.set(max_bad_rows=0.5)
    _, summary = project.validate()
    assert summary["rows"] == {"in": 5, "quarantined": 2, "out": 3}
    assert project.asked() == ["question 0", "question 3", "question 4"]
    assert [(row["value"], "score" in row["rule"]) for row in project.quarantine()] == [
        ("nan", True),
        ("7.0", True),
    ]


@slow
def test_a_row_that_is_no_number_counts_where_a_range_need_only_mostly_hold(project):
    table = pa.table({"instruction": [f"question {i}" for i in range(4)], "score": [0.5] * 4})
    table = table.append_column("n", pa.array([1.0, 1.0, math.nan, None]))
    pq.write_table(table, project.folder / "data" / "a.parquet")
    rule = (
        "[{name: expect_column_values_to_be_between, kwargs: {column: n, max_value: 2, mostly: M}}]"
    )
    project.set(expectations=rule.replace("M", "0.9"))
    with pytest.raises(ValidationFailed, match="such as 'nan'"):
        project.validate()
    project.set(expectations=rule.replace("M", "0.7"))
    _, summary = project.validate()
    assert summary["rows"]["quarantined"] == 1


@pytest.mark.slow
def test_rules_about_rows_hold_rows_back_beside_the_expectations(project):
    rules = "[{type: encoding, columns: [instruction]}]"
    project.set(text=RULES, expectations=rules, max_bad_rows=0.9)
    project.jsonl("a.jsonl", good(1), good(2, instruction="a\ufffdb"), good(3, score=7))
    _, summary = project.validate()
    assert summary["rows"] == {"in": 3, "quarantined": 2, "out": 1}
    assert {row["rule"].partition("(")[0] for row in project.quarantine()} == {
        "encoding",
        "expect_column_values_to_be_between",
    }


def test_a_contract_of_rules_alone_needs_no_great_expectations(project):
    text = RULES.replace("not_null: [instruction]", "not_null: []")
    text = text.replace("{instruction: {min: 3, max: 20}}", "{}")
    text = text.replace("{score: {min: 0, max: 1}}", "{}")
    project.set(text=text, expectations="[{refusal: {columns: [instruction]}}]")
    project.jsonl("a.jsonl", good(1), good(2, instruction="I'm sorry, but I can't."))
    with pytest.raises(ValidationFailed, match=r"1 of 2 new rows fail") as error:
        project.validate()
    assert "refusal(columns=['instruction']): 1 rows, such as" in error.value.message
    page = re.search(r"See (\S+row_rules\.html)", error.value.hint)
    assert page is not None
    assert "refusal" in open(page[1]).read()  # noqa: SIM115


def test_a_recipe_without_rules_keeps_its_tables_and_another_rule_makes_new_ones(project):
    before = valid_tables(project.open().recipe)
    project.set(text=RULES, expectations="[]")
    assert valid_tables(project.open().recipe) == before
    project.set(text=RULES, expectations="[encoding]")
    assert valid_tables(project.open().recipe) != before


REGISTERED_BASE = """
name: demo
sources:
  files: {type: files, paths: data/*}
validate:
  not_null: []
  length: {}
  range: {}
  rules:
    - tokens: {columns: [instruction], max: 4}
  max_bad_rows: 0.9
train:
  base: models:/tiny/1
evaluate:
  tasks: [word_order]
gate:
  min: {word_order: 0.6}
"""


@pytest.mark.slow  # imports MLflow and transformers
def test_tokens_are_counted_with_the_tokenizer_of_a_registered_base(project):
    project.set(text=REGISTERED_BASE)
    project.jsonl("a.jsonl", good(1, instruction="word"), good(2, instruction="word " * 9))
    with pytest.raises(RegistryError, match="no model 'tiny'"):
        project.validate()
    pipeline = open_pipeline(project.folder / "recipe.yaml")
    train_tokenizer(["some word to learn"] * 20, 300, None, pipeline.store.root / "tiny-1")
    pipeline.ledger.add_model(ModelVersion("tiny", 1, "f" * 64, "d" * 64, "tiny-1", "run", ""))
    pipeline.ledger.close()
    _, summary = project.validate()
    assert summary["rows"] == {"in": 2, "quarantined": 1, "out": 1}
    assert project.asked() == ["word"]
    assert "tokens" in project.quarantine()[0]["value"]


def test_a_mistake_in_a_rule_is_reported_with_its_place(project):
    project.set(text=RULES, expectations="[encodign, {messages: {colum: x}}]")
    with pytest.raises(RecipeError) as error:
        project.open()
    assert "validate.rules.0.type" in error.value.message
    assert "encoding" in error.value.message
    assert "validate.rules.1.colum" in error.value.message
