"""The JSON that answers are made of, in OpenAI's shapes."""

from __future__ import annotations

import base64
import json
import time
from typing import Any, Literal

import numpy as np

from penstock.serving.backends.base import Floats
from penstock.serving.facts import Facts
from penstock.serving.response_id import ResponseKind, new_response_id
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
        facts: Told the answer's id; its token counts become the usage.
    """

    def __init__(self, kind: AnswerKind, served: ServedVersion, facts: Facts) -> None:
        self.kind = kind
        self.served = served
        self.created = int(time.time())
        response_kind: ResponseKind = "chatcmpl" if kind == "chat" else "cmpl"
        self.id = new_response_id(response_kind, served.digest, facts.unique)
        self._facts = facts
        facts.response_id = self.id

    def whole(self, text: str, finish_reason: str) -> bytes:
        """The answer as one object."""
        counts = self._usage()
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

    def usage_piece(self) -> bytes:
        """The event that ends a stream with its token counts."""
        return _event(self._frame([], self._piece_object) | {"usage": self._usage()})

    def _usage(self) -> dict[str, int]:
        return usage(self._facts.prompt_tokens, self._facts.completion_tokens)

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


def embeddings(served: ServedVersion, facts: Facts, vectors: Floats, as_base64: bool) -> bytes:
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
            "id": _new_id("emb", served, facts),
            "object": "list",
            "model": served.model,
            "data": data,
            "usage": _read(facts),
        }
    )


def short_embeddings(served: ServedVersion, facts: Facts, vectors: Floats) -> bytes:
    """The answer of the short form."""
    return to_json(
        {
            "id": _new_id("emb", served, facts),
            "model": served.model,
            "version": served.version,
            "embeddings": vectors.tolist(),
            "usage": _read(facts),
        }
    )


def ranking(
    served: ServedVersion,
    facts: Facts,
    scores: Floats,
    top_n: int | None,
    documents: list[str] | None,
) -> bytes:
    """The answer of ``/v1/rerank``, best first: Jina's fields, and Cohere's beside them.

    Args:
        served: Who answers.
        facts: Told the answer's id.
        scores: Of each document.
        top_n: So many are shown; None is all.
        documents: To be repeated in the answer; None is not.
    """
    results: list[dict[str, Any]] = []
    for index in np.argsort(-scores, kind="stable")[:top_n].tolist():
        result: dict[str, Any] = {"index": index, "relevance_score": float(scores[index])}
        if documents is not None:
            result["document"] = {"text": documents[index]}
        results.append(result)
    return to_json(
        {
            "id": _new_id("rerank", served, facts),
            "object": "list",
            "model": served.model,
            "results": results,
            "usage": _read(facts),
            "meta": {"billed_units": {"search_units": 1}},
        }
    )


def classes(served: ServedVersion, facts: Facts, scores: Floats, labels: tuple[str, ...]) -> bytes:
    """The answer of ``/v1/classify``: vLLM's fields, and Jina's beside them.

    Args:
        served: Who answers.
        facts: Told the answer's id.
        scores: Probabilities, shape (num_texts, num_labels).
        labels: What they are of.
    """
    data = []
    for index, row in enumerate(scores):
        best = int(np.argmax(row))
        probs = [float(one) for one in row]
        pairs = [{"label": name, "score": one} for name, one in zip(labels, probs, strict=True)]
        data.append(
            {
                "object": "classification",
                "index": index,
                "label": labels[best],
                "prediction": labels[best],
                "score": probs[best],
                "probs": probs,
                "num_classes": len(labels),
                "predictions": pairs,
            }
        )
    return to_json(
        {
            "id": _new_id("classify", served, facts),
            "object": "list",
            "created": int(time.time()),
            "model": served.model,
            "data": data,
            "usage": {**_read(facts), "completion_tokens": 0},
        }
    )


def _new_id(kind: ResponseKind, served: ServedVersion, facts: Facts) -> str:
    facts.response_id = new_response_id(kind, served.digest, facts.unique)
    return facts.response_id


def _read(facts: Facts) -> dict[str, int]:
    return {"prompt_tokens": facts.prompt_tokens, "total_tokens": facts.prompt_tokens}


def _base64(vector: Floats) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
