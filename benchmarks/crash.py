"""Kills loops at random and looks whether the next one ends where an undisturbed one does.

``python benchmarks/crash.py --points 1000 --seed 1``. Each point is the moment
before one system call that changes a file of the store, of any stage, in a first
run or in a second one that promotes version 2; every fourth loop is killed again
while it recovers. Exits with 1 when any trace of a kill was left, after naming the
point. ``tests/crash/test_crash.py`` is the short form of this.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.machine import machine  # noqa: E402
from crash import watch  # noqa: E402 - found through the path set above
from crash.loops import ROUNDS, STAGES, Loops, problems  # noqa: E402
from crash.runner import Crash, Result  # noqa: E402

# Killed again after so many operations at most: inside the recovery of any stage.
AGAIN_WITHIN = 200


def main() -> int:
    """Kill, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not watch.is_possible():
        print("This kernel lets no process watch its children; nothing was measured.")
        return 0
    chance, began = random.Random(arguments.seed), time.monotonic()
    print(f"{machine()}; seed {arguments.seed}")
    loops = Loops()
    places = [(round_, stage) for round_ in ROUNDS for stage in STAGES]
    share, more = divmod(arguments.points, len(places))
    bad: list[str] = []
    print("\n| stage | points | reached | twice | problems | seconds each |")
    print("|---|---|---|---|---|---|")
    for i, (round_, stage) in enumerate(places):
        orders = list(islice(_random(loops, round_, stage, chance), share + (i < more)))
        results = loops.crash_all(round_, stage, orders) if orders else []
        wrong = problems(results)
        print(_row(f"{round_} {stage}", results, wrong), flush=True)
        bad += wrong
    loops.close()
    print(f"\n{arguments.points} points in {time.monotonic() - began:.0f} s.")
    print("\n".join([f"{len(bad)} problems:", *bad]) if bad else "No trace of any kill was left.")
    return 1 if bad else 0


def _random(loops: Loops, round_: str, stage: str, chance: random.Random) -> Iterator[Crash]:
    """One random crash after another.

    Half of them are among the different places of a stage, so that a file written in
    a thousand pieces does not hide the others; half among all operations of the run.
    """
    places, all_ = loops.stage_points(round_, stage), loops.points[round_, stage]
    while True:
        at = chance.choice(places) if chance.random() < 0.5 else chance.randint(1, len(all_))
        again = (chance.randint(1, AGAIN_WITHIN),) if chance.random() < 0.25 else ()
        yield loops.order(round_, stage, at, again)


def _row(name: str, results: list[Result], wrong: list[str]) -> str:
    cells = (
        name,
        len(results),
        sum(bool(r.killed_at) for r in results),
        sum(len(r.killed_at) > 1 for r in results),
        len(wrong),
        f"{statistics.median(r.seconds for r in results):.1f}" if results else "",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
