import asyncio

import pytest

from penstock.serving.backends.health import Health


class Server:
    """Says how it is; hangs while it is told to."""

    def __init__(self):
        self.well, self.hangs, self.num_asked = True, False, 0

    async def ask(self):
        self.num_asked += 1
        if self.hangs:
            await asyncio.sleep(3600)
        return self.well


@pytest.fixture
def server():
    return Server()


async def looks(health, count):
    """What so many looks see; between two of them there is time for an answer."""
    seen = []
    for _ in range(count):
        seen.append(health.look())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return seen


def test_a_near_server_is_asked_at_every_look_and_believed_at_the_next(server):
    async def main():
        near = Health(server.ask, lambda: False)
        seen = []
        for server.well in (True, False, True):
            seen += await looks(near, 2)
        return seen

    assert asyncio.run(main()) == [True, True, True, False, False, True]
    assert server.num_asked == 6


def test_a_public_server_is_left_in_peace_until_a_request_failed(server):
    async def main():
        far = Health(server.ask, lambda: True)
        assert all(await looks(far, 5))
        assert server.num_asked == 1
        server.well = False
        far.doubt()
        assert await looks(far, 2) == [True, False]
        # What is not well is asked every time.
        server.well = True
        assert await looks(far, 2) == [False, True]
        assert server.num_asked == 4

    asyncio.run(main())


def test_a_slow_answer_is_waited_for_while_what_was_known_holds(server):
    server.hangs = True

    async def main():
        near = Health(server.ask, lambda: False)
        assert await looks(near, 5) == [True, True, True, True, False]
        assert server.num_asked == 1  # not one question more while the first was open
        server.hangs = False
        assert await looks(near, 2) == [False, True]
        await near.stop()

    asyncio.run(main())
