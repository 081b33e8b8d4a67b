import numpy as np
import pytest

from penstock.errors import EvaluationError
from penstock.gates.moved_clusters import k_means, moved_clusters
from penstock.gates.shifts import Shift, holm, length_shift, share_shift, share_shifts


def topics(seed, counts):
    """Rows around as many corners as there are counts."""
    chance = np.random.default_rng(seed)
    rows = [np.eye(8)[k] + 0.05 * chance.standard_normal((n, 8)) for k, n in enumerate(counts) if n]
    return np.concatenate(rows).astype(np.float32)


def test_longer_texts_are_found_and_equal_ones_are_not():
    chance = np.random.default_rng(1)
    short, longer = chance.lognormal(4, 1, 300), chance.lognormal(4.5, 1, 300)
    assert length_shift("x", short, longer).p < 1e-4
    assert length_shift("x", short, chance.lognormal(4, 1, 300)).p > 0.01
    assert length_shift("x", np.full(50, 7), np.full(90, 7)).p == 1.0


def test_a_share_that_moved_has_an_interval_without_zero():
    found = share_shift("refuses", (10, 1000), (60, 1000))
    assert found.p < 1e-6
    assert found.interval[0] > 0
    assert found.interval[0] < 0.05 < found.interval[1]
    still = share_shift("refuses", (10, 1000), (11, 1000))
    assert still.interval[0] < 0 < still.interval[1]


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say():
    chance = np.random.default_rng(2)
    covered = []
    for _ in range(400):
        parts = int(chance.binomial(200, 0.05)), int(chance.binomial(150, 0.12))
        low, high = share_shift("x", (parts[0], 200), (parts[1], 150)).interval
        covered.append(low <= 0.07 <= high)
    assert np.mean(covered) >= 0.92


def test_languages_of_either_side_are_compared():
    found = share_shifts("in", {"en": 95, "de": 5}, {"en": 60, "fr": 40})
    assert [one.name for one in found] == ["in en", "in fr", "in de"]
    assert found[1].before == 0
    assert found[1].after == 0.4


def test_holm_corrects_for_all_that_was_tested_and_for_nothing_else():
    shifts = [Shift(str(i), 0, 0, p) for i, p in enumerate((0.02, 0.001, None, 0.03))]
    assert [one.stands for one in holm(shifts, 0.05)] == [True, True, False, True]
    assert [one.stands for one in holm(shifts, 0.03)] == [False, True, False, False]
    assert [one.name for one in holm(shifts, 0.05)] == ["0", "1", "2", "3"]
    assert holm([], 0.05) == []


@pytest.mark.parametrize(("before", "after"), [((0, 0), (0, 0)), ((1, 1), (5, 500))])
def test_too_few_rows_have_no_p_value_and_stand_for_nothing(before, after):
    (found,) = holm([share_shift("x", before, after)], 0.05)
    assert found.p is None
    assert not found.stands
    assert length_shift("x", [], [1.0]).p is None


def test_what_is_no_number_and_no_share_is_refused():
    with pytest.raises(EvaluationError, match="not a number"):
        length_shift("x", [1.0, np.nan], [2.0])
    with pytest.raises(EvaluationError, match="7 of 5"):
        share_shift("x", (7, 5), (1, 50))


def test_a_new_topic_is_the_cluster_that_moved_most():
    before, after = topics(1, [100, 100, 0]), topics(2, [60, 70, 70])
    first, *rest = moved_clusters(before, after, num_clusters=3)
    assert first.share.stands
    assert first.share.before == 0
    assert first.share.after == pytest.approx(0.35)
    assert first.before == ()
    assert len(first.after) == 3
    assert all(130 <= i < 200 for i in first.after)
    assert sum(one.share.after for one in rest) == pytest.approx(0.65)


def test_topics_that_stayed_stand_for_nothing():
    found = moved_clusters(topics(1, [100, 100, 50]), topics(2, [104, 96, 50]))
    assert found
    assert not any(one.share.stands for one in found)


def test_clusters_of_equal_rows_are_one():
    middles, owner = k_means(np.ones((50, 4), np.float32), 5, np.random.default_rng(0))
    assert len(middles) == 1
    assert set(owner) == {0}


def test_too_few_rows_have_no_clusters():
    assert moved_clusters(topics(1, [100]), topics(1, [3])) == []
