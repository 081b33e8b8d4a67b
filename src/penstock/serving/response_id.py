"""Ids of answers, which say by themselves which model version gave them.

``chatcmpl-<first 16 hex of the model's digest>-<32 hex of a UUID version 7>``

Looking up an answer's lineage thus needs no record per answer: the digest
leads to the model version, and the UUID says when.
"""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from typing import Literal, NamedTuple, get_args

from penstock.errors import InvalidRequest

ResponseKind = Literal["chatcmpl", "cmpl", "emb", "rerank", "classify"]
DIGEST_PREFIX_LENGTH = 16

_KINDS: dict[str, ResponseKind] = {kind: kind for kind in get_args(ResponseKind)}
_SHAPE = re.compile(r"([a-z]+)-([0-9a-f]{16})-([0-9a-f]{32})")


class ResponseId(NamedTuple):
    """What an answer's id says.

    Attributes:
        kind: Which endpoint answered.
        digest_prefix: The first 16 hex digits of the model version's digest.
        time: When, to the millisecond.
    """

    kind: ResponseKind
    digest_prefix: str
    time: datetime


def uuid7_hex() -> str:
    """A UUID version 7 (RFC 9562) without hyphens: ordered by time, otherwise random."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return f"{value:032x}"


def new_response_id(kind: ResponseKind, digest: str, unique: str | None = None) -> str:
    """A new id for an answer of the model version with this digest.

    Args:
        kind: Which endpoint answers.
        digest: The model version's digest, 64 hex digits.
        unique: What makes it so, by ``uuid7_hex``; None makes one.
    """
    return f"{kind}-{digest[:DIGEST_PREFIX_LENGTH]}-{unique or uuid7_hex()}"


def parse_response_id(text: str) -> ResponseId:
    """Read an id that ``new_response_id`` made.

    Raises:
        InvalidRequest: The text is not such an id; the message says in what.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise InvalidRequest(
            f"{text[:200]!r} is not a response id.",
            "One looks like chatcmpl-<16 hex digits>-<32 hex digits>; copy it from an "
            "answer's 'id'.",
        )
    name, digest_prefix, unique = match.groups()
    kind = _KINDS.get(name)
    if kind is None:
        raise InvalidRequest(
            f"{text!r} is not a response id: {name!r} is none of {', '.join(_KINDS)}."
        )
    value = int(unique, 16)
    if value >> 76 & 0xF != 0x7 or value >> 62 & 0x3 != 0x2:
        raise InvalidRequest(f"{text!r} is not a response id: its last part is no UUID version 7.")
    try:
        when = datetime.fromtimestamp((value >> 80) / 1000, UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{text!r} is not a response id: its time is out of range.") from None
    return ResponseId(kind, digest_prefix, when)
