import pyarrow as pa

from penstock.transforms.dedupe import ExactDedupe


def keep(rows, columns=("a", "b")):
    transform = ExactDedupe(ExactDedupe.Options(columns=columns))
    table = pa.Table.from_pylist(
        [{"_row_id": str(i), **row} for i, row in enumerate(rows)],
        schema=pa.schema([("_row_id", "string"), ("a", "string"), ("b", "string")]),
    )
    outcome = transform.keep(table.append_column("_key", transform.key(table)))
    return outcome.kept["_row_id"].to_pylist(), outcome.removed.to_pylist()


def test_the_first_of_equal_rows_stays_and_the_others_name_it():
    rows = [{"a": "x", "b": "1"}, {"a": "y", "b": "1"}, {"a": "x", "b": "1"}, {"a": "x", "b": "1"}]
    kept, removed = keep(rows)
    assert kept == ["0", "1"]
    assert removed == [
        {
            "_row_id": row_id,
            "step": "dedupe",
            "reason": "same a, b as an earlier row",
            "evidence": "the same as 0",
        }
        for row_id in ("2", "3")
    ]


def test_rows_are_equal_only_if_all_the_columns_are():
    rows = [{"a": "x", "b": "1"}, {"a": "x", "b": "2"}]
    assert keep(rows)[0] == ["0", "1"]
    assert keep(rows, columns=("a",))[0] == ["0"]


def test_null_equals_null_and_not_the_empty_text():
    rows = [{"a": None, "b": "1"}, {"a": "", "b": "1"}, {"a": None, "b": "1"}]
    assert keep(rows)[0] == ["0", "1"]


def test_no_rows_give_no_rows():
    assert keep([]) == ([], [])
