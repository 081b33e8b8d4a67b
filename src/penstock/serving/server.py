"""Running the gateway: in this process until a signal comes, or beside it in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType, TracebackType
from typing import NamedTuple

import uvicorn

from penstock.errors import NotReady, PenstockError
from penstock.monitoring.metrics import MetricsServer
from penstock.serve_section import Serve
from penstock.serving.app import create_app
from penstock.serving.connections import Connection, allow_many_connections
from penstock.serving.exchange import ExchangeLayer
from penstock.serving.gateway import Gateway, Surroundings

_BACKLOG = 2_048
# Longer than clients keep idle connections, so that it is not us who closes one
# in the moment in which a client sends its next request on it.
_KEEP_ALIVE_S = 75
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Listening(NamedTuple):
    """Where a gateway can be reached.

    Attributes:
        url: The gateway.
        metrics_url: Prometheus metrics; None when they are off.
    """

    url: str
    metrics_url: str | None

    @classmethod
    def at(cls, host: str, port: int, metrics_url: str | None) -> Listening:
        """What listens on a port; an IPv6 address is bracketed."""
        return cls(f"http://{f'[{host}]' if ':' in host else host}:{port}", metrics_url)


def serve(
    config: Serve,
    around: Surroundings,
    announce: Callable[[Listening], None] | None = None,
    inherited: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then let the answers in flight finish.

    A second signal ends the process at once.

    Args:
        config: The recipe's ``serve`` section, completed.
        around: What the gateway works with.
        announce: Called once requests are accepted.
        inherited: The port, if somebody else has opened it.

    Raises:
        PenstockError: A port is taken, or the embedding model cannot be loaded.
    """
    with _Listener(config, around, inherited) as listener:
        if announce is not None:
            listener.server.on_started = lambda: announce(listener.listening)
        allow_many_connections()
        asyncio.run(listener.run())
        if listener.fatal is not None:
            raise listener.fatal


class BackgroundServer:
    """The gateway in a thread of this process, for demos and tests.

    ::

        with BackgroundServer(config, around) as server:
            server.wait_ready()
            httpx.get(f"{server.url}/v1/models")

    Attributes:
        url: Where the gateway listens.
        metrics_url: Where its metrics are; None when they are off.
        gateway: Its insides.
    """

    def __init__(self, config: Serve, around: Surroundings) -> None:
        self._config = config
        self._around = around

    def __enter__(self) -> BackgroundServer:
        self._listener = _Listener(self._config, self._around).__enter__()
        self.url, self.metrics_url = self._listener.listening
        self.gateway: Gateway = self._listener.app.gateway
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()
        return self

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Wait until every endpoint can answer.

        Raises:
            NotReady: It took longer than ``timeout_s``.
            PenstockError: It never will.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self.gateway.ready:
            if self._listener.fatal is not None:
                raise self._listener.fatal
            if time.monotonic() > deadline_s:
                raise NotReady(f"Not ready after {timeout_s:g} s: {self.gateway.readiness()}")
            time.sleep(0.02)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.server.should_exit = True
        self._thread.join()
        self._listener.__exit__(kind, error, traceback)

    def _run(self) -> None:
        asyncio.run(self._listener.run())


class _Listener:
    """Open ports and what answers on them."""

    def __init__(
        self, config: Serve, around: Surroundings, inherited: socket.socket | None = None
    ) -> None:
        self._config = config
        self._inherited = inherited
        self.fatal: PenstockError | None = None
        self.app: ExchangeLayer = create_app(config, around, self._stop_for)
        self.server = _Server(
            uvicorn.Config(
                self.app,
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(config.drain_timeout_s)),
                ws="none",
                http=Connection,
            )
        )

    def __enter__(self) -> _Listener:
        config = self._config
        self._socket = self._inherited or listen(config.host, config.port)
        self._metrics: MetricsServer | None = None
        if config.metrics_port is not None:
            try:
                self._metrics = MetricsServer(
                    self.app.gateway.metrics, config.host, config.metrics_port
                )
            except PenstockError:
                self._socket.close()
                raise
        port = self._socket.getsockname()[1]
        self.listening = Listening.at(
            config.host, port, self._metrics.url if self._metrics else None
        )
        return self

    async def run(self) -> None:
        await self.server.serve(sockets=[self._socket])

    def __exit__(self, *_: object) -> None:
        if self._metrics is not None:
            self._metrics.close()
        self._socket.close()

    def _stop_for(self, error: PenstockError) -> None:
        self.fatal = error
        self.server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn, but a drained server exits with 0 and a second signal does not wait.

    Attributes:
        on_started: Called once requests are accepted.
    """

    on_started: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and self.on_started is not None:
            self.on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A port that clients can connect to.

    Raises:
        PenstockError: It is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio switches Nagle's algorithm off. Without, an
    # answer's body waits for the acknowledgement of its head: 40 ms a request.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise PenstockError(
            f"The gateway cannot listen on {host}:{port}: {error.strerror or error}.",
            "Stop what listens there, or set serve.port to another port.",
        ) from error
    return listening
