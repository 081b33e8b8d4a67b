"""The recipe's ``serve.traces`` section: where traces of requests go, and what is in them."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from penstock.section import Section

Destination = Literal["phoenix", "langfuse", "langsmith", "otlp"]


def _check_endpoint(url: str) -> str:
    # None of the messages repeats the URL: what is wrong with it may be a password in it.
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not a URL such as http://127.0.0.1:6006 or https://cloud.langfuse.com")
    if "@" in parts.netloc:
        raise ValueError("a URL with credentials in it: set them in the environment")
    if parts.query or parts.fragment:
        raise ValueError("a URL with a query or a fragment")
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError("a URL with spaces or control characters")
    return url.rstrip("/")


Endpoint = Annotated[str, AfterValidator(_check_endpoint)]


class TracesConfig(Section):
    """Traces by OpenTelemetry; keys come from the environment and nowhere else."""

    to: Destination = Field(
        description="Who receives them. Keys: `PHOENIX_API_KEY`; `LANGFUSE_PUBLIC_KEY` and "
        "`LANGFUSE_SECRET_KEY`; `LANGSMITH_API_KEY`; `OTEL_EXPORTER_OTLP_HEADERS` for any other "
        "receiver of OTLP over HTTP."
    )
    endpoint: Endpoint | None = Field(
        None,
        description="Its base URL. Null: Phoenix or a collector on this host, or the tool's cloud.",
    )
    project: Annotated[str, Field(pattern=r"^[!-~]([ -~]{0,198}[!-~])?$")] | None = Field(
        None,
        description="Project in Phoenix or LangSmith. Null: `PHOENIX_PROJECT_NAME` or "
        "`LANGSMITH_PROJECT`, or the tool's default. Langfuse's keys are a project's own.",
    )
    sample: float = Field(
        1.0, ge=0, le=1, description="Share of requests traced. Failures of the server always are."
    )
    content: bool = Field(False, description="Also send prompts and answers.")
    redact: bool = Field(
        True, description="Personal data and secrets give way to placeholders such as `[EMAIL]`."
    )
    trust_traceparent: bool = Field(
        False,
        description="Continue the trace that a request's `traceparent` names. Whoever can send "
        "requests can then choose trace ids and what is sampled.",
    )
