import sys
from pathlib import Path

import pyarrow as pa
import pytest

sys.path.append(str(Path(__file__).parents[1] / "serving"))

from tiny_llama import save_tokenizer

from penstock.errors import RecipeError
from penstock.transforms.labelled import Labelled, LabelledOptions


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    step = Labelled(LabelledOptions(folder=folder, text="text", label="label", max_length=12))
    step.open()
    return step


def rows(texts, labels):
    ids = [f"{number:032x}" for number in range(len(texts))]
    return pa.table({"_row_id": ids, "text": texts, "label": labels})


def test_rows_without_text_or_label_and_long_ones_are_removed_with_reasons(labelled):
    texts = ["good", " ", None, "fine", "fine too", "word " * 40]
    outcome = labelled(rows(texts, ["a", "a", "a", None, "", "b"]))
    assert outcome.kept["text"].to_pylist() == ["good"]
    found = [(row["reason"], row["evidence"]) for row in outcome.removed.to_pylist()]
    assert found[:4] == [
        ("text is empty", "blank"),
        ("text is empty", "null"),
        ("label is empty", "null"),
        ("label is empty", "blank"),
    ]
    assert found[4][0] == "longer than 12 tokens"
    assert found[4][1].endswith(" tokens")


@pytest.mark.parametrize(
    ("labels", "expected"), [([True, False], ["true", "false"]), ([3, 12], ["3", "12"])]
)
def test_labels_become_text(labelled, labels, expected):
    outcome = labelled(rows(["one", "two"], labels))
    assert outcome.kept["label"].to_pylist() == expected
    assert outcome.kept.schema.field("label").type == pa.string()


def test_an_empty_batch_has_the_same_columns(labelled):
    full = rows(["one"], [1])
    assert labelled(full.slice(0, 0)).kept.schema == labelled(full).kept.schema


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (rows(["one"], [0.5]), r"'label' is of type double"),
        (rows(["one"], [["a"]]), r"'label' is of type list"),
        (rows(["one"], ["a"]).drop_columns(["label"]), r"no column 'label'"),
        (rows([1], ["a"]), r"train\.classifier\.text"),
    ],
)
def test_columns_that_cannot_be_what_they_are_said_to_be_are_refused(labelled, table, said):
    with pytest.raises(RecipeError, match=said):
        labelled(table)
