from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.transforms.pack import LENGTHS, PIECES, Packer, block_schema
from penstock.transforms.tokenize import IGNORED

LISTS = pa.list_(pa.int32())
ROWS = st.lists(st.integers(1, 20), max_size=25)
HOW = pytest.mark.parametrize("how", ["whole", "split"])


def table(lengths):
    """Rows whose tokens say where they are from: row 3's are 3000, 3001, ..."""
    ids = [[1000 * row + i for i in range(length)] for row, length in enumerate(lengths)]
    labels = [[IGNORED, *row[1:]] for row in ids]
    return pa.table(
        {
            "_row_id": pa.array([f"r{row}" for row in range(len(ids))], pa.string()),
            "input_ids": pa.array(ids, LISTS),
            "labels": pa.array(labels, LISTS),
        }
    )


def packed(rows, how, max_length=8, apart=True, window=40, cuts=()):
    packer = Packer(max_length, how, apart, window)
    ends = [0, *sorted(min(cut, rows.num_rows) for cut in cuts), rows.num_rows]
    out = [one for a, b in pairwise(ends) for one in packer.add(rows.slice(a, b - a))]
    out += packer.finish()
    blocks = pa.concat_tables([block_schema(apart).empty_table(), *(one.blocks for one in out)])
    return blocks, pa.concat_tables([PIECES.empty_table(), *(one.pieces for one in out)])


@pytest.mark.slow
@HOW
@settings(deadline=None)
@given(lengths=ROWS)
def test_every_token_is_in_one_place_and_that_place_is_written_down(how, lengths):
    rows = table(lengths)
    blocks, pieces = packed(rows, how)
    ids = {row["_row_id"]: row["input_ids"] for row in rows.to_pylist()}
    rebuilt = {row_id: [None] * len(tokens) for row_id, tokens in ids.items()}
    for piece in pieces.to_pylist():
        block = blocks["input_ids"][piece["block"]].as_py()
        found = block[piece["start"] : piece["start"] + piece["length"]]
        rebuilt[piece["_row_id"]][piece["first"] : piece["first"] + piece["length"]] = found
    assert rebuilt == ids
    assert pieces["length"].to_numpy().sum() == sum(lengths)


@HOW
@settings(deadline=None)
@given(lengths=ROWS)
def test_no_block_is_too_long_and_its_lengths_add_up(how, lengths):
    blocks, _ = packed(table(lengths), how)
    for block in blocks.to_pylist():
        assert 0 < len(block["input_ids"]) == len(block["labels"]) == sum(block[LENGTHS]) <= 8


@pytest.mark.slow
@HOW
@settings(deadline=None)
@given(lengths=ROWS, cuts=st.lists(st.integers(0, 25), max_size=4))
def test_however_rows_are_cut_into_batches_the_same_blocks_come_out(how, lengths, cuts):
    rows = table(lengths)
    one, other = packed(rows, how), packed(rows, how, cuts=cuts)
    assert one[0].to_pylist() == other[0].to_pylist()
    assert one[1].to_pylist() == other[1].to_pylist()


@pytest.mark.slow
@HOW
@settings(deadline=None)
@given(lengths=ROWS)
def test_kept_apart_no_row_is_learned_as_the_continuation_of_another(how, lengths):
    blocks, _ = packed(table(lengths), how)
    for block in blocks.to_pylist():
        starts = np.cumsum([0, *block[LENGTHS][:-1]])
        assert all(block["labels"][start] == IGNORED for start in starts)
        others = [i for i in range(len(block["labels"])) if i not in starts]
        assert [block["labels"][i] for i in others] == [block["input_ids"][i] for i in others]


@pytest.mark.slow
@settings(deadline=None)
@given(lengths=ROWS)
def test_rows_that_fit_a_block_stay_whole(lengths):
    _, pieces = packed(table(lengths), "whole")
    for row, length in enumerate(lengths):
        mine = [p["length"] for p in pieces.to_pylist() if p["_row_id"] == f"r{row}"]
        assert len(mine) == -(-length // 8)


@pytest.mark.slow
@settings(deadline=None)
@given(lengths=ROWS)
def test_split_fills_every_block_but_the_last(lengths):
    blocks, _ = packed(table(lengths), "split")
    sizes = [len(ids) for ids in blocks["input_ids"].to_pylist()]
    assert all(size == 8 for size in sizes[:-1])


def test_best_fit_takes_the_block_that_leaves_the_least_room():
    blocks, pieces = packed(table([5, 6, 2, 3]), "whole", window=1000)
    assert [len(ids) for ids in blocks["input_ids"].to_pylist()] == [8, 8]
    places = {p["_row_id"]: p["block"] for p in pieces.to_pylist()}
    assert places == {"r0": 0, "r3": 0, "r1": 1, "r2": 1}


def test_rows_that_see_each_other_have_labels_as_they_were_and_no_lengths():
    blocks, _ = packed(table([3, 3]), "split", apart=False)
    assert blocks.column_names == ["input_ids", "labels"]
    assert blocks["labels"][0].as_py() == [IGNORED, 1, 2, IGNORED, 1001, 1002]
    blocks, _ = packed(table([12]), "split", apart=False)
    assert blocks["labels"][1].as_py() == [8, 9, 10, 11], "the row goes on in the next block"


@HOW
def test_nothing_gives_nothing(how):
    blocks, pieces = packed(table([]), how)
    assert (blocks.num_rows, pieces.num_rows) == (0, 0)


def test_memory_is_bounded_by_the_window():
    packer = Packer(8, "whole", True, window=100)
    sizes = [one.pieces.num_rows for _ in range(50) for one in packer.add(table([10] * 10))]
    assert len(sizes) == 50
