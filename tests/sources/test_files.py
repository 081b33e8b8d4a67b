import gzip
import hashlib
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from penstock.errors import SourceError
from penstock.recipe import canonical
from penstock.sources import files
from penstock.sources.base import DeadLetter, Unit
from penstock.sources.files import FilesSource

ROWS = [{"instruction": f"q{i}", "response": "naïve", "n": i} for i in range(5)]


def source(folder, paths="*", **options):
    return FilesSource(FilesSource.Options(paths=paths, **options), folder)


def rows_of(files_source):
    rows, letters = [], []
    for unit in files_source.snapshot():
        for piece in files_source.read(unit):
            if isinstance(piece, DeadLetter):
                letters.append(piece)
            else:
                rows += piece.to_pylist()
    return rows, letters


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


def write(folder, name, data=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jsonl(ROWS) if data is None else data)
    return path


def test_a_file_is_pinned_by_its_content_and_labelled_by_its_path(tmp_path):
    path = write(tmp_path, "data/a.jsonl")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (unit,) = source(tmp_path, "data/*.jsonl").snapshot()
    assert unit == Unit(f"sha256:{digest}", 1, "data/a.jsonl", path.stat().st_size)


def test_units_come_in_the_order_of_their_labels_whatever_the_order_of_the_paths(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path, f"{name}.jsonl", jsonl([{"x": name}]))
    units = source(tmp_path, ["c.jsonl", "*.jsonl", "a.jsonl"]).snapshot()
    assert [unit.label for unit in units] == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_files_of_the_same_content_are_one_unit(tmp_path):
    write(tmp_path, "b.jsonl")
    write(tmp_path, "a.jsonl")
    assert [unit.label for unit in source(tmp_path).snapshot()] == ["a.jsonl"]


def test_paths_may_be_absolute_above_the_folder_and_recursive(tmp_path):
    recipe = tmp_path / "recipe"
    write(recipe, "in/deep/a.jsonl", jsonl([{"x": 1}]))
    write(tmp_path, "up.jsonl", jsonl([{"x": 2}]))
    paths = ["**/*.jsonl", "../up.jsonl", str(recipe / "in/deep/a.jsonl")]
    labels = [unit.label for unit in source(recipe, paths).snapshot()]
    assert labels == [(tmp_path / "up.jsonl").as_posix(), "in/deep/a.jsonl"]


def test_a_name_that_reads_like_a_glob_is_found_literally(tmp_path):
    write(tmp_path, "data[1].jsonl")
    assert source(tmp_path, "data[1].jsonl").snapshot()[0].label == "data[1].jsonl"


def test_a_missing_file_is_an_error_with_the_nearest_spelling(tmp_path):
    write(tmp_path, "train.jsonl")
    with pytest.raises(SourceError, match=r"'trian\.jsonl'.*Did you mean 'train\.jsonl'\?"):
        source(tmp_path, "trian.jsonl").snapshot()


def test_a_glob_that_matches_nothing_says_what_is_there(tmp_path):
    write(tmp_path, "data/a.csv")
    with pytest.raises(SourceError, match=r"No file matches 'data/\*\.jsonl'.*holds a\.csv"):
        source(tmp_path, "data/*.jsonl").snapshot()


def test_a_folder_is_refused_by_name_and_skipped_by_globs(tmp_path):
    write(tmp_path, "data/a.jsonl")
    with pytest.raises(SourceError, match="'data' is a folder") as caught:
        source(tmp_path, "data").snapshot()
    assert "data/*.jsonl" in caught.value.hint
    assert len(source(tmp_path, "**").snapshot()) == 1


def test_an_empty_file_is_passed_over_unless_all_are_empty(tmp_path):
    write(tmp_path, "empty.jsonl", b"")
    with pytest.raises(SourceError, match=r"nothing in empty\.jsonl"):
        source(tmp_path).snapshot()
    write(tmp_path, "full.jsonl")
    assert [unit.label for unit in source(tmp_path).snapshot()] == ["full.jsonl"]


def test_a_file_of_blank_lines_has_no_rows_and_no_error(tmp_path):
    write(tmp_path, "blank.jsonl", b"\n \n")
    assert rows_of(source(tmp_path)) == ([], [])


def test_an_unknown_suffix_is_an_error_unless_the_format_is_given(tmp_path):
    write(tmp_path, "a.txt")
    with pytest.raises(SourceError, match=r"a\.txt: no format is known"):
        source(tmp_path).snapshot()
    assert len(rows_of(source(tmp_path, format="jsonl"))[0]) == 5


@pytest.mark.parametrize(
    ("name", "pack"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.ndjson.zst", zstd)]
)
def test_compressed_files_give_the_same_rows(tmp_path, name, pack):
    write(tmp_path, name, pack(jsonl(ROWS)))
    rows, letters = rows_of(source(tmp_path))
    assert rows == [row | {"_origin": f"{name}:{i}"} for i, row in enumerate(ROWS, 1)]
    assert letters == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_a_truncated_compressed_file_is_an_error(tmp_path, name, pack):
    many = jsonl([{"n": hashlib.sha256(str(i).encode()).hexdigest()} for i in range(50_000)])
    packed = pack(many)
    write(tmp_path, name, packed[: len(packed) // 2])
    with pytest.raises(SourceError, match=f"{name}: not a whole (gzip|zstd) file"):
        rows_of(source(tmp_path))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl.gz", jsonl(ROWS), "not a whole gzip file"),
        ("a.jsonl", gzip.compress(jsonl(ROWS), mtime=0), "looks like gzip-compressed data"),
        ("a.jsonl", bytes(range(256)) * 4 + b"\0", "looks like binary data|not one of"),
        ("a.jsonl", "\ufeff".encode("utf-16-le") + b"a\0", "looks like UTF-16 text"),
        ("a.csv", b"PK\x03\x04....", "looks like a ZIP archive"),
        ("a.parquet", jsonl(ROWS), "not a whole Parquet file"),
        ("a.jsonl", b"a,b\n1,2\n", r"not one of 2 lines is a row. a.jsonl:1: not JSON"),
        ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), "not read through gzip"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path, name, data, message):
    write(tmp_path, name, data)
    with pytest.raises(SourceError, match=message):
        rows_of(source(tmp_path))


def test_a_json_array_is_refused_with_the_way_to_convert_it(tmp_path):
    write(tmp_path, "a.jsonl", json.dumps(ROWS, indent=1).encode())
    with pytest.raises(SourceError, match=r"not one of \d+ lines is a row") as caught:
        rows_of(source(tmp_path))
    assert "jq -c '.[]'" in caught.value.hint


def test_a_file_whose_own_column_has_a_reserved_name_is_refused_with_what_to_do(tmp_path):
    write(tmp_path, "a.jsonl", b'{"_row_id": 1, "n": 1}\n{"_row_id": 2, "n": 2}\n')
    with pytest.raises(SourceError, match="the column name '_row_id' is reserved") as caught:
        rows_of(source(tmp_path))
    assert caught.value.hint == "Rename the column in the file."


def test_a_hopeless_file_is_given_up_before_it_is_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "HOPELESS_AFTER", 10)
    write(tmp_path, "a.jsonl", b"no\n" * 1000)
    with pytest.raises(SourceError, match="not one of 10 lines is a row"):
        rows_of(source(tmp_path))


def test_bad_lines_among_good_ones_are_dead_letters(tmp_path):
    write(tmp_path, "a.jsonl", b"no\n" + jsonl(ROWS[:1]) + b"[]\n")
    rows, letters = rows_of(source(tmp_path))
    assert [row["_origin"] for row in rows] == ["a.jsonl:2"]
    assert [(letter.origin, letter.excerpt) for letter in letters] == [
        ("a.jsonl:1", "no"),
        ("a.jsonl:3", "[]"),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_a_file_that_changed_since_it_was_pinned_never_ends_cleanly(tmp_path, name):
    def content(word):
        if name.endswith("parquet"):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"a": [word]}), sink)
            return sink.getvalue().to_pybytes()
        if name.endswith("csv"):
            return f"a\n{word}\n".encode()
        data = jsonl([{"a": word}])
        return gzip.compress(data) if name.endswith("gz") else data

    write(tmp_path, name, content("x"))
    files_source = source(tmp_path)
    (unit,) = files_source.snapshot()
    write(tmp_path, name, content("y"))
    with pytest.raises(SourceError, match=f"{name} has changed since it was pinned"):
        list(files_source.read(unit))
    write(tmp_path, name, b"garbage")
    with pytest.raises(SourceError, match=f"{name} has changed since it was pinned"):
        list(files_source.read(unit))
    (tmp_path / name).unlink()
    with pytest.raises(SourceError, match=f"{name} cannot be opened"):
        list(files_source.read(unit))


def test_a_file_that_grows_while_it_is_read_is_noticed(tmp_path):
    path = write(tmp_path, "a.jsonl", jsonl({"n": i} for i in range(30_000)))
    files_source = source(tmp_path)
    (unit,) = files_source.snapshot()
    pieces = files_source.read(unit)
    next(pieces)
    with path.open("ab") as file:
        file.write(jsonl(ROWS))
    with pytest.raises(SourceError, match="has changed since it was pinned"):
        list(pieces)


def test_another_encoding_is_recoded(tmp_path):
    write(tmp_path, "a.csv", "instruction\nnaïve\n".encode("utf-16"))
    rows, _ = rows_of(source(tmp_path, encoding="utf-16"))
    assert rows == [{"instruction": "naïve", "_origin": "a.csv:2"}]
    with pytest.raises(ValueError, match="not an encoding that Python knows"):
        source(tmp_path, encoding="utf-17")


@pytest.mark.parametrize(
    "path",
    [
        "gs://lake/*.jsonl",
        "az://lake/a.csv",
        "https://example.com/a.jsonl",
        "s3a://l/a",
        "S3://l/a",
    ],
)
def test_an_address_that_is_not_known_is_refused_with_those_that_are(tmp_path, path):
    with pytest.raises(ValidationError, match=r"out of reach: valid are paths .* s3:// URLs"):
        source(tmp_path, ["a.jsonl", path])


def test_a_path_with_a_colon_is_a_path(tmp_path):
    write(tmp_path, "a:b.jsonl")
    assert source(tmp_path, "a:b.jsonl").snapshot()[0].label == "a:b.jsonl"


def test_types_settle_what_inference_would_decide(tmp_path):
    write(tmp_path, "a.csv", b"id,q\n1,2\n")
    rows, _ = rows_of(source(tmp_path, types={"id": "string", "q": "number"}))
    assert rows == [{"id": "1", "q": 2.0, "_origin": "a.csv:2"}]


def test_where_the_files_are_stays_out_of_the_fingerprint(tmp_path):
    here = FilesSource.Options(paths="here/*.jsonl")
    there = FilesSource.Options(paths=["/there/a.jsonl"])
    assert canonical(here) == canonical(there)
    assert canonical(here) != canonical(FilesSource.Options(paths="x", format="csv"))


@pytest.mark.slow
def test_a_small_file_that_unpacks_to_a_huge_line_is_one_letter_in_bounded_memory(tmp_path):
    packed = gzip.compress(b'{"x": "' + b"a" * (200 << 20) + b'"}\n{"x": "fine"}\n')
    write(tmp_path, "bomb.jsonl.gz", packed)
    assert len(packed) < 1 << 20
    tracemalloc.start()
    rows, (letter,) = rows_of(source(tmp_path, "*.gz"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row["x"] for row in rows] == ["fine"]
    assert "longer than" in letter.reason
    assert peak < 150 << 20
