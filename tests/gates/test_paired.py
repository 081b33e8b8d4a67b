import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from penstock.gates.paired import (
    critical_value,
    design_effect,
    discordance_variance,
    holm,
    items_needed,
    mcnemar_mid_p,
    mean_bounds,
    non_inferiority_power,
    tango_bounds,
)

Z95 = critical_value(0.05)
Z975 = critical_value(0.025)

counts = (
    st.integers(1, 400)
    .flatmap(lambda n: st.tuples(st.integers(0, n), st.integers(0, n), st.just(n)))
    .filter(lambda bcn: bcn[0] + bcn[1] <= bcn[2])
)


def score_statistic(better: int, worse: int, n: int, delta: float) -> float:
    """The score test from first principles: the nuisance parameter by a grid, no formula."""
    low, high = max(0.0, -delta), (1 - delta) / 2
    p_worse = np.linspace(low, high, 400_001)[1:-1]
    p_better = p_worse + delta
    rest = 1 - p_worse - p_better
    log_likelihood = (
        better * np.log(p_better) + worse * np.log(p_worse) + (n - better - worse) * np.log(rest)
    )
    best = p_worse[np.argmax(log_likelihood)]
    return (better - worse - n * delta) / math.sqrt(n * (2 * best + delta - delta**2))


def test_tango_agrees_with_a_published_example() -> None:
    # Airway hyper-responsiveness before and after transplantation, 21 children, 1 and 7
    # discordant; Tango's limits as given by Fagerland, Lydersen & Laake 2014.
    lower, upper = tango_bounds(1, 7, 21, Z975)
    assert (round(lower, 3), round(upper, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(
    ("better", "worse", "n"), [(12, 9, 100), (3, 0, 40), (0, 5, 60), (40, 55, 200), (1, 7, 21)]
)
def test_tango_inverts_the_score_test_found_by_brute_force(better: int, worse: int, n: int) -> None:
    lower, upper = tango_bounds(better, worse, n, Z95)
    assert score_statistic(better, worse, n, lower) == pytest.approx(Z95, abs=2e-3)
    assert score_statistic(better, worse, n, upper) == pytest.approx(-Z95, abs=2e-3)


def test_tango_without_discordant_items_has_its_closed_form() -> None:
    limit = Z95**2 / (50 + Z95**2)
    assert tango_bounds(0, 0, 50, Z95) == pytest.approx((-limit, limit))


def test_tango_reaches_the_ends_where_every_item_is_discordant() -> None:
    lower, upper = tango_bounds(30, 0, 30, Z95)
    assert upper == 1
    assert lower == pytest.approx((30 - Z95**2) / (30 + Z95**2))
    assert tango_bounds(0, 30, 30, Z95) == pytest.approx((-1, -lower))


@pytest.mark.slow
@given(counts)
def test_tango_is_mirrored_when_the_models_trade_places(bcn: tuple[int, int, int]) -> None:
    better, worse, n = bcn
    lower, upper = tango_bounds(better, worse, n, Z95)
    assert tango_bounds(worse, better, n, Z95) == pytest.approx((-upper, -lower))


@pytest.mark.slow
@given(counts)
def test_tango_contains_the_estimate_and_narrows_with_alpha(bcn: tuple[int, int, int]) -> None:
    better, worse, n = bcn
    wide, narrow = tango_bounds(better, worse, n, Z975), tango_bounds(better, worse, n, Z95)
    assert -1 <= wide[0] <= narrow[0] <= (better - worse) / n <= narrow[1] <= wide[1] <= 1


@pytest.mark.slow
@given(counts, st.floats(1.0, 5.0))
def test_dividing_counts_by_a_design_effect_widens_the_limits(
    bcn: tuple[int, int, int], inflation: float
) -> None:
    plain = tango_bounds(*bcn, Z95)
    wide = tango_bounds(*(count / inflation for count in bcn), Z95)
    assert wide[0] <= plain[0] + 1e-9
    assert wide[1] >= plain[1] - 1e-9


@pytest.mark.parametrize(
    ("discordance", "items"), [(0.05, 773), (0.10, 1546), (0.21, 3246), (0.42, 6492)]
)
def test_items_needed_at_a_margin_of_two_points(discordance: float, items: int) -> None:
    assert items_needed(discordance, 0.02, 0.05) == items
    assert non_inferiority_power(items, discordance, 0.02, 0.05) == pytest.approx(0.8, abs=1e-3)


def passes(p_better: float, p_worse: float, n: int, rounds: int, seed: int) -> float:
    """Share of simulated evaluations that show non-inferiority at a margin of 0.02."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(n, [p_better, p_worse, 1 - p_better - p_worse], size=rounds)
    shapes, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    shown = [tango_bounds(int(b), int(w), n, Z95)[0] > -0.02 for b, w in shapes]
    return float(np.average(shown, weights=times))


@pytest.mark.parametrize(("discordance", "n"), [(0.05, 800), (0.10, 400), (0.21, 1000)])
def test_a_true_regression_of_the_margin_passes_one_time_in_twenty(
    discordance: float, n: int
) -> None:
    p_better, p_worse = (discordance - 0.02) / 2, (discordance + 0.02) / 2
    assert passes(p_better, p_worse, n, 4000, seed=1) == pytest.approx(0.05, abs=0.015)


def test_the_promised_power_is_reached_in_simulation() -> None:
    assert passes(0.05, 0.05, 1546, 4000, seed=2) == pytest.approx(0.8, abs=0.03)


def test_the_naive_rule_would_pass_half_of_all_such_regressions() -> None:
    random = np.random.default_rng(3)
    drawn = random.multinomial(1000, [0.04, 0.06, 0.90], size=4000)
    naive = np.mean((drawn[:, 0] - drawn[:, 1]) / 1000 >= -0.02)
    assert 0.45 < naive < 0.6


@pytest.mark.slow
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_mid_p_is_the_binomial_tail_with_half_the_point(better: int, worse: int) -> None:
    binomial = stats.binom(better + worse, 0.5)
    expected = binomial.sf(worse) + binomial.pmf(worse) / 2
    assert mcnemar_mid_p(better, worse) == pytest.approx(expected, abs=1e-12)
    assert mcnemar_mid_p(better, worse) + mcnemar_mid_p(worse, better) == pytest.approx(1)


def test_eight_equal_tasks_are_rarely_called_harmed() -> None:
    random = np.random.default_rng(4)
    discordant = random.binomial(500, 0.1, size=(1500, 8))
    worse = random.binomial(discordant, 0.5)
    rounds = [
        min(holm([mcnemar_mid_p(int(d - w), int(w)) for d, w in zip(ds, ws, strict=True)]))
        for ds, ws in zip(discordant, worse, strict=True)
    ]
    assert np.mean(np.asarray(rounds) <= 0.05) < 0.065


def test_holm_agrees_with_the_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_shrinks_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    ranked = [adjusted[index] for index in np.argsort(p_values, kind="stable")]
    assert ranked == sorted(ranked)


@pytest.mark.slow
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_holm_does_not_depend_on_the_order_of_tasks(p_values: list[float], random: object) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = holm([p_values[index] for index in order])
    assert shuffled == pytest.approx([holm(p_values)[index] for index in order])


def test_design_effect_of_copies_is_the_number_of_copies() -> None:
    differences = np.repeat(np.tile([1.0, -1.0], 50), 4)
    clusters = np.repeat(np.arange(100), 4)
    assert design_effect(differences, clusters) == pytest.approx(4, rel=0.02)


def test_design_effect_of_independent_items_is_about_one() -> None:
    random = np.random.default_rng(5)
    effects = [design_effect(random.normal(size=600), np.arange(600) // 3) for _ in range(50)]
    assert 1 <= np.mean(effects) < 1.1


def test_mean_bounds_of_one_task_are_the_tasks_own() -> None:
    assert mean_bounds([0.01], [-0.03], [0.04]) == pytest.approx((-0.03, 0.04))


@pytest.mark.slow
@settings(max_examples=50)
@given(st.lists(counts, min_size=1, max_size=6))
def test_mean_bounds_are_no_wider_than_the_mean_of_bounds(
    tasks: list[tuple[int, int, int]],
) -> None:
    differences = [(better - worse) / n for better, worse, n in tasks]
    bounds = [tango_bounds(*task, Z95) for task in tasks]
    lowers, uppers = zip(*bounds, strict=True)
    lower, upper = mean_bounds(differences, lowers, uppers)
    assert np.mean(lowers) - 1e-9 <= lower <= np.mean(differences) <= upper
    assert upper <= np.mean(uppers) + 1e-9


@pytest.mark.slow
def test_macro_mean_passes_a_true_regression_of_the_margin_one_time_in_twenty() -> None:
    random = np.random.default_rng(6)
    sizes = [150, 400, 1000]
    shown = []
    for _ in range(500):
        drawn = [random.multinomial(n, [0.03, 0.05, 0.92]) for n in sizes]
        differences = [(b - w) / n for (b, w, _), n in zip(drawn, sizes, strict=True)]
        bounds = [tango_bounds(b, w, n, Z95) for (b, w, _), n in zip(drawn, sizes, strict=True)]
        lower, _ = mean_bounds(differences, *zip(*bounds, strict=True))
        shown.append(lower > -0.02)
    assert np.mean(shown) == pytest.approx(0.05, abs=0.025)


def test_no_discordance_among_few_items_does_not_promise_power() -> None:
    variance = discordance_variance(0, 0, 50, Z95)
    assert non_inferiority_power(50, variance, 0.02, 0.05) < 0.2
    assert discordance_variance(50, 50, 1000, Z95) == 0.1


@given(st.floats(0.005, 0.2), st.floats(0.005, 0.2), st.floats(0.01, 0.6))
def test_a_wider_margin_needs_fewer_items(first: float, second: float, variance: float) -> None:
    narrow, wide = sorted([first, second])
    assert items_needed(variance, wide, 0.05) <= items_needed(variance, narrow, 0.05)


def test_critical_value_of_students_t_exceeds_the_normals() -> None:
    assert critical_value(0.05, 9) == pytest.approx(stats.t.isf(0.05, 9))
    assert critical_value(0.05, 9) > critical_value(0.05)
