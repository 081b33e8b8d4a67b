"""A killed loop leaves no trace: the next one ends where an undisturbed one does.

``benchmarks/crash.py`` kills at many more places, chosen at random.
"""

import pytest

from crash import watch
from crash.loops import ROUNDS, STAGES, Loops, problems

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not watch.is_possible(), reason="needs Linux's seccomp notification"),
]
POINTS = {"first": 8, "second": 4}


@pytest.fixture(scope="module")
def loops():
    made = Loops()
    yield made
    made.close()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("round_", ROUNDS)
def test_a_loop_killed_anywhere_in_a_stage_is_finished_by_the_next(loops, round_, stage):
    points = loops.chosen_points(round_, stage, POINTS[round_])
    results = loops.crash(round_, stage, points)
    assert len(results) == len(points)
    assert not problems(results)
    # How often SQLite tidies its files up varies, so a point may not come.
    assert sum(len(r.killed_at) == 1 for r in results) >= len(points) - 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_loop_killed_again_while_it_recovers_is_finished_by_the_next(loops, stage):
    points = loops.chosen_points("first", stage, 2)
    orders = [loops.order("first", stage, point, again=(40, 60)) for point in points]
    assert not problems(loops.crash_all("first", stage, orders))


def test_a_training_continues_from_its_last_complete_checkpoint(loops):
    marks = {p.path.split("/")[2]: p for p in loops.stage_points("first", "train")
             if p.path.endswith("manifest.json") and p.call == "openat"}  # fmt: skip
    results = loops.crash("first", "train", [marks["checkpoint-4"], marks["checkpoint-6"]])
    assert not problems(results)
    made = [
        {p.path.split("/")[2] for p in r.resumed if p.call == "mkdir" and "/checkpoint-" in p.path}
        for r in results
    ]
    # The mark is the last thing that is written: killed before it, the checkpoint does not count.
    assert made == [{"checkpoint-4", "checkpoint-6"}, {"checkpoint-6"}]


def test_every_stage_is_killed_at_its_commits(loops):
    assert sum(len(loops.chosen_points(r, s, POINTS[r])) for r in ROUNDS for s in STAGES) >= 90
    for stage in STAGES:
        calls = {point.call for point in loops.chosen_points("first", stage, POINTS["first"])}
        assert calls & {"rename", "renameat", "linkat", "fdatasync", "fsync"}
