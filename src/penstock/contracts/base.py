"""What a contract engine is: rules in, failing rows out.

It sees rows in pieces and holds only the failing ones. To add an engine, write
one file with a class like ``Contract`` and one line in ``registry.BUILTIN``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa


@dataclass(frozen=True)
class Rule:
    """One expectation: its name in Great Expectations' terms, and its arguments."""

    name: str
    kwargs: Mapping[str, Any]

    @property
    def column(self) -> str | None:
        """The column it looks at, if it looks at one."""
        column = self.kwargs.get("column")
        return None if column is None else str(column)

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.kwargs.items())
        return f"{self.name}({arguments})"


@dataclass
class Finding:
    """What became of one rule over all rows.

    Attributes:
        rule: The rule.
        num_rows: Rows it looked at.
        failing: Row id -> the value that failed, as text of at most 200 characters.
        observed: For a rule about a whole column: what was observed.
        is_met: Whether the rule as a whole holds.
    """

    rule: Rule
    num_rows: int = 0
    failing: dict[str, str] = field(default_factory=dict)
    observed: str = ""
    is_met: bool = True


class Contract(Protocol):
    """Checks rows against rules."""

    def __init__(self, rules: list[Rule]) -> None: ...

    def check(self, source: str, rows: Iterable[pa.Table]) -> list[Finding]:
        """Check one source's rows, given in pieces with ``_row_id`` and the rules' columns.

        Raises:
            RecipeError: A rule does not exist or its arguments do not fit it.
        """
        ...

    def write_report(self, path: Path) -> None:
        """Write a page about everything checked so far."""
        ...
