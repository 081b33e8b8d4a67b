"""Who asks: API keys, looked up in memory and read again from the ledger every second.

A key is found by the SHA-256 of what the client sent. How long that takes tells nothing
about other keys: who does not know a key cannot choose how far its digest agrees with one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Iterable, Mapping

from penstock.errors import InvalidKey, NotReady, RecipeError, UnknownModel
from penstock.ledger.api_keys import PREFIX, ApiKey, ApiKeys, digest_of

logger = logging.getLogger(__name__)

_REFRESH_S = 1.0
# While the ledger is away, keys that were revoked meanwhile are still let in for this long.
_OLDEST_S = 30.0
_BEARER = re.compile(rf"bearer +({PREFIX}[A-Za-z0-9_-]{{43}}) *", re.IGNORECASE)


class KeyRing:
    """The valid keys, in memory.

    Args:
        keys: In the ledger.
        refresh_s: How often it is read again: so long a revoked key may still be let in.
        oldest_s: When the ledger has been away for so long, nobody is let in.
    """

    def __init__(
        self, keys: ApiKeys, refresh_s: float = _REFRESH_S, oldest_s: float = _OLDEST_S
    ) -> None:
        self._keys = keys
        self._refresh_s = refresh_s
        self._oldest_s = oldest_s
        self._by_digest: Mapping[str, ApiKey] = {}
        self._state: tuple[int, int, int] | None = None
        self._read_s = -float("inf")
        self._is_broken = False

    async def start(self) -> None:
        """Read the keys, and go on doing so.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        await asyncio.to_thread(self._read)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Read no more."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    def authenticate(self, authorization: str | None) -> ApiKey:
        """The key that a request shows.

        Args:
            authorization: The header of that name, as in ``Bearer psk_...``.

        Raises:
            InvalidKey: It shows none, or none that is valid now.
            NotReady: The ledger has not been read for too long to say.
        """
        if time.monotonic() - self._read_s > self._oldest_s:
            raise NotReady("API keys cannot be checked now.", "Try again, or another gateway.")
        if not authorization:
            raise InvalidKey(
                "You did not provide an API key.",
                f"Send it in the header, as in: Authorization: Bearer {PREFIX}...",
            )
        shown = _BEARER.fullmatch(authorization)
        key = self._by_digest.get(digest_of(shown[1])) if shown else None
        if key is None or key.ended(time.time()) is not None:
            # The same for a key that never was: nobody learns which keys there were.
            raise InvalidKey("Incorrect API key provided.", "It may have expired or been revoked.")
        return key

    def _read(self) -> None:
        # Before the keys: what changes in between is read again next time.
        state = self._keys.state()
        if state != self._state:
            self._by_digest = self._keys.by_digest()
            self._state = state
        self._read_s = time.monotonic()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await asyncio.to_thread(self._read)
            except Exception as error:
                if not self._is_broken:
                    logger.error("API keys cannot be read, going on with those known: %s", error)
                self._is_broken = True
            else:
                if self._is_broken:
                    logger.info("API keys can be read again")
                self._is_broken = False


def check_model(key: ApiKey | None, model: str, served: Iterable[str]) -> None:
    """Let a key ask a model.

    Args:
        key: None without keys.
        model: What it asks for.
        served: All that the gateway serves.

    Raises:
        UnknownModel: It may not, or there is none: which of the two is nobody's business.
    """
    names = visible_models(key, served)
    if model not in names:
        listed = ", ".join(repr(name) for name in names)
        raise UnknownModel(
            f"There is no model {model[:200]!r}.",
            f"You may ask {listed}." if names else "This API key has no model that is served.",
        )


def visible_models(key: ApiKey | None, served: Iterable[str]) -> list[str]:
    """What a key may know of: for lists and for error messages."""
    return [name for name in served if key is None or key.allows(name)]


def require_keys(host: str, keys_enabled: bool) -> None:
    """Refuse to listen beyond this machine without asking for keys.

    Raises:
        RecipeError: That is what the configuration says.
    """
    if keys_enabled or is_loopback(host):
        return
    raise RecipeError(
        f"The gateway would listen on {host!r}, where others can reach it, and ask nobody for "
        "an API key.",
        "Set serve.keys to true and make keys with `penstock keys create`, or listen on 127.0.0.1.",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name may come to mean any address
