import json
import os
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.errors import SourceError
from penstock.ledger import Ledger
from penstock.pipeline import open_pipeline
from penstock.sources.files import FilesSource
from penstock.stages.ingest import DEAD_LETTERS, raw_tables
from penstock.tables import Table

RECIPE = """
name: demo
sources:
  files:
    paths: data/*
evaluate:
  tasks: [word_order]
gate:
  min: {word_order: 0.6}
"""


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


class Project:
    """A folder with a recipe and files, ingested by the real pipeline."""

    def __init__(self, folder, recipe=RECIPE):
        self.folder = folder
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self.write_recipe(recipe)

    def write_recipe(self, text):
        text = text.replace("  files:\n    paths", "  files:\n    type: files\n    paths")
        (self.folder / "recipe.yaml").write_text(text)

    def jsonl(self, name, *rows):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (self.folder / "data" / name).write_text(text)

    def parquet(self, name, **columns):
        pq.write_table(pa.table(columns), self.folder / "data" / name)

    def ingest(self, **overrides):
        pipeline = open_pipeline(self.folder / "recipe.yaml", overrides)
        try:
            report = pipeline.run(until="ingest")
            return report.stages[0].outcome, report.artifacts["ingest"].summary
        finally:
            pipeline.ledger.close()

    def table(self, source="files"):
        pipeline = open_pipeline(self.folder / "recipe.yaml")
        pipeline.ledger.close()
        name = DEAD_LETTERS if source == DEAD_LETTERS else raw_tables(pipeline.recipe)[source]
        return pipeline.store.table("demo", name)

    def rows(self, source="files"):
        return [row for batch in self.table(source).scan() for row in batch.to_pylist()]

    def column(self, name):
        return [row[name] for row in self.rows()]


def test_rows_come_in_the_order_of_files_and_lines_and_know_their_origin(project):
    project.jsonl("b.jsonl", {"x": 3})
    project.jsonl("a.jsonl", {"x": 1}, {"x": 2})
    outcome, summary = project.ingest()
    assert outcome == "ran"
    assert summary["rows"] == {"out": 3, "total": 3}
    assert project.column("x") == [1, 2, 3]
    assert project.column("_origin") == ["data/a.jsonl:1", "data/a.jsonl:2", "data/b.jsonl:1"]
    assert set(project.column("_source")) == {"files"}


@pytest.mark.slow
def test_a_file_seen_before_is_not_read_again(project, monkeypatch):
    project.jsonl("a.jsonl", {"x": 1})
    project.ingest()
    assert project.ingest()[0] == "hit"
    project.jsonl("b.jsonl", {"x": 2})
    read = []
    real = FilesSource.read
    monkeypatch.setattr(
        FilesSource, "read", lambda self, unit: read.append(unit.label) or real(self, unit)
    )
    outcome, summary = project.ingest()
    assert (outcome, read) == ("ran", ["data/b.jsonl"])
    assert summary["new_units"] == 1
    assert summary["rows"] == {"out": 1, "total": 2}
    assert project.column("x") == [1, 2]


def test_the_same_content_under_another_name_is_not_read_again(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.ingest()
    os.rename(project.folder / "data" / "a.jsonl", project.folder / "data" / "renamed.jsonl")
    assert project.ingest()[0] == "hit"
    project.jsonl("copy.jsonl", {"x": 1})
    assert project.ingest()[0] == "hit"
    assert project.column("x") == [1]


def test_a_removed_file_changes_nothing(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.jsonl("b.jsonl", {"x": 2})
    project.ingest()
    (project.folder / "data" / "a.jsonl").unlink()
    assert project.ingest()[0] == "hit"
    assert project.column("x") == [1, 2]


def test_a_touched_file_changes_nothing(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.ingest()
    os.utime(project.folder / "data" / "a.jsonl", (1, 1))
    assert project.ingest()[0] == "hit"


def test_a_file_that_gained_rows_is_read_anew_beside_what_was_there(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.ingest()
    project.jsonl("a.jsonl", {"x": 1}, {"x": 2})
    assert project.ingest()[1]["rows"] == {"out": 2, "total": 3}


def test_a_new_column_is_null_in_the_rows_from_before(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.ingest()
    project.jsonl("b.jsonl", {"x": 2, "y": "new"})
    project.ingest()
    assert project.column("y") == [None, "new"]


def test_a_column_that_a_later_file_lacks_is_null_there(project):
    project.jsonl("a.jsonl", {"x": 1, "y": "old"})
    project.jsonl("b.jsonl", {"x": 2})
    project.ingest()
    assert project.column("y") == ["old", None]


def test_an_object_may_gain_keys_from_file_to_file(project):
    project.jsonl("a.jsonl", {"meta": {"a": 1}, "turns": [{"role": "user"}]})
    project.ingest()
    project.jsonl("b.jsonl", {"meta": {"b": "x"}, "turns": [{"role": "user", "text": "hi"}]})
    project.ingest()
    assert project.column("meta") == [{"a": 1, "b": None}, {"a": None, "b": "x"}]
    assert project.column("turns") == [
        [{"role": "user", "text": None}],
        [{"role": "user", "text": "hi"}],
    ]


def test_a_column_that_changed_its_type_makes_dead_letters_of_its_rows_only(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.ingest()
    project.jsonl("b.jsonl", {"x": "two"}, {"x": None, "y": 7})
    _, summary = project.ingest()
    assert project.column("x") == [1, None]
    assert project.column("y") == [None, 7]
    (letter,) = project.rows(DEAD_LETTERS)
    assert letter["reason"] == "column 'x' is string, was int64"
    assert (letter["_origin"], letter["excerpt"]) == ("data/b.jsonl:1", '"two"')
    assert summary["rows"]["out"] + summary["dead_letters"] == 2


def test_a_name_that_differs_from_a_columns_only_in_case_makes_dead_letters(project):
    project.jsonl("a.jsonl", {"x": 1, "o": {"k": 1}})
    project.jsonl("b.jsonl", {"x": 3}, {"X": 2})
    project.jsonl("c.jsonl", {"o": {"K": 1}}, {"x": 4})
    project.parquet("d.parquet", x=pa.array([5, 6]), X=pa.array([None, 1]))
    project.ingest()
    assert project.column("x") == [1, 3, 4, 5]
    letters = [letter["_origin"] for letter in project.rows(DEAD_LETTERS)]
    assert letters == ["data/b.jsonl:2", "data/c.jsonl:1", "data/d.parquet:2"]


@pytest.mark.slow
def test_a_row_that_goes_to_the_dead_letters_changes_no_id_of_the_rows_beside_it(tmp_path):
    ids = []
    for name, first in (("one", {"x": 1}), ("two", {"x": "text"})):
        project = Project(tmp_path / name)
        project.jsonl("a.jsonl", first)
        project.ingest()
        project.jsonl("b.jsonl", {"x": "text"}, {"y": 1})
        project.ingest()
        ids.append(project.rows()[-1]["_row_id"])
    assert ids[0] == ids[1]


def test_types_that_change_within_a_file_are_told_apart_row_by_row(project):
    table = [pa.table({"x": [1], "y": ["a"]}), pa.table({"x": ["b"], "y": ["c"]})]
    project.parquet("a.parquet", **{n: table[0][n] for n in ("x", "y")})
    project.parquet("b.parquet", **{n: table[1][n] for n in ("x", "y")})
    _, summary = project.ingest()
    assert (project.column("y"), summary["dead_letters"]) == (["a"], 1)


@pytest.mark.slow
def test_a_number_that_is_whole_goes_into_a_column_of_whole_numbers_and_no_other(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.ingest()
    project.jsonl("b.jsonl", {"x": 2.0}, {"x": 2.5})
    project.ingest()
    assert project.column("x") == [1, 2]
    assert [letter["excerpt"] for letter in project.rows(DEAD_LETTERS)] == ["2.5"]


@pytest.mark.slow
def test_new_columns_are_noted_once(project):
    project.jsonl("a.jsonl", {"x": 1})
    assert project.ingest()[1]["new_columns"] == []
    project.jsonl("b.jsonl", {"x": 2, "y": "new"})
    _, summary = project.ingest()
    assert summary["new_columns"] == ["y"]
    assert set(summary["columns"].popitem()[1]) == {"x", "y"}
    project.jsonl("c.jsonl", {"x": 3})
    assert project.ingest()[1]["new_columns"] == []


def test_a_stream_that_changed_its_type_is_committed_to_its_end(tape):
    code = (tape.folder / "tapes.py").read_text()
    code = code.replace("[int(word)]", "[int(word) if word.isdigit() else word]")
    (tape.folder / "tapes.py").write_text(code)
    (tape.folder / "tape.txt").write_text("10 x")
    tape.ingest()
    (tape.folder / "tape.txt").write_text("10 x many 13 more")
    _, summary = tape.ingest()
    assert tape.column("n") == [10, 13]
    assert (summary["dead_letters"], summary["dead_total"]) == (2, 3)
    assert tape.ingest()[0] == "hit"


def test_a_whole_number_goes_into_a_column_of_numbers(project):
    project.jsonl("a.jsonl", {"x": 1.5})
    project.jsonl("b.jsonl", {"x": 2})
    project.ingest()
    assert project.column("x") == [1.5, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type_", "values", "again"),
    [
        (pa.timestamp("ns"), [1_000_000_001], [2_000_000_002]),
        (pa.timestamp("ms", "UTC"), [1], [2]),
        (pa.uint8(), [200], [255]),
        (pa.uint64(), [2**63 - 1], [1]),
        (pa.date64(), [86_400_000], [0]),
        (pa.large_string(), ["a"], ["b"]),
        (pa.dictionary(pa.int32(), pa.string()), ["a"], ["b"]),
        (pa.list_(pa.large_string()), [["a"]], [["b"]]),
        (pa.decimal128(10, 2), [Decimal("1.50")], [Decimal("2.25")]),
        (pa.float16(), [1.5], [2.5]),
        (pa.large_binary(), [b"a"], [b"b"]),
    ],
    ids=str,
)
def test_two_files_with_the_same_column_type_are_ingested_and_keep_their_values(
    project, type_, values, again
):
    project.parquet("a.parquet", x=pa.array(values, type_))
    project.parquet("b.parquet", x=pa.array(again, type_))
    project.ingest()
    (first, second) = project.column("x")
    if isinstance(first, datetime):
        assert first < second
    elif pa.types.is_date(type_):
        assert first > second
    else:
        assert [first, second] == [*values, *again]


def test_a_column_of_nulls_waits_for_the_file_that_knows_its_type(project):
    project.parquet("a.parquet", x=pa.nulls(1), y=pa.array([1]))
    project.parquet("b.parquet", x=pa.array(["text"]), y=pa.array([2]))
    project.parquet("c.parquet", x=pa.nulls(1), y=pa.array([3]))
    project.ingest()
    assert project.column("x") == [None, "text", None]


def test_a_type_that_no_delta_table_holds_is_refused_by_name(project):
    project.parquet("a.parquet", x=pa.array([1], pa.time64("us")))
    with pytest.raises(SourceError, match=r"a\.parquet: column 'x' is time64"):
        project.ingest()


def test_a_value_too_large_for_its_column_is_a_dead_letter(project):
    project.parquet("a.parquet", x=pa.array([1], pa.int32()))
    project.parquet("b.parquet", x=pa.array([2**40, 2], pa.int64()))
    project.ingest()
    assert project.column("x") == [1, 2]
    (letter,) = project.rows(DEAD_LETTERS)
    assert letter["reason"] == "column 'x' holds a value that does not fit int32"
    assert letter["excerpt"] == str(2**40)


def test_after_a_failed_file_the_files_before_it_are_there_and_not_read_twice(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.jsonl("c.jsonl", {"x": 3})
    project.parquet("b.parquet", y=pa.array([1], pa.time64("us")))
    with pytest.raises(SourceError):
        project.ingest()
    (project.folder / "data" / "b.parquet").unlink()
    assert project.ingest()[1]["rows"]["total"] == 2
    assert project.column("x") == [1, 3]


def test_a_table_with_more_than_32_columns_is_read_back_whole(project):
    for name, value in (("a", 1), ("b", 2)):
        project.jsonl(f"{name}.jsonl", {f"column_{i}": value for i in range(50)})
    project.ingest()
    assert project.column("column_49") == [1, 2]


def test_lines_that_are_no_rows_are_counted_and_kept_with_file_line_and_reason(project):
    project.jsonl("a.jsonl", {"x": 1}, "not json at all", {"x": 2}, "[1, 2]")
    _, summary = project.ingest()
    assert summary["dead_letters"] == 2
    assert summary["rows"]["total"] == 2
    first, second = project.rows(DEAD_LETTERS)
    assert (first["_source"], first["unit"]) == ("files", "data/a.jsonl")
    assert (first["_origin"], second["_origin"]) == ("data/a.jsonl:2", "data/a.jsonl:4")
    assert first["excerpt"] == "not json at all"
    assert all(letter["reason"] for letter in (first, second))


@pytest.mark.slow
def test_dead_letters_are_counted_for_the_new_files_only(project):
    project.jsonl("a.jsonl", {"x": 1}, "bad")
    assert project.ingest()[1]["dead_letters"] == 1
    project.jsonl("b.jsonl", {"x": 2}, "worse", "worst")
    _, summary = project.ingest()
    assert (summary["dead_letters"], summary["dead_total"]) == (2, 3)


def crash_before_the_rows(project, monkeypatch):
    """Ingest, and die after the dead letters and before the rows."""
    append = Table.append_once

    def crash(self, *arguments):
        if self.name.startswith("raw-"):
            raise KeyboardInterrupt
        return append(self, *arguments)

    monkeypatch.setattr(Table, "append_once", crash)
    with pytest.raises(KeyboardInterrupt):
        project.ingest()
    monkeypatch.undo()


@pytest.mark.slow
def test_a_crash_between_the_dead_letters_and_the_rows_is_made_up_for(project, monkeypatch):
    project.jsonl("a.jsonl", {"x": 1}, "bad")
    crash_before_the_rows(project, monkeypatch)
    assert len(project.rows(DEAD_LETTERS)) == 1
    _, summary = project.ingest()
    assert (summary["rows"]["out"], summary["dead_letters"]) == (1, 1)
    assert len(project.rows(DEAD_LETTERS)) == 1


def test_after_a_crash_before_the_rows_their_columns_stand_whatever_comes_first(
    project, monkeypatch
):
    project.jsonl("b.jsonl", {"x": 1}, "bad")
    crash_before_the_rows(project, monkeypatch)
    project.jsonl("a.jsonl", {"x": "text"})
    project.ingest()
    assert project.column("x") == [1]
    letters = [letter["_origin"] for letter in project.rows(DEAD_LETTERS)]
    assert letters == ["data/b.jsonl:2", "data/a.jsonl:1"]


def test_a_crash_before_the_record_changes_neither_rows_nor_numbers(project, monkeypatch):
    project.jsonl("a.jsonl", {"x": 1}, "bad")
    project.ingest()
    project.jsonl("b.jsonl", {"x": 2}, {"x": 3}, "bad")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "record", crash)
    with pytest.raises(KeyboardInterrupt):
        project.ingest()
    monkeypatch.undo()
    outcome, summary = project.ingest()
    assert outcome == "ran"
    assert summary["rows"] == {"out": 2, "total": 3}
    assert (summary["new_units"], summary["dead_letters"]) == (1, 1)
    assert project.column("x") == [1, 2, 3]


@pytest.mark.slow
def test_row_ids_are_the_same_in_another_store_and_never_twice_in_one(tmp_path):
    one, two = Project(tmp_path / "one"), Project(tmp_path / "two")
    for project in (one, two):
        project.jsonl("a.jsonl", {"x": 1}, {"x": 1})
    one.ingest()
    one.jsonl("b.jsonl", {"x": 1})
    two.jsonl("b.jsonl", {"x": 1})
    one.ingest()
    two.ingest()
    assert one.column("_row_id") == two.column("_row_id")
    assert len(set(one.column("_row_id"))) == 3


def test_sources_have_tables_of_their_own_and_their_types_never_meet(project):
    text = RECIPE.replace(
        "    paths: data/*\n",
        "    paths: data/a.jsonl\n  others:\n    type: files\n    paths: data/b.jsonl\n",
    )
    project.write_recipe(text)
    project.jsonl("a.jsonl", {"x": 1})
    project.jsonl("b.jsonl", {"x": "one"})
    _, summary = project.ingest()
    assert summary["rows"]["total"] == 2
    assert [row["x"] for row in project.rows("others")] == ["one"]
    assert project.column("x") == [1]


@pytest.mark.slow
def test_a_file_without_rows_is_passed_over_and_not_asked_again(project):
    project.parquet("a.parquet", x=pa.array([], pa.int64()))
    project.parquet("b.parquet", x=pa.array([7]))
    _, summary = project.ingest()
    assert summary["rows"]["total"] == 1
    assert project.ingest()[0] == "hit"
    assert project.column("x") == [7]


_NOTHING = """
from penstock.sources.base import Options, Unit

class Nothing:
    Options = Options
    def __init__(self, options, folder): pass
    def snapshot(self): return (Unit("nothing", 1, "nothing"),)
    def read(self, unit): return iter(())
"""


def test_a_unit_that_yields_nothing_at_all_commits_its_position(project):
    (project.folder / "yields_nothing.py").write_text(_NOTHING)
    project.write_recipe(
        RECIPE.replace(
            "  files:\n    paths: data/*\n", "  files: {type: 'yields_nothing:Nothing'}\n"
        )
    )
    _, summary = project.ingest()
    assert summary["rows"] == {"out": 0, "total": 0}
    assert project.table().position("nothing") == 1
    assert project.rows() == []


_TAPE = """
import json, pathlib
import pyarrow as pa
from penstock.sources.base import OFFSET, ORIGIN, DeadLetter, Options, Unit

class Tape:
    \"\"\"One stream that grows: each line of tape.txt, 'x' being poison.\"\"\"
    Options = Options
    def __init__(self, options, folder): self.path = folder / "tape.txt"
    def snapshot(self):
        return (Unit("tape", len(self.path.read_text().split()) - 1, "tape"),)
    def read(self, unit):
        with (self.path.parent / "reads.txt").open("a") as file:
            file.write(f"{unit.after}..{unit.position} ")
        for i, word in enumerate(self.path.read_text().split()[: unit.position + 1]):
            if i <= unit.after: continue
            if word == "x":
                yield DeadLetter(f"tape:{i}", "poison", word, offset=i)
            else:
                yield pa.RecordBatch.from_pydict(
                    {"n": [int(word)], OFFSET: [i], ORIGIN: [f"tape:{i}"]})
"""


@pytest.fixture
def tape(project):
    (project.folder / "tapes.py").write_text(_TAPE)
    project.write_recipe(
        RECIPE.replace("  files:\n    paths: data/*\n", "  files: {type: 'tapes:Tape'}\n")
    )
    return project


@pytest.mark.slow
def test_a_stream_that_grows_is_read_from_where_it_was_committed(tape):
    (tape.folder / "tape.txt").write_text("10 x 12")
    tape.ingest()
    (tape.folder / "tape.txt").write_text("10 x 12 13 x")
    _, summary = tape.ingest()
    assert tape.column("n") == [10, 12, 13]
    assert summary["rows"] == {"out": 1, "total": 3}
    assert (summary["dead_letters"], summary["dead_total"]) == (1, 2)
    assert (tape.folder / "reads.txt").read_text() == "-1..2 2..4 "
    assert "_offset" not in tape.table().schema().names


@pytest.mark.slow
def test_where_a_unit_ends_changes_no_row_id(tmp_path):
    ids = []
    for name, lengths in (("one", (3,)), ("two", (1, 2, 3))):
        project = Project(tmp_path / name)
        (project.folder / "tapes.py").write_text(_TAPE)
        project.write_recipe(
            RECIPE.replace("  files:\n    paths: data/*\n", "  files: {type: 'tapes:Tape'}\n")
        )
        for length in lengths:
            (project.folder / "tape.txt").write_text(" ".join(["10", "11", "12"][:length]))
            project.ingest()
        ids.append(project.column("_row_id"))
    assert ids[0] == ids[1]


def test_a_crash_between_dead_letters_and_rows_loses_and_doubles_neither(tape, monkeypatch):
    (tape.folder / "tape.txt").write_text("10 x")
    real = Table.append_once

    def dies_on_rows(table, *args):
        if table.name != DEAD_LETTERS:
            raise KeyboardInterrupt
        return real(table, *args)

    monkeypatch.setattr(Table, "append_once", dies_on_rows)
    with pytest.raises(KeyboardInterrupt):
        tape.ingest()
    monkeypatch.undo()
    # The stream goes on growing, so what is read again ends elsewhere.
    (tape.folder / "tape.txt").write_text("10 x x 13")
    _, summary = tape.ingest()
    assert tape.column("n") == [10, 13]
    assert summary["dead_total"] == 2


def test_without_any_file_the_error_says_where_it_looked(project):
    with pytest.raises(SourceError, match=r"data/\*"):
        project.ingest()


def test_reading_another_way_starts_a_table_of_its_own(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.ingest()
    project.write_recipe(RECIPE.replace("data/*\n", "data/*\n    encoding: latin-1\n"))
    assert project.rows() == []
    _, summary = project.ingest()
    assert summary["rows"]["total"] == 1
    assert project.column("x") == [1]


def test_moving_the_files_reads_nothing_again(project):
    project.jsonl("a.jsonl", {"x": 1})
    project.ingest()
    os.rename(project.folder / "data", project.folder / "moved")
    project.write_recipe(RECIPE.replace("data/*", "moved/*"))
    assert project.ingest()[0] == "hit"
