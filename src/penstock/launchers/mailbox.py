"""A folder through which a launcher and its workers speak, on one host or on many.

The launcher writes the training; the first worker writes how far it is, and what it
came to; a worker that meets an error of ours writes that. The launcher holds a lock
for as long as it lives: a worker that could take it has nobody to work for, and ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from penstock import errors
from penstock.errors import PenstockError, TrainingError
from penstock.launchers.base import Report, Trained, Training

_POLL_S = 0.2
# The last line of a traceback, also one of many workers.
_ERROR = re.compile(r"(\[rank\d+\]: )?[\w.]+(Error|Exception)\b.*")
_PATHS = ("examples", "validation", "tokenizer", "checkpoints", "output")


class Mailbox:
    """One training's folder.

    Args:
        folder: Seen by the launcher and by all workers under the same name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "workers.log"
        self._lock = folder / "lock"
        self._progress = folder / "progress.jsonl"

    # -- the launcher's side -------------------------------------------------------

    @classmethod
    def beside(cls, training: Training) -> Mailbox:
        """A new one, where the training's rows are."""
        folder = training.examples.absolute().parent
        return cls(Path(tempfile.mkdtemp(prefix="workers-", dir=folder)))

    @contextmanager
    def opened(self, training: Training, report: Report) -> Iterator[None]:
        """Hand out a training; within, hand on what is reported."""
        self._write("training", {**asdict(_absolute(training))})
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = threading.Event()
            follower = threading.Thread(target=self._follow, args=(report, done), daemon=True)
            follower.start()
            try:
                yield
            finally:
                done.set()
                follower.join()

    def answer(self) -> Trained | None:
        """What the training came to; None if no worker said so.

        Raises:
            PenstockError: What a worker met.
        """
        failure = self._read("failure")
        if failure is not None:
            kind = getattr(errors, failure["kind"], TrainingError)
            error: PenstockError = kind.__new__(kind)
            # Some of our errors are made of other things than a message and a hint.
            PenstockError.__init__(error, failure["message"], failure["hint"])
            raise error
        trained = self._read("trained")
        return None if trained is None else Trained(**trained)

    def is_answered(self) -> bool:
        """Whether there is a result, or an error that would come again."""
        return self.has_failure() or self._read("trained") is not None

    def last_words(self, num_lines: int = 5) -> str:
        """The errors in what the workers printed, or else the end of it."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = [line for line in lines if _ERROR.match(line)]
        return "\n".join(list(dict.fromkeys(said or lines))[-num_lines:])

    def _follow(self, report: Report, done: threading.Event) -> None:
        place, last = 0, False
        while not last:
            last = done.wait(_POLL_S)
            place = self._hand_on(report, place)

    def _hand_on(self, report: Report, place: int) -> int:
        try:
            with self._progress.open("rb") as file:
                file.seek(place)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # the rest of it is still to come
                    place += len(line)
                    report(*json.loads(line))
        except FileNotFoundError:
            pass
        return place

    # -- a worker's side -----------------------------------------------------------

    def training(self) -> Training:
        """What to train."""
        values = self._read("training")
        if values is None:
            raise TrainingError(
                f"There is no training in {self.folder}.",
                "The folder must be on a file system that all workers and the launcher share.",
            )
        known = {field.name for field in fields(Training)}
        paths = {name: Path(values[name]) for name in _PATHS if values[name] is not None}
        return Training(**{**{name: values[name] for name in known}, **paths})

    def report(self, step: int, num_steps: int, values: dict[str, float]) -> None:
        """Say how far it is."""
        with self._progress.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, num_steps, values]) + "\n")

    def deliver(self, trained: Trained) -> None:
        """Say what it came to."""
        self._write("trained", asdict(trained))

    def fail(self, error: PenstockError) -> None:
        """Say what went wrong, and would go wrong again."""
        kind = type(error).__name__
        self._write("failure", {"kind": kind, "message": error.message, "hint": error.hint})

    def has_failure(self) -> bool:
        """Whether a worker met an error that trying again cannot help."""
        return self._read("failure") is not None

    def end_with_the_launcher(self) -> None:
        """End this process when there is nobody left who waits for it."""

        def watch() -> None:
            while True:
                if self._is_abandoned():
                    os._exit(1)
                time.sleep(1.0)

        threading.Thread(target=watch, daemon=True).start()

    def _is_abandoned(self) -> bool:
        try:
            with self._lock.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # Gone with its launcher; some shared file systems have no locks.
            return isinstance(error, FileNotFoundError)
        return True

    def _write(self, name: str, values: Any) -> None:
        new = self.folder / f"{name}.{os.getpid()}"
        new.write_text(json.dumps(values, default=str), encoding="utf-8")
        os.replace(new, self.folder / f"{name}.json")

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


def _absolute(training: Training) -> Training:
    """Workers start in folders of their own."""
    paths = {name: getattr(training, name) for name in _PATHS}
    return replace(
        training, **{name: path.absolute() for name, path in paths.items() if path is not None}
    )
