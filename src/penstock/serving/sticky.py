"""Where a conversation falls among those who share the traffic; the same each time."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import TypeVar

Choice = TypeVar("Choice", bound=str)


def place(conversation: str | None, salt: str) -> float:
    """A number in [0, 1), equal for equal arguments; at random without a conversation.

    Args:
        conversation: Its id.
        salt: What is being shared out: one conversation falls elsewhere in each.
    """
    if conversation is None:
        return random.random()  # noqa: S311 - shares traffic, protects nothing
    digest = hashlib.blake2b(f"{salt}\0{conversation}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def weighted(weights: Mapping[Choice, float], at: float) -> Choice:
    """The name whose interval holds ``at``, the intervals being as long as the weights.

    Args:
        weights: Name -> a positive number; at least one.
        at: In [0, 1).
    """
    left = at * sum(weights.values())
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return name
    return name
