"""Rules about rows: which break them, and what is said about those."""

import json

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock import registry
from penstock.contracts.base import Rule
from penstock.contracts.rows import RowRules
from penstock.contracts.rules import PERSONAL, SECRETS
from penstock.errors import RecipeError
from penstock.recipe import Recipe
from penstock.tokenizer import load_tokenizer, train_tokenizer

RECIPE = Recipe.model_validate(
    {
        "name": "demo",
        "sources": {"files": {"type": "files", "paths": "x"}},
        "evaluate": {"tasks": ["t"]},
        "gate": {"min": {"t": 0.5}},
    }
)


def rule(name, **options):
    adapter = registry.resolve("rules", name)
    return adapter(adapter.Options.model_validate(options), RECIPE)


def faults(of, **columns):
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    return of.faults(table).to_list()


def answers(of, *texts):
    return faults(of, instruction=["ask"] * len(texts), response=pa.array(texts, pa.string()))


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot do it",
        "As an AI language model, I have no opinions.",
        "As a large language model I know nothing of today.",
        "Unfortunately, I am unable to provide that.",
        "I must decline.",
        "That violates OpenAI's policies.",
    ],
)
def test_an_answer_that_declines_is_a_refusal(text):
    (fault,) = answers(rule("refusal"), text)
    assert fault.startswith("response: says ")


@pytest.mark.parametrize(
    "text",
    [
        "I am sorry for your loss.",
        "The model is a language model.",
        "You can't help it.",
        "x" * 300 + " I'm sorry, but I can't help with that.",
        "",
        None,
    ],
)
def test_an_answer_that_does_not_decline_is_none(text):
    assert answers(rule("refusal"), text) == [None]


def test_a_phrase_of_ones_own_is_a_refusal_too():
    assert answers(rule("refusal", also=["Kein Kommentar"]), "kein kommentar!", "gern") == [
        "response: says Kein Kommentar",
        None,
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("CafÃ© au lait", r"'\xc3\xa9'"),
        ("itâ€™s", r"'\xe2\u20ac'"),
        ("a\ufffdb", r"'\ufffd'"),
        ("a\x00b", r"'\x00'"),
        ("a\x1b[31m", r"'\x1b'"),
        ("in \ufeffthe middle", r"'\ufeff'"),
    ],
)
def test_damage_is_found_and_spelled_out(text, shown):
    assert answers(rule("encoding"), text) == [f"response: holds {shown}"]


@pytest.mark.parametrize(
    "text", ["Café, naïve, Ärger, Ã la carte", "日本語", "a\tb\r\nc", "👩‍👧", None]
)
def test_text_in_other_letters_is_not_damaged(text):
    assert answers(rule("encoding"), text) == [None]


def mangled(text):
    return text.encode().decode("latin-1")


@pytest.mark.slow
@given(st.text(st.characters(min_codepoint=0xC0, max_codepoint=0xFF), min_size=1, max_size=9))
def test_latin_letters_read_as_latin_1_are_always_found(text):
    assert answers(rule("encoding"), mangled(text)) != [None]


def test_a_secret_is_told_by_its_kind_and_not_shown():
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    (fault, fine) = answers(rule("secrets"), f"use {key} here", "use a key here")
    assert fine is None
    assert "AWS" in fault
    assert key not in fault


def test_personal_data_is_told_by_kind_and_secrets_are_another_rules_matter():
    mail, key = "write to jane@example.org", "ghp_" + "a" * 36
    assert answers(rule("personal_data"), mail, key) == ["response: holds an e-mail address", None]
    assert answers(rule("personal_data", kinds=["iban"]), mail) == [None]
    assert set(SECRETS).isdisjoint(PERSONAL)


def test_a_kind_that_there_is_not_is_named():
    with pytest.raises(ValidationError, match="'passport' is not a kind"):
        rule("personal_data", kinds=["passport"])


def test_a_text_that_goes_in_circles_is_found_and_a_short_one_is_not_judged():
    text = "the same thing again and again, " * 30
    assert answers(rule("repetition"), text, "no no no no", None)[1:] == [None, None]
    assert answers(rule("repetition"), text)[0].startswith("response: ")
    prose = " ".join(f"word{i} thing{i * 7}" for i in range(60))
    assert answers(rule("repetition", min_words=10), prose) == [None]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["some words to learn from"] * 20, 300, None, folder)
    return folder


@pytest.mark.slow  # imports transformers
def test_length_is_counted_in_the_tokenizers_tokens_over_all_columns(tokenizer):
    count = len(load_tokenizer(tokenizer)("hello there")["input_ids"])
    one = rule("tokens", columns=["response"], max=count, tokenizer=str(tokenizer))
    assert answers(one, "hello there", "hello there!", None) == [
        None,
        f"{count + 1} tokens",
        "0 tokens",
    ]
    both = rule("tokens", max=count, tokenizer=str(tokenizer))
    assert answers(both, "hello there") != [None]


@pytest.mark.slow
def test_another_tokenizer_is_another_rule(tokenizer, tmp_path):
    train_tokenizer(["other words"] * 20, 300, None, tmp_path)
    one, two = (rule("tokens", max=5, tokenizer=str(folder)) for folder in (tokenizer, tmp_path))
    assert one.identity != two.identity
    assert one.identity == rule("tokens", max=9, tokenizer=str(tokenizer)).identity


def test_a_model_from_scratch_has_no_tokenizer_yet_and_a_hub_name_needs_its_commit():
    with pytest.raises(RecipeError, match="only trained later"):
        rule("tokens", max=5)
    with pytest.raises(RecipeError, match="no pinned commit"):
        rule("tokens", max=5, tokenizer="org/model")


def test_a_registered_version_is_named_as_the_base_and_not_as_a_tokenizer():
    base = {"train": RECIPE.train.model_copy(update={"base": "models:/tiny/1"})}
    adapter = registry.resolve("rules", "tokens")
    made = adapter(adapter.Options(max=5), RECIPE.model_copy(update=base))
    assert made.identity == "models:/tiny/1"
    with pytest.raises(ValidationError, match=r"taken from `train\.base` only"):
        rule("tokens", max=5, tokenizer="models:/tiny/1")


def chat(*roles):
    return [{"role": role, "content": f"{role} speaks"} for role in roles]


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        (chat("user", "assistant"), None),
        (chat("system", "user", "assistant", "user", "assistant"), None),
        (chat("user"), "ends with user, not assistant"),
        (chat("user", "user", "assistant"), "user speaks twice in a row"),
        (chat("assistant", "user", "assistant"), "begins with assistant, not user"),
        (chat("user", "assistant", "system"), "turn 2: system speaks after the start"),
        (chat("user", "robot"), "turn 1: role 'robot' is none of system, user, assistant"),
        ([{"role": "user", "content": " "}], "turn 0: user says nothing"),
        ([], "has no turn"),
        (None, "is no list of {role, content}"),
    ],
)
def test_a_chat_is_judged_by_its_turns_as_objects_and_as_json(turns, fault):
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    assert faults(rule("messages"), messages=pa.array([turns], kind)) == [fault]
    if turns is not None:
        assert faults(rule("messages"), messages=[json.dumps(turns)]) == [fault]


@pytest.mark.parametrize("text", ["not json", "[1]", '{"role": "user"}', "[" * 100_000])
def test_text_that_is_no_chat_is_said_to_be_none(text):
    assert faults(rule("messages"), messages=[text]) == ["is no list of {role, content}"]


def pair(prompt, chosen, rejected):
    columns = {"prompt": [prompt], "chosen": [chosen], "rejected": [rejected]}
    return faults(rule("preference_pair"), **columns)


def test_a_pair_needs_a_prompt_and_two_different_answers():
    assert pair("q", "good", "bad") == [None]
    assert pair("q", "good", " good ") == ["chosen and rejected are the same"]
    assert pair(" ", "good", "bad") == ["prompt is empty"]
    assert pair("q", "good", None) == ["rejected is empty"]
    assert pair("q", chat("assistant"), chat("assistant")) == ["chosen and rejected are the same"]
    assert pair("q", "good", chat("assistant")) == [
        "chosen and rejected are not both text, and not both lists of {role, content}"
    ]


def test_a_pair_without_a_prompt_column_begins_with_one():
    of = rule("preference_pair", prompt=None)
    good, bad = chat("user", "assistant"), chat("user", "assistant")
    bad[1]["content"] = "something else"
    assert faults(of, chosen=[good], rejected=[bad]) == [None]
    bad[0]["content"] = "another question"
    assert faults(of, chosen=[good], rejected=[bad]) == [
        "chosen and rejected answer different prompts"
    ]
    assert faults(of, chosen=[good], rejected=[good[:1]]) == [
        "chosen and rejected do not both end with the assistant"
    ]


def test_a_column_that_is_no_text_is_named_with_its_type():
    with pytest.raises(RecipeError, match="column 'response' is int64, not text"):
        faults(rule("refusal"), response=[1])


TEXTS = st.lists(
    st.none() | st.sampled_from(["fine", "I'm sorry, but no", "a\x00b", "to a@b.org", ""]),
    max_size=30,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(TEXTS, st.integers(1, 7))
def test_however_the_rows_are_cut_the_same_rows_fail(texts, size):
    table = pa.table(
        {
            "_row_id": [str(i) for i in range(len(texts))],
            "instruction": pa.array(["ask"] * len(texts), pa.string()),
            "response": pa.array(texts, pa.string()),
        }
    )

    def found(pieces):
        rules = [(Rule(name, {}), rule(name)) for name in ("refusal", "encoding", "personal_data")]
        return [finding.failing for finding in RowRules(rules).check("files", pieces)]

    pieces = [table.slice(start, size) for start in range(0, table.num_rows, size)]
    assert found(pieces) == found([table])


def test_the_report_quotes_rows_as_text(tmp_path):
    class Always:
        columns = ("response",)

        def faults(self, rows):
            return pl.Series(["<script>"] * rows.num_rows)

    contract = RowRules([(Rule("always", {}), Always())])
    contract.check("files", [pa.table({"_row_id": ["a"], "response": ["x"]})])
    contract.write_report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
