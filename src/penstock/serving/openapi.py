"""What the gateway offers, as an OpenAPI document: made of what it checks requests by."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from penstock.serving import requests

_REF = "#/components/schemas/"


class Endpoint(NamedTuple):
    """One path.

    Attributes:
        path: As clients ask for it.
        summary: What it does.
        body: What a request looks like; None is a GET.
        answer: Name of the answer's schema.
        streams: The answer may be a stream of server-sent events.
    """

    path: str
    summary: str
    body: type[BaseModel] | tuple[type[BaseModel], ...] | None
    answer: str
    streams: bool = False


ENDPOINTS = (
    Endpoint("/v1/chat/completions", "Answer a conversation", requests.ChatRequest, "Answer", True),
    Endpoint("/v1/completions", "Continue a text", requests.CompletionRequest, "Answer", True),
    Endpoint("/v1/embeddings", "Embed texts", requests.EmbeddingRequest, "List"),
    Endpoint("/v1/rerank", "Order documents by relevance", requests.RerankRequest, "Ranking"),
    Endpoint("/v2/rerank", "Order documents by relevance", requests.RerankRequest, "Ranking"),
    Endpoint("/v1/classify", "Tell what texts are about", requests.ClassifyRequest, "List"),
    Endpoint(
        "/",
        "The short form of the above",
        (
            requests.ShortGenerate,
            requests.ShortEmbed,
            requests.ShortRerank,
            requests.ShortClassify,
        ),
        "Short",
    ),
    Endpoint("/v1/feedback", "Say what an answer was like", requests.FeedbackRequest, "Feedback"),
    Endpoint("/v1/models", "List what may be asked for", None, "List"),
    Endpoint("/v1/models/{name}", "One of them", None, "Model"),
)
_ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No valid API key.",
    "403": "The API key does not allow this.",
    "404": "There is no such model.",
    "405": "Another method is expected.",
    "413": "The body is too long.",
    "429": "Too many requests, or the budget is used up; see Retry-After.",
    "500": "The model failed.",
    "503": "Nothing can answer now; see Retry-After.",
    "504": "It took too long.",
}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_USAGE = _object(["prompt_tokens", "total_tokens"], prompt_tokens=_COUNT, total_tokens=_COUNT)
_ANSWERS: dict[str, dict[str, Any]] = {
    "Answer": _object(
        ["id", "object", "created", "model", "choices", "usage"],
        id=_TEXT,
        object={"enum": ["chat.completion", "text_completion"]},
        created=_COUNT,
        model=_TEXT,
        system_fingerprint=_TEXT,
        choices={"type": "array", "minItems": 1, "items": _object(["index", "finish_reason"])},
        usage=_USAGE,
    ),
    "List": _object(["object", "data"], object={"const": "list"}, data={"type": "array"}),
    "Ranking": _object(
        ["id", "model", "results", "usage"],
        results={
            "type": "array",
            "items": _object(
                ["index", "relevance_score"], index=_COUNT, relevance_score={"type": "number"}
            ),
        },
        usage=_USAGE,
    ),
    "Short": _object(["id", "model"], id=_TEXT, model=_TEXT),
    "Feedback": _object(
        ["object", "response_id", "rater", "kinds"],
        object={"const": "feedback"},
        response_id=_TEXT,
        rater=_TEXT,
        kinds={"type": "array", "minItems": 1, "items": _TEXT},
    ),
    "Model": _object(["id", "object"], id=_TEXT, object={"const": "model"}),
    "Error": _object(
        ["error"],
        error=_object(
            ["message", "type", "param", "code"],
            message=_TEXT,
            type=_TEXT,
            param={"type": ["string", "null"]},
            code=_TEXT,
        ),
    ),
}


def document(model_names: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a gateway.

    Args:
        model_names: What clients may ask for.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock",
            "version": version("penstock"),
            "description": f"Models: {', '.join(model_names)}",
        },
        "paths": {one.path: _path(one) for one in ENDPOINTS},
        "components": {
            "schemas": {**_bodies(model_names), **_ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _path(one: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF + one.answer}}}
    if one.streams:
        content["text/event-stream"] = {"schema": _TEXT}
    operation: dict[str, Any] = {
        "summary": one.summary,
        "responses": {"200": {"description": "The answer.", "content": content}, **_errors()},
    }
    if one.body is None:
        if "{name}" in one.path:
            operation["parameters"] = [
                {"name": "name", "in": "path", "required": True, "schema": _TEXT}
            ]
        return {"get": operation}
    shapes = one.body if isinstance(one.body, tuple) else (one.body,)
    refs = [{"$ref": _REF + shape.__name__} for shape in shapes]
    schema = refs[0] if len(refs) == 1 else {"oneOf": refs}
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": schema}},
    }
    return {"post": operation}


def _errors() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF + "Error"}}}
    return {status: {"description": text, "content": content} for status, text in _ERRORS.items()}


def _bodies(model_names: Sequence[str]) -> dict[str, Any]:
    """Schemas of all requests, and of what is in them."""
    shapes = {
        shape.__name__: shape
        for one in ENDPOINTS
        if one.body is not None
        for shape in (one.body if isinstance(one.body, tuple) else (one.body,))
    }
    _, made = models_json_schema(
        [(shape, "validation") for shape in shapes.values()], ref_template=_REF + "{model}"
    )
    schemas: dict[str, Any] = made["$defs"]
    for name, shape in shapes.items():
        schemas[name] = _closed(schemas[name], shape, model_names)
    return schemas


def _closed(
    schema: dict[str, Any], shape: type[BaseModel], model_names: Sequence[str]
) -> dict[str, Any]:
    """What a request may hold, and nothing else; null is the same as left out."""
    required = set(schema.get("required", ()))
    properties = {
        name: one if name in required else {"anyOf": [one, {"type": "null"}]}
        for name, one in schema["properties"].items()
    }
    if "model" in shape.model_fields:
        properties["model"] = {"enum": [*model_names, *([] if "model" in required else [None])]}
    for name, values in requests.NEUTRAL.items():
        properties.setdefault(name, {"enum": [*values, None]})
    for name in requests.HARMLESS:
        properties.setdefault(name, {})
    return {**schema, "properties": properties, "additionalProperties": False}
