"""What a judge may be asked in a day: never more, whoever takes at once."""

import threading

import pytest

from penstock.ledger import judge_budget
from penstock.ledger.judge_budget import JudgeBudget


@pytest.fixture
def budget(ledger):
    return JudgeBudget(ledger.database, "penny", 20, 1_000)


def test_those_who_take_at_once_never_take_too_much(budget):
    got, gate = [], threading.Barrier(4)

    def take():
        gate.wait()
        got.extend(filter(None, [budget.take(60) for _ in range(10)]))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(got) == 16
    assert budget.today() == (16, 960)


def test_what_is_given_back_can_be_taken_again(budget):
    day = budget.take(1_000)
    assert budget.take(1) is None
    budget.give_back(day, 0, 900)
    assert budget.take(900) == day
    budget.give_back(day, 1, 900)
    assert budget.today() == (1, 100)


def test_questions_are_counted_where_no_money_is(ledger):
    budget = JudgeBudget(ledger.database, "penny", 2, None)
    assert [bool(budget.take(10**15)) for _ in range(3)] == [True, True, False]


def test_each_day_and_each_recipe_has_a_budget_of_its_own(budget, ledger, monkeypatch):
    assert budget.take(1_000)
    assert JudgeBudget(ledger.database, "other", 20, 1_000).take(1_000)
    monkeypatch.setattr(judge_budget, "clock", lambda connection: 2e9)
    assert budget.today() == (0, 0)
    assert budget.take(1_000) == "2033-05-18"
