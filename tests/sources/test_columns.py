import pyarrow as pa
import pytest

from penstock.errors import SourceError
from penstock.sources.columns import ColumnTypes
from penstock.sources.shapes import MAX_FIELDS


def read(*batches, kinds=None, on_stream=False):
    """Rows and letters of several batches read one after the other."""
    columns = ColumnTypes("a.jsonl", kinds, on_stream)
    place = 1
    out, letters = [], []
    for rows in batches:
        batch, bad = columns.batch(rows, range(place, place + len(rows)))
        place += len(rows)
        out.append(batch)
        letters += bad
    return out, letters


def values(batch, name):
    return batch[name].to_pylist()


def test_missing_keys_are_null_and_every_row_has_its_origin():
    (batch,), letters = read([{"a": 1}, {"b": "x"}])
    assert batch.to_pylist() == [
        {"a": 1, "b": None, "_origin": "a.jsonl:1"},
        {"a": None, "b": "x", "_origin": "a.jsonl:2"},
    ]
    assert letters == []


def test_a_key_first_seen_later_becomes_a_new_column():
    (first, second), _ = read([{"a": 1}], [{"b": 2}])
    assert first.schema.names == ["a", "_origin"]
    assert second.schema.names == ["a", "b", "_origin"]
    assert values(second, "a") == [None]


def test_integers_widen_to_numbers_within_and_between_batches():
    (mixed,), _ = read([{"a": 1}, {"a": 1.5}])
    assert values(mixed, "a") == [1.0, 1.5]
    (first, second, third), letters = read([{"a": 1}], [{"a": 1.5}], [{"a": 2}])
    assert [b.schema.field("a").type for b in (first, second, third)] == [
        pa.int64(),
        pa.float64(),
        pa.float64(),
    ]
    assert letters == []


def test_a_value_that_contradicts_its_column_makes_its_row_a_dead_letter():
    (first, second), letters = read(
        [{"q": 0.5, "t": "x"}], [{"q": "high", "t": "y"}, {"q": 1, "t": "z"}]
    )
    assert values(first, "t") == ["x"]
    assert values(second, "t") == ["z"]
    (letter,) = letters
    assert letter.origin == "a.jsonl:2"
    assert letter.reason == "column q: expected number, got string 'high'"
    assert letter.excerpt == '{"q": "high", "t": "y"}'


def test_in_the_first_batch_the_kind_most_values_have_is_right():
    (batch,), letters = read([{"q": "n/a"}, {"q": 1}, {"q": 2}])
    assert values(batch, "q") == [1, 2]
    assert [letter.origin for letter in letters] == ["a.jsonl:1"]


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (1.5, True, "expected number, got boolean true"),
        (True, 1, "expected boolean, got number 1"),
        ("x", {"y": 1}, 'expected string, got object {"y": 1}'),
        ([1], "x", "expected list, got string 'x'"),
        ([1], ["x"], "expected number, got string 'x'"),
        ({"k": 1}, {"k": "x"}, "expected number, got string 'x'"),
    ],
)
def test_kinds_are_never_mixed_in_a_column(good, bad, reason):
    (batch,), letters = read([{"a": good}, {"a": good}, {"a": bad}])
    assert values(batch, "a") == [good, good]
    assert [letter.reason for letter in letters] == [f"column a: {reason}"]


def test_what_cannot_be_stored_is_a_dead_letter_and_the_rest_of_the_batch_is_kept():
    rows = [{"a": 1, "t": "ok"}, {"a": 2**63, "t": "ok"}, {"a": 3, "t": "\ud800"}]
    (batch,), letters = read(rows)
    assert values(batch, "a") == [1]
    assert [letter.origin for letter in letters] == ["a.jsonl:2", "a.jsonl:3"]
    assert all("cannot be stored" in letter.reason for letter in letters)
    letters[1].excerpt.encode()


def test_an_integer_that_a_double_would_round_is_not_rounded_silently():
    exact = 2**53 + 1
    (batch,), letters = read([{"a": exact}, {"a": 0.5}])
    assert values(batch, "a") == [0.5]
    assert [letter.origin for letter in letters] == ["a.jsonl:1"]


def test_objects_and_lists_are_kept_and_objects_may_gain_keys():
    (first, second), letters = read(
        [{"m": {"tags": ["x"], "n": 1}}], [{"m": {"n": 2.5, "new": True}}]
    )
    assert values(first, "m") == [{"tags": ["x"], "n": 1}]
    assert values(second, "m") == [{"tags": None, "n": 2.5, "new": True}]
    assert letters == []


def test_columns_of_only_nulls_and_empty_containers_wait_until_a_type_is_known():
    (first, second), _ = read(
        [{"a": 1, "n": None, "l": [], "o": {}, "d": {"x": []}}],
        [{"a": 2, "n": 1, "l": ["x"], "o": {"k": 1}, "d": {"x": [1]}}],
    )
    assert first.schema.names == ["a", "_origin"]
    assert second.to_pylist()[0] | {"_origin": ""} == {
        "a": 2, "n": 1, "l": ["x"], "o": {"k": 1}, "d": {"x": [1]}, "_origin": "",
    }  # fmt: skip


def test_an_empty_list_is_not_an_empty_object():
    rows = [{"a": {"x": [], "n": 1}}, {"a": {"x": {}, "n": 2}}, {"a": None}]
    (batch,), letters = read(rows)
    assert values(batch, "a") == [{"n": 1}, None]
    assert [letter.reason for letter in letters] == ["column a: expected list, got object {}"]


def test_true_among_numbers_in_a_list_is_not_made_a_number():
    (batch,), letters = read([{"a": [1.5]}, {"a": [2.5, True]}])
    assert values(batch, "a") == [[1.5]]
    assert [letter.reason for letter in letters] == ["column a: expected number, got boolean true"]


def test_a_value_nested_deeper_than_arrow_can_hold_is_a_dead_letter():
    deep = 1
    for _ in range(65):
        deep = [deep]
    (batch,), letters = read([{"b": 1}, {"a": deep}])
    assert values(batch, "b") == [1]
    assert [letter.reason for letter in letters] == ["column a: nested more than 64 deep"]


def test_a_type_settled_beforehand_is_held_against_the_first_batch():
    (batch,), letters = read([{"id": 7}, {"id": "x"}], kinds={"id": str})
    assert values(batch, "id") == ["x"]
    assert letters[0].reason == "column id: expected string, got number 7"


@pytest.mark.parametrize("name", ["_row_id", "_source", "_origin", "_version", "_row", "_key"])
def test_a_row_with_a_reserved_name_is_a_letter_and_settles_nothing(name):
    (batch,), (letter,) = read([{name: 1, "a": "text"}, {"a": 2}])
    assert values(batch, "a") == [2]
    assert letter.origin == "a.jsonl:1"
    assert letter.reason == f"the column name {name!r} is reserved; Penstock writes it itself"


@pytest.mark.parametrize("odd", [{"\ud800": 1}, {"a": {"\ud800": 1}}, {"a": {"n": {"\ud800": 1}}}])
def test_a_key_that_cannot_be_written_costs_its_row_wherever_it_stands(odd):
    (batch,), (letter,) = read([{"b": 1}, odd, {"b": 2}])
    assert values(batch, "b") == [1, 2]
    assert letter.origin == "a.jsonl:2"
    assert "cannot be stored" in letter.reason
    (letter.reason + letter.excerpt).encode()


@pytest.mark.parametrize("odd", [{"a\0b": 1}, {"o": {"a\0b": 1}}])
def test_a_zero_byte_in_a_key_costs_its_row_and_is_not_cut_off(odd):
    (batch,), (letter,) = read([{"b": 1}, odd])
    assert values(batch, "b") == [1]
    assert "cannot be stored" in letter.reason


@pytest.mark.parametrize(
    "odd", [{"B": 1}, {"c": 1, "C": 1}, {"_ROW_ID": 1}, {"o": {"K": 1}}, {"p": {"k": 1, "K": 2}}]
)
def test_a_key_that_differs_from_another_only_in_case_costs_its_row(odd):
    (first, last), (letter,) = read([{"b": 1, "o": {"k": 1}}], [odd, {"b": 2}])
    assert [values(batch, "b") for batch in (first, last)] == [[1], [2]]
    assert letter.origin == "a.jsonl:2"


def test_a_key_that_cannot_be_written_in_a_batch_of_its_own_leaves_no_trace():
    batches = [{"a": {"n": 1}}], [{"a": {"\ud800": 1}}], [{"a": {"n": 2}}]
    (first, odd, last), letters = read(*batches)
    assert len(letters) == 1
    assert odd is None
    assert [values(batch, "a") for batch in (first, last)] == [[{"n": 1}], [{"n": 2}]]


@pytest.mark.parametrize("on_stream", [True, False])
@pytest.mark.parametrize("wrap", [dict, lambda row: {"m": row}, lambda row: {"m": [row]}])
def test_one_row_of_too_many_keys_costs_itself_and_no_row_beside_it(wrap, on_stream):
    crowd = wrap({f"user{i}": 1 for i in range(MAX_FIELDS + 1)})
    (batch,), (letter,) = read([{"a": 1}, crowd, {"b": 2}], on_stream=on_stream)
    assert (values(batch, "a"), values(batch, "b")) == ([1, None], [None, 2])
    assert letter.origin == ("a.jsonl@2" if on_stream else "a.jsonl:2")
    assert f"more than {MAX_FIELDS} different keys" in letter.reason


def test_a_row_of_many_keys_leaves_room_for_small_ones_behind_it():
    crowd = {f"user{i}": 1 for i in range(MAX_FIELDS)}
    (batch,), (letter,) = read([crowd, {"a": 1}, {"b": 2}], on_stream=True)
    assert batch.num_rows == 2
    assert letter.offset == 1


@pytest.mark.parametrize("wrap", [dict, lambda row: {"m": row}])
def test_on_a_stream_keys_used_as_data_cost_their_rows_once_there_are_too_many(wrap):
    rows = [wrap({f"user{i}": 1}) for i in range(MAX_FIELDS + 2)]
    (batch,), letters = read(rows, on_stream=True)
    assert batch.num_rows == MAX_FIELDS
    assert [letter.offset for letter in letters] == [MAX_FIELDS + 1, MAX_FIELDS + 2]


def test_other_names_with_an_underscore_are_the_users():
    (batch,), _ = read([{"_id": 1}])
    assert values(batch, "_id") == [1]


@pytest.mark.parametrize("wrap", [dict, lambda row: {"m": row}, lambda row: {"m": [row]}])
def test_keys_used_as_data_are_refused_before_they_fill_memory(wrap):
    rows = [wrap({f"user{i}": 1}) for i in range(MAX_FIELDS + 1)]
    with pytest.raises(SourceError, match=f"a.jsonl: more than {MAX_FIELDS} .* 'user{MAX_FIELDS}'"):
        read(rows)


def test_a_batch_of_no_good_rows_is_none():
    (first, second), letters = read([{"a": 1}], [{"a": "x"}])
    assert first.num_rows == 1
    assert second is None
    assert len(letters) == 1
