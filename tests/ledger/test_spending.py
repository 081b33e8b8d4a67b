import os
import socket
import threading

import pytest
import sqlalchemy as sa

from penstock.ledger import Ledger, schema
from penstock.ledger.accounts import (
    Accounts,
    Balance,
    Batch,
    Usage,
    UsageId,
    Wish,
    new_holder,
    share,
)
from penstock.ledger.amounts import Amounts
from penstock.ledger.api_keys import ApiKey, ApiKeys


@pytest.fixture
def accounts(ledger):
    return Accounts(ledger.database)


@pytest.fixture
def key_of(ledger):
    """``key_of(budget_tokens=100)``: a key with these limits, which never begins anew."""

    def make(**limits):
        return ApiKeys(ledger.database).create(ApiKey("", "bot", **{"period": "total", **limits}))[
            0
        ]

    return make


def tokens(number):
    return Amounts(tokens=number)


def named(holder):
    """A process of another host, of which nobody here knows whether it lives."""
    return f"elsewhere:1:1/{holder}"


def draw(accounts, key, *needs, holder="a", ahead=0):
    wish = Wish(key.id, tuple(map(tokens, needs)), ahead=tokens(ahead))
    return accounts.visit(named(holder), None, [wish])[key.id]


def settle(accounts, key, sequence, spent=0, returned=0, holder="a"):
    account = (key.id, 0)
    batch = Batch(sequence, {}, {account: tokens(spent)}, {account: tokens(returned)})
    return accounts.visit(named(holder), batch)


def test_what_is_drawn_is_held_until_it_is_spent_or_given_back(accounts, key_of):
    key = key_of(budget_tokens=100)
    grant = draw(accounts, key, 30, 30)
    assert (grant.held.tokens, grant.left.tokens) == (60, 40)
    assert accounts.balance(key) == Balance(tokens_spent=0, tokens_held=60)
    settle(accounts, key, 1, spent=25, returned=10)
    assert accounts.balance(key) == Balance(tokens_spent=25, tokens_held=25)
    assert draw(accounts, key, 50).left.tokens == 0


def test_needs_that_fit_are_drawn_and_others_are_not(accounts, key_of):
    key = key_of(budget_tokens=100)
    assert draw(accounts, key, 60, 60, 40).held.tokens == 100
    assert draw(accounts, key, 1).held.tokens == 100


def test_a_batch_that_is_sent_twice_is_taken_once(accounts, key_of):
    key = key_of(budget_tokens=100)
    draw(accounts, key, 50)
    usage = {UsageId("2026-11-27", key.id, "m"): Usage(1, 5, 5, 7)}
    batch = Batch(1, usage, {(key.id, 0): tokens(10)}, {(key.id, 0): tokens(20)})
    for _ in range(3):
        accounts.visit(named("a"), batch)
    assert accounts.balance(key) == Balance(tokens_spent=10, tokens_held=20)
    assert accounts.usage("model") == {"m": Usage(1, 5, 5, 7)}


def test_who_says_that_it_used_more_than_it_drew_frees_nothing(accounts, key_of):
    key = key_of(budget_tokens=100)
    draw(accounts, key, 50)
    draw(accounts, key, 50, holder="b")
    settle(accounts, key, 1, spent=40, returned=1_000)
    settle(accounts, key, 2, spent=1_000, returned=1_000)
    assert accounts.balance(key) == Balance(tokens_spent=40, tokens_held=50)
    settle(accounts, key, 1, returned=1_000, holder="a stranger")
    assert accounts.balance(key).tokens_held == 50


def test_what_was_drawn_unnoticed_is_found_again(accounts, key_of):
    key = key_of(budget_tokens=100)
    draw(accounts, key, 30)  # the answer got lost
    assert accounts.visit(named("a"), None, [Wish(key.id)])[key.id].held.tokens == 30


def test_ahead_is_a_small_part_of_what_is_left_and_nothing_at_the_end(accounts, key_of):
    key = key_of(budget_tokens=1_000)
    assert draw(accounts, key, 40, ahead=10_000).held.tokens == 40 + 960 // 16
    assert draw(accounts, key, 890, ahead=10_000, holder="b").left.tokens == 10
    assert draw(accounts, key, 5, ahead=10_000, holder="c").held.tokens == 5


def test_only_holders_that_live_may_give_something_back(accounts, key_of, ledger):
    key = key_of(budget_tokens=100)
    draw(accounts, key, 60, holder="alive")
    draw(accounts, key, 40, holder="dead")
    with ledger.database.write() as connection:
        table = schema.holders
        long_ago = sa.update(table).where(table.c.holder == named("dead")).values(seen_s=0.0)
        connection.execute(long_ago)
    grant = draw(accounts, key, 10)
    assert (grant.held.tokens, grant.elsewhere.tokens) == (0, 60)


def test_a_process_of_this_host_that_ended_gives_nothing_back(accounts, key_of):
    key = key_of(budget_tokens=100)
    wish = [Wish(key.id, (tokens(50),))]
    accounts.visit(f"{socket.gethostname()}:{os.getpid()}:0/dead", None, wish)
    accounts.visit(new_holder(), None, wish)
    assert draw(accounts, key, 10).elsewhere.tokens == 50


def test_a_budget_of_money_counts_beside_one_of_tokens(accounts, key_of):
    key = key_of(budget_tokens=100, budget_nanousd=50)
    need = Amounts(tokens=10, nanousd=30)
    grant = accounts.visit(named("a"), None, [Wish(key.id, (need, need))])[key.id]
    assert grant.held == need
    assert grant.left == Amounts(tokens=90, nanousd=20)


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_key_that_has_ended_draws_nothing(accounts, key_of, ledger, how):
    key = key_of(budget_tokens=100, expires_s=1.0 if how == "expired" else None)
    if how == "revoked":
        ApiKeys(ledger.database).revoke(key.id)
    assert draw(accounts, key, 10).ended == how
    assert accounts.balance(key) == Balance()


def test_each_of_many_keys_has_the_balance_of_its_own_period(accounts, key_of):
    keys = [key_of(budget_tokens=100, period=period) for period in ("day", "month", "total") * 2]
    for key, tokens in zip(keys, (10, 20, 30, 40, 50, 60), strict=True):
        draw(accounts, key, tokens)
    found = accounts.balances(keys)
    assert [found[key.id].tokens_held for key in keys] == [10, 20, 30, 40, 50, 60]
    assert accounts.balances([]) == {}


def test_an_unknown_key_draws_nothing(accounts):
    assert draw(accounts, ApiKey("key_none", "none"), 10).ended == "unknown"


def test_rates_fill_up_in_a_minute_and_no_further(accounts, key_of, ledger):
    key = key_of(requests_per_min=60, tokens_per_min=600)
    wish = Wish(key.id, (Amounts(requests=60, rate_tokens=600),))
    assert accounts.visit(named("a"), None, [wish])[key.id].held == Amounts(60, 600)
    with ledger.database.write() as connection:
        table = schema.buckets
        connection.execute(sa.update(table).values(at_s=table.c.at_s - 10))
    left = accounts.visit(named("a"), None, [Wish(key.id)])[key.id].left
    assert 10 <= left.requests <= 20
    assert 100 <= left.rate_tokens <= 200
    with ledger.database.write() as connection:
        connection.execute(sa.update(schema.buckets).values(at_s=0.0))
    assert accounts.visit(named("a"), None, [Wish(key.id)])[key.id].left == Amounts(60, 600)


def test_rates_that_are_given_back_can_be_drawn_again(accounts, key_of):
    key = key_of(tokens_per_min=600)
    accounts.visit(named("a"), None, [Wish(key.id, (Amounts(rate_tokens=600),))])
    accounts.visit(named("a"), Batch(1, returned={(key.id, 0): Amounts(rate_tokens=500)}))
    assert accounts.visit(named("b"), None, [Wish(key.id)])[key.id].left.rate_tokens >= 500


def test_every_period_has_an_account_of_its_own(accounts, ledger):
    key, _ = ApiKeys(ledger.database).create(ApiKey("", "bot", budget_tokens=100, period="day"))
    grant = draw(accounts, key, 100)
    assert 0 < grant.ends_in_s <= 86_400
    day_s = grant.start_s
    assert day_s % 86_400 == 0
    with ledger.database.write() as connection:
        for table in (schema.accounts, schema.drawings):
            connection.execute(sa.update(table).values(start_s=day_s - 86_400))
    assert draw(accounts, key, 100).held.tokens == 100
    yesterday = (key.id, day_s - 86_400)
    accounts.visit(named("a"), Batch(1, {}, {yesterday: tokens(70)}, {yesterday: tokens(30)}))
    assert accounts.balance(key) == Balance(tokens_held=100)


def test_who_leaves_is_forgotten_unless_it_holds_something(accounts, key_of, ledger):
    key = key_of(budget_tokens=100)
    draw(accounts, key, 30)
    draw(accounts, key, 30, holder="b")
    settle(accounts, key, 1, spent=10, returned=20)
    for holder in ("a", "b"):
        accounts.leave(named(holder))
    with ledger.database.read() as connection:
        left = connection.execute(sa.select(schema.holders.c.holder)).scalars().all()
    assert left == [named("b")]
    assert accounts.balance(key) == Balance(tokens_spent=10, tokens_held=30)


def test_usage_is_summed_by_what_is_asked(accounts):
    usage = {
        UsageId("2026-11-26", "k1", "small"): Usage(1, 10, 1, 100),
        UsageId("2026-11-27", "k1", "large"): Usage(2, 20, 2, 200),
        UsageId("2026-11-27", "", "small"): Usage(4, 40, 4, 400),
    }
    accounts.visit(named("a"), Batch(1, usage))
    accounts.visit(
        named("b"), Batch(1, {UsageId("2026-11-27", "k1", "large"): Usage(8, 80, 8, 800)})
    )
    assert accounts.usage("model") == {
        "large": Usage(10, 100, 10, 1000),
        "small": Usage(5, 50, 5, 500),
    }
    assert accounts.usage("key_id") == {"": Usage(4, 40, 4, 400), "k1": Usage(11, 110, 11, 1100)}
    assert accounts.usage("day", since="2026-11-27") == {"2026-11-27": Usage(14, 140, 14, 1400)}


@pytest.mark.slow
def test_holders_that_come_at_once_in_any_order_draw_the_budget_once(ledger_url, ledger, key_of):
    """Also: two that visit the same keys in other orders never wait for each other for ever."""
    keys = [key_of(budget_tokens=60, tokens_per_min=10**6) for _ in range(3)]
    drawn = []

    def work(number):
        own = Ledger(ledger_url)
        accounts, order = Accounts(own.database), keys if number % 2 else keys[::-1]
        need = Amounts(rate_tokens=7, tokens=7)
        held = dict.fromkeys((key.id for key in keys), 0)
        for sequence in range(1, 6):
            usage = {UsageId("2026-11-27", key.id, "m"): Usage(1, 1, 1, 1) for key in order}
            wishes = [Wish(key.id, (need,)) for key in order]
            grants = accounts.visit(named(number), Batch(sequence, usage), wishes)
            held = {key_id: grant.held.tokens for key_id, grant in grants.items()}
        drawn.append(held)
        own.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(drawn) == 6
    for key in keys:
        assert sum(held[key.id] for held in drawn) == 56  # eight times seven
    assert Accounts(ledger.database).usage("model")["m"].requests == 90


def test_a_need_behind_one_that_does_not_fit_is_still_served():
    wish = Wish("k", (tokens(10), tokens(100), tokens(5)), have=tokens(8))
    assert share(wish, tokens(20)) == (tokens(7), False)
    assert share(Wish("k", (tokens(5),), have=tokens(8)), tokens(20)) == (tokens(0), True)
