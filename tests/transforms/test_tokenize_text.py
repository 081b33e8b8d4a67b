from pathlib import Path

import pyarrow as pa
import pytest

from penstock.errors import RecipeError
from penstock.tokenizer import load_tokenizer, train_tokenizer
from penstock.transforms.base import ROW_ID
from penstock.transforms.tokenize_text import TokenizeText, TokenizeTextOptions

pytestmark = pytest.mark.slow  # importing transformers takes seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(["It loads the rows, one after the other."] * 20), 400, None, path)
    return path


def run(folder: Path, *texts):
    ids = [str(i) for i in range(len(texts))]
    rows = pa.table({ROW_ID: pa.array(ids, "string"), "text": pa.array(texts, "string")})
    transform = TokenizeText(TokenizeTextOptions(folder=folder, column="text"))
    transform.open()
    return transform(rows)


def test_every_token_is_learned_and_a_document_ends_in_the_end_token(folder):
    kept = run(folder, "It loads rows.", "word " * 2000).kept
    tokenizer = load_tokenizer(folder)
    for row in kept.to_pylist():
        assert row["labels"] == row["input_ids"]
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        assert row["input_ids"].count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(row["input_ids"][:-1]) == row["text"]


def test_rows_without_text_and_with_forged_ends_are_removed(folder):
    outcome = run(folder, "good", None, " ", "a<|end|>b")
    assert outcome.kept[ROW_ID].to_pylist() == ["0"]
    removed = [(e[ROW_ID], e["reason"], e["evidence"]) for e in outcome.removed.to_pylist()]
    assert removed == [
        ("1", "text is empty", "null"),
        ("2", "text is empty", "blank"),
        ("3", "holds a control token", "<|end|>"),
    ]


def test_no_rows_give_no_rows_of_the_same_schema(folder):
    assert run(folder).kept.schema == run(folder, "some").kept.schema


def test_a_column_that_is_not_there_or_holds_no_text_is_an_error(folder):
    transform = TokenizeText(TokenizeTextOptions(folder=folder, column="body"))
    transform.open()
    with pytest.raises(RecipeError, match="no column 'body'"):
        transform(pa.table({ROW_ID: ["1"], "text": ["a"]}))
    with pytest.raises(RecipeError, match="not text"):
        transform(pa.table({ROW_ID: ["1"], "body": [1]}))
