"""``penstock quarantine``: rows are held by a real validation, and read by the command line."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from penstock import dead_letters
from penstock.cli import app
from penstock.errors import StoreError, ValidationFailed
from penstock.pipeline import open_pipeline
from penstock.quarantine import decide, held, rows
from penstock.stages import decisions
from penstock.stages.valid_rows import looks, valid_rows

pytestmark = pytest.mark.slow  # importing Great Expectations takes seconds

RECIPE = """
name: demo
sources: {files: {type: files, paths: data.jsonl}}
validate:
  not_null: [instruction]
  length: {response: {min: 3, max: 20}}
  range: {}
  max_bad_rows: 0.9
evaluate: {tasks: [word_order]}
gate: {min: {word_order: 0.6}}
"""
HOSTILE = "\x1b]0;owned\x07[red]x"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quarantine")
    (folder / "recipe.yaml").write_text(RECIPE)
    answers = ["fine", "no", "it is fine", "a" * 30, HOSTILE + "y" * 20]
    lines = [json.dumps({"instruction": f"q{i}", "response": a}) for i, a in enumerate(answers)]
    lines.append(json.dumps({"instruction": None, "response": "fine"}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    pipeline = open_pipeline(folder / "recipe.yaml")
    pipeline.run(until="validate")
    return pipeline


def penstock(pipeline, *arguments):
    recipe = ["--recipe", str(pipeline.recipe.folder / "recipe.yaml")]
    result = CliRunner().invoke(app, ["quarantine", *arguments, *recipe])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_held_rows_are_counted_by_rule_the_most_broken_first(pipeline):
    lengths, nulls = held(pipeline)
    assert (lengths.source, lengths.num_rows, nulls.num_rows) == ("files", 3, 1)
    assert "lengths_to_be_between" in lengths.rule
    assert "not_be_null" in nulls.rule
    shown = json.loads(penstock(pipeline, "list", "--json"))
    assert [one["num_rows"] for one in shown] == [3, 1]


def test_a_row_is_shown_by_the_start_of_its_id(pipeline):
    example = held(pipeline)[0].example
    (one,) = rows(pipeline, example[:10])
    assert one.row == {"instruction": "q1", "response": "no"}
    assert one.value == "no"
    assert one.origin.endswith("data.jsonl:2")
    assert one.row_id == example


def test_no_more_rows_than_wanted_are_shown(pipeline):
    assert len(rows(pipeline, limit=2)) == 2
    assert len(json.loads(penstock(pipeline, "show", "--json", "--source", "files"))) == 4


def test_a_row_cannot_steer_the_terminal(pipeline):
    shown = penstock(pipeline, "show")
    assert "\x1b]" not in shown
    assert r"\x1b]0;owned\x07[red]x" in shown


@pytest.mark.parametrize("wanted", [{"row_id": "zz"}, {"source": "other"}])
def test_what_is_not_held_is_said_not_to_be(pipeline, wanted):
    with pytest.raises(StoreError, match="in quarantine"):
        rows(pipeline, **wanted)


class Project:
    """A folder of its own, whose rows are validated and prepared by the real stages."""

    def __init__(self, folder, max_bad_rows="0.9"):
        self.recipe = folder / "recipe.yaml"
        text = RECIPE.replace("max_bad_rows: 0.9", f"max_bad_rows: {max_bad_rows}")
        self.recipe.write_text(text.replace("data.jsonl", "'*.jsonl'"))
        self.write("a", "fine", "no", "it is fine", "ha")

    def write(self, name, *answers):
        lines = [
            json.dumps({"instruction": f"{name}{i}", "response": a}) for i, a in enumerate(answers)
        ]
        (self.recipe.parent / f"{name}.jsonl").write_text("\n".join(lines))

    def open(self):
        return open_pipeline(self.recipe)

    def validate(self):
        report = self.open().run(until="validate")
        return report.stages[1].outcome, report.artifacts["validate"].summary

    def answers(self):
        pipeline = self.open()
        seen = looks(pipeline.ledger, pipeline.recipe, pipeline.ledger.latest("demo", "validate"))
        batches = valid_rows(pipeline.store, pipeline.recipe, seen)
        return [answer for batch in batches for answer in batch["response"].to_pylist()]

    def id_of(self, value):
        return next(row.row_id for row in rows(self.open()) if row.value == value)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_a_released_row_goes_on_from_the_next_run(project):
    project.validate()
    decide(project.open(), "release", [project.id_of("no")[:8]], reason="short, but right")
    outcome, summary = project.validate()
    assert (outcome, summary["released"]) == ("ran", {"files": 1})
    assert project.answers() == ["fine", "it is fine", "no"]
    assert sum(summary["valid_rows"].values()) == 3
    assert project.validate()[0] == "hit"


def test_the_last_decision_about_a_row_stands_and_all_of_them_are_kept(project):
    project.validate()
    row_id = project.id_of("no")
    for action in ("release", "drop", "drop"):
        decide(project.open(), action, [row_id])
    project.validate()
    assert project.answers() == ["fine", "it is fine"]
    pipeline = project.open()
    kept = [
        row
        for b in decisions.table(pipeline.store, pipeline.recipe).scan()
        for row in b.to_pylist()
    ]
    assert [row["action"] for row in kept] == ["release", "drop"]
    assert all(row["by"] and row["at_s"] > 0 for row in kept)
    assert held(pipeline)[0].num_dropped == 1


def test_dropping_rows_makes_no_stage_run_again(project):
    project.validate()
    decide(project.open(), "drop", rule="lengths")
    assert project.validate()[0] == "hit"


def test_rows_that_were_decided_about_no_longer_fail_the_run(tmp_path):
    project = Project(tmp_path, max_bad_rows="0")
    with pytest.raises(ValidationFailed, match="2 of 4 new rows fail"):
        project.validate()
    decide(project.open(), "release", [project.id_of("no")])
    with pytest.raises(ValidationFailed, match="1 of 4 new rows fail"):
        project.validate()
    decide(project.open(), "drop", rule="lengths_to_be", source="files")
    project.validate()
    assert project.answers() == ["fine", "it is fine"]
    decide(project.open(), "release", [project.id_of("no")])
    project.validate()
    assert project.answers() == ["fine", "it is fine", "no"]


def test_a_released_row_stays_released_when_more_rows_come(project):
    project.validate()
    decide(project.open(), "release", [project.id_of("ha")])
    project.write("b", "more", "no")
    project.validate()
    assert project.answers() == ["fine", "it is fine", "more", "ha"]


def test_rows_stay_in_the_order_in_which_they_were_let_through(project):
    project.validate()
    project.write("b", "more", "no")
    project.validate()
    decide(project.open(), "release", [project.id_of("ha")])
    project.validate()
    project.write("c", "news")
    decide(project.open(), "release", rule="lengths")
    project.validate()
    project.write("d", "last")
    project.validate()
    assert project.answers() == [
        *("fine", "it is fine"), "more", "ha", *("news", "no", "no"), "last"
    ]  # fmt: skip


def test_under_another_contract_no_decision_of_before_stands(project):
    project.validate()
    decide(project.open(), "release", [project.id_of("no")])
    project.recipe.write_text(project.recipe.read_text().replace("min: 3", "min: 1"))
    project.validate()
    assert project.answers() == ["fine", "no", "it is fine", "ha"]
    assert held(project.open()) == []


def test_the_start_of_several_ids_is_refused_and_nothing_is_decided(project):
    project.write(
        "b", *["no"] * 17, *["good"] * 5
    )  # by the pigeonhole principle, two share a first letter
    project.validate()
    first = Counter(row.row_id[0] for row in rows(project.open(), limit=None)).most_common(1)[0][0]
    with pytest.raises(StoreError, match="begins the ids of"):
        decide(project.open(), "release", [first])
    assert held(project.open())[0].num_released == 0


def test_a_decision_needs_rows_to_be_named(pipeline):
    recipe = ["--recipe", str(pipeline.recipe.folder / "recipe.yaml")]
    for arguments in ([], ["abc", "--all"]):
        result = CliRunner().invoke(app, ["quarantine", "release", *arguments, *recipe])
        assert result.exit_code != 0


def test_a_release_on_the_command_line_is_shown_with_its_reason(project):
    pipeline = project.open()
    project.validate()
    said = penstock(pipeline, "release", project.id_of("no")[:8], "--reason", "seen by me")
    assert "1 row released" in said
    assert "seen by me" in penstock(pipeline, "show")
    assert json.loads(penstock(pipeline, "list", "--json"))[0]["num_released"] == 1


def test_dead_letters_are_counted_by_reason_and_shown(tmp_path):
    project = Project(tmp_path)
    (tmp_path / "bad.jsonl").write_text('nonsense\n{"instruction": 1}\n')
    project.validate()
    found = dead_letters.reasons(project.open())
    assert sum(one.num_letters for one in found) == 2
    recipe = ["--recipe", str(project.recipe)]
    shown = CliRunner().invoke(app, ["dead-letters", "--show", "--json", *recipe])
    assert json.loads(shown.stdout)[0]["excerpt"] == "nonsense"
    shown = CliRunner().invoke(app, ["dead-letters", *recipe])
    assert "bad.jsonl:1" in shown.stdout
