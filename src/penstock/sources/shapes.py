"""What kind of JSON value a column holds, learned one value at a time.

Arrow can infer types too, but it makes 1.0 of true among floats and an object
of an empty list, and forgets what it has seen when the next batch comes.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

import pyarrow as pa

# Deeper than any data is by intention; Arrow itself stops at 100.
MAX_DEPTH = 64
# More are not names but data used as keys; each would become a column of its own.
MAX_FIELDS = 1_000

WORDS: dict[type, str] = {bool: "boolean", int: "number", float: "number", str: "string"}
WORDS |= {list: "list", dict: "object"}
SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}

# What a recipe may say of a column's type, under `types`.
KINDS: dict[str, type] = {"string": str, "number": float, "boolean": bool}

# What a database knows beside JSON's kinds. A time must know its zone.
WORDS |= {datetime: "time", date: "date", bytes: "bytes"}
SCALARS |= {datetime: pa.timestamp("us", "UTC"), date: pa.date32(), bytes: pa.binary()}

_NULL = type(None)


class Misfit(Exception):
    """A value that its column cannot hold."""


class TooManyKeys(Misfit):
    """Objects have so many different keys that they must be data; names one."""

    def __init__(self, name: str) -> None:
        super().__init__(f"more than {MAX_FIELDS} different keys, such as {name!r}")


class Shape:
    """The narrowest kind that holds all values shown to it so far.

    Attributes:
        kind: bool, int, float, str, list or dict; None until a value was shown.
        item: What the lists hold.
        fields: What the objects hold, by key.
    """

    __slots__ = ("fields", "item", "kind")

    def __init__(self, kind: type | None = None) -> None:
        self.kind = kind
        self.item: Shape | None = None
        self.fields: dict[str, Shape] = {}

    def copy(self) -> Shape:
        """One that can be widened without widening this."""
        twin = Shape(self.kind)
        twin.item = self.item and self.item.copy()
        twin.fields = {name: field.copy() for name, field in self.fields.items()}
        return twin

    def widen(self, value: Any, depth: int = 0) -> None:
        """Become wide enough for ``value``; an integer column becomes one of numbers.

        Raises:
            Misfit: No wider kind holds it; this shape may then be half widened.
            TooManyKeys: Objects have more than ``MAX_FIELDS`` in all.
        """
        kind = type(value)
        if kind is _NULL:
            return
        if kind is not self.kind:
            self._become(kind, value)
        if kind is not list and kind is not dict:
            return
        if depth == MAX_DEPTH:
            raise Misfit(f"nested more than {MAX_DEPTH} deep")
        if kind is list:
            self.item = self.item or Shape()
            for item in value:
                self.item.widen(item, depth + 1)
        else:
            for name, field in value.items():
                self.fields.setdefault(name, Shape()).widen(field, depth + 1)
            if len(self.fields) > MAX_FIELDS:
                raise TooManyKeys(name)

    def arrow(self) -> pa.DataType | None:
        """The Arrow type; None while only nulls and empty containers were shown.

        Parts of an object that are not known yet are left out: Delta can store
        neither a null type nor an object without fields.

        Raises:
            Misfit: Objects have keys that Delta or Arrow does not tell apart.
        """
        if self.kind is list:
            item = self.item and self.item.arrow()
            return None if item is None else pa.list_(item)
        if self.kind is dict:
            fields = [(name, field.arrow()) for name, field in self.fields.items()]
            known = [(name, type_) for name, type_ in fields if type_ is not None]
            _refuse_names([name for name, _ in known])
            return pa.struct(known) if known else None
        return None if self.kind is None else SCALARS[self.kind]

    def _become(self, kind: type, value: Any) -> None:
        if self.kind is None:
            self.kind = kind
        elif {self.kind, kind} == {int, float}:
            self.kind = float
        else:
            raise Misfit(f"expected {WORDS[self.kind]}, got {show(value)}")


def _refuse_names(names: list[str]) -> None:
    if len({name.lower() for name in names}) < len(names):
        raise Misfit(f"keys that differ only in case: {', '.join(map(repr, names))[:100]}")
    if any("\0" in name for name in names):
        raise Misfit("a key with a zero byte cannot be stored")


def show(value: Any) -> str:
    """A value in a message: its kind and its first characters."""
    shown = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return f"{WORDS[type(value)]} {shown[:60]}"
