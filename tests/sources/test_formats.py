import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import SourceError
from penstock.sources import formats
from penstock.sources.base import DeadLetter
from penstock.sources.formats import csv_kinds, read_csv, read_jsonl, read_parquet


def split(pieces):
    rows, letters = [], []
    for piece in pieces:
        if isinstance(piece, DeadLetter):
            letters.append(piece)
        else:
            rows += piece.to_pylist()
    return rows, letters


def jsonl(content, kinds=None):
    return split(read_jsonl([content], "f", kinds or {}))


def csv(content, kinds=None, delimiter=","):
    found = csv_kinds([content], "f", delimiter) | (kinds or {})
    return split(read_csv([content], "f", delimiter, found))


def test_json_lines_are_rows_and_blank_lines_are_skipped_but_counted():
    rows, letters = jsonl(b'{"a": 1}\r\n\n  \n{"a": 2}')
    assert rows == [{"a": 1, "_origin": "f:1"}, {"a": 2, "_origin": "f:4"}]
    assert letters == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not JSON: Expecting ',' delimiter at column 8"),
        (b"[1, 2]", "expected an object, got list"),
        (b"null", "expected an object, got NoneType"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "number 1e999 is out of range"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": "' + b"x" * (16 << 20) + b'"}', "longer than 16 MiB"),
    ],
)
def test_a_bad_line_is_a_dead_letter_and_costs_only_itself(line, reason):
    rows, letters = jsonl(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    assert [row["_origin"] for row in rows] == ["f:1", "f:3"]
    (letter,) = letters
    assert letter.origin == "f:2"
    assert letter.reason.startswith(reason)
    assert len(letter.excerpt) <= 200
    assert letter.excerpt[0] == line.decode("utf-8", "replace")[0]


def test_json_batches_are_bounded_in_rows_and_in_bytes(monkeypatch):
    monkeypatch.setattr(formats, "BATCH_ROWS", 3)
    content = b'{"a": 1}\n' * 7
    assert [batch.num_rows for batch in read_jsonl([content], "f", {})] == [3, 3, 1]
    monkeypatch.setattr(formats, "BATCH_BYTES", 10)
    assert [batch.num_rows for batch in read_jsonl([content], "f", {})] == [2, 2, 2, 1]


# A shared machine may stop for longer than Hypothesis' deadlines.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)

TEXT = st.text("a\u00e9\ud800", max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner),
    max_leaves=4,
)


@pytest.mark.slow
@UNHURRIED
@given(st.lists(st.dictionaries(st.sampled_from("abc"), json_values, max_size=3), max_size=12))
def test_every_json_line_becomes_exactly_one_row_or_one_dead_letter(objects):
    content = "\n".join(json.dumps(value) for value in objects).encode()
    rows, letters = jsonl(content)
    origins = [row["_origin"] for row in rows] + [letter.origin for letter in letters]
    assert sorted(origins) == sorted(f"f:{i}" for i in range(1, len(objects) + 1))
    for row in rows:
        given_row = objects[int(row["_origin"][2:]) - 1]
        scalars = {k: v for k, v in given_row.items() if v is None or isinstance(v, str | int)}
        assert {k: row.get(k) for k in scalars} == scalars


def test_csv_cells_may_hold_newlines_and_origins_name_the_line_a_record_begins_on():
    rows, letters = csv(b'a,b\n1,"x\ny"\n2,z\n')
    assert rows == [
        {"a": 1, "b": "x\ny", "_origin": "f:2"},
        {"a": 2, "b": "z", "_origin": "f:4"},
    ]
    assert letters == []


def test_a_ragged_csv_record_is_a_dead_letter_with_its_line():
    rows, letters = csv(b"a,b\n1\n2,z\n3,z,z\n")
    assert [row["a"] for row in rows] == [2]
    assert [(letter.origin, letter.reason) for letter in letters] == [
        ("f:2", "expected 2 cells, got 1"),
        ("f:4", "expected 2 cells, got 3"),
    ]


def test_csv_records_that_are_not_csv_or_not_utf8_are_dead_letters():
    rows, letters = csv(b'a,b\n"x"y,1\nz,2\n\xff,3\n"' + b"q" * (17 << 20) + b'",4\nlast,5\n')
    assert [row["a"] for row in rows] == ["z", "last"]
    assert [letter.origin for letter in letters] == ["f:2", "f:4", "f:5"]
    assert letters[1].reason == "not UTF-8: invalid start byte at byte 0"
    assert letters[2].reason == "longer than 16 MiB"


def test_an_unclosed_quote_does_not_swallow_rows_silently():
    rows, letters = csv(b'a,b\n1,x\n2,"y\n3,z\n')
    assert [row["a"] for row in rows] == [1]
    assert letters[0].origin == "f:3"
    assert "unexpected end of data" in letters[0].reason


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "", "-20"], [1, None, -20]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["true", "False", ""], [True, False, None]),
        (["007", "1"], ["007", "1"]),
        (["1", "x"], ["1", "x"]),
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["NaN", "1"], ["NaN", "1"]),
        (["", ""], [None, None]),
    ],
)
def test_csv_types_come_from_the_whole_column(cells, values):
    content = "k,v\n" + "".join(f"x,{cell}\n" for cell in cells)
    rows, letters = csv(content.encode())
    assert [row["v"] for row in rows] == values
    assert [type(row["v"]) for row in rows] == [type(value) for value in values]
    assert letters == []


def test_a_late_text_cell_makes_the_whole_csv_column_text(monkeypatch):
    monkeypatch.setattr(formats, "BATCH_ROWS", 2)
    rows, _ = csv(b"id\n1\n2\n3\n4\nx5\n")
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "x5"]


def test_a_settled_csv_type_makes_cells_that_contradict_it_dead_letters():
    rows, letters = csv(b"q,t\n0.5,x\nhigh,y\n", kinds={"q": float})
    assert rows == [{"q": 0.5, "t": "x", "_origin": "f:2"}]
    assert letters[0].origin == "f:3"
    assert letters[0].reason == "column q: expected number, got high"
    rows, _ = csv(b"id\n1\n2\n", kinds={"id": str})
    assert [row["id"] for row in rows] == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", "no CSV header: the file is blank"),
        (b"a,a\n1,2\n", "column 2 is named 'a' again"),
        (b"a,\n1,2\n", "column 2 is without a name"),
        (b"_row_id\n1\n", "'_row_id' is reserved"),
        (b"PAR1\0\0", "expected CSV, but this looks like a Parquet file"),
    ],
)
def test_a_csv_header_must_name_every_column_once(content, message):
    with pytest.raises(SourceError, match=message):
        csv(content)


def test_csv_takes_another_delimiter():
    assert csv(b"a;b\n1,5;x\n", delimiter=";")[0] == [{"a": "1,5", "b": "x", "_origin": "f:2"}]


def parquet_file(table, **kwargs):
    file = io.BytesIO()
    pq.write_table(table, file, **kwargs)
    file.seek(0)
    return file


def test_parquet_keeps_its_types_and_counts_rows_over_row_groups(monkeypatch):
    monkeypatch.setattr(formats, "BATCH_ROWS", 2)
    table = pa.table({"a": [1, 2, 3], "tags": [["x"], [], None]})
    batches = list(read_parquet(parquet_file(table, row_group_size=2), "f"))
    assert max(batch.num_rows for batch in batches) <= 2
    rows, _ = split(batches)
    assert [row["_origin"] for row in rows] == ["f:1", "f:2", "f:3"]
    assert [row["tags"] for row in rows] == [["x"], [], None]


def test_parquet_dictionaries_become_plain_values():
    table = pa.table({"a": pa.array(["x", "y"]).dictionary_encode()})
    (batch,) = read_parquet(parquet_file(table), "f")
    assert batch.schema.field("a").type == pa.string()


def test_what_is_no_number_stays_a_value_in_parquet_and_is_no_null():
    table = pa.table({"a": [1.0, math.nan, math.inf, -math.inf, None]})
    rows, letters = split(read_parquet(parquet_file(table), "f"))
    values = [row["a"] for row in rows]
    assert math.isnan(values[1])
    assert values[2:] == [math.inf, -math.inf, None]
    assert letters == []


def test_parquet_batches_of_long_rows_have_few_rows(monkeypatch):
    monkeypatch.setattr(formats, "BATCH_BYTES", 10_000)
    table = pa.table({"a": [f"x{i}" * 500 for i in range(50)]})
    batches = list(read_parquet(parquet_file(table), "f"))
    assert max(batch.num_rows for batch in batches) < 20
    assert sum(batch.num_rows for batch in batches) == 50


def test_reserved_names_are_refused_in_parquet_too():
    with pytest.raises(SourceError, match="'_origin' is reserved"):
        list(read_parquet(parquet_file(pa.table({"_origin": ["x"]})), "f"))


def test_what_is_not_parquet_is_said_to_be_not_parquet():
    with pytest.raises(SourceError, match="f: not a whole Parquet file"):
        list(read_parquet(io.BytesIO(b'{"a": 1}\n'), "f"))
