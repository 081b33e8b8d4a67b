"""Requests on their way from an event loop to a computing thread and back.

Backends that compute in threads share this: a queue that hands out jobs which
may be computed together, and a job that carries tokens back to its caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator

from penstock.errors import ServingError
from penstock.serving.answer_text import AnswerText, Decoder
from penstock.serving.backends.base import Chunk, FinishReason, Generation

# The caller is woken at once for the first token, then at most this often. A
# small model makes 3,000 tokens a second on two cores; waking the event loop
# for each of them took a third of a core from the model.
_WAKE_INTERVAL_S = 0.02


class Job:
    """One request to generate.

    ``push`` and ``finish`` belong to the computing thread, ``chunks`` to the
    event loop that made the job.

    Attributes:
        cancelled: The caller has gone; computing on is a waste.
    """

    def __init__(self, request: Generation, decoder: Decoder) -> None:
        self.request = request
        self.cancelled = False
        self._answer = AnswerText(decoder, request.prompt_ids, request.stop)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._tokens: deque[int] = deque()
        self._num_tokens = 0
        self._next_wake_s = 0.0
        self._finish: FinishReason | None = None
        self._error: BaseException | None = None

    @property
    def sampling(self) -> tuple[float, float]:
        """Jobs with equal sampling can share a batch."""
        return (self.request.temperature, self.request.top_p)

    @property
    def alone(self) -> bool:
        """Whether its random numbers must not depend on a neighbour's."""
        return self.request.seed is not None and self.request.temperature > 0

    @property
    def done(self) -> bool:
        """Whether nothing needs to be computed for it any more."""
        return self.cancelled or self._finish is not None or self._error is not None

    def push(self, token_id: int) -> bool:
        """Add a token; returns whether the job needs no more."""
        self._tokens.append(token_id)
        self._num_tokens += 1
        if self._num_tokens >= self.request.max_tokens:
            self.finish("length")
            return True
        now_s = time.monotonic()
        if now_s >= self._next_wake_s:
            self._next_wake_s = now_s + _WAKE_INTERVAL_S
            self._wake()
        return self.cancelled

    def finish(self, reason: FinishReason) -> None:
        """No more tokens come; only the first call counts."""
        if not self.done:
            self._finish = reason
            self._wake()

    def fail(self, error: BaseException) -> None:
        """The computation broke; the caller gets the error."""
        if not self.done:
            self._error = error
            self._wake()

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The answer as it grows. Closing the iterator cancels the job."""
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                # Read before the tokens: what was pushed before it is then in them.
                finish, error = self._finish, self._error
                if error is not None:
                    raise ServingError("The model failed while generating.") from error
                chunk = self._next_chunk(finish)
                if chunk.text or chunk.token_ids or chunk.finish_reason:
                    yield chunk
                if chunk.finish_reason:
                    return
        finally:
            self.cancelled = True

    def _next_chunk(self, finish: FinishReason | None) -> Chunk:
        new = [self._tokens.popleft() for _ in range(len(self._tokens))]
        text, used = self._answer.feed(new)
        if finish is not None and not self._answer.stopped:
            text += self._answer.flush()
        reason: FinishReason | None = "stop" if self._answer.stopped else finish
        return Chunk(text, tuple(new[:used]), reason)

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.cancelled = True


class JobQueue:
    """Hands jobs to computing threads in batches; first come, first served.

    A batch shares its sampling parameters, and its prompts differ in length by
    at most ``max_spread`` tokens.

    Args:
        max_batch: Jobs in a batch, at most.
        max_spread: Tokens.
        gather_s: How long a thread waits for company when others are computing
            anyway. Clients that got their answers together ask again together;
            starting the first of them alone would halve the next batches.
    """

    def __init__(self, max_batch: int, max_spread: int, gather_s: float = 0.004) -> None:
        self._max_batch = max_batch
        self._max_spread = max_spread
        self._gather_s = gather_s
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._num_busy = 0
        self._closed = False

    def put(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ServingError: The queue is closed.
        """
        with self._changed:
            if self._closed:
                raise ServingError("The model is being unloaded.")
            self._waiting.append(job)
            self._changed.notify()

    def take(self) -> list[Job]:
        """Wait for the next batch; empty once the queue is closed."""
        with self._changed:
            while not self._closed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._num_busy:
                    self._changed.wait_for(self._full, timeout=self._gather_s)
                if batch := self._pick():
                    self._num_busy += 1
                    return batch
            return []

    @contextlib.contextmanager
    def computing(self, batch: list[Job]) -> Generator[None, None, None]:
        """Around the computation of a batch: no job is left without an end."""
        try:
            yield
            for job in batch:
                job.finish("length")
        except Exception as error:
            for job in batch:
                job.fail(error)
        finally:
            with self._changed:
                self._num_busy -= 1

    def close(self) -> None:
        """Let ``take`` return nothing from now on, and fail what still waits."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.fail(ServingError("The model was unloaded."))
            self._waiting.clear()
            self._changed.notify_all()

    def _full(self) -> bool:
        return self._closed or len(self._waiting) >= self._max_batch

    def _pick(self) -> list[Job]:
        batch: list[Job] = []
        others: deque[Job] = deque()
        while self._waiting:
            job = self._waiting.popleft()
            if job.cancelled:
                continue
            if len(batch) < self._max_batch and self._fits(job, batch):
                batch.append(job)
            else:
                others.append(job)
        self._waiting = others
        return batch

    def _fits(self, job: Job, batch: list[Job]) -> bool:
        if not batch:
            return True
        lengths = [len(other.request.prompt_ids) for other in (job, *batch)]
        return (
            not (job.alone or batch[0].alone)
            and job.sampling == batch[0].sampling
            and max(lengths) - min(lengths) <= self._max_spread
        )
