import json

import pytest

from penstock.errors import InvalidRequest
from penstock.serving.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ShortEmbed,
    ShortGenerate,
    parse,
    parse_short,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields):
    return parse(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode(), ChatRequest)


def completion(**fields):
    return parse(json.dumps({"model": "m", "prompt": "p", **fields}).encode(), CompletionRequest)


def test_a_null_is_the_same_as_nothing():
    fields = dict.fromkeys(["max_tokens", "temperature", "stop", "tools", "user", "unheard_of"])
    assert chat(**fields) == chat()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content",
        ),
        ({"model": 3}, "model"),
    ],
)
def test_a_wrong_field_is_named(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param.startswith(param)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 1}),
        ("audio", {"voice": "a"}),
        ("web_search_options", {}),
    ],
)
def test_what_is_not_supported_is_refused_and_not_ignored(name, value):
    with pytest.raises(InvalidRequest, match=f"'{name}' is not supported") as caught:
        chat(**{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1),
        ("logprobs", False),
        ("tools", []),
        ("tool_choice", "auto"),
        ("response_format", {"type": "text"}),
        ("presence_penalty", 0.0),
        ("user", "someone"),
        ("store", True),
    ],
)
def test_what_changes_nothing_passes(name, value):
    assert chat(**{name: value}) == chat()


def test_metadata_is_kept():
    assert chat(metadata={"customer": "7"}).metadata == {"customer": "7"}


def test_a_misspelt_field_is_refused_with_the_right_spelling():
    with pytest.raises(InvalidRequest, match=r"'max_token'.*Did you mean 'max_tokens'"):
        chat(max_token=5)


def test_a_message_may_come_in_parts_and_developer_is_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat(messages=[{"role": "developer", "content": parts}])
    assert asked.messages[0].as_template_input() == {"role": "system", "content": "ab"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b'{"a": "\\ud800"}', b"[" * 100_000, b"nul"],
)
def test_what_is_not_a_json_object_is_refused(body):
    with pytest.raises(InvalidRequest, match=r"JSON"):
        parse(body, ChatRequest)


def test_errors_do_not_repeat_what_was_sent():
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=[{"role": "user", "content": {"secret": "password"}}])
    assert "password" not in caught.value.message


@pytest.mark.parametrize(
    ("prompt", "expected"), [("p", "p"), (["p"], "p"), ([1, 2], [1, 2]), ("", "")]
)
def test_a_prompt_is_text_or_token_ids(prompt, expected):
    assert completion(prompt=prompt).text_or_ids == expected


@pytest.mark.parametrize("prompt", [[], ["a", "b"], [[1], [2]], [-1], [1, "a"], 5, [1.5]])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(InvalidRequest) as caught:
        completion(prompt=prompt)
    assert caught.value.param.startswith("prompt")


@pytest.mark.parametrize("texts", ["", [], [""], [1], [[1, 2]], ["a"] * 2049])
def test_only_texts_can_be_embedded(texts):
    with pytest.raises(InvalidRequest) as caught:
        parse(json.dumps({"model": "m", "input": texts}).encode(), EmbeddingRequest)
    assert caught.value.param.startswith("input")


def test_the_short_form_has_a_shape_for_each_task():
    assert isinstance(parse_short(b'{"endpoint": "generate", "prompt": "x"}'), ShortGenerate)
    assert parse_short(b'{"endpoint": "embed", "texts": ["x"]}') == ShortEmbed(
        endpoint="embed", texts=["x"]
    )
    ranked = parse_short(b'{"endpoint": "rerank", "query": "q", "documents": ["a", {"text": "b"}]}')
    assert ranked.texts == ["a", "b"]
    assert parse_short(b'{"endpoint": "classify", "texts": ["x"]}').texts == ["x"]


@pytest.mark.parametrize("body", [b"{}", b'{"endpoint": "sing"}', b'{"endpoint": ["embed"]}'])
def test_another_short_form_is_told_which_there_are(body):
    with pytest.raises(InvalidRequest, match="one of 'generate', 'embed'"):
        parse_short(body)
