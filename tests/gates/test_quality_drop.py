from itertools import pairwise

import numpy as np
import pytest

from penstock.gates.quality import FIRST_LOOK, GoodShare, Preference, looks, worse_p


def share(good, num):
    return GoodShare.of([True] * good + [False] * (num - good))


def test_the_interval_is_wilsons():
    found = share(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert found.share == 0.8


def test_no_answers_have_no_share():
    found = GoodShare.of([])
    assert found.share is None
    assert (found.low, found.high) == (0, 1)


def test_fewer_good_ones_are_seen_and_more_are_not():
    assert worse_p(share(90, 100), share(60, 100)) < 0.001
    assert worse_p(share(60, 100), share(90, 100)) > 0.99
    assert worse_p(share(80, 100), share(40, 50)) > 0.4


def test_looks_come_at_doubled_sizes_and_their_levels_add_up_to_alpha():
    sizes, levels = zip(*looks(10**6, 0.05), strict=True)
    assert sizes[:3] == (50, 100, 200)
    assert all(b == 2 * a for a, b in pairwise(sizes))
    assert 0.049 < sum(levels) <= 0.05
    assert list(looks(FIRST_LOOK - 1, 0.05)) == []


@pytest.mark.slow
def test_a_version_that_is_no_worse_seldom_looks_worse_however_often_one_looks():
    random, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        before = GoodShare(int(np.sum(random.random(300) < 0.8)), 300, 0, 1)
        after = np.cumsum(random.random(800) < 0.8)
        alarms += any(
            worse_p(before, GoodShare(int(after[size - 1]), size, 0, 1)) <= level
            for size, level in looks(800, 0.05)
        )
    assert alarms / 300 < 0.05


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ((1.0, 1.0), (1, 0, 0)),
        ((0.0, 0.0), (0, 1, 0)),
        ((1.0, 0.0), (0, 0, 1)),
        ((1.0, 0.5), (0, 0, 1)),
        ((0.5, 0.5), (0, 0, 1)),
    ],
)
def test_only_a_verdict_that_holds_in_both_orders_is_one(scores, found):
    one = Preference.of([scores])
    assert (one.wins, one.losses, one.ties) == found


def test_a_preference_has_the_p_of_a_sign_test():
    assert Preference.of([(1.0, 1.0)] * 9 + [(0.0, 0.0)] + [(0.5, 0.5)] * 5).p == pytest.approx(
        22 / 1024
    )
    assert Preference.of([]).p == Preference.of([(0.5, 0.5)]).p == 1
