import asyncio
import logging
import threading

import pytest
from doubles import Pointer, served

from penstock.errors import ServingError
from penstock.monitoring.metrics import ServingMetrics
from penstock.serving import watcher as watcher_module
from penstock.serving.routes import Route, RouteTable
from penstock.serving.watcher import PointerWatcher


class Closable:
    closed = False

    def close(self):
        self.closed = True


class World:
    """A watcher over a pointer and a loader that the test controls."""

    def __init__(self):
        self.pointer = Pointer()
        self.table = RouteTable()
        self.metrics = ServingMetrics()
        self.loads = []
        self.routes = []
        self.broken = set()
        self.during_load = lambda wanted: None

    def load(self, wanted):
        self.loads.append(wanted.version)
        self.during_load(wanted)
        if wanted.version in self.broken:
            raise ServingError(f"version {wanted.version} is broken")
        route = Route(wanted, None, Closable())
        self.routes.append(route)
        return route

    def sample(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)

    @property
    def version(self):
        return self.table.current and self.table.current.served.version

    def play(self, scenario):
        async def main():
            self.watcher = PointerWatcher(
                lambda: self.pointer.targets("penny"),
                self.load,
                self.table,
                self.metrics,
                poll_interval_s=0.005,
                model="penny",
            )
            self.watcher.start()
            try:
                await scenario(self)
            finally:
                await self.watcher.stop()
                await self.table.close()

        asyncio.run(main())


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def some_polls():
    await asyncio.sleep(0.08)


def test_the_route_follows_the_pointer_forth_and_back():
    async def scenario(world):
        for number, epoch in ((1, 1), (2, 2), (1, 3)):
            world.pointer.version = served(f"v{number}", number, epoch)
            await until(lambda n=number: world.version == n)
            assert world.sample("penstock_route_epoch", model="penny") == epoch
        await until(lambda: [route.backend.closed for route in world.routes] == [True, True, False])

    World().play(scenario)


def test_a_pointer_that_is_cleared_ends_serving():
    async def scenario(world):
        world.pointer.version = served("v1", 1)
        await until(lambda: world.version == 1)
        world.pointer.version = None
        await until(lambda: world.version is None)
        await until(lambda: world.routes[0].backend.closed)

    World().play(scenario)


def test_a_failing_poll_serves_on_and_is_logged_once(caplog):
    async def scenario(world):
        world.pointer.version = served("v1", 1)
        await until(lambda: world.version == 1)
        world.pointer.error = ConnectionError("database is down")
        await some_polls()
        assert world.version == 1
        assert world.sample("penstock_pointer_poll_failures_total") > 2
        world.pointer.version, world.pointer.error = served("v2", 2), None
        await until(lambda: world.version == 2)

    with caplog.at_level(logging.INFO):
        World().play(scenario)
    assert caplog.text.count("database is down") == 1
    assert caplog.text.count("can be read again") == 1


def test_a_version_that_cannot_be_loaded_keeps_the_old_one_and_is_tried_less_and_less(
    monkeypatch, caplog
):
    monkeypatch.setattr(watcher_module, "_FIRST_RETRY_S", 0.05)

    async def scenario(world):
        world.pointer.version = served("v1", 1)
        await until(lambda: world.version == 1)
        world.broken = {2}
        world.pointer.version = served("v2", 2)
        await until(lambda: world.watcher.failure and world.watcher.failure.attempts == 3)
        assert world.version == 1
        assert world.watcher.failure.error == "version 2 is broken"
        assert world.loads == [1, 2, 2, 2]
        assert world.sample("penstock_load_failures_total", model="penny") == 3
        world.broken = set()
        await until(lambda: world.version == 2)
        assert world.watcher.failure is None

    World().play(scenario)
    assert "Version 2 of penny cannot be loaded" in caplog.text


def test_a_new_move_of_the_pointer_is_tried_at_once_after_a_failure():
    async def scenario(world):
        world.broken = {1}
        world.pointer.version = served("v1", 1)
        await until(lambda: world.watcher.failure)
        world.pointer.version = served("v2", 2)
        await until(lambda: world.version == 2)

    World().play(scenario)


def test_a_pointer_that_moves_back_during_a_load_never_serves_what_was_loaded():
    async def scenario(world):
        world.pointer.version = served("v1", 1)
        await until(lambda: world.version == 1)

        def roll_back(wanted):
            if wanted.version == 2:
                world.pointer.version = served("v1", 1, epoch=3)

        world.during_load = roll_back
        world.pointer.version = served("v2", 2)
        await until(lambda: world.table.current.served.epoch == 3)
        assert world.loads == [1, 2]
        assert [route.backend.closed for route in world.routes] == [False, True]

    World().play(scenario)


def test_a_slow_load_does_not_hold_up_the_event_loop():
    async def scenario(world):
        release = threading.Event()
        world.during_load = lambda wanted: release.wait(10)
        world.pointer.version = served("v1", 1)
        await until(lambda: world.loads)
        ticks = 0
        async with asyncio.timeout(1):
            while ticks < 20:
                await asyncio.sleep(0.001)
                ticks += 1
        assert world.version is None
        release.set()
        await until(lambda: world.version == 1)

    World().play(scenario)


def test_a_bug_in_the_loader_does_not_stop_the_watching():
    async def scenario(world):
        def bug(wanted):
            if wanted.version == 1:
                raise TypeError("a bug")

        world.during_load = bug
        world.pointer.version = served("v1", 1)
        await until(lambda: world.watcher.failure)
        world.pointer.version = served("v2", 2)
        await until(lambda: world.version == 2)

    World().play(scenario)


@pytest.mark.parametrize("moves", [12])
def test_only_the_last_of_many_moves_has_to_be_loaded(moves):
    async def scenario(world):
        world.during_load = lambda wanted: threading.Event().wait(0.02)
        for number in range(1, moves + 1):
            world.pointer.version = served(f"v{number}", number)
            await asyncio.sleep(0.004)
        await until(lambda: world.version == moves)
        assert len(world.loads) < moves
        served_once = {route.served.version for route in world.routes if not route.backend.closed}
        assert served_once == {moves}

    World().play(scenario)
