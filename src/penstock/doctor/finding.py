"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: What was looked at.
        state: ``fail`` keeps the project from working; ``warn`` may, one day.
        found: What there is, without any secret.
        todo: What to do about it; empty where nothing is to be done.
    """

    check: str
    state: State
    found: str
    todo: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, todo: str) -> Finding:
    """It works, and may not do so for long."""
    return Finding(check, "warn", found, todo)


def fail(check: str, found: str, todo: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", found, todo)
