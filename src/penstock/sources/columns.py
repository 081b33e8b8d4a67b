"""Rows as Python values -> typed Arrow batches, and a dead letter for each row that does not fit.

JSON has no schema, so types are learned: from the first batch, and from later
ones for columns they are the first to fill. A learned type only ever widens
(integer -> number, an object gains keys); a value that contradicts it makes its
row a dead letter. A column is left out of a batch until a type is known for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from penstock.errors import SourceError
from penstock.sources.base import EXCERPT_CHARACTERS, OFFSET, ORIGIN, RESERVED, DeadLetter
from penstock.sources.shapes import MAX_FIELDS, SCALARS, WORDS, Misfit, Shape, TooManyKeys

_FLAT = {*SCALARS, type(None)}
_CONVERSION_ERRORS = (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError, TypeError)


class ColumnTypes:
    """The column types of one unit, learned as its rows go by.

    Args:
        label: The unit's, for messages and origins.
        kinds: Of the columns whose type is settled beforehand: bool, int, float or str.
        on_stream: A row's place is its offset on a stream: batches and letters carry it.
            More keep coming, so keys used as data cost their rows; otherwise the unit is
            refused, since its writer is to mend it.
    """

    def __init__(
        self, label: str, kinds: Mapping[str, type] | None = None, on_stream: bool = False
    ) -> None:
        self._label = label
        self._on_stream = on_stream
        self._shapes = {name: Shape(kind) for name, kind in (kinds or {}).items()}
        self._names: dict[str, str] = {}  # each in lower case, too: Delta tells no case apart

    def batch(
        self, rows: Sequence[dict[str, Any]], places: Sequence[int | str]
    ) -> tuple[pa.RecordBatch | None, list[DeadLetter]]:
        """Turn rows into one batch.

        Args:
            rows: JSON objects.
            places: Each row's line, counted from 1, its offset, or what else says where
                in the unit it stands; shape (len(rows),).

        Returns:
            The batch, None when no row fits, and a letter for each that does not.

        Raises:
            SourceError: Keys are used as data, throughout a unit that is all there is.
        """
        letters: list[DeadLetter] = []
        while rows:
            faults = self._meet(rows)
            if not faults:
                arrays, faults = self._arrays(rows)
            if not faults:
                return self._assemble(arrays, places), letters
            letters += [self._letter(rows[i], places[i], faults[i]) for i in sorted(faults)]
            places = [place for i, place in enumerate(places) if i not in faults]
            rows = [row for i, row in enumerate(rows) if i not in faults]
        return None, letters

    def _meet(self, rows: Sequence[dict[str, Any]]) -> dict[int, str]:
        """Take in the names of new columns; which rows have one that cannot be, and why."""
        new = [n for n in dict.fromkeys(chain.from_iterable(rows)) if n not in self._names]
        if len(self._names) + len(new) <= MAX_FIELDS and not self._unusable(new):
            self._names |= {name: name.lower() for name in new}
            return {}
        faults: dict[int, str] = {}
        # Small rows first, so that one with a thousand names leaves room for those beside it.
        for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
            new = [name for name in rows[index] if name not in self._names]
            reason = self._unusable(new)
            if not reason and len(self._names) + len(new) > MAX_FIELDS:
                reason = self._crowded(TooManyKeys(new[-1]), rows[index : index + 1])
            if reason:
                faults[index] = reason
            else:
                self._names |= {name: name.lower() for name in new}
        return faults

    def _unusable(self, names: Iterable[str]) -> str:
        """Why one of these cannot be the name of a new column; empty if all can."""
        lower = set(self._names.values())
        for name in names:
            if reason := _unusable(name):
                return reason
            if name.lower() in lower:
                return f"the column name {name!r} differs from another only in case"
            lower.add(name.lower())
        return ""

    def _crowded(self, error: TooManyKeys, objects: Iterable[Any]) -> str:
        """The reason why objects have too many keys, if it is some of them that do.

        Raises:
            SourceError: None does by itself: all of them use keys as data.
        """
        if not self._on_stream and not any(map(_is_crowded, objects)):
            raise SourceError(
                f"{self._label}: {error}.",
                "Keys seem to be data here: write them as values, [{key: ..., value: ...}].",
            )
        return str(error)

    def _arrays(
        self, rows: Sequence[dict[str, Any]]
    ) -> tuple[dict[str, pa.Array | None], dict[int, str]]:
        arrays: dict[str, pa.Array | None] = {}
        faults: dict[int, str] = {}
        for name in self._names:
            values = [row.get(name) for row in rows]
            try:
                arrays[name] = self._array(name, values)
            except Misfit as misfit:
                if isinstance(misfit, TooManyKeys):
                    self._crowded(misfit, values)
                contradictions = self._contradictions(name, values)
                assert contradictions, f"column {name} fits value by value but not as a whole"
                for index, reason in contradictions.items():
                    faults.setdefault(index, f"column {name}: {reason}")
        return arrays, faults

    def _array(self, name: str, values: list[Any]) -> pa.Array | None:
        """All values as one array; None while their type is not known."""
        self._shapes[name], array = _fit(self._shapes.get(name, Shape()), values)
        return array

    def _contradictions(self, name: str, values: list[Any]) -> dict[int, str]:
        """Which values do not fit, and why.

        Where nothing is known yet, the kind most values have is right: one "n/a"
        in the first row must not condemn a column of numbers.
        """
        shape = self._shapes.get(name) or Shape(_commonest_kind(values))
        faults: dict[int, str] = {}
        # Twice: what fitted at first may not fit what the column has widened to.
        for _ in range(2):
            good = [index for index in range(len(values)) if index not in faults]
            shape = _fit_most(shape, values, good, faults)
        self._shapes[name] = shape
        return faults

    def _assemble(
        self, arrays: Mapping[str, pa.Array | None], places: Sequence[int | str]
    ) -> pa.RecordBatch:
        columns = {name: array for name, array in arrays.items() if array is not None}
        columns[ORIGIN] = pa.array([self._origin(place) for place in places], pa.string())
        if self._on_stream:
            columns[OFFSET] = pa.array(places, pa.int64())
        return pa.RecordBatch.from_pydict(columns)

    def _letter(self, row: dict[str, Any], place: int | str, reason: str) -> DeadLetter:
        text = json.dumps(row, ensure_ascii=False, default=str)
        offset = place if self._on_stream and isinstance(place, int) else None
        return DeadLetter(self._origin(place), printable(reason), printable(text), offset)

    def _origin(self, place: int | str) -> str:
        return f"{self._label}{'@' if self._on_stream else ':'}{place}"


def printable(text: str) -> str:
    """The first characters of ``text``, as text that can be stored anywhere."""
    return text[:EXCERPT_CHARACTERS].encode("utf-8", "replace").decode()


def _unusable(name: str) -> str:
    """Why no column can have this name; empty if one can."""
    if name.lower() in RESERVED:
        return f"the column name {name!r} is reserved; Penstock writes it itself"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"the column name {name!r} cannot be stored"
    return f"the column name {name!r} cannot be stored" if "\0" in name else ""


def _is_crowded(value: Any) -> bool:
    """Whether one value has more different keys than a column may have in all."""
    try:
        Shape().widen(value)
    except Misfit as misfit:
        return isinstance(misfit, TooManyKeys)
    return False


def _commonest_kind(values: Iterable[Any]) -> type:
    """The kind of most values; int stands for all numbers, since it widens."""
    words = Counter(WORDS[type(value)] for value in values if value is not None)
    return next(kind for kind, word in WORDS.items() if word == words.most_common(1)[0][0])


def _fit(shape: Shape, values: list[Any]) -> tuple[Shape, pa.Array | None]:
    """Widen a copy of ``shape`` to all values, and convert them.

    Raises:
        Misfit: They do not fit together.
    """
    wider = shape.copy()
    kinds = dict(zip(map(type, values), values, strict=True))
    # Values of one kind are all alike, but for lists and objects.
    for value in kinds.values() if kinds.keys() <= _FLAT else values:
        wider.widen(value)
    try:
        type_ = wider.arrow()
        return wider, None if type_ is None else pa.array(values, type_)
    except _CONVERSION_ERRORS as error:
        raise Misfit(f"cannot be stored: {error}") from error


def _fit_most(shape: Shape, values: list[Any], at: list[int], faults: dict[int, str]) -> Shape:
    """Find the values that do not fit, by halves: there are few among many.

    Args:
        shape: What the values before fit.
        values: A whole batch's.
        at: Which of them to look at.
        faults: Where to put the index and reason of each that does not fit.

    Returns:
        What those that do fit have widened ``shape`` to.
    """
    try:
        return _fit(shape, [values[index] for index in at])[0]
    except Misfit as misfit:
        if len(at) == 1:
            faults[at[0]] = str(misfit)
            return shape
    middle = len(at) // 2
    shape = _fit_most(shape, values, at[:middle], faults)
    return _fit_most(shape, values, at[middle:], faults)
