"""The simulation in benchmarks/gate_calibration.py judges as the gate does, and is calibrated."""

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import gate_calibration as calibration
from synthetic_evaluations import evaluation, metric, scores

from penstock.gates import GatePolicy, decide

N = 400


def items(better, worse):
    """Both models' answers on N items, with these numbers of disagreements."""
    candidate = np.ones(N)
    baseline = np.ones(N)
    baseline[:better] = 0
    candidate[better : better + worse] = 0
    return metric(scores(candidate)), metric(scores(baseline))


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_simulated_verdicts_are_those_of_the_gate(tasks):
    chance = np.random.default_rng(5)
    seen = set()
    for _ in range(60):
        counts = chance.integers(0, 30, size=(tasks, 2))
        if chance.random() < 0.5:
            counts[:, 0] = counts[:, 1]  # equal in the mean, so that something passes
        pairs = {f"t{i}": items(*pair) for i, pair in enumerate(counts)}
        real = decide(
            evaluation({task: pair[0] for task, pair in pairs.items()}),
            evaluation({task: pair[1] for task, pair in pairs.items()}),
            GatePolicy(),
        )
        assert calibration.verdict(counts, N) == real.verdict.value, counts
        seen.add(real.verdict.value)
    assert seen == {"PASS", "INCONCLUSIVE", "BLOCK"}


def test_the_z_test_is_that_of_lm_evals_comparator():
    candidate, baseline = np.array([230.0, 260.0, 200.0]), np.array([240.0, 240.0, 240.0])
    blocks = calibration.z_test_blocks(candidate, baseline, N)
    for right, reference, blocked in zip(candidate, baseline, blocks, strict=True):
        p, q = right / N, reference / N
        errors = [np.sqrt(value * (1 - value) / (N - 1)) for value in (p, q)]
        z = (p - q) / np.hypot(*errors)
        assert blocked == (2 * scipy.stats.norm.sf(abs(z)) <= 0.05 and z < 0)
    assert list(blocks) == [False, False, True]


def test_drawn_evaluations_have_the_difference_and_the_disagreement_that_were_asked_for():
    drawn = calibration.draw(np.random.default_rng(1), 4_000, 1_000, 0.1, (-0.02, 0.0))
    better, worse, both = drawn.mean(axis=0).T / 1_000
    assert better - worse == pytest.approx([-0.02, 0.0], abs=0.002)
    assert better + worse == pytest.approx([0.1, 0.1], abs=0.002)
    assert worse + both == pytest.approx([0.6, 0.6], abs=0.002)


def test_the_gate_passes_a_regression_of_the_margin_one_time_in_twenty_and_the_naive_rule_half():
    drawn = calibration.draw(np.random.default_rng(2), 2_000, 1_546, 0.1, (-0.02,))
    passes, _, _ = calibration.gate_shares(drawn, 1_546)
    naive, _, z_test = calibration.other_shares(drawn, 1_546)
    assert 0.03 < passes < 0.07
    assert 0.4 < naive < 0.6
    assert z_test > 0.5  # as if the items were not the same, it sees little
