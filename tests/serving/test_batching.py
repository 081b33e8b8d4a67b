import asyncio
import threading

import numpy as np
import pytest

from penstock.errors import InvalidRequest, ServingError
from penstock.serving.batching import Batches, alike


class Computer:
    """Answers each number with itself; notes what it was given, and waits when told to."""

    def __init__(self, max_batch=4, **settings):
        self.seen = []
        self.free = threading.Event()
        self.free.set()
        self.batches = Batches(self.compute, max_batch, "test", **settings)

    def compute(self, key, items):
        self.seen.append((key, sorted(items)))
        assert self.free.wait(10)
        if -1 in items:
            raise ValueError("minus one")
        if -2 in items:
            raise InvalidRequest("minus two")
        return np.array([[item, item] for item in items], np.float32)

    async def ask(self, *items, key=None, length=5):
        rows = await self.batches.ask(items, [length] * len(items), key)
        return rows[:, 0].tolist()


@pytest.fixture
def computer():
    made = Computer()
    yield made
    made.free.set()
    made.batches.close()


def busy(computer, *asks):
    """Answers to what is asked while the first batch, of the number 0, is computed."""

    async def main():
        computer.free.clear()
        first = asyncio.create_task(computer.ask(0))
        while not computer.seen:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(ask) for ask in asks]
        await asyncio.sleep(0.01)
        computer.free.set()
        await first
        return await asyncio.gather(*rest, return_exceptions=True)

    return asyncio.run(main())


def test_what_comes_while_a_batch_is_computed_shares_the_next(computer):
    answers = busy(computer, computer.ask(1), computer.ask(2, 3), computer.ask(4))
    assert answers == [[1], [2, 3], [4]]
    assert computer.seen == [(None, [0]), (None, [1, 2, 3, 4])]


def test_a_long_request_does_not_hold_up_those_behind_it(computer):
    long, short = busy(computer, computer.ask(*range(1, 11)), computer.ask(99))
    assert long == list(range(1, 11))
    assert short == [99]
    assert [99 in items for _, items in computer.seen] == [False, False, True, False]


def test_only_equal_keys_share_a_batch_and_none_starves(computer):
    answers = busy(computer, *(computer.ask(i, key="ab"[i % 2]) for i in range(1, 7)))
    assert answers == [[i] for i in range(1, 7)]
    assert computer.seen[1:] == [("b", [1, 3, 5]), ("a", [2, 4, 6])]


def test_those_who_were_answered_together_and_ask_again_share_a_batch_again():
    computer = Computer(gather_s=10)

    async def client(number):
        for turn in range(3):
            await asyncio.sleep(0.002 * number)
            await computer.ask(10 * number + turn)

    async def main():
        computer.free.clear()
        first = asyncio.create_task(computer.ask(99))
        clients = [asyncio.create_task(client(number)) for number in (0, 1, 2)]
        await asyncio.sleep(0.05)
        computer.free.set()
        await asyncio.gather(first, clients[0], clients[1], clients[2])

    async def quickly():
        # Nobody asks after the last turn, and nobody needs the wait that it ends in.
        await asyncio.wait_for(main(), 9)

    asyncio.run(quickly())
    computer.batches.close()
    assert [len(items) for _, items in computer.seen] == [1, 3, 3, 3]


def test_rows_come_back_in_the_order_of_the_items_whatever_their_lengths(computer):
    async def main():
        return await computer.batches.ask([7, 8, 9], [1, 300, 40])

    assert asyncio.run(main())[:, 0].tolist() == [7, 8, 9]


def test_a_failure_is_told_to_those_in_the_batch_and_to_nobody_else(computer):
    failed, refused, fine = busy(
        computer, computer.ask(-1), computer.ask(-2, key="b"), computer.ask(3, key="c")
    )
    assert isinstance(failed, ServingError)
    assert isinstance(failed.__cause__, ValueError)
    assert isinstance(refused, InvalidRequest)
    assert fine == [3]


def test_what_nobody_waits_for_is_not_computed(computer):
    async def main():
        computer.free.clear()
        tasks = [asyncio.create_task(computer.ask(i)) for i in range(3)]
        while not computer.seen:
            await asyncio.sleep(0.001)
        later = [asyncio.create_task(computer.ask(i)) for i in (10, 11)]
        await asyncio.sleep(0.01)
        later[0].cancel()
        computer.free.set()
        await asyncio.gather(*tasks, later[1])

    asyncio.run(main())
    assert 10 not in [item for _, items in computer.seen for item in items]


def test_long_and_short_texts_are_not_padded_to_each_other():
    assert alike([10, 250, 12, 240, 11]) == [[2, 4, 0], [1, 3]]
    assert alike([3, 18]) == [[1, 0]], "a few tokens of padding cost less than another pass"
    assert alike([]) == []
