"""What clients may ask for, and what they are told when they may not.

Every field is one of four kinds. *Supported* fields are checked strictly.
*Neutral* fields are OpenAI's fields that we do not support: their neutral value
passes (``n: 1``), any other is refused, because an answer that silently ignores
``tools`` is wrong. *Harmless* fields cannot change the answer's content and are
accepted and ignored. Everything else is refused by name, as OpenAI does it, so
``max_token`` is an error and not an answer of unexpected length.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from penstock.errors import InvalidRequest
from penstock.registry import did_you_mean

HARMLESS = frozenset(
    {
        "max_tokens_per_doc",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "dimensions": (),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_MAX_STOPS = 4
_MAX_TEXTS = 2_048
_MAX_NESTING_CHARS_SHOWN = 80

Text = Annotated[str, Field(min_length=1)]
Stop = Text | Annotated[list[Text], Field(max_length=_MAX_STOPS)]
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]
TokenId = Annotated[int, Field(ge=0)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="allow", protected_namespaces=())


class StreamOptions(_Request):
    """Extras of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(_Request):
    """What chat and plain completions share."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Stop | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata = Field(default_factory=dict, max_length=16)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(_Request):
    """A piece of a message; text is the only kind we read."""

    type: Literal["text"]
    text: str


class Message(_Request):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def as_template_input(self) -> dict[str, str]:
        """The turn as chat templates read it; they know no developer role."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionRequest(Sampling):
    """``POST /v1/completions``, for one prompt: a text or its token ids."""

    model: str
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
    )

    @property
    def text_or_ids(self) -> str | list[int]:
        """The prompt; a list of one text is that text."""
        if isinstance(self.prompt, list) and isinstance(self.prompt[0], str):
            return self.prompt[0]
        return self.prompt


class _Texts(_Request):
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=_MAX_TEXTS)]

    @property
    def texts(self) -> list[str]:
        """The texts; one alone is a list of one."""
        return [self.input] if isinstance(self.input, str) else self.input


class EmbeddingRequest(_Texts):
    """``POST /v1/embeddings``."""

    model: str
    encoding_format: Literal["float", "base64"] | None = None


class ClassifyRequest(_Texts):
    """``POST /v1/classify``."""

    model: str


class Document(_Request):
    """A document as an object, as Jina's clients may send it."""

    text: Text


class _Ranking(_Request):
    query: Text
    documents: list[Text | Document] = Field(min_length=1, max_length=_MAX_TEXTS)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


class RerankRequest(_Ranking):
    """``POST /v1/rerank``."""

    model: str


class ShortGenerate(Sampling):
    """``POST /`` with ``"endpoint": "generate"``."""

    endpoint: Literal["generate"]
    model: str | None = None
    prompt: str


class ShortEmbed(_Request):
    """``POST /`` with ``"endpoint": "embed"``."""

    endpoint: Literal["embed"]
    model: str | None = None
    texts: list[Text] = Field(min_length=1, max_length=_MAX_TEXTS)


class ShortRerank(_Ranking):
    """``POST /`` with ``"endpoint": "rerank"``."""

    endpoint: Literal["rerank"]
    model: str | None = None


class ShortClassify(_Request):
    """``POST /`` with ``"endpoint": "classify"``."""

    endpoint: Literal["classify"]
    model: str | None = None
    texts: list[Text] = Field(min_length=1, max_length=_MAX_TEXTS)


Short = ShortGenerate | ShortEmbed | ShortRerank | ShortClassify
_SHORT: dict[object, type[Short]] = {
    "generate": ShortGenerate,
    "embed": ShortEmbed,
    "rerank": ShortRerank,
    "classify": ShortClassify,
}

RequestT = TypeVar("RequestT", bound=_Request)


def parse(body: bytes, shape: type[RequestT]) -> RequestT:
    """Read a request's body.

    Raises:
        InvalidRequest: The body is not JSON, or not what ``shape`` says.
    """
    fields = _json_object(body)
    return check(fields, shape)


def parse_short(body: bytes) -> Short:
    """Read a request in the short form.

    Raises:
        InvalidRequest: The body is not JSON, or none of the forms.
    """
    fields = _json_object(body)
    endpoint = fields.get("endpoint")
    if not isinstance(endpoint, str) or endpoint not in _SHORT:
        raise InvalidRequest(
            f"'endpoint' must be one of {', '.join(map(repr, _SHORT))}.",
            'Send {"endpoint": "generate", "prompt": "..."} or '
            '{"endpoint": "embed", "texts": ["..."]}.',
            "endpoint",
        )
    return check(fields, _SHORT[endpoint])


def check(fields: dict[str, Any], shape: type[RequestT]) -> RequestT:
    """Check a request's fields; null is the same as left out, as OpenAI has it.

    Raises:
        InvalidRequest: A field is wrong, unknown or not supported.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    for name in given.keys() - shape.model_fields.keys() - HARMLESS:
        _refuse_unless_neutral(name, given[name], shape)
    known = {name: value for name, value in given.items() if name in shape.model_fields}
    try:
        return shape.model_validate(known)
    except ValidationError as error:
        raise _explain(error) from None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        fields = from_json(body)
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return fields


def _refuse_unless_neutral(name: str, value: object, shape: type[BaseModel]) -> None:
    shown = name[:_MAX_NESTING_CHARS_SHOWN]
    if name not in NEUTRAL:
        raise InvalidRequest(
            f"Unknown field {shown!r}.{did_you_mean(shown, sorted(shape.model_fields))}",
            param=shown,
        )
    if not any(_same(value, neutral) for neutral in NEUTRAL[name]):
        raise InvalidRequest(f"{name!r} is not supported here.", f"Leave {name!r} out.", param=name)


def _same(value: object, neutral: object) -> bool:
    """Equal, and true is not one."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def _explain(error: ValidationError) -> InvalidRequest:
    """The first thing that is wrong, without repeating what was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # Pydantic names the branch of a union as a part of the path; clients sent no such part.
    path = [str(part) for part in first["loc"] if isinstance(part, int) or _is_field(part)]
    param = ".".join(path)
    return InvalidRequest(f"{param!r}: {first['msg']}.", param=param)


def _is_field(part: str) -> bool:
    return part.isidentifier() and part not in {"str", "int", "float", "bool"}
