"""Runs loops in forked children, so that the heavy libraries are imported once.

As a program it reads orders as JSON lines and answers each with one: it must be
a process of its own, because a process that has used Arrow, Polars or Delta has
threads, and a fork of it would wait for them for ever.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crash.watch import Outcome, Point, watched
from fork_server import HEAVY

STORE = "store"
_QUIET = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Crash:
    """One loop that is killed on its way, once or more often, and then left to finish.

    Attributes:
        template: The project's folder to start from, a copy of it.
        until: The stage up to which it runs; None runs the whole loop.
        at: Where to kill it: a point, or the how-manieth operation of all.
        again: Operations after which the next attempts are killed as well.
    """

    template: str
    until: str | None
    at: Point | int
    again: tuple[int, ...] = ()


@dataclass
class Result:
    """What a crash came to.

    Attributes:
        crash: Which one.
        killed_at: The points where it really was killed.
        problems: What was not as after a loop that was left alone; empty is good.
        resumed: What the last attempt did.
        seconds: For all attempts together.
    """

    crash: Crash
    killed_at: list[Point] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    resumed: list[Point] = field(default_factory=list)
    seconds: float = 0.0


def loop(world: Path, until: str | None, report: Path | None) -> None:
    """In a child: run a project's loop, and write down what it leaves behind."""
    import datasets

    from crash.world import state
    from penstock.pipeline import open_pipeline

    datasets.disable_progress_bars()

    os.chdir(world)
    datasets.config.HF_DATASETS_CACHE = world / "hf"
    pipeline = open_pipeline("recipe.yaml")
    try:
        pipeline.run(until=until)
    finally:
        pipeline.ledger.close()
    if report is not None:
        report.write_text(json.dumps(state(world / STORE)))


def undisturbed(world: Path, until: str | None, report: Path) -> Outcome:
    """Run a project's loop in place."""
    outcome = _attempt(world, until, report, None)
    if outcome.status != 0 or outcome.leftover:
        log = (world / "log.txt").read_text()
        raise RuntimeError(f"status {outcome.status}, {outcome.leftover}\n{log[-3000:]}")
    return outcome


def crash(order: Crash, world: Path, wanted: dict[str, Any]) -> Result:
    """Kill a loop, let the next one finish, and compare what is left with ``wanted``."""
    from crash.world import differences

    result, began = Result(order), time.monotonic()
    shutil.copytree(order.template, world)
    for stop in (order.at, *order.again):
        outcome = _attempt(world, order.until, None, stop)
        result.problems += [f"outlived the kill: {name}" for name in outcome.leftover]
        if outcome.killed_at is None:
            break
        result.killed_at.append(outcome.killed_at)
    report = world.with_suffix(".json")
    last = _attempt(world, order.until, report, None)
    result.resumed = last.points
    result.problems += [f"outlived its loop: {name}" for name in last.leftover]
    if last.status == 0:
        result.problems += differences(wanted, json.loads(report.read_text()))
        report.unlink()
    else:
        tail = (world / "log.txt").read_text()[-1500:]
        result.problems.append(f"the next run ended with status {last.status}:\n{tail}")
    if not result.problems:
        shutil.rmtree(world)
    result.seconds = time.monotonic() - began
    return result


def _attempt(world: Path, until: str | None, report: Path | None, stop: Point | int | None) -> Any:
    def work() -> None:
        log = os.open(world / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        loop(world, until, report)

    def here(point: Point, number: int) -> bool:
        return stop in (point, number)

    return watched(world / STORE, work, None if stop is None else here)


# -- the program --------------------------------------------------------------


def main() -> None:
    """Read orders until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ.update(_QUIET)
    _warm_up()
    for line in sys.stdin:
        try:
            answer = _obey(json.loads(line))
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _obey(order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "modules":
        _import(_modules_of_a_loop(Path(order["world"])))
        return {}
    if order["do"] == "undisturbed":
        outcome = undisturbed(Path(order["world"]), order["until"], Path(order["report"]))
        return {"points": [asdict(point) for point in outcome.points]}
    crashes = [_crash_of(item) for item in order["crashes"]]
    wanted = json.loads(Path(order["wanted"]).read_text())
    return {"results": [asdict(r) for r in _crash_all(crashes, Path(order["scratch"]), wanted)]}


def _crash_of(item: dict[str, Any]) -> Crash:
    at = item["at"]
    item["at"] = Point(**at) if isinstance(at, dict) else at
    return Crash(**{**item, "again": tuple(item["again"])})


def _crash_all(crashes: list[Crash], scratch: Path, wanted: dict[str, Any]) -> Iterator[Result]:
    """Share the crashes among as many processes as there are cores."""
    num_workers = min(len(crashes), os.cpu_count() or 1)
    pipes = []
    for worker in range(num_workers):
        reading, writing = os.pipe()
        if os.fork() == 0:
            with contextlib.suppress(BaseException), os.fdopen(writing, "w") as out:
                for i in range(worker, len(crashes), num_workers):
                    world = scratch / f"{i:05d}-{random.getrandbits(32):08x}"
                    out.write(json.dumps(asdict(crash(crashes[i], world, wanted))) + "\n")
                    out.flush()
            os._exit(0)
        os.close(writing)
        pipes.append(os.fdopen(reading))
    for pipe in pipes:
        with pipe:
            for line in pipe:
                yield _result_of(json.loads(line))
        os.wait()


def _result_of(item: dict[str, Any]) -> Result:
    return Result(
        crash=_crash_of(item["crash"]),
        killed_at=[Point(**point) for point in item["killed_at"]],
        problems=item["problems"],
        resumed=[Point(**point) for point in item["resumed"]],
        seconds=item["seconds"],
    )


def _warm_up() -> None:
    _import(HEAVY)
    threads = _threads()
    if threads:
        print(f"threads before the first fork: {threads}", file=sys.stderr)


def _modules_of_a_loop(world: Path) -> list[str]:
    """Run a loop in a child, and ask it what it has imported."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            loop(world, None, None)
            with os.fdopen(writing, "w") as out:
                json.dump(list(sys.modules), out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.wait()
    return [name for name in json.loads(text or "[]") if name not in sys.modules]


def _import(names: Any) -> None:
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t is not threading.main_thread()]


if __name__ == "__main__":
    main()
