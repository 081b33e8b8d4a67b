"""Whether a server elsewhere is well, asked often and believed with care.

The gateway looks every 0.4 seconds. A look says what is known and asks anew, and waits
for nothing: a gateway that is short of time itself must not take that for a dead server.
A refused connection is an answer, said at the next look. A slow one is not yet: the
question is left to run on, and what was known before holds for a few looks more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

# So many looks may find no answer: a second or two for a server in our own network.
_NEAR_PATIENCE = 3
# A public one is far away, and takes questions twice a second amiss.
_FAR_PATIENCE = 10
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
        self._num_looks = 0

    def look(self) -> bool:
        """Whether it is well, as far as is known; on the event loop."""
        if self._asking is None or self._asking.done():
            interval_s = _FAR_INTERVAL_S if self._is_far() else 0.0
            if not self._well or time.monotonic() - self._asked_s >= interval_s:
                self._asked_s, self._num_looks = time.monotonic(), 0
                self._asking = asyncio.create_task(self._question())
            return self._well
        self._num_looks += 1
        if self._num_looks > (_FAR_PATIENCE if self._is_far() else _NEAR_PATIENCE):
            self._asking.cancel()
            self._asking, self._well = None, False
        return self._well

    def doubt(self) -> None:
        """A request has just failed to reach it: ask again at the next occasion."""
        self._asked_s = float("-inf")

    async def stop(self) -> None:
        """Ask no more."""
        if self._asking is not None and not self._asking.done():
            self._asking.cancel()
            await asyncio.wait((self._asking,))

    async def _question(self) -> None:
        self._well = await self._ask()
