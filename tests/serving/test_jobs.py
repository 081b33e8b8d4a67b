import asyncio
import threading
import time

import pytest
from test_answer_text import Bytes

from penstock.errors import ServingError
from penstock.serving.backends.base import Generation
from penstock.serving.jobs import Job, JobQueue


def generation(prompt=b"p", max_tokens=100, **more):
    return Generation(tuple(prompt), max_tokens, **more)


def job(*args, **more):
    return Job(generation(*args, **more), Bytes())


async def collect(one):
    return [chunk async for chunk in one.chunks()]


def test_tokens_from_a_thread_arrive_whole_and_in_order():
    async def main():
        one = job(max_tokens=1_000)
        text = b"".join(bytes([97 + i % 26]) for i in range(1_000))

        def compute():
            for token in text:
                one.push(token)

        thread = threading.Thread(target=compute)
        thread.start()
        chunks = await asyncio.wait_for(collect(one), 10)
        thread.join()
        assert "".join(chunk.text for chunk in chunks) == text.decode()
        assert sum(len(chunk.token_ids) for chunk in chunks) == 1_000
        assert chunks[-1].finish_reason == "length"
        assert len(chunks) < 100  # fast tokens share a chunk

    asyncio.run(main())


def test_the_first_token_does_not_wait_for_the_next():
    async def main():
        one = job()
        one.push(97)
        chunk = await asyncio.wait_for(anext(one.chunks()), 1)
        assert chunk.text == "a"

    asyncio.run(main())


def test_closing_the_stream_tells_the_computing_thread():
    async def main():
        one = job()
        one.push(97)
        stream = one.chunks()
        await anext(stream)
        await stream.aclose()
        assert one.cancelled
        time.sleep(0.03)
        assert one.push(98) is True

    asyncio.run(main())


def test_a_stop_string_tells_the_computing_thread():
    async def main():
        one = job(stop=("b",))
        for token in b"abc":
            one.push(token)
        time.sleep(0.03)
        one.push(100)
        chunks = await collect(one)
        assert "".join(chunk.text for chunk in chunks) == "a"
        assert [token for chunk in chunks for token in chunk.token_ids] == list(b"ab")
        assert chunks[-1].finish_reason == "stop"
        assert one.cancelled

    asyncio.run(main())


def test_a_failure_of_the_model_reaches_the_caller():
    async def main():
        one = job()
        one.fail(RuntimeError("broken"))
        with pytest.raises(ServingError) as caught:
            await collect(one)
        assert isinstance(caught.value.__cause__, RuntimeError)

    asyncio.run(main())


def test_a_job_whose_loop_is_gone_is_cancelled():
    made = []

    async def main():
        made.append(job())

    asyncio.run(main())
    assert made[0].push(97) is True


def queue(jobs, max_batch=4, max_spread=10):
    waiting = JobQueue(max_batch, max_spread)
    for one in jobs:
        waiting.put(one)
    return waiting


def in_loop(function):
    async def main():
        return function()

    return asyncio.run(main())


def test_a_batch_has_equal_sampling_and_similar_lengths():
    def check():
        first, hot, long, second = (
            job(b"a" * 5),
            job(b"a" * 5, temperature=0.5),
            job(b"a" * 16),
            job(b"a" * 15),
        )
        waiting = queue([first, hot, long, second])
        assert waiting.take() == [first, second]
        assert waiting.take() == [hot]
        assert waiting.take() == [long]

    in_loop(check)


def test_a_seeded_job_is_computed_alone():
    def check():
        jobs = [job(seed=1), job(seed=1), job(), job(seed=3, temperature=0.0)]
        waiting = queue(jobs)
        assert [waiting.take() for _ in range(4)] == [[one] for one in jobs]

    in_loop(check)


def test_a_batch_is_bounded_and_cancelled_jobs_are_left_out():
    def check():
        jobs = [job() for _ in range(7)]
        jobs[1].cancelled = True
        waiting = queue(jobs)
        assert waiting.take() == [jobs[0], *jobs[2:5]]
        assert waiting.take() == jobs[5:]

    in_loop(check)


def test_a_queue_whose_jobs_are_all_cancelled_waits_on():
    def check():
        gone, kept = job(), job()
        gone.cancelled = True
        waiting = queue([gone])
        threading.Timer(0.05, waiting.put, [kept]).start()
        assert waiting.take() == [kept]

    in_loop(check)


def test_closing_ends_the_threads_and_fails_what_waits():
    async def main():
        one = job()
        waiting = queue([one])
        waiting.close()
        assert waiting.take() == []
        with pytest.raises(ServingError):
            await collect(one)
        with pytest.raises(ServingError):
            waiting.put(job())

    asyncio.run(main())


def test_no_job_is_left_without_an_end():
    async def main():
        finished, broken = job(), job()
        waiting = queue([])
        with waiting.computing([finished]):
            finished.push(97)
        with waiting.computing([broken]):
            raise RuntimeError("broken")
        assert (await collect(finished))[-1].finish_reason == "length"
        with pytest.raises(ServingError):
            await collect(broken)

    asyncio.run(main())
