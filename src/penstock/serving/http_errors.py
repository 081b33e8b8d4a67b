"""Errors as HTTP answers, in the shape that OpenAI's clients expect.

``{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}``
"""

from __future__ import annotations

import json
import math

from penstock.errors import (
    BodyTooLarge,
    InsufficientQuota,
    InvalidKey,
    InvalidRequest,
    NotReady,
    Overloaded,
    RateLimited,
    ServingError,
)

_NOT_READY_RETRY_S = 2
# OpenAI's clients try every 429 again within seconds, unless they are told not to.
_NO_RETRY_AFTER_S = 60.0
_TYPES: dict[int | str, str] = {
    "insufficient_quota": "insufficient_quota",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


def internal_error() -> ServingError:
    """What a client sees of a bug: nothing but that it is one."""
    return ServingError("The server failed to answer; its log says why.")


def error_body(error: ServingError) -> bytes:
    """The JSON body of an error."""
    message = f"{error.message} {error.hint}".strip()
    default = "invalid_request_error" if error.status < 500 else "server_error"
    content = {
        "message": message,
        "type": _TYPES.get(error.code) or _TYPES.get(error.status, default),
        "param": error.param if isinstance(error, InvalidRequest) else None,
        "code": error.code,
    }
    return json.dumps({"error": content}).encode()


def error_headers(error: ServingError) -> dict[str, str]:
    """Headers that belong to an error."""
    headers = {"content-type": "application/json"}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, RateLimited | InsufficientQuota):
        headers |= _retry_headers(error.retry_after_s)
    if isinstance(error, InvalidKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, NotReady):
        headers["retry-after"] = str(_NOT_READY_RETRY_S)
    if isinstance(error, BodyTooLarge):
        headers["connection"] = "close"
    return headers


def _retry_headers(retry_after_s: float | None) -> dict[str, str]:
    """When to try again, and for clients that would not wait so long, that they need not try."""
    headers = {}
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    if retry_after_s is None or retry_after_s > _NO_RETRY_AFTER_S:
        headers["x-should-retry"] = "false"
    return headers
