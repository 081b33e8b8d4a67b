"""Ingest that is killed between any two of its commits: each row is in one table, once."""

import tempfile
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.sources.base import Options, Unit
from penstock.sources.columns import ColumnTypes
from penstock.stages.ingest import Ingester
from penstock.tables import Table

BATCH = 3
# Kinds that contradict, widen and grow each other, also within objects.
VALUES = [1, 1.5, "s", {"k": 1}, {"k": "s"}, {"k": 1, "j": "s"}, {"j": 1}, {"K": 1}]


class Killed(BaseException):
    """What a process that is killed here would not live to see."""


class Streams:
    """Rows that come in on some streams; the files among them are there as a whole."""

    Options = Options

    def __init__(self):
        self.rows = {"a": [], "b": [], "file": []}

    def unit(self, name):
        if name == "file":
            return Unit(f"file of {len(self.rows[name])}", 1, name)
        return Unit(name, len(self.rows[name]) - 1, name, divisible=name == "b")

    def read(self, unit):
        on_stream = unit.label != "file"
        columns = ColumnTypes(unit.label, on_stream=on_stream)
        rows = list(enumerate(self.rows[unit.label]))
        if on_stream:
            rows = rows[unit.after + 1 : unit.position + 1]
        for start in range(0, len(rows), BATCH):
            places, values = zip(*rows[start : start + BATCH], strict=True)
            batch, letters = columns.batch([dict(value) for value in values], places)
            yield from letters
            if batch is not None:
                yield batch


class World:
    """Tables, and one process after the other that ingests into them."""

    def __init__(self, folder):
        self.folder = folder
        self.streams = Streams()
        self.table, self.dead = Table(folder / "raw"), Table(folder / "dead")
        self.sent = 0

    def arrive(self, name, values):
        self.streams.rows[name] += [{"n": str(self.sent + i), "x": v} for i, v in enumerate(values)]
        self.sent += len(values)

    def ingest(self, order, part):
        scratch = self.folder / "spool"
        taking = Ingester("s", self.streams, self.table, self.dead, scratch, part)
        for name in order:
            if self.streams.rows[name]:
                taking.take(self.streams.unit(name))

    def found(self):
        """The origins of all rows and of all letters."""
        tables = (self.table, self.dead)
        return Counter(
            origin
            for table in tables
            for batch in table.scan()
            for origin in batch["_origin"].to_pylist()
        )


@contextmanager
def killed_after(commits, monkeypatch):
    """Kill whoever makes one commit more than so many; None kills nobody."""
    left = [commits]

    def mortal(real):
        def call(table, *arguments):
            if left[0] == 0:
                raise Killed
            if left[0] is not None:
                left[0] -= 1
            return real(table, *arguments)

        return call

    with monkeypatch.context() as patch, suppress(Killed):
        for name in ("add_columns", "append_once"):
            patch.setattr(Table, name, mortal(getattr(Table, name)))
        yield


some = st.lists(st.sampled_from(VALUES), min_size=1, max_size=4)
attempts = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["a", "b"]), some),
        st.permutations(["a", "b", "file"]),
        st.integers(1, 4),
        st.sampled_from([2, 100]),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.slow
@given(file=some, attempts=attempts)
@settings(max_examples=100, deadline=None)
def test_killed_between_any_two_commits_each_row_is_in_one_table_once(file, attempts):
    monkeypatch = pytest.MonkeyPatch()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.arrive("file", file)
        for arriving, order, commits, part in attempts:
            for name, values in arriving.items():
                world.arrive(name, values)
            with killed_after(commits, monkeypatch):
                world.ingest(order, part)
        world.ingest(["a", "b", "file"], 100)
        places = {"a": "@", "b": "@", "file": ":"}
        assert world.found() == Counter(
            f"{name}{places[name]}{place}"
            for name, rows in world.streams.rows.items()
            for place in range(len(rows))
        )
