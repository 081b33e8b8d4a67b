"""One client's connection: uvicorn's, with bounds on what a client may do before it asks.

Clients that connect and say nothing, or a byte a second, or headers without end, hold a
connection for ``HEAD_TIMEOUT_S`` at most and little memory; they are told why in the shape
of all errors. What a request may do is the exchange layer's matter.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.errors import InvalidRequest, ServingError, Timeout
from penstock.serving.http_errors import error_body

# From the first byte of a head, or from connecting, to the head's end.
HEAD_TIMEOUT_S = 20.0
# llhttp reads headers of any length; other servers refuse at 8 to 64 kB.
MAX_HEAD_BYTES = 65_536
ABORT = "penstock.abort"


class HeadTooLarge(InvalidRequest):
    """The request's line and headers are longer than the gateway reads."""

    status = 431
    code = "headers_too_large"


class Connection(HttpToolsProtocol):
    """A connection whose head is bounded in time and size."""

    _head_timer: asyncio.TimerHandle | None = None
    _in_head = False
    _num_head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Expect a request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing any more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless a head has become too long."""
        super().data_received(data)
        if self._in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    HeadTooLarge(
                        f"The headers have over {MAX_HEAD_BYTES} bytes.", "Send fewer or shorter."
                    ),
                    b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
                )

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}
        self._in_head, self._num_head_bytes = True, 0
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """A request's head is complete."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets an answer in the shape of the others."""
        self._refuse(InvalidRequest(msg), b"HTTP/1.1 400 Bad Request\r\n")

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        said = Timeout(f"No request came within {HEAD_TIMEOUT_S:g} s.")
        self._refuse(said, b"HTTP/1.1 408 Request Timeout\r\n")

    def _refuse(self, error: ServingError, status_line: bytes) -> None:
        self._in_head = False
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = error_body(error)
        head = (
            b"content-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(status_line + head + body)
        self.transport.close()


def allow_many_connections() -> None:
    """Raise the limit of open files as far as the system lets this process."""
    with suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
