"""Asking an orchestrator's server over HTTP: what all triggers share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from penstock.errors import MissingExtra, PenstockError

if TYPE_CHECKING:
    import httpx

_TIMEOUT_S = 30.0
_MOST_CHARS = 500
# Also what a server on SQLite says to one of two who ask in the same moment.
_BUSY = (429, 503)
_PAUSES_S = (0.25, 0.5, 1.0, 2.0)


class NotStarted(PenstockError):
    """An orchestrator does not answer (then transient), or refuses."""

    def __init__(self, message: str, hint: str = "", transient: bool = False) -> None:
        super().__init__(message, hint)
        self.transient = transient


@contextmanager
def client_of(tool: str, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Client]:
    """A client for a tool's server; its failures in words, without credentials.

    Raises:
        MissingExtra: httpx is not installed.
        NotStarted: The server cannot be reached.
    """
    try:
        import httpx
    except ImportError:
        raise MissingExtra("httpx", tool) from None

    try:
        with httpx.Client(base_url=url, timeout=_TIMEOUT_S, headers=dict(headers)) as client:
            yield client
    except httpx.HTTPError as error:
        raise NotStarted(
            f"{tool.capitalize()} at {url} does not answer: {type(error).__name__}.",
            f"Check orchestrate.{tool}.url, and that its server is up.",
            transient=True,
        ) from None


def patiently(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask again while the server says that it is busy; for what may be asked twice."""
    for pause_s in _PAUSES_S:
        answer = ask()
        if answer.status_code not in _BUSY:
            return answer
        time.sleep(pause_s)
    return ask()


def json_of(answer: httpx.Response, tool: str, hints: Mapping[int, str]) -> Any:
    """The answer's JSON.

    Args:
        answer: The answer.
        tool: Whose.
        hints: Status -> what to do about it.

    Raises:
        NotStarted: It is none, or an error.
    """
    code = answer.status_code
    if not answer.is_success:
        raise NotStarted(
            f"{tool.capitalize()} answered with status {code}: {answer.text[:_MOST_CHARS]}",
            hints.get(code, ""),
            transient=code == 429 or code >= 500,
        )
    try:
        return answer.json()
    except ValueError:
        raise NotStarted(f"{tool.capitalize()} answered with no JSON.", transient=True) from None


def reason_of(conf: Mapping[str, Any]) -> str:
    """Why a run was asked for, on one line."""
    said = {name: value for name, value in conf.items() if name != "set"}
    if set(said) <= {"reason"}:
        return str(said.get("reason", ""))[:_MOST_CHARS]
    return json.dumps(said, sort_keys=True, default=str)[:_MOST_CHARS]
