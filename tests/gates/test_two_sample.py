import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from penstock.errors import EvaluationError
from penstock.gates import two_sample
from penstock.gates.two_sample import MIN_ROWS, compare, median_distance, permutation_p


def draw(seed, rows, dim=8, mean=0.0, axis=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    vectors[:, axis] += np.float32(mean)
    return vectors


@pytest.fixture(scope="module")
def null_p():
    """P-values of both tests in 250 pairs of samples that do not differ."""
    found = [compare(draw(2 * i, 30), draw(2 * i + 1, 24), seed=i) for i in range(250)]
    return np.array([(one.kernel_p, one.classifier_p, one.differs) for one in found])


@pytest.mark.parametrize("test", [0, 1])
@pytest.mark.parametrize("level", [0.02, 0.1, 0.3, 0.7])
def test_p_values_are_below_a_level_as_often_as_it_says(null_p, test, level):
    share = np.mean(null_p[:, test] <= level)
    # Three standard errors of a share of 250 either way.
    assert abs(share - level) <= 3 * np.sqrt(level * (1 - level) / 250)


def test_both_tests_together_keep_alpha(null_p):
    assert np.mean(null_p[:, 2]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 250)


def test_a_shifted_mean_is_seen_by_the_classifier():
    found = [compare(draw(i, 200), draw(900 + i, 200, mean=0.8), seed=i) for i in range(10)]
    assert all(one.differs for one in found)
    assert np.mean([one.auc for one in found]) > 0.6


def test_a_few_rows_of_a_new_topic_are_seen_by_the_kernel():
    found = []
    for i in range(10):
        after = draw(900 + i, 200)
        after[:30] = draw(i, 30, mean=4.0, axis=3) * 0.3 + np.float32(3)
        found.append(compare(draw(i, 200), after, seed=i))
    assert sum(one.kernel_p <= 0.025 for one in found) == 10
    assert np.mean([one.distance for one in found]) > 0.1


def test_a_shift_in_spread_alone_is_seen_by_the_kernel():
    found = [compare(draw(i, 150), draw(900 + i, 150) * 1.6, seed=i) for i in range(10)]
    assert all(one.kernel_p <= 0.025 for one in found)


@given(st.integers(0, 10_000), st.integers(MIN_ROWS, 60), st.integers(MIN_ROWS, 60))
@settings(max_examples=25, deadline=None)
def test_the_order_of_a_vectors_axes_changes_neither_bandwidth_nor_range(seed, m, n):
    before, after = draw(seed, m), draw(seed + 1, n)
    found = compare(before, after, seed=seed)
    for p in (found.kernel_p, found.classifier_p):
        # The labels as they are count among those permuted, so that p is never 0.
        assert 1 / (two_sample.NUM_PERMUTATIONS + 1) <= p <= 1
    pooled = np.concatenate([before, after])
    turned = pooled[:, ::-1]
    one, other = (median_distance(x, np.random.default_rng(seed)) for x in (pooled, turned))
    assert one == pytest.approx(other, rel=1e-5)


@given(st.integers(0, 10_000), st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_the_kernel_test_does_not_depend_on_the_unit_of_length(seed, unit):
    before, after = draw(seed, 40), draw(seed + 1, 30, mean=0.5)
    scaled = [(side * np.float32(unit)) for side in (before, after)]
    found = [compare(*sides, seed=seed).kernel_p for sides in ((before, after), scaled)]
    assert found[0] == pytest.approx(found[1], abs=0.01)


def test_the_same_seed_gives_the_same_result():
    before, after = draw(1, 100), draw(2, 80)
    assert compare(before, after, seed=5) == compare(before, after, seed=5)


def test_equal_texts_on_both_sides_do_not_differ():
    same = np.ones((500, 16), np.float32) / 4
    found = compare(same, same[:300])
    assert (found.kernel_p, found.classifier_p) == (1.0, 1.0)
    assert found.distance < 1e-6


def test_a_rounding_error_is_no_difference():
    assert permutation_p(np.array([1.0, 1.0 + 1e-7, 1.0 - 1e-7], np.float32), 1.0) == 1.0
    assert permutation_p(np.array([3.0, 1.0, 2.0, 2.5], np.float32), 1.0) == 0.25


@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 50), (1, 50), (50, 1), (MIN_ROWS - 1, 500)])
def test_too_few_rows_are_not_tested_and_never_differ(m, n):
    found = compare(np.ones((m, 4), np.float32), 9 * np.ones((n, 4), np.float32))
    assert not found.is_tested
    assert not found.differs
    assert found.kernel_p is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_vectors_that_are_no_numbers_are_refused(bad, side):
    sides = [draw(1, 50), draw(2, 50)]
    sides[side][7, 2] = bad
    name = ("reference", "window")[side]
    with pytest.raises(EvaluationError, match=f"1 of the 50 vectors of the {name} hold NaN"):
        compare(*sides)


def test_vectors_of_another_model_are_refused():
    with pytest.raises(EvaluationError, match="384 dimensions, and the window's 768"):
        compare(np.zeros((50, 384), np.float32), np.zeros((50, 768), np.float32))
    with pytest.raises(EvaluationError, match="shape"):
        compare(np.zeros(50, np.float32), np.zeros((50, 4), np.float32))
