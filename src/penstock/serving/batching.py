"""Dynamic batching: requests that come while a batch is computed share the next one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError, ServingError

Item = TypeVar("Item")
Rows: TypeAlias = NDArray[np.float32]

# A text is padded to the longest in its batch. Half of it may be padding, or a
# few tokens: below that, a pass over a batch of its own costs more than padding.
_FREE_PADDING_TOKENS = 16


@dataclass(eq=False)
class _Request(Generic[Item]):
    """A request that is not computed to its end.

    Attributes:
        key: Only requests with the same share a batch.
        rows: What has been computed, by place.
        num_missing: So many rows are not.
        todo: What is not in a batch yet, longest first.
        answer: Set when nothing is missing.
    """

    key: Hashable
    rows: list[Any]
    num_missing: int
    answer: asyncio.Future[Rows]
    todo: deque[_Asked[Item]] = field(default_factory=deque)

    def put(self, place: int, row: Any) -> None:
        """A row is computed."""
        self.rows[place] = row
        self.num_missing -= 1
        if not self.num_missing and not self.answer.done():
            self.answer.set_result(np.stack(self.rows))


class _Asked(NamedTuple, Generic[Item]):
    """One item of a request."""

    request: _Request[Item]
    place: int
    length: int
    item: Item


class Batches(Generic[Item]):
    """Computes for many requests in a thread of its own.

    A request with more items than fit a batch does not hold up those behind it:
    after each batch it goes to the end of the line.

    Args:
        compute: Given a key and items of about the same length; returns a row for each.
        max_batch: Items in a batch.
        name: Of the thread.
        gather_s: How long a batch waits for those whose answers came together, and who
            ask again together; starting the first of them alone would halve the next batches.
    """

    def __init__(
        self,
        compute: Callable[[Any, list[Item]], Rows],
        max_batch: int,
        name: str,
        gather_s: float = 0.003,
    ) -> None:
        self._compute = compute
        self._max_batch = max_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._line: list[_Request[Item]] = []
        self._working: asyncio.Task[None] | None = None
        self._gather_s = gather_s
        self._num_expected = 0
        self._all_here: asyncio.Event | None = None

    async def ask(
        self, items: Sequence[Item], lengths: Sequence[int], key: Hashable = None
    ) -> Rows:
        """One row for each item, in their order.

        Args:
            items: At least one.
            lengths: Of the items, in tokens.
            key: Only requests with the same share a batch.

        Raises:
            ServingError: It cannot be computed.
        """
        answer: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        request: _Request[Item] = _Request(key, [None] * len(items), len(items), answer)
        for place in sorted(range(len(items)), key=lambda place: -lengths[place]):
            request.todo.append(_Asked(request, place, lengths[place], items[place]))
        self._line.append(request)
        if self._all_here and len(self._line) >= self._num_expected:
            self._all_here.set()
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await answer

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    async def _work(self) -> None:
        while batch := self._next():
            for places in alike([asked.length for asked in batch]):
                await self._computed([batch[place] for place in places])
            await self._gathered(len({id(asked.request) for asked in batch}))

    async def _gathered(self, num_answered: int) -> None:
        if num_answered < 2 or len(self._line) >= num_answered:
            return
        self._num_expected, self._all_here = num_answered, asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_here.wait(), self._gather_s)
        self._all_here = None

    async def _computed(self, group: list[_Asked[Item]]) -> None:
        items = [asked.item for asked in group]
        loop, key = asyncio.get_running_loop(), group[0].request.key
        try:
            rows = await loop.run_in_executor(self._thread, self._compute, key, items)
        except Exception as error:
            _fail(group, error)
        else:
            for asked, row in zip(group, rows, strict=True):
                asked.request.put(asked.place, row)

    def _next(self) -> list[_Asked[Item]]:
        """The next batch: of the request that waits longest, and of those that can join it."""
        line = [request for request in self._line if not request.answer.done()]
        batch: list[_Asked[Item]] = []
        again = []
        self._line = []
        for request in line:
            if len(batch) == self._max_batch or request.key != line[0].key:
                self._line.append(request)
                continue
            while request.todo and len(batch) < self._max_batch:
                batch.append(request.todo.popleft())
            if request.todo:
                again.append(request)
        self._line += again
        return batch


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Cut a batch so that nothing is padded much beyond twice its length.

    Args:
        lengths: Of the batch's items.

    Returns:
        Their places in groups, the shortest group first: it is soonest done.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and longest <= 2 * lengths[place] + _FREE_PADDING_TOKENS:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups[::-1]


def _fail(group: Sequence[_Asked[Any]], error: Exception) -> None:
    for asked in group:
        if not asked.request.answer.done():
            failure = error
            if not isinstance(error, PenstockError):
                failure = ServingError("The model failed.")
                failure.__cause__ = error
            asked.request.answer.set_exception(failure)
