"""How often each rule passes a regression, and how often it blocks an equal model.

Evaluations are simulated as counts: on how many of n items only the candidate is
right, only the baseline is right, both are, or neither. Our gate judges the counts
with its own functions (limits, harm test, Holm, macro mean). Beside it stand

- the naive rule: block if the score dropped by more than 0.02;
- "any drop": block if the score, or any of several scores, dropped at all;
- the test of lm-eval's ``scripts/model_comparator.py``: a two-sided z-test on two
  accuracies as if they were independent, at 0.05. As a gate: block if it is
  significant and the candidate is the lower one. On several tasks: on any of them.

    python benchmarks/gate_calibration.py [--quick] [--rounds 10000] [--seed 20261124]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from scipy import special

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import machine  # noqa: E402 - found through the path set above
from penstock.gates.comparison import (  # noqa: E402
    Comparison,
    Judgement,
    judge,
    macro_mean,
    with_margin,
)
from penstock.gates.paired import (  # noqa: E402
    critical_value,
    holm,
    mcnemar_mid_p,
    tango_bounds,
)

MARGIN, ALPHA = 0.02, 0.05
BASELINE = 0.6  # the baseline's accuracy; only the z-test asks for it
ITEMS = (250, 773, 1_546, 3_246, 6_492)
DISAGREEMENT = (0.05, 0.10, 0.21, 0.42)
DIFFERENCES = (0.0, -0.01, -0.02, -0.04)
EIGHT = {
    "equal models": (0.0,) * 8,
    "each task 0.02 worse": (-0.02,) * 8,
    "one task 0.08 worse": (-0.08,) + (0.0,) * 7,
    "one task 0.04 worse": (-0.04,) + (0.0,) * 7,
}
VERDICTS = ("PASS", "INCONCLUSIVE", "BLOCK")
_AGAINST = {Judgement.HARMED, Judgement.INFERIOR}
_UNSETTLED = {Judgement.UNDECIDED, Judgement.UNTESTED}


def main() -> None:
    """Simulate, and print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=20_261_124)
    parser.add_argument("--quick", action="store_true", help="A part of the grid, 500 rounds.")
    arguments = parser.parse_args()
    rounds = 500 if arguments.quick else arguments.rounds
    began = time.monotonic()
    print(
        f"{machine()}; {rounds:,} rounds, seed {arguments.seed}, margin {MARGIN}, alpha {ALPHA}\n"
    )
    chance = np.random.default_rng(arguments.seed)
    one_task(chance, rounds, ITEMS[:2] if arguments.quick else ITEMS)
    print()
    eight_tasks(chance, rounds)
    print(f"\n{time.monotonic() - began:.0f} s")


def one_task(chance: np.random.Generator, rounds: int, items: tuple[int, ...]) -> None:
    """One task: how often each rule lets the candidate pass, over the grid."""
    print("One task. Share of candidates that pass; for the gate also those it cannot decide on.\n")
    print("| items | models disagree on | true difference | gate passes | gate cannot tell "
          "| gate blocks | naive passes | no drop passes | z-test passes |")  # fmt: skip
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for num_items in items:
        for disagreement in DISAGREEMENT:
            for difference in DIFFERENCES:
                drawn = draw(chance, rounds, num_items, disagreement, (difference,))
                shares = [*gate_shares(drawn, num_items), *other_shares(drawn, num_items)]
                cells = " | ".join(f"{share:.1%}" for share in shares)
                print(
                    f"| {num_items:,} | {disagreement:.0%} | {difference:+.2f} | {cells} |",
                    flush=True,
                )


def eight_tasks(chance: np.random.Generator, rounds: int, num_items: int = 500) -> None:
    """Eight tasks with no margins of their own: the macro mean and the harm tests."""
    print(f"Eight tasks of {num_items} items. Share of candidates that pass.\n")
    print("| truth | models disagree on | gate passes | gate cannot tell | gate blocks "
          "| naive passes | no drop passes | z-test passes |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for truth, differences in EIGHT.items():
        for disagreement in (0.10, 0.21):
            drawn = draw(chance, rounds, num_items, disagreement, differences)
            shares = [*gate_shares(drawn, num_items), *other_shares(drawn, num_items)]
            cells = " | ".join(f"{share:.1%}" for share in shares)
            print(f"| {truth} | {disagreement:.0%} | {cells} |", flush=True)


def draw(
    chance: np.random.Generator,
    rounds: int,
    num_items: int,
    disagreement: float,
    differences: tuple[float, ...],
) -> np.ndarray:
    """Counts of (only the candidate, only the baseline, both right), shape (rounds, tasks, 3)."""
    tasks = []
    for difference in differences:
        better, worse = (disagreement + difference) / 2, (disagreement - difference) / 2
        if better < 0:  # they cannot differ by more than they disagree
            better, worse = 0.0, -difference
        both = BASELINE - worse
        cells = [better, worse, both, 1 - better - worse - both]
        tasks.append(chance.multinomial(num_items, cells, size=rounds)[:, :3])
    return np.stack(tasks, axis=1)


def gate_shares(drawn: np.ndarray, num_items: int) -> list[float]:
    """How often the gate says each verdict; equal counts are judged once."""
    cases, times = np.unique(drawn[:, :, :2], axis=0, return_counts=True)
    said = dict.fromkeys(VERDICTS, 0)
    for case, count in zip(cases, times, strict=True):
        said[verdict(case, num_items)] += int(count)
    return [said[name] / len(drawn) for name in VERDICTS]


def verdict(counts: np.ndarray, num_items: int) -> str:
    """The gate's verdict on (only the candidate, only the baseline) of each task.

    Follows the rules of ``penstock.gates.decide`` for 0/1 metrics without margins of
    their own; ``tests/gates/test_calibration.py`` holds the two together.
    """
    rows = [compared(int(better), int(worse), num_items) for better, worse in counts]
    adjusted = holm([row.harm_p or 0.0 for row in rows])
    rows = [
        replace(row, task=str(i), harm_p_holm=p)
        for i, (row, p) in enumerate(zip(rows, adjusted, strict=True))
    ]
    if len(rows) == 1:
        judged = [judge(with_margin(rows[0], MARGIN, ALPHA), ALPHA)]
    else:
        macro = judge(with_margin(macro_mean(rows), MARGIN, ALPHA), ALPHA)
        judged = [macro, *(judge(row, ALPHA) for row in rows)]
    shown = {row.judgement for row in judged}
    if shown & _AGAINST:
        return "BLOCK"
    return "INCONCLUSIVE" if shown & _UNSETTLED else "PASS"


@cache
def compared(better: int, worse: int, num_items: int) -> Comparison:
    """One task's limits and harm test, from its counts."""
    lower, upper = tango_bounds(better, worse, num_items, critical_value(ALPHA))
    return Comparison(
        task="task",
        metric="acc",
        higher_is_better=True,
        is_proportion=True,
        candidate=0.0,
        baseline=0.0,
        difference=(better - worse) / num_items,
        num_items=num_items,
        better=better,
        worse=worse,
        lower=lower,
        upper=upper,
        interval_lower=lower,
        interval_upper=upper,
        standard_error=1.0,  # says how many items would do, and decides nothing
        harm_p=mcnemar_mid_p(better, worse),
    )


def other_shares(drawn: np.ndarray, num_items: int) -> list[float]:
    """How often the naive rule, "no drop" and the z-test pass."""
    better, worse, both = (drawn[:, :, k].astype(float) for k in range(3))
    difference = (better - worse) / num_items
    return [
        float((difference >= -MARGIN - 1e-12).all(axis=1).mean()),
        float((difference >= 0).all(axis=1).mean()),
        float((~z_test_blocks((both + better), (both + worse), num_items)).all(axis=1).mean()),
    ]


def z_test_blocks(candidate: np.ndarray, baseline: np.ndarray, num_items: int) -> np.ndarray:
    """Where lm-eval's comparator finds a difference, to the candidate's disadvantage."""
    accuracies = [candidate / num_items, baseline / num_items]
    # lm-eval's standard error is that of a sample: n - 1.
    variances = [p * (1 - p) / (num_items - 1) for p in accuracies]
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (accuracies[0] - accuracies[1]) / np.sqrt(variances[0] + variances[1])
    p_value = 2 * special.ndtr(-np.abs(z))
    return (p_value <= ALPHA) & (z < 0)


if __name__ == "__main__":
    main()
