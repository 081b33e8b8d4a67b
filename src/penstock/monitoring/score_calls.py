"""Calls of a tool's API: patient where that can help, and clear about why where it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError
from penstock.monitoring.trace_targets import Target
from penstock.registry import require
from penstock.traces_section import Destination

if TYPE_CHECKING:
    import httpx

NAMES: Mapping[Destination, str] = {
    "phoenix": "Phoenix",
    "langfuse": "Langfuse",
    "langsmith": "LangSmith",
    "otlp": "The receiver",
}
_TIMEOUT_S = 30.0
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
_LONGEST_PAUSE_S = 30.0


class ScoresNotSent(PenstockError):
    """Who receives scores does not answer (then transient), or does not let us in."""

    def __init__(self, message: str, hint: str = "", transient: bool = False) -> None:
        super().__init__(message, hint)
        self.transient = transient


class ScoreCalls:
    """Calls of one tool.

    Args:
        client: Of the tool's base URL, with our credentials.
        tool: What it is called.
        target: Where its traces go.
    """

    def __init__(self, client: httpx.Client, tool: Destination, target: Target) -> None:
        self._client = client
        self._tool = NAMES[tool]
        self._url = str(client.base_url).rstrip("/")
        self._credentials = " and ".join(target.credentials)

    def get(self, path: str, params: Mapping[str, str]) -> httpx.Response:
        """Ask for something.

        Raises:
            ScoresNotSent: There is no answer, or none that is a success.
        """
        return self._patiently(lambda: self._client.get(path, params=dict(params)), ())

    def post(
        self,
        path: str,
        body: object,
        params: Mapping[str, str] | None = None,
        also: Collection[int] = (),
    ) -> httpx.Response:
        """Send something that may be sent twice.

        Args:
            path: Under the base URL.
            body: As JSON.
            params: The query.
            also: Statuses beside success that the caller understands.

        Raises:
            ScoresNotSent: There is no answer, or one that nobody understands.
        """
        query = dict(params or {})
        return self._patiently(lambda: self._client.post(path, json=body, params=query), also)

    def patch(self, path: str, body: object, also: Collection[int] = ()) -> httpx.Response:
        """Change something; likewise."""
        return self._patiently(lambda: self._client.patch(path, json=body), also)

    def field_of(self, answer: httpx.Response, name: str) -> Any:
        """A field of the JSON object that is a tool's answer; of the first one of a list.

        A web server that knows nothing of scores may well answer 200, with a page.

        Returns:
            Its value; None for an empty list.

        Raises:
            ScoresNotSent: The answer is no such thing.
        """
        try:
            said = answer.json()
            if isinstance(said, list):
                said = said[0] if said else {name: None}
            return said[name]
        except (ValueError, LookupError, TypeError):
            raise self.unexpected(answer) from None

    def unexpected(self, answer: httpx.Response) -> ScoresNotSent:
        """The error for an answer that is not what the tool's documentation says."""
        return ScoresNotSent(
            f"{self._tool} at {self._url} gave an answer that is none of its own, with status "
            f"{answer.status_code}, to {answer.request.method} {answer.request.url.path}.",
            "Check serve.traces.endpoint: it is the tool's base URL.",
        )

    def _patiently(
        self, ask: Callable[[], httpx.Response], also: Collection[int]
    ) -> httpx.Response:
        for pause_s in _PAUSES_S:
            answer = self._try(ask)
            if answer is not None and not _is_busy(answer):
                return self._checked(answer, also)
            time.sleep(pause_s if answer is None else _asked_pause_s(answer, pause_s))
        answer = self._try(ask)
        if answer is None:
            raise ScoresNotSent(
                f"{self._tool} at {self._url} does not answer.",
                "Nothing is lost: scores are sent when it answers again.",
                transient=True,
            )
        return self._checked(answer, also)

    def _try(self, ask: Callable[[], httpx.Response]) -> httpx.Response | None:
        library = require("httpx", "traces")
        try:
            return ask()
        except library.HTTPError:
            return None

    def _checked(self, answer: httpx.Response, also: Collection[int]) -> httpx.Response:
        code = answer.status_code
        if answer.is_success or code in also:
            return answer
        if code in (401, 403):
            raise ScoresNotSent(
                f"{self._tool} at {self._url} does not let us in: status {code}.",
                f"Check {self._credentials} in the environment: the key must be one that may "
                "write.",
            )
        if _is_busy(answer):
            raise ScoresNotSent(
                f"{self._tool} at {self._url} is busy or broken: status {code}.",
                "Nothing is lost: scores are sent when it answers again.",
                transient=True,
            )
        raise self.unexpected(answer)


@contextmanager
def score_calls(tool: Destination, target: Target) -> Iterator[ScoreCalls]:
    """Calls of a tool, to where its traces go.

    Raises:
        MissingExtra: httpx is not installed.
    """
    httpx = require("httpx", "traces")
    headers = {
        name: value
        for name, value in target.headers.items()
        if name in ("authorization", "x-api-key")
    }
    with httpx.Client(base_url=target.api, headers=headers, timeout=_TIMEOUT_S) as client:
        yield ScoreCalls(client, tool, target)


def _is_busy(answer: httpx.Response) -> bool:
    """Whether another try may help."""
    return answer.status_code in (408, 429) or answer.is_server_error


def _asked_pause_s(answer: httpx.Response, pause_s: float) -> float:
    """As long as the tool asks for, within reason."""
    asked = answer.headers.get("retry-after", "")
    return min(float(asked), _LONGEST_PAUSE_S) if asked.isdecimal() else pause_s
