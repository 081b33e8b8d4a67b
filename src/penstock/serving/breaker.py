"""Whether a model is worth asking: after several failures in a row it is left alone a while."""

from __future__ import annotations

import time
from collections.abc import Callable

_MAX_FAILURES = 5
_REST_S = 5.0


class Breaker:
    """Opens after failures in a row; later lets one request through to see.

    Args:
        max_failures: In a row.
        rest_s: How long nobody is asked once it is open.
        now_s: The clock.
    """

    def __init__(
        self,
        max_failures: int = _MAX_FAILURES,
        rest_s: float = _REST_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_failures = max_failures
        self._rest_s = rest_s
        self._now_s = now_s
        self._num_failures = 0
        self._closed_at_s: float | None = None
        self._unhealthy = False

    @property
    def open(self) -> bool:
        """Whether requests are kept away."""
        return self._unhealthy or self._closed_at_s is not None

    @property
    def retry_after_s(self) -> float:
        """When the next request may be let through."""
        if self._unhealthy or self._closed_at_s is None:
            return 1.0
        return max(0.0, self._closed_at_s - self._now_s())

    def admits(self) -> bool:
        """Whether this request may go through; the one that tests an open breaker is counted."""
        if self._unhealthy:
            return False
        if self._closed_at_s is None:
            return True
        if self._now_s() < self._closed_at_s:
            return False
        # One request looks whether all is well again; the others wait for what it says.
        self._closed_at_s = self._now_s() + self._rest_s
        return True

    def succeeded(self) -> None:
        """A request was answered."""
        self._num_failures = 0
        self._closed_at_s = None

    def failed(self) -> None:
        """A request was not answered, and that was not its own fault."""
        self._num_failures += 1
        if self._num_failures >= self._max_failures:
            self._closed_at_s = self._now_s() + self._rest_s

    def probed(self, healthy: bool) -> None:
        """What the health check said."""
        if healthy and self._unhealthy:
            self.succeeded()
        self._unhealthy = not healthy
