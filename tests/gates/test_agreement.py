import numpy as np
import pytest

from penstock.errors import EvaluationError
from penstock.gates.agreement import Standing, calibrate, cohen_kappa, krippendorff_alpha

# Cohen (1960), and the marriage table of Agresti (1990) with its published standard error.
COHEN = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
AGRESTI = [[7, 7, 2, 3], [2, 8, 3, 7], [1, 5, 4, 9], [2, 8, 9, 14]]
NAN = float("nan")
# Krippendorff (2011), example C: the marks of up to four observers for each of twelve units.
UNITS = [
    [1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
    [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [5, 5, 5], [1, 1], [3],
]  # fmt: skip


@pytest.mark.parametrize(("table", "known"), [(COHEN, 0.492), (AGRESTI, 0.1293)])
def test_kappa_is_that_of_the_literature(table, known):
    assert cohen_kappa(table).value == pytest.approx(known, abs=5e-4)


def test_the_interval_has_the_width_of_the_published_standard_error():
    found = cohen_kappa(AGRESTI)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(0.0686, rel=0.02)


def test_alpha_is_that_of_the_literature():
    assert krippendorff_alpha(UNITS) == pytest.approx(0.849, abs=5e-4)


def test_alpha_says_nothing_of_one_mark_alone_or_of_items_that_one_rater_has_seen():
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[0], [1]]) is None
    assert krippendorff_alpha([]) is None


def test_raters_who_contradict_each_other_agree_less_than_by_chance():
    assert krippendorff_alpha([[0, 1], [1, 0], [0, 1]]) < 0


def test_full_agreement_on_few_items_is_no_certainty():
    few, many = (cohen_kappa([[n, 0], [0, n]]) for n in (2, 200))
    assert few.value == many.value == 1
    assert few.low < 0.5 < 0.95 < many.low


def test_a_judge_with_few_labels_may_not_count_yet():
    assert calibrate([[20, 0], [0, 20]], 50, 0.4).standing is Standing.TOO_FEW_LABELS
    assert calibrate([[0, 0], [0, 0]], 1, 0.4).standing is Standing.TOO_FEW_LABELS


def test_a_judge_that_agrees_counts_and_one_that_guesses_does_not():
    assert calibrate([[45, 5], [5, 45]], 50, 0.4).standing is Standing.COUNTS
    assert calibrate([[25, 25], [25, 25]], 50, 0.4).standing is Standing.DISAGREES


def test_a_judge_that_calls_everything_good_does_not_count():
    assert calibrate([[0, 0], [20, 80]], 50, 0.1).standing is Standing.DISAGREES
    assert calibrate([[0, 0], [0, 80]], 50, 0.1).standing is Standing.DISAGREES


def test_the_lower_end_is_above_the_truth_in_few_of_many_samples():
    truth = np.array([[0.35, 0.15], [0.15, 0.35]])  # kappa 0.4
    tables = np.random.default_rng(0).multinomial(60, truth.ravel(), 1_000).reshape(-1, 2, 2)
    assert np.mean([cohen_kappa(one).low > 0.4 for one in tables]) < 0.04


@pytest.mark.parametrize("table", [[[1, 2]], [[1]], [[1, -1], [0, 1]], [[1, NAN], [0, 1]]])
def test_what_is_no_table_of_counts_is_refused(table):
    with pytest.raises(EvaluationError, match="no table"):
        cohen_kappa(table)
