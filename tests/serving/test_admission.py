import asyncio
import contextlib

import pytest

from penstock.errors import Overloaded
from penstock.monitoring.metrics import ServingMetrics
from penstock.serving.admission import Admission


def admission(max_concurrency=2, max_queue=3):
    metrics = ServingMetrics()
    return Admission("m", max_concurrency, max_queue, metrics), metrics


async def hold(door, seconds=3600.0):
    async with door.slot():
        await asyncio.sleep(seconds)


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def test_slots_then_queue_then_refusal():
    async def main():
        door, metrics = admission()
        tasks = [asyncio.create_task(hold(door)) for _ in range(5)]
        await settle()
        assert door.num_waiting == 3
        assert metrics.registry.get_sample_value("llm_queued_requests", {"model": "m"}) == 3
        with pytest.raises(Overloaded) as caught:
            await hold(door)
        assert caught.value.retry_after_s >= 1
        for task in tasks:
            task.cancel()

    asyncio.run(main())


def test_the_first_to_wait_is_the_first_to_enter():
    async def main():
        door, _ = admission(max_concurrency=1, max_queue=10)
        order = []

        async def enter(number):
            async with door.slot():
                order.append(number)
                await asyncio.sleep(0)

        everyone = asyncio.gather(*(enter(number) for number in range(8)))
        await asyncio.wait_for(everyone, 5)
        return order

    assert asyncio.run(main()) == list(range(8))


def test_who_gives_up_waiting_leaves_no_trace():
    async def main():
        door, metrics = admission(max_concurrency=1, max_queue=2)
        holder = asyncio.create_task(hold(door))
        await settle()
        waiting = [asyncio.create_task(hold(door)) for _ in range(2)]
        await settle()
        for task in waiting:
            task.cancel()
        await settle()
        assert door.num_waiting == 0
        assert metrics.registry.get_sample_value("llm_queued_requests", {"model": "m"}) == 0
        holder.cancel()
        await settle()
        await asyncio.wait_for(hold(door, 0), 1)

    asyncio.run(main())


@pytest.mark.slow
def test_retry_after_grows_with_measured_time_and_queue():
    async def main():
        door, _ = admission(max_concurrency=1, max_queue=50)
        door._learn(3.0)
        short = door.retry_after_s
        tasks = [asyncio.create_task(hold(door)) for _ in range(11)]
        await settle()
        long = door.retry_after_s
        for task in tasks:
            task.cancel()
        return short, long

    assert asyncio.run(main()) == (3, 33)


def test_a_failure_inside_frees_the_slot():
    async def main():
        door, _ = admission(max_concurrency=1, max_queue=0)
        for _ in range(3):
            with contextlib.suppress(ZeroDivisionError):
                async with door.slot():
                    raise ZeroDivisionError
        await asyncio.wait_for(hold(door, 0), 1)

    asyncio.run(main())
