import asyncio

import pytest
from doubles import served

from penstock.errors import NotReady
from penstock.serving.routes import Route, RouteTable


class Closable:
    def __init__(self, fails=False):
        self.num_closed = 0
        self.fails = fails

    def close(self):
        self.num_closed += 1
        if self.fails:
            raise RuntimeError("no")


def route(number, **kind):
    return Route(served("x", number), None, Closable(**kind))


def test_without_a_version_nothing_is_ready():
    with pytest.raises(NotReady):
        RouteTable().route()


def test_an_answer_keeps_its_route_while_new_ones_take_the_new():
    async def main():
        table, old, new = RouteTable(), route(1), route(2)
        table.swap(old)
        with table.route()[0].lease() as held:
            table.swap(new)
            assert held is old
            assert table.route() == (new, "champion")
            await asyncio.sleep(0.05)
            assert old.backend.num_closed == 0
        await asyncio.wait_for(old.closed(), 5)
        assert (old.backend.num_closed, new.backend.num_closed) == (1, 0)

    asyncio.run(main())


def test_the_last_of_many_answers_closes_a_retired_route_once():
    async def main():
        table, old = RouteTable(), route(1)
        table.swap(old)
        leases = [table.route()[0].lease() for _ in range(3)]
        for lease in leases:
            lease.__enter__()
        table.swap(route(2))
        for lease in leases:
            assert old.backend.num_closed == 0
            lease.__exit__(None, None, None)
        await asyncio.wait_for(old.closed(), 5)
        assert old.backend.num_closed == 1

    asyncio.run(main())


def test_closing_the_table_waits_for_every_route_even_one_that_fails():
    async def main():
        table, first, second = RouteTable(), route(1, fails=True), route(2)
        table.swap(first)
        table.swap(second)
        await asyncio.wait_for(table.close(), 5)
        return first.backend.num_closed, second.backend.num_closed, table.current

    assert asyncio.run(main()) == (1, 1, None)
