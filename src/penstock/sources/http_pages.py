"""Pages of an HTTP API: dlt asks, turns pages and tries again; we judge the answers.

dlt takes a missing key for an empty last page, and follows a server that sends the
same page for ever. Neither may happen to an ingest, so every answer is looked at
before dlt reads on.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from penstock.errors import SourceError, SourceUnavailable
from penstock.registry import did_you_mean, require
from penstock.section import Section

PAGINATORS = {
    "single": "SinglePagePaginator",
    "json_link": "JSONLinkPaginator",
    "header_link": "HeaderLinkPaginator",
    "page_number": "PageNumberPaginator",
    "offset": "OffsetPaginator",
    "cursor": "JSONResponseCursorPaginator",
    "header_cursor": "HeaderCursorPaginator",
}
Paginator = Literal[
    "single", "json_link", "header_link", "page_number", "offset", "cursor", "header_cursor"
]
_EXCERPT = 200
# Headers are kept out of messages too, but for words such as those of Accept-Language.
_SHORTEST_SECRET = 8
_CLIENT_HINTS = {
    401: "Check `auth` and the variable it takes its secret from.",
    403: "The credentials are known, but may not read this.",
    404: "Check `base_url` and `path`.",
}


class Auth(Section):
    """Who asks; secrets as ${VAR}."""

    type: Literal["bearer", "api_key", "basic"] = Field(description="How the secret is shown.")
    secret: SecretStr = Field(description="The token, key or password, as ${VAR}.")
    username: str = Field("", description="Of `basic`.")
    name: str = Field("Authorization", description="Of the header or parameter of `api_key`.")
    location: Literal["header", "query"] = Field("header", description="Of `api_key`.")

    @model_validator(mode="after")
    def _basic_has_a_user(self) -> Auth:
        if self.type == "basic" and not self.username:
            raise ValueError("`basic` needs a `username`")
        if not self.secret.get_secret_value():
            raise ValueError("the secret is empty")
        return self


@dataclass(frozen=True)
class Endpoint:
    """What to ask for, and how patiently.

    Attributes:
        base_url: Of the API.
        path: Below it.
        params: Of every request.
        headers: Of every request.
        auth: Who asks.
        paginator: A key of ``PAGINATORS``.
        paginator_options: dlt's arguments of it.
        data_selector: JSONPath of the rows in an answer.
        timeout_s: For connecting, and between two pieces of an answer.
        attempts: At one page, in all.
        max_wait_s: Longest pause between two attempts, whatever Retry-After says.
        max_pages: More are a loop.
    """

    base_url: str
    path: str
    params: Mapping[str, Any]
    headers: Mapping[str, str]
    auth: Auth | None
    paginator: Paginator
    paginator_options: Mapping[str, Any]
    data_selector: str
    timeout_s: float
    attempts: int
    max_wait_s: float
    max_pages: int


class _Unfinished(Exception):
    """An answer that began as JSON and did not end as such: worth another attempt."""


def pages(endpoint: Endpoint, params: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The rows of one page after the other.

    Args:
        endpoint: What to ask for.
        params: Of this time, beside the endpoint's own.

    Raises:
        SourceError: The API refuses, or sends what is no page.
        SourceUnavailable: It does not answer, or not whole, or says that it cannot now.
    """
    require("dlt", "api")
    import requests

    client = _client(endpoint)
    seen: dict[bytes, int] = {}
    try:
        answers = client.paginate(
            endpoint.path,
            params={**endpoint.params, **params},
            data_selector=endpoint.data_selector,
            hooks={"response": [_judge(endpoint)]},
            allow_redirects=False,
        )
        for number, page in enumerate(answers, 1):
            _refuse_loop(endpoint, seen, page, number)
            _refuse_stranger(endpoint, str(page.request.url))
            yield list(page)
    except _Unfinished as error:
        reason = f"sent half a page, {endpoint.attempts} times: {error}"
        raise _error(endpoint, reason, "Run again later.", SourceUnavailable) from error
    except requests.HTTPError as error:
        raise _refused(endpoint, error.response) from error
    except requests.RequestException as error:
        reason = f"did not answer in {endpoint.attempts} attempts: {_root(error)}"
        hint = "Check that it is up; then run again."
        raise _error(endpoint, reason, hint, SourceUnavailable) from error
    except ValueError as error:  # the paginator's: it misses what it goes by
        raise _error(
            endpoint,
            f"does not say which page comes next: {str(error)[:_EXCERPT]}",
            "Check `paginator` and `paginator_options`.",
        ) from error


def _client(endpoint: Endpoint) -> Any:
    from dlt.common.configuration.specs import RuntimeConfiguration
    from dlt.sources.helpers.requests import Client
    from dlt.sources.helpers.rest_client import RESTClient

    session = Client(
        request_timeout=endpoint.timeout_s,
        raise_for_status=False,
        request_max_attempts=endpoint.attempts,
        request_backoff_factor=min(1.0, endpoint.max_wait_s),
        request_max_retry_delay=endpoint.max_wait_s,
        retry_condition=lambda _, error: isinstance(error, _Unfinished),
    ).session
    return RESTClient(
        base_url=endpoint.base_url,
        headers=dict(endpoint.headers),
        auth=_auth(endpoint.auth),
        paginator=_paginator(endpoint),
        session=session,
        # Otherwise dlt looks for its own configuration, in files of the user's.
        config=RuntimeConfiguration(),
    )


def _auth(auth: Auth | None) -> Any:
    from dlt.sources.helpers.rest_client import auth as kinds

    if auth is None:
        return None
    secret = auth.secret.get_secret_value()
    if auth.type == "bearer":
        return kinds.BearerTokenAuth(token=secret)
    if auth.type == "basic":
        return kinds.HttpBasicAuth(username=auth.username, password=secret)
    return kinds.APIKeyAuth(name=auth.name, api_key=secret, location=auth.location)


def _paginator(endpoint: Endpoint) -> Any:
    """The paginator of dlt that is named.

    Raises:
        SourceError: It does not take these options.
    """
    from dlt.sources.helpers.rest_client import paginators

    kind = getattr(paginators, PAGINATORS[endpoint.paginator])
    valid = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    for name in endpoint.paginator_options:
        if name not in valid:
            raise SourceError(
                f"paginator_options: {endpoint.paginator} takes no {name!r}."
                f"{did_you_mean(name, valid)}",
                "dlt's documentation of its REST client explains them.",
            )
    try:
        return kind(**endpoint.paginator_options)
    except (TypeError, ValueError) as error:
        raise SourceError(
            f"paginator_options: {endpoint.paginator} says: {error}",
            f"It takes {', '.join(valid) or 'nothing'}.",
        ) from error


def _judge(endpoint: Endpoint) -> Callable[..., None]:
    """A check of every answer, before dlt reads it; what it raises drives dlt's retries."""
    from dlt.common import jsonpath

    def check(response: Any, *_: Any, **__: Any) -> None:
        if response.is_redirect:
            # Followed, it would be shown our secret, wherever it leads.
            raise _error(
                endpoint,
                f"answered HTTP {response.status_code}: it has moved to "
                f"{_excerpt(endpoint, response.headers['Location'].partition('?')[0])}.",
                "If that is right, take that address as `base_url`.",
            )
        if response.status_code >= 400:
            import requests

            raise requests.HTTPError(str(response.status_code), response=response)
        body = _body(endpoint, response)
        found = jsonpath.find_values(endpoint.data_selector, body)
        if not found:
            keys = ", ".join(list(body)[:20]) if isinstance(body, dict) else type(body).__name__
            raise _error(
                endpoint,
                f"sent a page without {endpoint.data_selector!r}; it holds: {keys}.",
                "Mend `data_selector`.",
            )
        if len(found) == 1 and not isinstance(found[0], list | None):
            raise _error(
                endpoint,
                f"has {type(found[0]).__name__} at {endpoint.data_selector!r}; "
                "expected a list of rows.",
                "Mend `data_selector`.",
            )

    return check


def _body(endpoint: Endpoint, response: Any) -> Any:
    """An answer's JSON, which dlt is then given too.

    What reads JSON for it may refuse a whole page for one NaN; here that costs its row.

    Raises:
        SourceError: It is something else, such as a page for people.
        _Unfinished: It breaks off.
    """
    try:
        body = json.loads(response.text if response.encoding else response.content)
    except ValueError as error:
        text = response.text.strip()
        if text[:1] in ("{", "["):
            raise _Unfinished(f"{len(response.content)} bytes that are not whole JSON") from error
        kind = response.headers.get("Content-Type", "no type")
        raise _error(
            endpoint,
            f"sent {kind} in place of JSON: {_excerpt(endpoint, text)!r}.",
            "Check `base_url`, `path` and `auth`: pages for people come from logins and proxies.",
        ) from error
    response.json = lambda **_: body
    return body


def _refuse_loop(endpoint: Endpoint, seen: dict[bytes, int], page: Any, number: int) -> None:
    if number > endpoint.max_pages:
        raise _error(
            endpoint,
            f"sent more than {endpoint.max_pages} pages.",
            "If it has so many, raise `max_pages`; otherwise check `paginator`.",
        )
    # Pages without rows are all alike, and a filtered API may send many: it is a loop if
    # one that was asked for before had none either.
    text = json.dumps(list(page), sort_keys=True) if page else str(page.response.url)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    earlier = seen.setdefault(digest, number)
    if earlier != number:
        raise _error(
            endpoint,
            f"sent the same page again: page {number} is page {earlier}.",
            "Check `paginator` and `paginator_options`: the API seems not to know the parameter "
            "that asks for the next page.",
        )


def _refuse_stranger(endpoint: Endpoint, url: str) -> None:
    """Refuse a next page on another host: it would be shown our secret."""
    here, there = urlsplit(endpoint.base_url), urlsplit(url)
    if there.netloc and (there.scheme, there.netloc) != (here.scheme, here.netloc):
        raise _error(
            endpoint,
            f"names its next page at another host, {there.scheme}://{there.hostname}.",
            "If that is right, take that address as `base_url`.",
        )


def _refused(endpoint: Endpoint, response: Any) -> SourceError:
    status = response.status_code
    body = _excerpt(endpoint, response.text.strip())
    said = f", saying {body!r}" if body else ""
    if status == 429 or status >= 500:
        reason = f"answered HTTP {status} in {endpoint.attempts} attempts{said}."
        hint = "Run again later, or raise `attempts` or `max_wait_s`."
        return _error(endpoint, reason, hint, SourceUnavailable)
    hint = _CLIENT_HINTS.get(status, "Check `params` and `path`.")
    return _error(endpoint, f"answered HTTP {status}{said}.", hint)


def _root(error: BaseException) -> str:
    """The innermost reason: requests wraps urllib3, which wraps the socket."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {str(error)[:_EXCERPT]}"


def _error(
    endpoint: Endpoint, reason: str, hint: str, kind: type[SourceError] = SourceError
) -> SourceError:
    url = f"{endpoint.base_url.rstrip('/')}/{endpoint.path.lstrip('/')}"
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.hostname or ''}"
    where += (f":{parts.port}" if parts.port else "") + parts.path
    return kind(f"{where} {_without_secret(endpoint, reason)}", hint)


def _excerpt(endpoint: Endpoint, text: str) -> str:
    return _without_secret(endpoint, " ".join(text.split()))[:_EXCERPT]


def _without_secret(endpoint: Endpoint, text: str) -> str:
    secrets = [value for value in endpoint.headers.values() if len(value) >= _SHORTEST_SECRET]
    if endpoint.auth:
        secrets.append(endpoint.auth.secret.get_secret_value())
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
