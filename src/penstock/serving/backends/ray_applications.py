"""Who uses which application of a Ray cluster; those that nobody uses are deleted.

An actor of its own, which outlives every gateway. A gateway that serves a model renews
its lease; one that was killed does not, and what only it used goes. Runs inside
the cluster, where nothing of the gateway is needed: imports the standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import time
from collections.abc import Callable
from typing import Any

PREFIX = "penstock-"
# A gateway renews three times in this time.
LEASE_S = 30.0

logger = logging.getLogger(__name__)


class Applications:
    """The actor. All names are of applications; a user is one loaded model of one gateway.

    Args:
        lease_s: How long a user that does not say so is believed to be there.
        now_s: The clock.
    """

    def __init__(self, lease_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._now_s = now_s
        self._born_s = now_s()
        self._users: dict[str, dict[str, float]] = {}
        self._deploying: dict[str, str] = {}
        self._deleting: set[str] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, user: str, name: str) -> bool:
        """Use an application, and be the one who may deploy it.

        Returns:
            Whether that is so; if not, somebody deploys or deletes it: ask again.
        """
        self._start_sweeping()
        if name in self._deleting or self._deployer(name) not in (None, user):
            return False
        self._renew(user, name)
        self._deploying[name] = user
        return True

    async def deployed(self, user: str, name: str) -> None:
        """Let others deploy; it is not used less for that."""
        if self._deploying.get(name) == user:
            del self._deploying[name]

    async def renew(self, uses: dict[str, str]) -> None:
        """Go on using applications.

        Args:
            uses: User -> application.
        """
        self._start_sweeping()
        for user, name in uses.items():
            self._renew(user, name)

    async def end(self, user: str, name: str) -> None:
        """Stop using an application; whoever is the last to do so has it deleted, later."""
        await self.deployed(user, name)
        self._users.get(name, {}).pop(user, None)
        if not self._is_used(name):
            self._delete(name)

    async def sweep(self) -> None:
        """Delete what nobody uses.

        Not before this actor is as old as a lease: if it had to be started again, it
        knows the users of all applications only then.
        """
        if self._now_s() - self._born_s <= self._lease_s:
            return
        for name in await asyncio.to_thread(_running):
            if not self._is_used(name):
                logger.warning("Nobody uses %s any more; it goes", name)
                self._delete(name)

    def _renew(self, user: str, name: str) -> None:
        self._users.setdefault(name, {})[user] = self._now_s() + self._lease_s

    def _is_used(self, name: str) -> bool:
        now_s = self._now_s()
        users = {user: end_s for user, end_s in self._users.get(name, {}).items() if end_s > now_s}
        self._users[name] = users
        if not users:
            del self._users[name]
        return bool(users)

    def _deployer(self, name: str) -> str | None:
        """Who deploys it; a user whose lease has ended does not."""
        user = self._deploying.get(name)
        alive = self._is_used(name) and user in self._users[name]
        return user if alive else None

    def _delete(self, name: str) -> None:
        if name in self._deleting:
            return
        self._deleting.add(name)
        task = asyncio.get_running_loop().create_task(self._deleted(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deleted(self, name: str) -> None:
        try:
            await asyncio.to_thread(_delete, name)
        except Exception:
            logger.exception("%s cannot be deleted; the next sweep tries again", name)
        finally:
            self._deleting.discard(name)

    def _start_sweeping(self) -> None:
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep_forever())

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self.sweep()
            except Exception:
                logger.exception("Applications that nobody uses cannot be looked for; trying on")


def _serve() -> Any:
    return importlib.import_module("ray.serve")


def is_ours(name: str) -> bool:
    """Whether an application is a gateway's, by its name."""
    return name.startswith(PREFIX)


def _running() -> list[str]:
    return [name for name in _serve().status().applications if is_ours(name)]


def _delete(name: str) -> None:
    # Answers that last longer go on; Ray waits for them in the background.
    with contextlib.suppress(TimeoutError):
        _serve().delete(name)
