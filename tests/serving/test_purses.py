"""Every order of requests, answers, lost messages and deaths: nothing is ever overspent."""

from collections import Counter
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from penstock.errors import InsufficientQuota, RateLimited
from penstock.ledger import schema
from penstock.ledger.accounts import Accounts, Grant, Usage, UsageId
from penstock.ledger.amounts import Amounts
from penstock.ledger.api_keys import ApiKey, ApiKeys
from penstock.ledger.database import Database
from penstock.ledger.periods import span
from penstock.serving.purses import Purses

BUDGET = 200
RATE = 150
NUM_WORKERS = 2
numbers = st.integers(0, NUM_WORKERS - 1)
fates = st.sampled_from(["comes", "comes", "comes", "lost", "answer lost"])


def test_what_runs_thin_is_filled_up_between_requests_and_what_is_idle_is_given_back():
    key = ApiKey("k", "bot", budget_tokens=10_000)
    purses = Purses()
    purses.absorb({"k": Grant(held=Amounts(tokens=150))}, 0.0)
    need = Amounts(tokens=100)
    purse = purses.reserve(key, need, 0.0)
    purses.end_round(1.0)
    (wish,) = purses.wishes({}, 1.0)
    assert (wish.needs, wish.have.tokens, wish.ahead.tokens) == ((), 50, 150)
    assert purses.wishes({}, 1.0) == []
    purse.settle(need, Amounts(tokens=40))
    purses.end_round(2.0)
    batch = purses.cut()
    assert batch.spent == {("k", 0): Amounts(tokens=40)}
    assert batch.returned == {("k", 0): Amounts(tokens=110)}


class Worker:
    def __init__(self, holder):
        self.holder = holder
        self.purses = Purses()
        self.waiting = []
        self.flights = []


class Overspending(RuleBasedStateMachine):
    """Two gateways, one key. The model counts what was really used, in each period."""

    database = Database("sqlite://")

    @initialize()
    def begin(self):
        self.now_s = 1_000_000.0
        self.began_s = self.now_s
        self.count = 0
        self.used = Counter()
        self.rate_used = 0
        self.num_deaths = 0
        patched = mock.patch("penstock.ledger.accounts.clock", side_effect=self.clock)
        patched.start()
        self.stop = patched.stop
        self.accounts = Accounts(self.database)
        asked = ApiKey("", "bot", budget_tokens=BUDGET, tokens_per_min=RATE, period="day")
        self.key, _ = ApiKeys(self.database).create(asked)
        self.workers = [self.new_worker() for _ in range(NUM_WORKERS)]

    def clock(self, _connection):
        return self.now_s

    def new_worker(self):
        self.count += 1
        return Worker(f"elsewhere:1:1/{self.count}")

    @rule(number=numbers, tokens=st.integers(1, 60), fate=st.none() | fates)
    def ask(self, number, tokens, fate):
        self.reserve(number, tokens)
        if fate is not None:
            self.visit(number, fate)

    def reserve(self, number, tokens):
        worker = self.workers[number]
        need = Amounts(rate_tokens=tokens, tokens=tokens)
        if worker.waiting:
            worker.waiting.append(need)
            return
        try:
            purse = worker.purses.reserve(self.key, need, self.now_s)
        except (InsufficientQuota, RateLimited):
            return
        if purse is None:
            worker.waiting.append(need)
        else:
            worker.flights.append((purse, need))

    @rule(number=numbers, fate=fates)
    def visit(self, number, fate):
        worker = self.workers[number]
        needs = {self.key.id: worker.waiting} if worker.waiting else {}
        wishes = worker.purses.wishes(needs, self.now_s)
        batch = worker.purses.cut()
        waiting, worker.waiting = worker.waiting, []
        if fate != "lost":
            grants = self.accounts.visit(worker.holder, batch, wishes)
        if fate != "comes":
            worker.purses.failed(wishes)
            return
        worker.purses.absorb(grants, self.now_s)
        for need in waiting:
            try:
                purse = worker.purses.granted(self.key, need, grants[self.key.id], self.now_s)
            except (InsufficientQuota, RateLimited):
                continue
            worker.flights.append((purse, need))

    @rule(number=numbers, which=st.integers(0, 100), part=st.floats(0, 1))
    def finish(self, number, which, part):
        worker = self.workers[number]
        if worker.flights:
            self.settle(worker, which % len(worker.flights), part)

    def settle(self, worker, which, part):
        purse, need = worker.flights.pop(which)
        tokens = int(need.tokens * part)
        purse.settle(need, Amounts(rate_tokens=tokens, tokens=tokens))
        worker.purses.note(UsageId("2026-11-27", self.key.id, "m"), Usage(1, 0, tokens, 0))
        self.used[purse.account[1]] += tokens
        self.rate_used += tokens

    @rule(number=numbers)
    def end_round(self, number):
        self.workers[number].purses.end_round(self.now_s)

    @rule(seconds=st.sampled_from([0.3, 2.0, 30.0, 40_000.0]))
    def time_passes(self, seconds):
        self.now_s += seconds

    @precondition(lambda self: self.now_s % 2 > 1)  # seldom, or nothing lives long
    @rule(number=numbers)
    def is_killed(self, number):
        """At the worst moment: what was in flight had used all it might."""
        for purse, need in self.workers[number].flights:
            self.used[purse.account[1]] += need.tokens
            self.rate_used += need.rate_tokens
        self.workers[number] = self.new_worker()
        self.num_deaths += 1

    @invariant()
    def nothing_is_overspent(self):
        if not hasattr(self, "workers"):
            return
        bound = Counter(self.used)
        for worker in self.workers:
            for purse, need in worker.flights:
                bound[purse.account[1]] += need.tokens
        taken = self.taken()
        assert all(bound[start] <= taken.get(start, 0) <= BUDGET for start in {*bound, *taken})
        rates = self.rate_used + sum(n.rate_tokens for w in self.workers for _, n in w.flights)
        assert rates <= RATE + RATE * (self.now_s - self.began_s) / 60 + 1e-6

    def taken(self):
        with self.database.read() as connection:
            rows = connection.execute(schema.accounts.select()).all()
        return {row.start_s: row.tokens_taken for row in rows}

    def all_leave(self):
        """Then the books agree with what was used, to the token, and nothing is held."""
        for number, worker in enumerate(self.workers):
            while worker.flights:
                self.settle(worker, 0, 0.5)
            for _ in range(3):
                self.visit(number, "comes")
                worker.purses.end_round(self.now_s, everything=True)
            while worker.flights:
                self.settle(worker, 0, 1.0)
            worker.purses.end_round(self.now_s, everything=True)
            self.visit(number, "comes")
            self.visit(number, "comes")
            assert not worker.purses.holds_anything
            self.accounts.leave(worker.holder)
            self.workers[number] = self.new_worker()
        with self.database.read() as connection:
            rows = connection.execute(schema.accounts.select()).all()
            drawings = connection.execute(schema.drawings.select()).all()
            holders = connection.execute(schema.holders.select()).all()
        # But for a draw that nobody heard of before its period was over: it harms nobody.
        today = span("day", self.now_s).start_s
        assert all(one.start_s < today and one.tokens > 0 for one in drawings)
        assert {one.holder for one in holders} == {one.holder for one in drawings}
        spent = {row.start_s: row.tokens_spent for row in rows}
        assert {s: n for s, n in spent.items() if n} == {s: n for s, n in self.used.items() if n}
        booked = self.accounts.usage("model").get("m", Usage())
        assert booked.completion_tokens == sum(self.used.values())

    def teardown(self):
        if not hasattr(self, "stop"):
            return
        try:
            if self.num_deaths == 0:
                self.all_leave()
        finally:
            self.stop()
            with self.database.write() as connection:
                for table in schema.metadata.sorted_tables:
                    connection.execute(table.delete())


Overspending.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestNothingIsOverspentWhateverHappens = pytest.mark.slow(Overspending.TestCase)
