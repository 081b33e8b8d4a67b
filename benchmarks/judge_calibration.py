"""How often a judge is let count, what one order of a pair decides, and when quality alarms.

Simulated judges and people. Ours is what the package computes; beside it stand the rules
that one would write first.

    python benchmarks/judge_calibration.py [--quick] [--rounds 2000] [--seed 20261128]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import hypergeom

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import machine  # noqa: E402 - found through the path set above
from penstock.gates.agreement import Standing, calibrate  # noqa: E402
from penstock.gates.quality import GoodShare, Preference, looks, worse_p  # noqa: E402

MIN_KAPPA, ALPHA = 0.4, 0.05
LABELS = (50, 100, 200, 400)
KAPPAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
GOOD = (0.5, 0.85)  # of the answers, as people see them
BIASES = (0.0, 0.5, 1.0, 2.0)
# A judge calls a tie what it sees as closer than this; its noise has the standard deviation 1.
TIE = 0.25
BEFORE, AFTER, SHARE = 300, 3_200, 0.8
DROPS = (0.0, 0.05, 0.1, 0.2)


def main() -> None:
    """Simulate, and print three Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=20_261_128)
    parser.add_argument("--quick", action="store_true", help="100 rounds.")
    arguments = parser.parse_args()
    rounds = 100 if arguments.quick else arguments.rounds
    random = np.random.default_rng(arguments.seed)
    began = time.monotonic()
    print(f"{machine()}; {rounds:,} rounds, seed {arguments.seed}\n")
    print_counting(random, rounds)
    print_pairs(random, rounds)
    print_alarms(random, rounds)
    print(f"\n{time.monotonic() - began:.0f} s")


def print_counting(random: np.random.Generator, rounds: int) -> None:
    """How often a judge of a known kappa is let count."""
    print("| true kappa | good answers |" + "".join(f" {n} labels |" for n in LABELS)
          + " kappa >= 0.4 alone, 100 labels |")  # fmt: skip
    print("|---|---|" + "---|" * (len(LABELS) + 1))
    for kappa in KAPPAS:
        for good in GOOD:
            both = joint(kappa, good)
            cells = []
            for num in LABELS:
                tables = random.multinomial(num, both.ravel(), rounds).reshape(-1, 2, 2)
                found = [calibrate(one, LABELS[0], MIN_KAPPA) for one in tables]
                cells.append(np.mean([one.standing is Standing.COUNTS for one in found]))
                if num == 100:
                    alone = np.mean([(one.kappa.value or 0) >= MIN_KAPPA for one in found])
            shown = "".join(f" {cell:.1%} |" for cell in [*cells, alone])
            print(f"| {kappa:g} | {good:.0%} |{shown}")


def joint(kappa: float, good: float) -> np.ndarray:
    """How often judge and people say bad or good, if both say good equally often."""
    margins = np.array([1 - good, good])
    return np.outer(margins, margins) * (1 - kappa) + np.diag(margins) * kappa


def print_pairs(random: np.random.Generator, rounds: int) -> None:
    """What a judge that likes the first place decides, in one order and in both."""
    print("\n| liking for the first | equal pairs decided: one order | both |"
          " better by 1: right, one order | wrong | right, both | wrong |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for bias in BIASES:
        cells = []
        for better_by in (0.0, 1.0):
            first = verdicts(better_by + bias + random.standard_normal(rounds))
            second = 1 - verdicts(-better_by + bias + random.standard_normal(rounds))
            # In one order, who stands first is drawn: an honest use of a single question.
            one = np.where(random.random(rounds) < 0.5, first, second)
            found = Preference.of(zip(first.tolist(), second.tolist(), strict=True))
            both = found.wins / rounds, found.losses / rounds
            if better_by == 0:
                cells += [np.mean(one != 0.5), sum(both)]
            else:
                cells += [np.mean(one == 1), np.mean(one == 0), *both]
        print(f"| {bias:g} |" + "".join(f" {cell:.1%} |" for cell in cells))


def verdicts(seen: np.ndarray) -> np.ndarray:
    """1 for the first, 0 for the second, 0.5 for a tie."""
    return np.where(np.abs(seen) < TIE, 0.5, (seen > 0).astype(float))


def print_alarms(random: np.random.Generator, rounds: int) -> None:
    """How often quality alarms after a promotion, and after how many answers."""
    print(f"\n| good before {SHARE:.0%}, after | alarm within {AFTER:,} judged answers |"
          " answers until then, median | a test at 5 % every 50 answers |")  # fmt: skip
    print("|---|---|---|---|")
    for drop in DROPS:
        sizes, naive = [], []
        for _ in range(rounds):
            before = int(np.sum(random.random(BEFORE) < SHARE))
            after = np.cumsum(random.random(AFTER) < SHARE - drop)
            sizes.append(alarm_at(before, after))
            ends = np.arange(50, AFTER + 1, 50)
            good = after[ends - 1]
            p = hypergeom.cdf(good, BEFORE + ends, before + good, ends)
            naive.append(bool((p <= ALPHA).any()))
        found = [size for size in sizes if size is not None]
        median = f"{np.median(found):.0f}" if len(found) > rounds / 2 else "-"
        share = len(found) / rounds
        print(f"| {SHARE - drop:.0%} | {share:.1%} | {median} | {np.mean(naive):.1%} |")


def alarm_at(before: int, after: np.ndarray) -> int | None:
    """After how many answers there is an alarm, by the package's looks."""
    past = GoodShare(before, BEFORE, 0.0, 1.0)
    for size, level in looks(len(after), ALPHA):
        if worse_p(past, GoodShare(int(after[size - 1]), size, 0.0, 1.0)) <= level:
            return size
    return None


if __name__ == "__main__":
    main()
