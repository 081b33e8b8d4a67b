"""How many requests are computed at once, how many wait, and who is sent away."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator

from penstock.errors import Overloaded
from penstock.monitoring.metrics import ServingMetrics

# How much a new service time moves the average that Retry-After is made from.
_SMOOTHING = 0.2
_FIRST_GUESS_S = 1.0


class Admission:
    """A bounded queue in front of a bounded number of slots; first come, first served.

    Args:
        model: Label of the metrics.
        max_concurrency: Slots.
        max_queue: Requests that may wait for a slot.
        metrics: Told about the queue.
    """

    def __init__(
        self, model: str, max_concurrency: int, max_queue: int, metrics: ServingMetrics
    ) -> None:
        self._slots = asyncio.Semaphore(max_concurrency)
        self._max_concurrency = max_concurrency
        self._max_queue = max_queue
        self._num_waiting = 0
        self._service_s: float | None = None
        self._queued = metrics.queued.labels(model)
        self._queue_wait = metrics.queue_wait.labels(model)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._num_waiting

    @property
    def idle(self) -> bool:
        """Whether a request would be computed at once."""
        return not self._slots.locked()

    @property
    def retry_after_s(self) -> float:
        """When the queue as it is now will have been worked off, from measured times."""
        service_s = _FIRST_GUESS_S if self._service_s is None else self._service_s
        return max(1.0, math.ceil((self._num_waiting + 1) * service_s / self._max_concurrency))

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it.

        Raises:
            Overloaded: The queue is full.
        """
        await self._enter()
        started_s = time.monotonic()
        try:
            yield
        finally:
            self._slots.release()
            self._learn(time.monotonic() - started_s)

    async def _enter(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # does not wait
            self._queue_wait.observe(0.0)
            return
        if self._num_waiting >= self._max_queue:
            raise Overloaded(
                f"{self._num_waiting} requests are waiting, which is all that may.",
                "Try again after the time that Retry-After says.",
                retry_after_s=self.retry_after_s,
            )
        started_s = time.monotonic()
        self._num_waiting += 1
        self._queued.inc()
        try:
            await self._slots.acquire()
        finally:
            self._num_waiting -= 1
            self._queued.dec()
        self._queue_wait.observe(time.monotonic() - started_s)

    def _learn(self, service_s: float) -> None:
        before = service_s if self._service_s is None else self._service_s
        self._service_s = before + _SMOOTHING * (service_s - before)
