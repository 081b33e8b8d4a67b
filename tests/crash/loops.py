"""Loops to kill: made once, stage after stage, with every point at which they can die."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tiny_project
from crash.runner import STORE, Crash, Result, _result_of
from crash.watch import Point

# "baseline" is left out: it is evaluate again, and gate's loops run through it.
STAGES = ("ingest", "validate", "prepare", "train", "evaluate", "gate", "register", "deploy")
ROUNDS = ("first", "second")
# What makes something visible to the next loop: names, and SQLite's transactions.
_COMMITS = ("rename", "renameat", "renameat2", "linkat", "link", "fdatasync", "fsync", "rmdir")
_WRITES = ("openat", "open", "write", "writev", "pwrite64", "ftruncate")
_TESTS = Path(__file__).parent.parent


class Loops:
    """One project at each moment of its first two loops.

    ``first`` starts from nothing; ``second`` has more rows, so that version 2 is
    compared with version 1 and takes over. A loop of a stage starts from a copy
    of the project in which the stages before it are done.
    """

    def __init__(self) -> None:
        # In memory where that is possible: these loops wait for the disk most of the time.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = folder = Path(tempfile.mkdtemp(prefix="penstock-crash-", dir=memory))
        self._runner = subprocess.Popen(
            [sys.executable, "-m", "crash"],
            cwd=_TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.points: dict[tuple[str, str], list[Point]] = {}
        (folder / "scratch").mkdir()
        tiny_project.write_project(folder / "start")
        (folder / "start" / STORE).mkdir()
        self._import_what_a_loop_imports()
        for round_ in ROUNDS:
            for stage in STAGES:
                self._make(round_, stage)

    def close(self) -> None:
        """End the runner; worlds with problems are kept."""
        self._runner.communicate()
        scratch = self.folder / "scratch"
        for path in self.folder.iterdir():
            if path != scratch:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not any(scratch.iterdir()):
            shutil.rmtree(self.folder)

    def crash(self, round_: str, stage: str, where: Iterable[Point | int]) -> list[Result]:
        """Kill this stage's loop at each point, and see whether the next one mends it."""
        return self.crash_all(round_, stage, [self.order(round_, stage, one) for one in where])

    def crash_all(self, round_: str, stage: str, orders: list[Crash]) -> list[Result]:
        """The same for crashes that are written out."""
        answer = self._ask(
            do="crash",
            crashes=[asdict(order) for order in orders],
            wanted=str(self._report(round_, stage)),
            scratch=str(self.folder / "scratch"),
        )
        return [_result_of(item) for item in answer["results"]]

    def order(self, round_: str, stage: str, at: Point | int, again: tuple[int, ...] = ()) -> Crash:
        """A crash of this stage's loop."""
        return Crash(str(self._before(round_, stage)), _until(stage), at, again)

    def stage_points(self, round_: str, stage: str) -> list[Point]:
        """The points of a stage's own, each once; the opening of a run belongs to the first."""
        points = self.points[round_, stage]
        own = f"staging/{stage}-"
        begin = next(i for i, point in enumerate(points) if point.path.startswith(own))
        if stage == STAGES[0]:
            begin = 0
        # Of the writes to one file the first stands for all: a kill in the middle
        # of a file and one before its first byte leave the same kind of ruin.
        return [
            point
            for point in points[begin:]
            if not point.path.endswith("-shm") and (point.nth == 1 or point.call not in _WRITES)
        ]

    def chosen_points(self, round_: str, stage: str, count: int) -> list[Point]:
        """So many of a stage's points: its commits, and others evenly in between."""
        points = self.stage_points(round_, stage)
        commits = [point for point in points if point.call in _COMMITS]
        others = [point for point in points if point not in commits]
        return _evenly(commits, count // 2) + _evenly(others, count - count // 2)

    def _make(self, round_: str, stage: str) -> None:
        before, after = self._before(round_, stage), self._after(round_, stage)
        shutil.copytree(before, after)
        answer = self._ask(
            do="undisturbed",
            world=str(after),
            until=_until(stage),
            report=str(self._report(round_, stage)),
        )
        self.points[round_, stage] = [Point(**point) for point in answer["points"]]

    def _before(self, round_: str, stage: str) -> Path:
        if stage != STAGES[0]:
            return self._after(round_, STAGES[STAGES.index(stage) - 1])
        if round_ == ROUNDS[0]:
            return self.folder / "start"
        folder = self.folder / "more-rows"
        if not folder.exists():
            shutil.copytree(self._after(ROUNDS[0], STAGES[-1]), folder)
            tiny_project.write_rows(folder / "data" / "second.jsonl", 40, seed=2)
        return folder

    def _after(self, round_: str, stage: str) -> Path:
        return self.folder / f"{round_}-{stage}"

    def _report(self, round_: str, stage: str) -> Path:
        return self.folder / f"{round_}-{stage}.json"

    def _import_what_a_loop_imports(self) -> None:
        """Let a child run a loop and tell its modules; the children to come then have them."""
        trial = self.folder / "trial"
        shutil.copytree(self.folder / "start", trial)
        self._ask(do="modules", world=str(trial))
        shutil.rmtree(trial)

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        self._runner.stdin.write(json.dumps(order) + "\n")
        self._runner.stdin.flush()
        answer: dict[str, Any] = json.loads(self._runner.stdout.readline() or '{"error": "ended"}')
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def _until(stage: str) -> str | None:
    return None if stage == STAGES[-1] else stage


def _evenly(points: list[Point], count: int) -> list[Point]:
    count = min(count, len(points))
    return [points[(2 * i + 1) * len(points) // (2 * count)] for i in range(count)]


def problems(results: Iterable[Result]) -> list[str]:
    """What was not as it should be, one line for each."""
    return [
        f"killed at {', '.join(map(str, result.killed_at))}: {problem}"
        for result in results
        for problem in result.problems
    ]
