import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.gates.resampling import (
    Link,
    bootstrap_t_bounds,
    linearised,
    paired_difference,
    sign_flip_harm_p,
)


def ratio_units(n: int, seed: int, shift: float = 0.0) -> NDArray[np.float64]:
    """Documents of unequal length whose two models differ by ``shift`` bits per byte."""
    random = np.random.default_rng(seed)
    weights = random.integers(20, 400, size=n).astype(float)
    baseline = weights * random.gamma(8, 1 / 8, size=n)
    candidate = baseline + weights * random.normal(shift, 0.05, size=n)
    return np.stack([candidate, weights, baseline, weights], axis=1)


def mean_units(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    ones = np.ones_like(differences)
    return np.stack([differences + 3, ones, 3 * ones, ones], axis=1)


def test_a_ratio_is_the_ratio_of_sums_and_not_the_mean_of_ratios() -> None:
    units = np.array([[10.0, 1.0, 0.0, 1.0], [0.0, 9.0, 0.0, 9.0]])
    assert paired_difference(units.sum(axis=0), Link.IDENTITY) == 1.0


def test_the_standard_error_of_a_mean_is_the_textbooks() -> None:
    differences = np.random.default_rng(0).normal(size=50)
    influences = linearised(mean_units(differences), Link.IDENTITY)
    assert influences.std(ddof=1) == pytest.approx(differences.std(ddof=1))


@pytest.mark.parametrize("link", list(Link))
def test_linearisation_agrees_with_leaving_one_unit_out(link: Link) -> None:
    units = ratio_units(200, seed=1)
    total = units.sum(axis=0)
    left_out = paired_difference(total - units, link)
    jackknife = np.sqrt(199 / 200 * np.sum((left_out - left_out.mean()) ** 2))
    error = linearised(units, link).std(ddof=1) / np.sqrt(200)
    assert error == pytest.approx(jackknife, rel=0.05)


def test_bounds_agree_with_students_t_for_normal_differences() -> None:
    differences = np.random.default_rng(2).normal(0.1, 1, size=100)
    ((lower, upper),) = bootstrap_t_bounds(mean_units(differences), Link.IDENTITY, [0.05], seed=0)
    half = 1.66 * differences.std(ddof=1) / 10
    assert lower == pytest.approx(differences.mean() - half, abs=0.04)
    assert upper == pytest.approx(differences.mean() + half, abs=0.04)


def test_bounds_are_mirrored_when_the_models_trade_places() -> None:
    units = ratio_units(80, seed=3)
    ((lower, upper),) = bootstrap_t_bounds(units, Link.EXP, [0.05], seed=7)
    ((low, high),) = bootstrap_t_bounds(units[:, [2, 3, 0, 1]], Link.EXP, [0.05], seed=7)
    assert (low, high) == pytest.approx((-upper, -lower))


def test_bounds_widen_as_alpha_shrinks() -> None:
    narrow, wide = bootstrap_t_bounds(ratio_units(60, seed=4), Link.IDENTITY, [0.05, 0.025], seed=0)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_same_seed_gives_the_same_bounds() -> None:
    units = ratio_units(60, seed=5)
    first = bootstrap_t_bounds(units, Link.IDENTITY, [0.05], seed=1)
    assert bootstrap_t_bounds(units, Link.IDENTITY, [0.05], seed=1) == first
    assert bootstrap_t_bounds(units, Link.IDENTITY, [0.05], seed=2) != first


def test_few_units_have_no_bounds() -> None:
    assert bootstrap_t_bounds(ratio_units(19, seed=6), Link.IDENTITY, [0.05], seed=0) == [
        (-np.inf, np.inf)
    ]


def test_a_loss_on_two_items_in_hundred_cannot_be_bounded_from_below() -> None:
    differences = np.zeros(100)
    differences[:2] = -0.5
    ((lower, _),) = bootstrap_t_bounds(mean_units(differences), Link.IDENTITY, [0.05], seed=0)
    assert lower == -np.inf


def test_equal_answers_have_no_uncertainty() -> None:
    units = ratio_units(30, seed=7)
    units[:, :2] = units[:, 2:]
    assert bootstrap_t_bounds(units, Link.EXP, [0.05], seed=0) == [(0.0, 0.0)]


@pytest.mark.parametrize("skew", [1, -1])
def test_skewed_losses_pass_at_most_a_little_more_often_than_alpha(skew: int) -> None:
    # Mean zero against the null's boundary at zero; n = 60 and an exponential's skew.
    random = np.random.default_rng(8)
    shown = []
    for index in range(150):
        differences = skew * (random.exponential(1, size=60) - 1)
        units = mean_units(differences)
        ((lower, _),) = bootstrap_t_bounds(units, Link.IDENTITY, [0.05], index, num_resamples=499)
        shown.append(lower > 0)
    assert np.mean(shown) < 0.095


def test_sign_flip_agrees_with_all_arrangements_counted_out() -> None:
    differences = np.array([-0.9, 0.2, -0.5, -0.1, 0.4, -0.3, -0.8, 0.05, -0.6])
    flips = np.array(list(itertools.product([1, -1], repeat=9)))
    exact = np.mean(flips @ differences <= differences.sum() + 1e-12)
    p_value = sign_flip_harm_p(mean_units(differences), Link.IDENTITY, seed=0)
    assert p_value == pytest.approx(exact, abs=0.01)


def test_sign_flip_of_equal_models_is_uniform() -> None:
    p_values = [
        sign_flip_harm_p(ratio_units(40, seed), Link.IDENTITY, seed, num_permutations=199)
        for seed in range(300)
    ]
    assert np.mean(np.asarray(p_values) <= 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_sign_flip_sees_a_clear_loss_and_no_harm_in_a_gain() -> None:
    assert sign_flip_harm_p(ratio_units(100, 1, shift=-0.1), Link.EXP, seed=0) == 1e-4
    assert sign_flip_harm_p(ratio_units(100, 1, shift=0.1), Link.EXP, seed=0) > 0.99


def test_sign_flip_of_equal_answers_finds_nothing() -> None:
    units = ratio_units(30, seed=7)
    units[:, :2] = units[:, 2:]
    assert sign_flip_harm_p(units, Link.IDENTITY, seed=0) == 1.0
