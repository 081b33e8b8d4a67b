"""Requests to an OpenAI-compatible server: retried, checked, and with sentences for failures."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from penstock.errors import EvaluationError
from penstock.registry import require

_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# Timeouts, of which nobody knows whether the model has worked for them.
_MAY_HAVE_WORKED = frozenset({408, 504})
_LONGEST_PAUSE_S = 30.0
_QUOTED_CHARS = 300
_GATEWAY = "x-penstock-model"
_FINGERPRINT = re.compile(r"v\d+-([0-9a-f]{16})")


class Refused(EvaluationError):
    """The server says that the request itself is wrong."""


class Metered(Protocol):
    """Told of each try, by who counts them."""

    async def begin(self) -> None:
        """A request is about to be sent; what this raises ends the question."""
        ...

    async def failed(self) -> None:
        """The server could not be reached, or said no: the model has not worked for it."""
        ...


@dataclass(frozen=True)
class Asker:
    """One model behind one server.

    Attributes:
        url: Of the API.
        model: What the server calls it.
        digest: Of the files that it must have loaded; None takes whatever it serves.
        believed: Nobody checks that; it was started on them, or the recipe says so.
        named_by_digest: Its name on the server holds the digest.
        key: For the server; None sends none.
        timeout_s: For one answer.
        max_tries: For one answer.
        num_concurrent: Requests under way at once.
        settings: What the recipe calls all this, for messages.
    """

    url: str
    model: str
    digest: str | None
    believed: bool
    named_by_digest: bool
    key: str | None
    timeout_s: float
    max_tries: int
    num_concurrent: int
    settings: str = "evaluate.backend"

    async def ask(
        self, session: Any, path: str, body: Mapping[str, Any], meter: Metered | None = None
    ) -> dict[str, Any]:
        """POST one request.

        Args:
            session: Of aiohttp, with a timeout.
            path: After the address.
            body: As JSON.
            meter: Told of each try.

        Raises:
            Refused: The server says that the request is wrong.
            EvaluationError: The server cannot be reached, goes on failing, does not
                answer in OpenAI's form, or answers with another model.
        """
        tries = 0
        while True:
            tries += 1
            failure, pause_s = await self._try(session, path, body, meter)
            if isinstance(failure, dict):
                return failure
            if tries >= self.max_tries:
                raise EvaluationError(
                    f"{self.shown}{path} {failure}, {tries} times in a row.",
                    f"Run again when it answers, or lower {self.settings}.num_concurrent.",
                )
            backoff_s = min(_LONGEST_PAUSE_S, 0.25 * 2**tries) * random.uniform(0.5, 1)  # noqa: S311
            await asyncio.sleep(backoff_s if pause_s is None else pause_s)

    async def _try(
        self, session: Any, path: str, body: Mapping[str, Any], meter: Metered | None
    ) -> tuple[dict[str, Any] | str, float | None]:
        """The answer, or how it failed and what pause the server asks for."""
        aiohttp = require("aiohttp", "evaluate")
        if meter is not None:
            await meter.begin()
        try:
            # A redirect could take prompts and key to somewhere else.
            async with session.post(
                self.url + path, json=dict(body), headers=self._headers, allow_redirects=False
            ) as answer:
                text = await answer.text(errors="replace")
                status, headers = answer.status, answer.headers
        except TimeoutError:
            return f"gave no answer within {self.timeout_s:g} s", None
        except aiohttp.ClientError as error:
            if meter is not None and isinstance(error, aiohttp.ClientConnectorError):
                await meter.failed()
            return f"cannot be reached: {self._safe(str(error)) or type(error).__name__}", None
        if meter is not None and status >= 400 and status not in _MAY_HAVE_WORKED:
            await meter.failed()
        if status in _TRANSIENT:
            return f"answered HTTP {status}: {self._quoted(text)}", _pause_s(headers)
        return self._checked(path, status, headers, text), None

    def _checked(
        self, path: str, status: int, headers: Mapping[str, str], text: str
    ) -> dict[str, Any]:
        """The answer's JSON, once it is known to be one of the right model."""
        if status == 404:
            raise EvaluationError(
                f"{self.shown}{path} does not know the model {self.model!r}, or is no such path: "
                f"{self._quoted(text)}.",
                f"See what it serves: {self.shown}/models",
            )
        if not 200 <= status < 300:
            raise Refused(
                f"{self.shown}{path} answered HTTP {status}: {self._quoted(text)}.",
                f"Set {self.settings}.api_key_env, if the server wants a key."
                if status in (401, 403)
                else f"Check {self.settings} against the server's own documentation.",
            )
        try:
            answer = json.loads(text)
            whole = bool(answer["choices"]) and isinstance(answer["choices"], list)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise EvaluationError(
                f"{self.shown}{path} answered something that is no completion: "
                f"{self._quoted(text)}.",
                f"Check {self.settings}.base_url: it is the API's address, with its /v1.",
            )
        self._check_model(headers, answer)
        return dict(answer)

    def _check_model(self, headers: Mapping[str, str], answer: Mapping[str, Any]) -> None:
        """Compare what answers with what is under evaluation.

        Raises:
            EvaluationError: It is another model, or nobody can tell.
        """
        if self.digest is None:
            return
        if _GATEWAY in headers:
            found = _FINGERPRINT.fullmatch(str(answer.get("system_fingerprint")))
            if found is None or not self.digest.startswith(found[1]):
                version = headers.get("x-penstock-model-version", "?")
                raise EvaluationError(
                    f"{self.shown} answers with {headers[_GATEWAY]} version {version} "
                    f"(digest {found[1] if found else 'unknown'}…), but the model under evaluation "
                    f"has the digest {self.digest[:16]}….",
                    "Point base_url at a gateway that serves this version, and keep it there.",
                )
        elif self.named_by_digest:
            if answer.get("model") != self.model:
                raise EvaluationError(
                    f"{self.shown} was asked for {self.model!r} and answered as "
                    f"{answer.get('model')!r}.",
                    "Serve the model under the name that evaluate.backend.model asks for.",
                )
        elif not self.believed:
            raise EvaluationError(
                f"Nothing says which model {self.shown} serves as {self.model!r}: it is not a "
                "Penstock gateway.",
                "Serve it under a name with its digest (model: NAME-{digest}), let "
                "evaluate.backend.command start the server, or set identity: assumed.",
            )

    @property
    def shown(self) -> str:
        """The address as messages show it: without a password."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def _headers(self) -> dict[str, str]:
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def _quoted(self, text: str) -> str:
        short = " ".join(text.split())
        return repr(self._safe(short)[:_QUOTED_CHARS]) if short else "nothing"

    def _safe(self, text: str) -> str:
        """Servers like to repeat a key that they do not accept."""
        text = text.replace(self.url, self.shown)
        return text if self.key is None else text.replace(self.key, "[the key]")


def _pause_s(headers: Mapping[str, str]) -> float | None:
    """What ``Retry-After`` asks for, if it is a number of seconds."""
    try:
        return min(_LONGEST_PAUSE_S, max(0.0, float(headers.get("Retry-After", ""))))
    except ValueError:
        return None
