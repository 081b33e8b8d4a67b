"""Following the sources: what arrives is ingested as it arrives, until a signal comes.

A follower commits rows and their positions as the ingest stage does, under the same
claim, and records no result for it: a recorded result is what a *run* speaks of. It
records only that a stream exists, before it takes anything of it, so that a later run
knows of all that the tables hold, also when the source has forgotten it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

from penstock.artifacts import Artifact
from penstock.errors import PenstockError
from penstock.ledger import Claim
from penstock.monitoring.metrics import IngestMetrics, MetricsServer
from penstock.pipeline import Pipeline
from penstock.sources.base import Unit
from penstock.stages import ingest

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# How often a stream that grows is asked where it ends. Files are read to be pinned, so
# they are looked at every `every_s` only.
LOOK_S = 1.0
# Between two turns, others (a run) can get the claim.
BREATH_S = 0.5
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0


class _Stopped(BaseException):
    """A signal came while nothing was being committed.

    It interrupts whatever a source was doing, which must not take it for an error of its own.
    """


@dataclass
class _Followed:
    """One source, and when it is looked at next."""

    name: str
    ingester: ingest.Ingester
    committed_s: float = field(default_factory=time.monotonic)
    look_s: float = 0.0
    backoff_s: float = 0.0
    complaints: set[str] = field(default_factory=set)


class Follower:
    """Ingests what arrives in a recipe's sources.

    Args:
        pipeline: The recipe with its store and ledger.
        every_rows: Commit when so many rows of a source wait, and so many at once.
        every_s: Commit after so long, if anything waits.
        metrics: Where to count.
    """

    def __init__(
        self, pipeline: Pipeline, every_rows: int, every_s: float, metrics: IngestMetrics
    ) -> None:
        self._pipeline = pipeline
        self._every_rows = every_rows
        self._every_s = every_s
        self._metrics = metrics
        self._looking = False
        self._swept = False
        self._stop = threading.Event()
        self._sources = []
        for name, source in ingest.sources(pipeline.recipe).items():
            raw, dead = ingest.tables_of(pipeline.recipe, pipeline.store, name)
            scratch = pipeline.store.root / "staging" / "follow"
            ingester = ingest.Ingester(name, source, raw, dead, scratch, every_rows)
            self._sources.append(_Followed(name, ingester))

    def run(self) -> None:
        """Follow until ``stop`` is called.

        Raises:
            PenstockError: Something is wrong that waiting does not mend.
        """
        try:
            while not self._stop.is_set():
                self.turn()
                next_s = min(one.look_s for one in self._sources)
                self._stop.wait(max(0.05, next_s - time.monotonic()))
        except _Stopped:
            return

    def stop(self) -> None:
        """End after the commit in progress."""
        self._stop.set()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal ends the follower in good order, the second one at once."""
        if self._stop.is_set():
            os._exit(128 + number)
        self.stop()
        if self._looking:
            raise _Stopped

    def turn(self) -> None:
        """Look at every source that is due, and commit what has waited long enough."""
        for one in self._sources:
            if self._stop.is_set():
                return
            if one.look_s > time.monotonic():
                continue
            try:
                self._visit(one)
            except PenstockError as error:
                if not error.transient:
                    raise
                self._back_off(one, error)
            else:
                self._recovered(one)

    def _visit(self, one: _Followed) -> None:
        units, waiting = self._look(one)
        grows = any(unit.divisible for unit in units)
        one.look_s = time.monotonic() + (min(LOOK_S, self._every_s) if grows else self._every_s)
        lag = sum(unit.position - unit.after for unit in waiting if unit.divisible)
        whole = any(not unit.divisible for unit in waiting)
        waited_s = time.monotonic() - one.committed_s
        if whole or lag >= self._every_rows or (waiting and waited_s >= self._every_s):
            self._commit(one, units, waiting)

    def _look(self, one: _Followed) -> tuple[list[Unit], list[Unit]]:
        """All units of a source, and those that are not ingested up to their ends."""
        recipe, store = self._pipeline.recipe, self._pipeline.store
        with self._interruptible():
            seen = self._seen()
            units = ingest.snapshot(recipe, store, one.name, one.ingester.source, seen)
            units = one.ingester.standing(units)
        self._show(one, units)
        return units, [unit for unit in units if unit.after < unit.position]

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def _seen(self) -> Artifact | None:
        return self._pipeline.ledger.latest(self._pipeline.recipe.name, ingest.STAGE.name)

    def _commit(self, one: _Followed, units: Sequence[Unit], waiting: Sequence[Unit]) -> None:
        """Take what waits, for a while; what is left is taken in the next turn."""
        claim = self._claim()
        if claim is None:
            one.look_s = time.monotonic() + BREATH_S  # a run is ingesting
            return
        with claim:
            known = not self._unknown(one, units)
            if known:
                with self._swept_and_staged(one):
                    self._take(one, waiting)
        if not known:
            self._make_known(one, units)
            one.look_s = 0.0

    def _claim(self) -> Claim | None:
        return self._pipeline.ledger.try_claim(f"{self._pipeline.recipe.name}/{ingest.STAGE.name}")

    def _unknown(self, one: _Followed, units: Sequence[Unit]) -> list[Unit]:
        """Units on streams that no recorded result knows."""
        recipe, store = self._pipeline.recipe, self._pipeline.store
        known = {unit.stream for unit in ingest.held(recipe, store, one.name, self._seen())}
        return [unit for unit in units if unit.stream not in known]

    def _make_known(self, one: _Followed, units: Sequence[Unit]) -> None:
        """Record a result that has the new streams with nothing of them ingested yet."""
        recipe, store, seen = self._pipeline.recipe, self._pipeline.store, self._seen()
        pins = {name: ingest.held(recipe, store, name, seen) for name in recipe.sources}
        new = self._unknown(one, units)
        pins[one.name] += [replace(unit, position=unit.after) for unit in new]
        self._pipeline.run(until=ingest.STAGE.name, pinned=self._pipeline.pinned(pins))

    @contextmanager
    def _swept_and_staged(self, one: _Followed) -> Iterator[None]:
        """A folder to spool in, and no trace of a follower that was killed."""
        if not self._swept:
            for followed in self._sources:
                followed.ingester.table.sweep()
                followed.ingester.dead.sweep()
            self._swept = True
        folder = self._pipeline.store.stage_folder(ingest.STAGE.name, "follow")
        one.ingester.scratch = folder / "spool"
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _take(self, one: _Followed, waiting: Sequence[Unit]) -> None:
        until_s = time.monotonic() + max(self._every_s, BREATH_S)
        for unit in waiting:
            while not self._stop.is_set() and one.ingester.take_part(unit):
                one.committed_s = time.monotonic()
                self._metrics.commits.labels(one.name).inc()
                self._metrics.committed_at.labels(one.name).set_to_current_time()
                if one.committed_s >= until_s:
                    one.look_s = one.committed_s + BREATH_S
                    return
        self._show(one, one.ingester.standing(waiting))

    def _show(self, one: _Followed, units: Sequence[Unit]) -> None:
        metrics = self._metrics
        whole = 0
        for unit in units:
            if unit.divisible:
                lag = max(0, unit.position - unit.after)
                metrics.lag.labels(one.name, unit.label).set(lag)
            else:
                whole += unit.after < unit.position
        metrics.waiting.labels(one.name).set(whole)
        metrics.rows.labels(one.name).set(one.ingester.table.count_rows())
        metrics.dead_letters.set(one.ingester.dead.count_rows())

    def _back_off(self, one: _Followed, error: PenstockError) -> None:
        """Wait longer each time, and say why once."""
        self._metrics.failures.labels(one.name).inc()
        one.backoff_s = min(LONGEST_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * one.backoff_s))
        one.look_s = time.monotonic() + one.backoff_s
        # A client words one outage in several ways, and counts milliseconds in them.
        complaint = re.sub(r"\d+", "#", error.message)
        if complaint not in one.complaints:
            one.complaints.add(complaint)
            self._pipeline.progress.say(f"{one.name}: {error.message} Trying again. {error.hint}")

    def _recovered(self, one: _Followed) -> None:
        if one.complaints:
            self._pipeline.progress.say(f"{one.name}: goes on.")
        one.complaints.clear()
        one.backoff_s = 0.0


def follow(pipeline: Pipeline, every_rows: int, every_s: float, metrics_port: int | None) -> None:
    """Follow a recipe's sources until SIGTERM or SIGINT.

    Args:
        pipeline: The recipe with its store and ledger.
        every_rows: Commit when so many rows of a source wait.
        every_s: Commit after so long, if anything waits.
        metrics_port: Where Prometheus finds the lag, on 127.0.0.1; 0 picks a free one.

    Raises:
        PenstockError: The port is taken, or a source has what no waiting mends.
    """
    metrics = IngestMetrics()
    follower = Follower(pipeline, every_rows, every_s, metrics)
    before = {number: signal.signal(number, follower.on_signal) for number in _SIGNALS}
    server = None
    try:
        if metrics_port is not None:
            server = MetricsServer(metrics, "127.0.0.1", metrics_port, "--metrics-port")
            pipeline.progress.say(f"Lag is shown on {server.url}.")
        names = ", ".join(pipeline.recipe.sources)
        pipeline.progress.say(f"Following {names}. Stop with Ctrl-C or SIGTERM.")
        follower.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if server is not None:
            server.close()
    pipeline.progress.say("Stopped. All that was begun is committed.")
