"""Asking an OpenAI-compatible server elsewhere: connections, streams, and what failures mean.

By aiohttp: on one core a streamed request cost it 0.6 ms, and httpx 2.9 ms (2026-11, 400
requests in a row, server on loopback). Every answer may be a lie: it is read up to a
limit, waited for up to a limit, and nothing of it is shown that was not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

from penstock.errors import ContextExceeded, InvalidRequest, Overloaded, ServingError, Timeout
from penstock.registry import require
from penstock.serving.backends.addresses import guarded_socket, is_public
from penstock.serving.backends.event_stream import EventReader
from penstock.serving.backends.health import Health

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
# Below the 5 s after which uvicorn, and vLLM with it, closes an idle connection: it
# should not close one in the moment in which we send the next request on it.
_KEEP_ALIVE_S = 4.0
# For what follows an answer's end: the token counts, and the stream's own end.
_GRACE_S = 0.5
_MAX_ANSWER_BYTES = 128 * 2**20
_MAX_ERROR_BYTES = 64 * 2**10
# Longer answers are parsed in a thread: at about 100 MB a second, they would hold up others.
_MAX_INLINE_BYTES = 2**18
_QUOTED_CHARS = 300
_LONGEST_PAUSE_S = 600.0
_REFUSED = frozenset({400, 413, 422})
_NO_SUCH_PATH = frozenset({404, 405})
_DONE = b"[DONE]"
_FAILED = "The server behind this model failed to answer."
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_SECRET = re.compile(r"\b(?:sk|pk|rk|hf|gsk|bearer|key)[-_ ][A-Za-z0-9._*-]{8,}", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)|max_model_len|maximum (?:model|input|prompt) length"
    r"|too many (?:input )?tokens|prompt is too long|longer than the (?:model|maximum)",
    re.IGNORECASE,
)
_PARAM = re.compile(r"[a-z_][a-z0-9_.\[\]]{0,63}")


class NoSuchPath(ServingError):
    """The server does not know the path, or not the model."""


def nonsense() -> ServingError:
    """What came is no answer to what was asked."""
    return ServingError("The server behind this model sent what is no answer.")


class Upstream:
    """One server.

    Its connections belong to the event loop that asks; with another loop come others.

    Args:
        url: Of its API, with its /v1.
        key: Sent as a bearer token; None sends none.
        headers: Sent with every request.
        timeout_s: For the next byte of an answer.
        max_concurrency: Requests at once.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        max_concurrency: int = 16,
    ) -> None:
        self.url = url
        self._key = key
        self._own_headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._max_concurrency = max_concurrency
        self._session: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: dict[Any, asyncio.Task[None]] = {}
        self._is_far = True
        self._health = Health(self._is_well, lambda: self._is_far)
        self._health_paths = [f"{self.root}/health", f"{self.url}/models"]

    @property
    def root(self) -> str:
        """The address without the API's /v1."""
        return self.url.removesuffix("/v1")

    def move(self, url: str) -> None:
        """The server is elsewhere now."""
        self.url = url
        self._health_paths = [f"{self.root}/health", f"{self.url}/models"]

    async def get(self, path: str) -> Any:
        """One answer in JSON; see ``post``. Failures are not logged."""
        async with self._asked("GET", self.url + path) as response:
            return await _json(response)

    async def post(self, path: str, body: Mapping[str, Any], at_root: bool = False) -> Any:
        """Ask for one answer in JSON.

        Args:
            path: Below the API's address.
            body: Of the request.
            at_root: The path is beside the API's /v1, not below.

        Raises:
            InvalidRequest: The server says that the request is wrong.
            Overloaded: It says that it has too many.
            ServingError: It does not answer, or not in JSON.
        """
        url = (self.root if at_root else self.url) + path
        async with self._asked("POST", url, body) as response:
            return await _json(response)

    async def stream(
        self, path: str, body: Mapping[str, Any], ended: Callable[[], bool]
    ) -> AsyncGenerator[list[Any], None]:
        """Ask for a stream: its events as they come, those that came together in one list.

        An answer that came whole is one event. Closing the iterator closes the
        connection, by which the server knows that nobody listens any more.

        Args:
            path: Below the API's address.
            body: Of the request.
            ended: Whether the answer is complete; what is still missing of the stream
                then is not waited for long.

        Raises:
            InvalidRequest, Overloaded, ServingError: As ``post``.
        """
        async with self._asked("POST", self.url + path, body) as response:
            if response.content_type != "text/event-stream":
                yield [await _json(response)]
                return
            reader = EventReader()
            while data := await _next(response, ended):
                events = reader.feed(data)
                done = _DONE in events
                if done:
                    events = events[: events.index(_DONE)]
                if events:
                    yield [_parsed(event) for event in events]
                if done:
                    self._let_end(response)
                    return

    def _let_end(self, response: Any) -> None:
        """Read a stream's last bytes, so that its connection serves the next request."""
        if response.content.at_eof():
            return

        async def read_on() -> None:
            try:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(_GRACE_S):
                        await _read(response, _MAX_ERROR_BYTES)
            finally:
                del self._ending[response]
                response.close()

        self._ending[response] = asyncio.create_task(read_on())

    def look(self) -> bool:
        """Whether the server is well, as far as is known; on the event loop."""
        return self._health.look()

    def close(self) -> None:
        """Close all connections; not on the event loop."""
        if self._session is None or self._loop is None:
            return
        if self._loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(self.aclose(), self._loop)
            with contextlib.suppress(TimeoutError):
                closing.result(_CONNECT_TIMEOUT_S)
        else:
            _run_dry(self._session.close())

    async def aclose(self) -> None:
        """Close all connections, on the event loop."""
        await self._health.stop()
        for task in tuple(self._ending.values()):
            task.cancel()
        if self._session is not None:
            await self._session.close()

    def safe(self, text: str) -> str:
        """A server's words without keys and addresses, short."""
        words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        parts = urlsplit(self.url)
        places = (self.url, parts.netloc, parts.hostname)
        for secret in (self._key, *self._own_headers.values(), *places):
            if secret and len(secret) > 3:
                words = words.replace(secret, "[...]")
        return _SECRET.sub("[...]", _ADDRESS.sub("[...]", words))[:_QUOTED_CHARS]

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, url: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Any]:
        """An answer that the server gives to a request, while it comes.

        Raises:
            InvalidRequest, Overloaded, ServingError: As ``post``.
        """
        aiohttp = require("aiohttp", "serve")
        session = await self._connections()
        response = None
        try:
            # A redirect could take prompts and key to somewhere else.
            response = await session.request(
                method, url, data=body and _written(body), allow_redirects=False
            )
            if not 200 <= response.status < 300:
                raise await self._refusal(response)
            yield response
        except aiohttp.SocketTimeoutError:
            self._health.doubt()
            raise Timeout(
                f"The server behind this model said nothing for {self._timeout_s:g} s."
            ) from None
        except aiohttp.ClientError as error:
            self._health.doubt()
            said = str(error) if self._key is None else str(error).replace(self._key, "[...]")
            level = logging.DEBUG if method == "GET" else logging.WARNING
            logger.log(level, "%s failed: %s: %s", url, type(error).__name__, said)
            raise ServingError(_FAILED) from None
        finally:
            if response is not None and response not in self._ending:
                # An answer that was read to its end has given its connection back already.
                response.close()

    async def _refusal(self, response: Any) -> ServingError:
        """What an answer that is none means."""
        status = response.status
        error = _error_of(await _read(response, _MAX_ERROR_BYTES))
        said = self.safe(str(error.get("message") or ""))
        if status == 429:
            pause_s = _pause_s(response.headers)
            return Overloaded("The server behind this model has too much to do.", "", pause_s)
        if status not in _REFUSED:
            logger.warning("%s answered HTTP %d: %s", response.url, status, said or "no reason")
            return NoSuchPath(_FAILED) if status in _NO_SUCH_PATH else ServingError(_FAILED)
        param = error.get("param")
        kind = InvalidRequest
        if error.get("code") == ContextExceeded.code or _TOO_LONG.search(said):
            kind = ContextExceeded
        return kind(
            f"The server behind this model refuses the request: {said or 'it gives no reason'}",
            param=param if isinstance(param, str) and _PARAM.fullmatch(param) else None,
        )

    async def _is_well(self) -> bool:
        """Whether the server is well."""
        aiohttp = require("aiohttp", "serve")
        session = await self._connections()
        try:
            while True:
                async with session.get(self._health_paths[0], allow_redirects=False) as response:
                    if response.status in _NO_SUCH_PATH and len(self._health_paths) > 1:
                        del self._health_paths[0]
                        continue
                    # Anything but a failure is said by somebody who is there.
                    return bool(response.status < 500)
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _connections(self) -> Any:
        """The session of this event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._session is not None:
                await self._session.close()
            self._session, self._loop = self._new_session(), loop
        return self._session

    def _new_socket(self, address: Any) -> socket.socket:
        self._is_far = is_public(address[4][0])
        return guarded_socket(address)

    def _new_session(self) -> Any:
        aiohttp = require("aiohttp", "serve")
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # Twice, because ended streams hold theirs for a moment; the admission limits.
                limit=2 * self._max_concurrency + 2,
                keepalive_timeout=_KEEP_ALIVE_S,
                socket_factory=self._new_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "Content-Type": "application/json",
                "Accept": "text/event-stream, application/json",
                # A compressed stream comes in lumps.
                "Accept-Encoding": "identity",
                "User-Agent": "penstock",
                **self._own_headers,
                **key,
            },
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=min(_CONNECT_TIMEOUT_S, self._timeout_s),
                sock_read=self._timeout_s,
            ),
        )


async def _next(response: Any, ended: Callable[[], bool]) -> bytes:
    """The next bytes of a stream; none at its end, or when no more are worth waiting for.

    Raises:
        TimeoutError: The answer is not complete, and nothing comes.
    """
    try:
        async with asyncio.timeout(_GRACE_S if ended() else None):
            data: bytes = await response.content.readany()
            return data
    except TimeoutError:
        if ended():
            return b""
        raise


async def _read(response: Any, limit_bytes: int) -> bytes:
    """A body.

    Raises:
        ServingError: It is longer than the limit.
    """
    body = bytearray()
    while data := await response.content.readany():
        body += data
        if len(body) > limit_bytes:
            logger.warning("%s answered with more than %d bytes", response.url, limit_bytes)
            raise ServingError(_FAILED)
    return bytes(body)


async def _json(response: Any) -> Any:
    """A body in JSON.

    Raises:
        ServingError: It is something else.
    """
    body = await _read(response, _MAX_ANSWER_BYTES)
    if len(body) > _MAX_INLINE_BYTES:
        return await asyncio.to_thread(_parsed, body)
    return _parsed(body)


def _parsed(data: bytes) -> Any:
    try:
        return from_json(data)
    except ValueError as error:
        logger.warning("A server elsewhere sent what is no JSON: %.100r: %s", data, error)
        raise nonsense() from None


def _written(body: Mapping[str, Any]) -> bytes | io.BytesIO:
    data = to_json(body)
    # aiohttp writes a long body in pieces only if it is a file.
    return data if len(data) < _MAX_INLINE_BYTES else io.BytesIO(data)


def _error_of(body: bytes) -> Mapping[str, Any]:
    """The error in an answer: OpenAI's object, or as other servers write it."""
    try:
        content = from_json(body)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    error = content.get("error", content)
    if isinstance(error, dict):
        return error if "message" in error else {"message": error.get("detail")}
    return {"message": error}


def _pause_s(headers: Mapping[str, str]) -> float:
    """What ``Retry-After`` asks for; a second, where that is no number."""
    try:
        asked_s = float(headers.get("Retry-After", ""))
    except ValueError:
        return 1.0
    return min(_LONGEST_PAUSE_S, max(1.0, asked_s)) if asked_s == asked_s else 1.0


def _run_dry(closing: Any) -> None:
    """Let a coroutine end that waits for nothing, without an event loop."""
    with contextlib.suppress(StopIteration):
        while True:
            closing.send(None)
