from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from penstock.errors import RecipeError
from penstock.tokenizer import load_tokenizer, train_tokenizer
from penstock.transforms.base import ROW_ID
from penstock.transforms.tokenize import IGNORED, Tokenize, TokenizeOptions

pytestmark = pytest.mark.slow  # importing transformers takes seconds

TEXTS = ["What does the loader do?", "It loads the rows, one after the other."] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(TEXTS), 400, None, path)
    return path


def table(*pairs: tuple[str, str]) -> pa.Table:
    return pa.table(
        {
            ROW_ID: [f"{i:032x}" for i in range(len(pairs))],
            "instruction": [one for one, _ in pairs],
            "response": [two for _, two in pairs],
        }
    )


def opened(folder: Path, max_length: int = 512) -> Tokenize:
    transform = Tokenize(TokenizeOptions(folder=folder, max_length=max_length))
    transform.open()
    return transform


def test_the_loss_is_taken_on_the_response_and_its_end_only(folder: Path) -> None:
    kept = opened(folder)(table(("What does it do?", "It loads rows."))).kept
    tokenizer = load_tokenizer(folder)
    labels = kept["labels"][0].as_py()
    learned = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(learned) == "It loads rows.<|end|>"


def test_the_prompt_is_tokenized_as_serving_will_do_it(folder: Path) -> None:
    kept = opened(folder)(table(("What does it do?", "It loads rows."))).kept
    tokenizer = load_tokenizer(folder)
    turns = [{"role": "user", "content": "What does it do?"}]
    prompt = tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    ids = kept["input_ids"][0].as_py()
    assert ids[: len(prompt)] == list(prompt)


def test_examples_that_are_too_long_are_removed_with_their_length(folder: Path) -> None:
    outcome = opened(folder, 20)(table(("Short one?", "Yes."), ("Long one?", "word " * 100)))
    assert outcome.kept.num_rows == 1
    assert outcome.removed["reason"].to_pylist() == ["longer than 20 tokens"]
    assert int(outcome.removed["evidence"][0].as_py().split()[0]) > 20


def test_no_rows_give_no_rows_of_the_same_schema(folder: Path) -> None:
    transform = opened(folder)
    some = transform(table(("What is it?", "It is.")))
    none = transform(table(("What is it?", "It is.")).slice(0, 0))
    assert none.kept.schema == some.kept.schema


def test_rows_that_write_a_control_token_are_removed_with_the_token(folder: Path) -> None:
    rows = table(
        ("Say nothing.", "No.<|end|><|user|>And now?"), ("Is 1 < 2 | 3?", "Yes: <b>1</b> < 2 | 3.")
    )
    outcome = opened(folder)(rows)
    assert outcome.kept["instruction"].to_pylist() == ["Is 1 < 2 | 3?"]
    assert outcome.removed["evidence"].to_pylist() == ["<|end|>"]


def test_a_template_that_never_ends_a_turn_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    train_tokenizer(iter(TEXTS), 400, template, tmp_path)
    with pytest.raises(RecipeError, match="ends generation"):
        opened(tmp_path)


def test_a_template_that_puts_the_response_first_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages[::-1] %}{{ m['content'] + '<|end|>' }}{% endfor %}"
    train_tokenizer(iter(TEXTS), 400, template, tmp_path)
    with pytest.raises(RecipeError, match="not the start"):
        opened(tmp_path)


def test_the_same_texts_give_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(iter(TEXTS), 400, None, tmp_path)
    name = "tokenizer.json"
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No tokenizer"):
        load_tokenizer(tmp_path)


def test_rows_in_which_one_side_says_nothing_are_removed(folder: Path) -> None:
    rows = pa.table(
        {
            ROW_ID: ["0", "1", "2"],
            "instruction": pa.array([None, "What is it?", "And then?"], pa.string()),
            "response": pa.array(["It is.", None, "Yes."], pa.string()),
        }
    )
    outcome = opened(folder)(rows)
    assert outcome.kept[ROW_ID].to_pylist() == ["2"]
    assert outcome.removed["reason"].to_pylist() == ["instruction is empty", "response is empty"]


def test_rows_of_which_the_template_leaves_nothing_to_learn_are_removed(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}"
        "{% elif m['content'] != 'nothing' %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}"
        "{% else %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    train_tokenizer(iter(TEXTS), 400, template, tmp_path)
    outcome = opened(tmp_path)(table(("What is it?", "A gate."), ("What is it?", "nothing")))
    assert outcome.kept.num_rows == 1
    assert outcome.removed["reason"].to_pylist() == ["has no token to learn"]
