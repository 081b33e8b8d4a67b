"""Whether a server elsewhere is well, asked often and believed with care.

The gateway asks every 0.4 seconds and waits half a second for the answer. A refused
connection is an answer at once; a slow one is not yet a dead server, so the question
is left to run on, and what was known before holds meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

_WAIT_S = 0.4
# A server in our own network that says nothing for so long is not well.
_NEAR_PATIENCE_S = 0.9
# A public one is far away, and takes questions twice a second amiss.
_FAR_PATIENCE_S = 5.0
_FAR_INTERVAL_S = 10.0


class Health:
    """What is known about a server's health.

    Args:
        ask: Asks it whether it is well.
        is_far: Whether it is on a public address.
    """

    def __init__(self, ask: Callable[[], Awaitable[bool]], is_far: Callable[[], bool]) -> None:
        self._ask = ask
        self._is_far = is_far
        self._well = True
        self._asked_s = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def healthy(self) -> bool:
        """Whether it is well, as far as is known."""
        if self._asking is None or self._asking.done():
            if self._well and time.monotonic() - self._asked_s < self._interval_s:
                return True
            self._asked_s = time.monotonic()
            self._asking = asyncio.create_task(self._look())
        await asyncio.wait((self._asking,), timeout=_WAIT_S)
        if not self._asking.done() and time.monotonic() - self._asked_s > self._patience_s:
            self._asking.cancel()
            self._well = False
        return self._well

    def doubt(self) -> None:
        """A request has just failed to reach it: ask again at the next occasion."""
        self._asked_s = float("-inf")

    async def stop(self) -> None:
        """Ask no more."""
        if self._asking is not None and not self._asking.done():
            self._asking.cancel()
            await asyncio.wait((self._asking,))

    @property
    def _interval_s(self) -> float:
        return _FAR_INTERVAL_S if self._is_far() else 0.0

    @property
    def _patience_s(self) -> float:
        return _FAR_PATIENCE_S if self._is_far() else _NEAR_PATIENCE_S

    async def _look(self) -> None:
        self._well = await self._ask()
