"""The layer around the pages: who may ask, where a form came from, what a page may load.

- *Host.* Without an admin key only names of this machine are answered, so that a site
  whose name was made to point here (DNS rebinding) gets nothing.
- *Key.* With one, it is asked for by HTTP Basic; the user name is who acts, for the audit.
- *Forms.* A POST must come from this very origin and bring the token that its browser got
  as a cookie (double submit; SameSite=Strict).
- *Content.* A page loads its own style and nothing else; no script runs.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import secrets
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/console"
COOKIE = "penstock_console"
FIELD = "csrf"
MIN_KEY_CHARACTERS = 24

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_PATH = 500
_MAX_FORM_BYTES = 65_536
_FORM_TIMEOUT_S = 10.0
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # With no-referrer, browsers would send forms without their origin.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Refused(Exception):
    """A request that is not answered; the response says why."""

    def __init__(self, status: int, why: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(why)
        self.response = PlainTextResponse(f"{why}\n", status, headers)


class Guard:
    """Wraps the pages; see the module.

    Args:
        app: The pages; they find person, token and form in ``request.state``.
        key: The admin key; None lets in whoever is on this machine.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer: ASGIApp = self._app
        fresh: str | None = None
        try:
            person = self._person(headers)
            if len(scope["path"]) > _MAX_PATH:
                raise Refused(414, f"A page's path has at most {_MAX_PATH} characters.")
            token = _token(headers)
            if token is None:
                token = fresh = secrets.token_urlsafe(32)
            form: dict[str, str] = {}
            if scope["method"] not in ("GET", "HEAD"):
                _check_origin(headers)
                form = await _form_in_time(headers, receive)
                _check_token(None if fresh else token, form)
            scope["state"] = {"person": person, "token": token, "form": form}
        except Refused as refused:
            answer = refused.response
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        kept = f"{COOKIE}={fresh}; Path={PREFIX}; HttpOnly; SameSite=Strict{secure}"
        await answer(scope, receive, _with_headers(send, kept if fresh else None))

    def _person(self, headers: Headers) -> str:
        """Who asks."""
        if self._key is None:
            if _host_name(headers) not in _LOOPBACK:
                raise Refused(421, "This console answers to 127.0.0.1 and localhost only.")
            return "console"
        name, key = _credentials(headers)
        if not secrets.compare_digest(key.encode(), self._key.encode()):
            asked = {"www-authenticate": 'Basic realm="Penstock console", charset="UTF-8"'}
            raise Refused(401, "Your name, and the admin key as the password.", asked)
        shown = printable(name)[:40]
        return f"{shown or 'somebody'} in the console"


def _host_name(headers: Headers) -> str | None:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None


def _credentials(headers: Headers) -> tuple[str, str]:
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        pair = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    name, _, key = pair.partition(":")
    return name, key


def _token(headers: Headers) -> str | None:
    """The token in the browser's cookie, if it has one of ours."""
    found = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
    return found if _TOKEN.fullmatch(found) else None


def _check_origin(headers: Headers) -> None:
    """A form comes from a page of ours: same scheme, name and port, as the browser tells."""
    host, site = headers.get("host", ""), headers.get("sec-fetch-site", "same-origin")
    own = (f"http://{host}", f"https://{host}")
    if not host or headers.get("origin") not in own or site != "same-origin":
        raise Refused(403, "This form did not come from the console. Open it there.")


async def _form_in_time(headers: Headers, receive: Receive) -> dict[str, str]:
    try:
        async with asyncio.timeout(_FORM_TIMEOUT_S):
            return await _form(headers, receive)
    except TimeoutError:
        raise Refused(408, "The form did not come.") from None


async def _form(headers: Headers, receive: Receive) -> dict[str, str]:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "Forms come as application/x-www-form-urlencoded.")
    body = bytearray()
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The form ended early.")
        body += message.get("body", b"")
        if len(body) > _MAX_FORM_BYTES:
            raise Refused(413, f"A form has at most {_MAX_FORM_BYTES} bytes.")
        if not message.get("more_body", False):
            break
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise Refused(400, "This is no form.") from None
    return {name: values[-1] for name, values in fields.items()}


def _check_token(kept: str | None, form: dict[str, str]) -> None:
    sent = form.pop(FIELD, "")
    if kept is None or not secrets.compare_digest(sent.encode(), kept.encode()):
        raise Refused(403, "This form is too old, or not from this browser. Open it again.")


def _with_headers(send: Send, cookie: str | None) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("content-security-policy", _POLICY)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if cookie is not None:
                headers.append("set-cookie", cookie)
        await send(message)

    return sending


def printable(text: str) -> str:
    """A text for the audit, on one line and with nothing that a terminal would obey."""
    line = " ".join(text.split())
    return "".join(char for char in line if char.isprintable())


def not_found(why: str) -> Response:
    """An answer without a page around it."""
    return PlainTextResponse(f"{why}\n", 404)


def state_of(request: Any) -> tuple[str, str, dict[str, str]]:
    """Person, token and form of a request that was let in."""
    state = request.state
    return state.person, state.token, state.form
