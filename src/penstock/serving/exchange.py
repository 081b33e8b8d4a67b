"""One HTTP request and its answer: limits, identity, deadline, accounting.

A pure ASGI layer around the endpoints. It reads the body up to a limit, runs
the endpoint until it is done, the deadline has passed or the client has left,
and turns every error into an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.errors import (
    BodyTooLarge,
    MethodNotAllowed,
    NotFound,
    NotReady,
    ServingError,
    Timeout,
)
from penstock.ledger.api_keys import ApiKey
from penstock.monitoring.traces import Trace, Tracer
from penstock.serving import tracing
from penstock.serving.connections import ABORT
from penstock.serving.facts import Facts
from penstock.serving.gateway import Gateway
from penstock.serving.http_errors import error_body, error_headers, internal_error
from penstock.serving.models import ServedModel
from penstock.serving.response_id import uuid7_hex
from penstock.serving.routes import Arm, Route

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499  # nginx's number; HTTP has none
_PROBES = frozenset({"/healthz", "/readyz"})
_ALERTS = "/v1/alerts"
_ENDPOINTS = frozenset(
    {
        "/",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/classify",
        "/v1/feedback",
        "/v1/models",
        _ALERTS,
    }
)
_CONSOLE = "/console/"
_CONVERSATION_HEADER = b"x-penstock-conversation"
# Where clients say which conversation a request belongs to.
_CONVERSATION_KEYS = ("conversation_id", "session_id")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# A refused body is read on and thrown away for this long, because a client that
# is still sending when the connection closes never sees the answer.
_LINGER_S = 10.0
# A client that does not take an error by then takes nothing.
_LAST_WORDS_S = 1.0


class Exchange:
    """One request while it is answered.

    Attributes:
        body: The request's body.
        headers: Sent with the answer.
        facts: What is known about it.
        trace: Of what becomes of it.
        key: Whose it is; None where nobody needs a key.
    """

    def __init__(self, scope: Scope, send: Send, tracer: Tracer) -> None:
        self.body = b""
        self.facts = Facts(_request_id(scope), _endpoint(scope["path"]), status=CLIENT_LEFT)
        self.key: ApiKey | None = None
        self.headers = {"x-request-id": self.facts.request_id}
        self.trace = tracer.begin(_traceparent(scope), self.facts.unique)
        self._conversation: bytes | None = dict(scope["headers"]).get(_CONVERSATION_HEADER)
        self._abort: Callable[[], None] = _abort(scope)
        self._send = send
        self._started = False
        self._ended = False

    def shadow(self) -> Exchange:
        """An exchange for a copy of the request, which sends nothing and costs the client nothing.

        Its trace is not recorded: it would look like a part of what the client waited for.
        """
        twin = copy.copy(self)
        twin.facts = Facts(self.facts.request_id, self.facts.endpoint, shadow=True)
        twin.facts.tenant, twin.facts.conversation = self.facts.tenant, self.facts.conversation
        twin.facts.prompt = self.facts.prompt
        twin.key, twin.headers, twin.trace = None, {}, Trace()
        return twin

    @property
    def is_shadow(self) -> bool:
        """Whether no client sees the answer."""
        return self.facts.shadow

    def answers_as(self, model: ServedModel, route: Route, arm: Arm) -> None:
        """From now on every answer, an error too, says which version gave it."""
        facts = self.facts
        facts.model, facts.served, facts.arm = model.name, route.served, arm
        facts.rollout = model.table.rollout
        self.headers |= route.served.headers

    def conversation(self, metadata: Mapping[str, str]) -> str | None:
        """Which conversation the request belongs to, if it says so."""
        if self._conversation is not None:
            return self._conversation.decode("latin-1")
        return next((metadata[key] for key in _CONVERSATION_KEYS if key in metadata), None)

    async def send(self, message: Message) -> None:
        """Send an ASGI message, with this exchange's headers on the first."""
        if message["type"] == "http.response.start":
            self._started = True
            self.facts.status = message["status"]
            self.headers |= self.trace.headers(self.facts.status)
            own = [(name.encode(), value.encode()) for name, value in self.headers.items()]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        elif not message.get("more_body", False):
            self._ended = True
            self.facts.ended_s = time.monotonic()
        await self._send(message)

    async def fail(self, error: ServingError) -> None:
        """Answer with an error, or end a started stream with one.

        A client that reads nothing any more is cut off.
        """
        self.facts.error = error.code
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._say(error)
        except TimeoutError:
            self._abort()
            await asyncio.sleep(0)  # the server notices before it is told that we have ended

    async def _say(self, error: ServingError) -> None:
        body = error_body(error)
        if not self._started:
            headers = error_headers(error) | {"content-length": str(len(body))}
            await self.start(error.status, headers)
            await self.send({"type": "http.response.body", "body": body})
        elif self.facts.stream and not self._ended:
            self.facts.status = error.status
            event = b"data: " + body + b"\n\n"
            await self.send({"type": "http.response.body", "body": event})

    async def start(self, status: int, headers: dict[str, str]) -> None:
        """Send status and headers."""
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})


class ExchangeLayer:
    """Wraps the endpoints; see the module.

    Args:
        app: The endpoints; they find exchange and gateway in ``request.state``.
        gateway: Its limits hold, its metrics are told.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self.gateway = gateway
        self._metrics = gateway.metrics
        self._max_body_bytes = gateway.config.max_body_bytes
        self._timeout_s = gateway.config.request_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        console = self.gateway.console
        if console is not None and f"{scope['path']}/".startswith(_CONSOLE):
            await console(scope, receive, send)
            return
        exchange = Exchange(scope, send, self.gateway.tracer)
        # With an "app", the router raises for unknown paths instead of answering itself.
        scope["app"] = self
        scope["state"] = {"exchange": exchange, "gateway": self.gateway}
        try:
            await self._answer(exchange, scope, receive)
        except _ClientLeft:
            exchange.facts.status = CLIENT_LEFT
        finally:
            self._account(exchange)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                if not await self._let_in(exchange, scope, receive):
                    return
                exchange.body = await _read_body(scope, receive, self._max_body_bytes)
                await _until_client_leaves(self._app(scope, _never, exchange.send), receive)
        except TimeoutError:
            await exchange.fail(
                Timeout(f"The answer was not complete after {self._timeout_s:g} s.")
            )
        except BodyTooLarge as error:
            await _refuse_body(exchange, error, scope, receive)
        except ServingError as error:
            if error.status >= 500 and error.__cause__ is not None:
                logger.error("Request %s failed", _id(exchange), exc_info=error.__cause__)
            await exchange.fail(error)
        except HTTPException as error:
            for name, value in (error.headers or {}).items():
                exchange.headers[name.lower()] = value
            await exchange.fail(_routing_error(scope, error))
        except asyncio.CancelledError:
            # The server cancels what is still running when its drain timeout has
            # passed, and nobody waits for this task any more: raising would only
            # have the server log it as a crash.
            await exchange.fail(NotReady("The server is shutting down.", "Try another one."))
        except _ClientLeft:
            raise
        except Exception:
            logger.exception("Request %s failed", _id(exchange))
            await exchange.fail(internal_error())

    async def _let_in(self, exchange: Exchange, scope: Scope, receive: Receive) -> bool:
        """Whether the client may ask; if not, it is told so without its body being kept."""
        # Alerts have a secret of their own, which may be proved by their bodies.
        if exchange.facts.endpoint in _PROBES or exchange.facts.endpoint == _ALERTS:
            return True
        shown = dict(scope["headers"]).get(b"authorization")
        try:
            key = self.gateway.access.authenticate(
                None if shown is None else shown.decode("latin-1")
            )
        except ServingError as error:
            exchange.facts.error = error.code
            await _refuse_body(exchange, error, scope, receive)
            return False
        if key is not None:
            exchange.key = key
            exchange.facts.key_id, exchange.facts.tenant = key.id, key.tenant
        return True

    def _account(self, exchange: Exchange) -> None:
        facts = exchange.facts
        if facts.endpoint in _PROBES:
            return
        labels = (facts.model, facts.endpoint)
        tracing.end(exchange.trace, facts)
        exemplar = facts.exemplar
        self._metrics.requests.labels(*labels, str(facts.status)).inc(1, exemplar)
        self._metrics.duration.labels(*labels).observe(facts.duration_s, exemplar)
        if facts.token_time_s is not None:
            self._metrics.token_time.labels(facts.model).observe(facts.token_time_s, exemplar)
        self.gateway.observed(facts)


def _endpoint(path: str) -> str:
    if path in _PROBES or path in _ENDPOINTS:
        return path
    return "/v1/models" if path.startswith("/v1/models/") else "other"


def _routing_error(scope: Scope, error: HTTPException) -> ServingError:
    path = scope["path"][:200]
    if error.status_code == 405:
        return MethodNotAllowed(f"{path!r} does not answer {scope['method']}.")
    return NotFound(f"There is no {path!r} here.", f"There are {', '.join(sorted(_ENDPOINTS))}.")


class _ClientLeft(Exception):
    """The client closed the connection before it had its answer."""


async def _until_client_leaves(work: Awaitable[None], receive: Receive) -> None:
    """Run ``work``; cancel it, and wait for its end, when the client goes."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _ClientLeft
        working.result()
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def _read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """Read a body and hold at most ``limit_bytes`` of it."""
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise _too_large(int(announced), limit_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeft
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise _too_large(len(body), limit_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(size_bytes: int, limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body has at least {size_bytes} bytes; {limit_bytes} are accepted.",
        "Send less, or raise serve.max_body_bytes.",
    )


async def _refuse_body(
    exchange: Exchange, error: ServingError, scope: Scope, receive: Receive
) -> None:
    body = error_body(error)
    await exchange.start(error.status, error_headers(error) | {"content-length": str(len(body))})
    await exchange.send({"type": "http.response.body", "body": body, "more_body": True})
    if dict(scope["headers"]).get(b"expect", b"").lower() != b"100-continue":
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await _discard(receive)
    await exchange.send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else f"req-{uuid7_hex()}"


def _abort(scope: Scope) -> Callable[[], None]:
    """Cuts the client off, where the server can."""
    offered = scope.get("extensions", {}).get(ABORT, {})
    abort: Callable[[], None] = offered.get("abort", lambda: None)
    return abort


def _traceparent(scope: Scope) -> str | None:
    given = dict(scope["headers"]).get(b"traceparent")
    return None if given is None else given.decode("latin-1")


def _id(exchange: Exchange) -> str:
    return exchange.headers["x-request-id"]
