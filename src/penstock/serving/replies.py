"""The JSON that answers are made of, in OpenAI's shapes."""

from __future__ import annotations

import base64
import json
import time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.serving.response_id import new_response_id
from penstock.serving.routes import ServedVersion

AnswerKind = Literal["chat", "text", "short"]
_OBJECTS = {"chat": "chat.completion", "text": "text_completion"}


def to_json(content: object) -> bytes:
    """Compact JSON; ASCII, so that no proxy can break a character."""
    return json.dumps(content, separators=(",", ":")).encode()


def usage(num_prompt_tokens: int, num_answer_tokens: int) -> dict[str, int]:
    """Token counts of an answer."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_answer_tokens,
        "total_tokens": num_prompt_tokens + num_answer_tokens,
    }


class AnswerShape:
    """Writes one answer as JSON, whole or in pieces.

    Args:
        kind: Chat, plain text or the short form.
        served: The version that answers.
        num_prompt_tokens: For the usage.
    """

    def __init__(self, kind: AnswerKind, served: ServedVersion, num_prompt_tokens: int) -> None:
        self.kind = kind
        self.served = served
        self.num_prompt_tokens = num_prompt_tokens
        self.created = int(time.time())
        self.id = new_response_id("chatcmpl" if kind == "chat" else "cmpl", served.digest)

    def whole(self, text: str, num_tokens: int, finish_reason: str) -> bytes:
        """The answer as one object."""
        counts = usage(self.num_prompt_tokens, num_tokens)
        if self.kind == "short":
            return to_json(
                {
                    "id": self.id,
                    "model": self.served.model,
                    "version": self.served.version,
                    "text": text,
                    "finish_reason": finish_reason,
                    "usage": counts,
                }
            )
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        if self.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return to_json(self._frame([choice], _OBJECTS[self.kind]) | {"usage": counts})

    def first_piece(self, with_usage: bool) -> bytes:
        """The event that opens a chat's stream; a text's stream needs none."""
        if self.kind != "chat":
            return b""
        return self._event({"delta": {"role": "assistant", "content": ""}}, None, with_usage)

    def piece(self, text: str, finish_reason: str | None, with_usage: bool) -> bytes:
        """The event for new text."""
        if self.kind == "chat":
            delta = {"content": text} if text else {}
            return self._event({"delta": delta}, finish_reason, with_usage)
        return self._event({"text": text}, finish_reason, with_usage)

    def usage_piece(self, num_tokens: int) -> bytes:
        """The event that ends a stream with its token counts."""
        counts = usage(self.num_prompt_tokens, num_tokens)
        return _event(self._frame([], self._piece_object) | {"usage": counts})

    @property
    def _piece_object(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _event(self, part: dict[str, Any], finish_reason: str | None, with_usage: bool) -> bytes:
        choice = {"index": 0, **part, "finish_reason": finish_reason, "logprobs": None}
        frame = self._frame([choice], self._piece_object)
        return _event(frame | {"usage": None} if with_usage else frame)

    def _frame(self, choices: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.model,
            "system_fingerprint": self.served.fingerprint,
            "choices": choices,
        }


END_OF_STREAM = b"data: [DONE]\n\n"


def _event(content: object) -> bytes:
    return b"data: " + to_json(content) + b"\n\n"


def embeddings_reply(
    served: ServedVersion, vectors: NDArray[np.float32], num_tokens: int, as_base64: bool
) -> bytes:
    """The answer of ``/v1/embeddings``; base64 is of little-endian float32."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _base64(vector) if as_base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    return to_json(
        {
            "id": new_response_id("emb", served.digest),
            "object": "list",
            "model": served.model,
            "data": data,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
    )


def short_embeddings_reply(
    served: ServedVersion, vectors: NDArray[np.float32], num_tokens: int
) -> bytes:
    """The answer of the short form."""
    return to_json(
        {
            "id": new_response_id("emb", served.digest),
            "model": served.model,
            "version": served.version,
            "embeddings": vectors.tolist(),
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
    )


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
