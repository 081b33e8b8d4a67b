"""A recipe's watcher as a process: put together, run until a signal comes, or once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from penstock.gates.retrain_policy import RetrainDecision
from penstock.pipeline import Pipeline
from penstock.retrain import Limits, Loop, Watch
from penstock.retrain_section import RetrainSection
from penstock.retrain_sensors import sensors
from penstock.retrain_starters import starter

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def watch_of(pipeline: Pipeline, section: RetrainSection) -> tuple[Watch, Loop]:
    """A recipe's watcher, and its loop.

    Raises:
        PenstockError: The orchestrator's part cannot be loaded.
    """
    loop = Loop(pipeline.recipe, pipeline.ledger, section.policy())
    limits = Limits(section.lost_after_s, section.max_run_s)
    runs = starter(pipeline, section.through)
    return Watch(loop, runs, sensors(pipeline, section), limits), loop


def watch_until_signal(pipeline: Pipeline, section: RetrainSection, poll_s: float) -> None:
    """Watch until SIGTERM or Ctrl-C; a run of ours is ended, and gone on with next time."""
    watch, _ = watch_of(pipeline, section)
    with _signalled() as stopped:
        watch.run(stopped.wait, poll_s)


def watch_once(
    pipeline: Pipeline, section: RetrainSection, poll_s: float
) -> RetrainDecision | None:
    """Look once; a run that is on here is seen to its end, or to its trial.

    Returns:
        What was decided first; None if another watcher is at it.

    Raises:
        LedgerError: The ledger cannot be used now.
    """
    watch, loop = watch_of(pipeline, section)
    with _signalled() as stopped:
        return watch.once(lambda: _is_over(loop, section) or stopped.wait(poll_s))


def _is_over(loop: Loop, section: RetrainSection) -> bool:
    """Whether nothing of what was begun is at work here."""
    on = loop.story().on
    if on is None or section.through != "here":
        return True
    run = loop.run_of(on.key)
    # Its version is on trial; what has ended without one is still to be written down.
    return run is not None and run.status == "SUCCEEDED" and loop.outcome(run) is None


@contextmanager
def _signalled() -> Iterator[threading.Event]:
    """An event that is set by the first signal; a second one ends the process at once."""
    stopped = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        stopped.set()

    before = [signal.signal(one, on_signal) for one in _SIGNALS]
    try:
        yield stopped
    finally:
        for one, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(one, handler)
