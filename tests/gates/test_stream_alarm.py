import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from penstock.errors import EvaluationError
from penstock.gates.stream_alarm import Budget, Seen, bets, conformal_p, follow, strangeness


def stream(seed, before, after=0, shift=0.0, dim=6, fixed=False, name="a"):
    """Windows that scatter around 0, then around another place."""
    chance = np.random.default_rng(seed)
    windows = []
    for i in range(before + after):
        vector = chance.standard_normal(dim) + (shift if i >= before else 0.0)
        told = np.array([vector @ vector]) if fixed else vector
        windows.append({name: Seen(told, float(chance.random()), fixed)})
    return windows


def test_every_bet_averages_one_over_a_uniform_p():
    # Finer towards 0, where bets are large: p = u^4 has the density 4 u^3 du.
    grid = (np.arange(4_000) + 0.5) / 4_000
    means = np.mean([4 * u**3 * bets(u**4) for u in grid], axis=0)
    assert means == pytest.approx(np.ones(len(means)), abs=0.003)


def test_a_p_of_zero_wins_no_infinity():
    assert np.isfinite(bets(0.0)).all()


@pytest.mark.parametrize("fixed", [False, True])
def test_p_values_of_alike_windows_are_uniform(fixed):
    p = [
        moment.p["a"]
        for seed in range(40)
        for moment in follow(stream(seed, 40, fixed=fixed), Budget(1e-9, 40))
    ]
    shares = np.histogram(p, bins=10, range=(0, 1))[0] / len(p)
    assert np.abs(shares - 0.1).max() < 3.5 * np.sqrt(0.09 / len(p))


@pytest.mark.slow
def test_streams_without_a_change_alarm_less_often_than_the_budget_says():
    budget = Budget(chance=0.2, horizon=40)
    alarms = [any(m.is_alarm for m in follow(stream(seed, 40), budget)) for seed in range(100)]
    assert 0 < np.mean(alarms) <= 0.2


@pytest.mark.slow
def test_the_statistic_averages_the_number_of_windows():
    # A martingale plus n: it is what the guarantee rests on. Its tail is heavy, so medians
    # are far below, and the budget is out of reach.
    last = [follow(stream(seed, 8), Budget(1e-9, 8))[-1].statistic for seed in range(1_000)]
    assert np.mean(last) == pytest.approx(8, rel=0.25)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_change_is_found_within_some_windows(fixed):
    budget = Budget()
    delays = []
    for seed in range(10):
        moments = follow(stream(seed, 40, 20, shift=3.0, fixed=fixed), budget)
        delays.append(next(i for i, m in enumerate(moments) if m.is_alarm) - 40)
    assert min(delays) >= 0
    assert np.median(delays) <= 8


def test_one_change_gives_one_alarm():
    moments = follow(stream(3, 40, 60, shift=3.0), Budget())
    assert sum(m.is_alarm for m in moments) == 1
    after = next(i for i, m in enumerate(moments) if m.is_alarm) + 1
    assert moments[after].num_windows == 1


def test_a_second_change_gives_a_second_alarm():
    windows = stream(3, 40, 50, shift=3.0) + stream(4, 20)
    assert sum(m.is_alarm for m in follow(windows, Budget())) == 2


def test_signals_share_one_budget():
    quiet = [stream(seed, 60, name=f"quiet {seed}") for seed in range(3)]
    loud = stream(9, 40, 20, shift=4.0, name="loud")
    together = [dict(item for part in parts for item in part.items())
                for parts in zip(loud, *quiet, strict=True)]  # fmt: skip
    moments = follow(together, Budget())
    alarm = next(m for m in moments if m.is_alarm)
    assert max(alarm.by_signal, key=alarm.by_signal.get) == "loud"
    assert alarm.statistic == pytest.approx(np.mean(list(alarm.by_signal.values())))


@given(st.integers(0, 1_000), st.integers(1, 25), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_where_a_stream_lies_and_in_what_unit_changes_nothing(seed, num, unit):
    plain = stream(seed, num)
    moved = [{"a": Seen(w["a"].vector * unit + 3.0, w["a"].tie)} for w in plain]
    assert [m.p["a"] for m in follow(plain, Budget())] == pytest.approx(
        [m.p["a"] for m in follow(moved, Budget())]
    )


@given(st.integers(0, 1_000), st.integers(2, 25))
@settings(max_examples=30, deadline=None)
def test_the_order_of_earlier_windows_does_not_change_a_p_value(seed, num):
    windows = stream(seed, num)
    order = np.random.default_rng(seed).permutation(num - 1)
    other = [windows[i] for i in order] + windows[-1:]
    ours, theirs = (follow(w, Budget())[-1].p["a"] for w in (windows, other))
    assert ours == pytest.approx(theirs)


@given(st.integers(0, 1_000), st.integers(1, 30), st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_what_comes_later_changes_nothing_of_before(seed, first, more):
    windows = stream(seed, first + more)
    assert follow(windows, Budget(0.5, 5))[:first] == follow(windows[:first], Budget(0.5, 5))


def test_a_p_value_counts_ties_by_lot():
    values = np.array([1.0, 3.0, 2.0, 2.0])
    assert conformal_p(values, 0.0) == 0.25
    assert conformal_p(values, 0.5) == 0.5
    assert conformal_p(np.array([7.0]), 0.3) == pytest.approx(0.3)


def test_equal_windows_never_alarm():
    ties = np.random.default_rng(1).random(100)
    windows = [{"a": Seen(np.ones(4), tie)} for tie in ties]
    assert not any(m.is_alarm for m in follow(windows, Budget(0.05, 100)))


def test_no_window_and_one_window_say_nothing():
    assert follow([], Budget()) == []
    (moment,) = follow([{"a": Seen(np.ones(3), 0.001)}], Budget())
    assert not moment.is_alarm
    assert moment.p == {"a": 0.001}
    assert strangeness(np.ones((1, 3)), fixed=False).tolist() == [0.0]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"a": Seen(np.array([np.nan, 0.0]), 0.5)}, "holds NaN"),
        ({"a": Seen(np.zeros(3), 0.5)}, "different models"),
        ({"b": Seen(np.zeros(2), 0.5)}, "different streams"),
        ({}, "different streams"),
    ],
)
def test_windows_that_do_not_fit_together_are_refused(second, message):
    with pytest.raises(EvaluationError, match=message):
        follow([{"a": Seen(np.zeros(2), 0.5)}, second], Budget())


@pytest.mark.parametrize(("chance", "horizon"), [(0, 10), (1, 10), (0.1, 0)])
def test_a_budget_that_is_none_is_refused(chance, horizon):
    with pytest.raises(EvaluationError, match="budget"):
        Budget(chance, horizon)
