"""How often a rollout's comparison takes back an equal challenger, and how soon a worse one.

Streams of requests are simulated side by side, and judged by the arithmetic of
``penstock.gates.sequential``, written for many streams at once
(``tests/gates/test_sequential.py`` holds the two together). It looks after every
request. Beside it stands what dashboards do: a z-test per signal on all requests so
far (errors, form, mean log latency, score), at a quarter of alpha each, at every 100th request.

    python benchmarks/rollout_calibration.py [--quick] [--streams 2000] [--seed 20261127]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import machine  # noqa: E402 - found through the path set above
from benchmarks.rollout_streams import (  # noqa: E402
    Comparisons,
    Requests,
    Source,
    World,
    ZTests,
)
from penstock.gates.rollout_policy import RolloutPolicy, Tolerance  # noqa: E402
from penstock.gates.sequential import Arm, Comparison, Observation, decide  # noqa: E402

POLICY = RolloutPolicy(
    errors=Tolerance(harm_above=0.0, margin=0.01),
    format=Tolerance(harm_above=0.0, margin=0.02),
    latency=Tolerance(harm_above=1.0, margin=1.3),
    score=Tolerance(harm_above=0.0, margin=0.05),
)
# (share, requests): the schedule of the null streams. At 100 % there is nothing to compare.
STEPS = ((0.01, 6_000), (0.05, 6_000), (0.25, 8_000), (1.0, 1_000))
CHUNK = 250


@dataclass
class Found:
    """What came of a world's streams, arrays of shape (streams,).

    Attributes:
        harm: Requests of the challenger since harm began, at rollback; NaN if never.
        good: Requests of the challenger when it was first good; NaN if never.
        naive: Whether the z-tests ever raised an alarm.
    """

    harm: np.ndarray
    good: np.ndarray
    naive: np.ndarray


def simulate(
    world: World,
    steps: tuple[tuple[float, int], ...],
    streams: int,
    seed: int,
    margins: bool = False,
    until: str = "",
) -> Found:
    """Run a world's streams; ``until`` drops a stream at its "harm" or "good"."""
    source = Source(world, np.random.default_rng(seed))
    state, naive = Comparisons(POLICY, streams, margins), ZTests(streams)
    found = Found(np.full(streams, np.nan), np.full(streams, np.nan), np.zeros(streams, bool))
    rows, before, start = np.arange(streams), np.zeros(streams, int), 0
    for number, (share, num_requests) in enumerate(steps):
        if number:
            state.begin_step()
        for first in range(0, num_requests, CHUNK):
            if not rows.size:
                return found
            requests = source.draw(start, min(CHUNK, num_requests - first), rows.size, share)
            if start + first < world.begins:
                before = state.num_challenger.copy()
            for i in range(len(requests.error)):
                evidence = state.observe(share, requests, i)
                harmed = (evidence >= 1 / POLICY.alpha) & np.isnan(found.harm[rows])
                since = state.num_challenger - before
                found.harm[rows[harmed]] = since[harmed]
                if margins:
                    good = state.shown.all(axis=0) & np.isnan(found.good[rows])
                    good &= state.num_challenger >= POLICY.min_requests
                    found.good[rows[good]] = state.num_challenger[good]
            start += len(requests.error)
            if not until:
                for part in range(0, len(requests.error), 100):
                    cut = slice(part, part + 100)
                    naive.observe(Requests(*(value[cut] for value in vars(requests).values())))
                    found.naive |= naive.alarms(POLICY.alpha)
            else:
                alive = np.isnan(getattr(found, until)[rows])
                state.keep(alive)
                rows, before = rows[alive], before[alive]
    return found


NULLS = {
    "steady": (World(), STEPS),
    "steady, always at 25 %": (World(), ((0.25, 20_000),)),
    "steady, always at 1 %": (World(), ((0.01, 20_000),)),
    "errors at 0.1 %": (World(errors=0.001), STEPS),
    "no errors, nothing invalid": (World(errors=0.0, invalid=0.0), STEPS),
    "errors in bursts, of both": (World(errors=0.001, bursts="shared"), STEPS),
    "day and night, rates rise with the share": (World(drift=True), STEPS),
    "the same, errors in bursts of both": (World(drift=True, bursts="shared"), STEPS),
    "challenger is scored twice as often, day and night": (
        World(drift=True, talkative=2.0), STEPS,
    ),
    "challenger better by half of everything": (
        World(errors=0.02, invalid=0.06, more_errors=-0.01, more_invalid=-0.03, lost_score=-0.05),
        STEPS,
    ),
}  # fmt: skip
OUTSIDE = {
    "each has outages of its own": (World(errors=0.001, bursts="own"), STEPS),
    "conversations of 10 turns, each turn observed": (World(turns=10), STEPS),
}
HARMS = {
    "errors 0.5 % -> 1.5 %": World(more_errors=0.01),
    "errors 0.5 % -> 2.5 %": World(more_errors=0.02),
    "errors 0.5 % -> 5.5 %": World(more_errors=0.05),
    "errors 0.5 % -> 100 %": World(more_errors=1.0),
    "valid form 97 % -> 92 %": World(more_invalid=0.05),
    "valid form 85 % -> 80 %": World(invalid=0.15, more_invalid=0.05),
    "score 0.75 -> 0.70, each scored": World(scored=1.0, lost_score=0.05),
    "score 0.75 -> 0.70, one in ten scored": World(lost_score=0.05),
    "latency +30 %, all of it": World(latency="all"),
    "p99 +30 %, median unchanged": World(latency="tail"),
    "p50 +30 %, p99 unchanged": World(latency="body"),
    "errors +2 points from request 12,000": World(more_errors=0.02, begins=12_000),
    "p99 +30 % from request 12,000": World(latency="tail", begins=12_000),
}
MARGINS = {
    "equal": World(scored=1.0),
    "equal, one in ten scored": World(),
    "errors +1 point": World(scored=1.0, more_errors=0.01),
    "valid form -2 points": World(scored=1.0, more_invalid=0.02),
    "latency +30 %": World(scored=1.0, latency="all"),
    "score -5 points": World(scored=1.0, lost_score=0.05),
}


def main() -> None:
    """Simulate, and print three Markdown tables and what a request costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=20_261_127)
    parser.add_argument("--quick", action="store_true", help="200 streams of each kind.")
    arguments = parser.parse_args()
    streams = 200 if arguments.quick else arguments.streams
    began = time.monotonic()
    print(f"{machine()}; seed {arguments.seed}, alpha {POLICY.alpha}\n")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        false_rollbacks(pool, streams, arguments.seed)
        power(pool, max(100, streams // 5), arguments.seed)
        good(pool, max(200, streams // 4), arguments.seed)
    cost(arguments.seed)
    print(f"\n{time.monotonic() - began:.0f} s")


def cost(seed: int, num: int = 20_000) -> None:
    """Processor time of one observation and its decision, in the code that serves."""
    drawn = Source(World(scored=1.0), np.random.default_rng(seed)).draw(0, num, 1, 0.25)
    seen = [
        Observation(
            Arm.CHALLENGER if challenger else Arm.CHAMPION,
            0.25,
            0,
            error,
            None if error else not invalid,
            None if error else latency_s,
            None if error else score,
        )
        for challenger, error, invalid, latency_s, score in zip(
            *(value[:, 0].tolist() for value in vars(drawn).values()), strict=True
        )
    ]
    state, began = Comparison(POLICY), time.process_time()
    for each in seen:
        state.observe(each)
        decide(state)
    spent_us = (time.process_time() - began) / num * 1e6
    print(f"\nOne request, all signals: {spent_us:.0f} µs; state: "
          f"{len(json.dumps(state.to_dict())):,} bytes of JSON.")  # fmt: skip


def upper_limit(count: int, of: int) -> float:
    """Clopper and Pearson's one-sided 95 % limit of a proportion."""
    return 1.0 if count == of else float(stats.beta.ppf(0.95, count + 1, of - count))


def false_rollbacks(pool: ProcessPoolExecutor, streams: int, seed: int) -> None:
    """Challengers that are not worse: how often they are ever taken back."""
    print(f"Challengers that are not worse, {streams:,} streams each: taken back.\n")
    print("| world | Penstock, at every request | 95 % limit | z-tests, at every 100th |")
    print("|---|---:|---:|---:|")
    rows = {**NULLS, **OUTSIDE}
    jobs = [pool.submit(simulate, world, steps, streams, seed) for world, steps in rows.values()]
    for name, job in zip(rows, jobs, strict=True):
        found = job.result()
        count = int((~np.isnan(found.harm)).sum())
        note = " (outside the assumptions)" if name in OUTSIDE else ""
        print(
            f"| {name}{note} | {count / streams:.1%} | {upper_limit(count, streams):.1%} "
            f"| {found.naive.mean():.1%} |",
            flush=True,
        )


def power(pool: ProcessPoolExecutor, streams: int, seed: int) -> None:
    """Worse challengers: after how many of their requests they are taken back."""
    print(f"\nWorse challengers, {streams:,} streams each: requests they answered before they "
          "were taken back, of up to 10,000.\n")  # fmt: skip
    print("| harm | share | taken back | median | 90 % |")
    print("|---|---:|---:|---:|---:|")
    rows = [(name, share) for name in HARMS for share in (0.05, 0.25)]
    jobs = []
    for name, share in rows:
        steps: tuple[tuple[float, int], ...] = ((share, int(10_000 / share)),)
        if HARMS[name].begins:
            steps = (*STEPS[:2], *steps)
        jobs.append(pool.submit(simulate, HARMS[name], steps, streams, seed, until="harm"))
    for (name, share), job in zip(rows, jobs, strict=True):
        print(f"| {name} | {share:.0%} | {counted(job.result().harm)} |", flush=True)


def counted(requests: np.ndarray) -> str:
    """Share of streams with a number, their median and ninth decile (of all streams)."""
    known = np.sort(np.where(np.isnan(requests), np.inf, requests))
    cells = [known[int(at * (len(known) - 1))] for at in (0.5, 0.9)]
    shown = ["-" if math.isinf(cell) else f"{cell:,.0f}" for cell in cells]
    return f"{np.isfinite(known).mean():.1%} | {shown[0]} | {shown[1]}"


def good(pool: ProcessPoolExecutor, streams: int, seed: int) -> None:
    """How often and when a step ends well, with a margin for each signal."""
    print(f"\nOne step at 25 % of up to 20,000 requests, {streams:,} streams each: good.\n")
    print("| challenger | good | median | 90 % |")
    print("|---|---:|---:|---:|")
    step = ((0.25, 20_000),)
    jobs = [
        pool.submit(simulate, world, step, streams, seed, margins=True, until="good")
        for world in MARGINS.values()
    ]
    for name, job in zip(MARGINS, jobs, strict=True):
        print(f"| {name} | {counted(job.result().good)} |", flush=True)


if __name__ == "__main__":
    main()
