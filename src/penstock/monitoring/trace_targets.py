"""Who receives traces: the URL, the headers and the words each tool's documentation asks for."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from penstock.errors import PenstockError
from penstock.monitoring.span_attributes import Vocabulary
from penstock.traces_section import Destination, TracesConfig

_PATH = "/v1/traces"
# As the OTLP specification has it: name=value, separated by commas, values in percent-encoding.
_HEADER = re.compile(r"[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*=[ !#-+\--:<-\[\]-~]*")
_OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")


@dataclass(frozen=True)
class Target:
    """Where traces go.

    Attributes:
        url: Where batches are posted.
        api: Base URL of the tool's own API, which scores are posted to.
        headers: Sent with each batch, in place of all that an exporter would add; never shown.
        vocabularies: Whose words the attributes are in.
        resource: Attributes of the gateway as a whole.
        own_environment: OpenTelemetry's own variables (headers, compression) apply.
        credentials: Variables that hold the keys, for messages.
    """

    url: str
    vocabularies: tuple[Vocabulary, ...]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    resource: Mapping[str, str] = field(default_factory=dict)
    own_environment: bool = False
    credentials: tuple[str, ...] = ()
    api: str = ""


def target(config: TracesConfig, environ: Mapping[str, str]) -> Target:
    """Where traces go by this configuration.

    Args:
        config: What the user set.
        environ: Where the keys are.

    Raises:
        PenstockError: A key is missing or cannot be sent in a header; the message names the
            variable and never its value.
    """
    # OpenTelemetry's exporter reads this whoever it sends to, and logs what it cannot parse.
    _checked_headers(environ)
    return _TARGETS[config.to](config, environ)


def _phoenix(config: TracesConfig, environ: Mapping[str, str]) -> Target:
    """Documented at https://arize.com/docs/phoenix, "What is my Phoenix endpoint" and "otel".

    The key goes as a bearer token; the project is a resource attribute.
    """
    key = _key(environ, "PHOENIX_API_KEY")
    project = config.project or _key(environ, "PHOENIX_PROJECT_NAME")
    url = _joined(config.endpoint or "http://127.0.0.1:6006", _PATH)
    return Target(
        url=url,
        api=url.removesuffix(_PATH),
        vocabularies=("gen_ai", "openinference"),
        headers={"authorization": f"Bearer {key}"} if key else {},
        resource={"openinference.project.name": project} if project else {},
        credentials=("PHOENIX_API_KEY",),
    )


def _langfuse(config: TracesConfig, environ: Mapping[str, str]) -> Target:
    """Documented at https://langfuse.com/integrations/native/opentelemetry.

    Basic authentication with both keys, and the header that makes spans appear at once.
    """
    public = _needed_key(environ, "LANGFUSE_PUBLIC_KEY", "Langfuse")
    secret = _needed_key(environ, "LANGFUSE_SECRET_KEY", "Langfuse")
    pair = base64.b64encode(f"{public}:{secret}".encode()).decode()
    path = f"/api/public/otel{_PATH}"
    url = _joined(config.endpoint or "https://cloud.langfuse.com", path)
    return Target(
        url=url,
        api=url.removesuffix(path),
        vocabularies=("gen_ai", "langfuse"),
        headers={"authorization": f"Basic {pair}", "x-langfuse-ingestion-version": "4"},
        credentials=("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"),
    )


def _langsmith(config: TracesConfig, environ: Mapping[str, str]) -> Target:
    """Documented at https://docs.langchain.com/langsmith/trace-with-opentelemetry."""
    headers = {"x-api-key": _needed_key(environ, "LANGSMITH_API_KEY", "LangSmith")}
    if project := config.project or _key(environ, "LANGSMITH_PROJECT"):
        headers["langsmith-project"] = project
    path = f"/otel{_PATH}"
    url = _joined(config.endpoint or "https://api.smith.langchain.com", path)
    return Target(
        url=url,
        api=url.removesuffix(path),
        vocabularies=("gen_ai", "langsmith"),
        headers=headers,
        credentials=("LANGSMITH_API_KEY",),
    )


def _otlp(config: TracesConfig, environ: Mapping[str, str]) -> Target:
    """By https://opentelemetry.io/docs/specs/otel/protocol/exporter/."""
    return Target(
        url=_joined(config.endpoint or "http://127.0.0.1:4318", _PATH),
        vocabularies=("gen_ai", "gen_ai_messages", "openinference"),
        headers=_checked_headers(environ),
        own_environment=True,
        credentials=_OTLP_VARIABLES,
    )


_TARGETS: Mapping[Destination, Callable[[TracesConfig, Mapping[str, str]], Target]] = {
    "phoenix": _phoenix,
    "langfuse": _langfuse,
    "langsmith": _langsmith,
    "otlp": _otlp,
}


def _joined(base: str, path: str) -> str:
    """The base URL with the path, of which the user may have written a beginning or all."""
    parts = path.strip("/").split("/")
    for num_written in range(len(parts), 0, -1):
        if base.endswith("/" + "/".join(parts[:num_written])):
            return "/".join([base, *parts[num_written:]])
    return base + path


def _key(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    _check_printable(name, value)
    return value


def _check_printable(name: str, value: str) -> None:
    if not all(" " <= character <= "~" for character in value):
        raise PenstockError(
            f"{name} holds a character that no HTTP header can.",
            "Set it again; a key is plain ASCII on one line.",
        )


def _needed_key(environ: Mapping[str, str], name: str, tool: str) -> str:
    if value := _key(environ, name):
        return value
    raise PenstockError(
        f"Traces go to {tool}, and {name} is not set.",
        f"Set it in the environment to a key from {tool}'s settings.",
    )


def _checked_headers(environ: Mapping[str, str]) -> dict[str, str]:
    name = next((name for name in _OTLP_VARIABLES if environ.get(name)), _OTLP_VARIABLES[-1])
    pieces = [piece for piece in environ.get(name, "").split(",") if piece.strip()]
    if not all(_HEADER.fullmatch(piece) for piece in pieces):
        raise PenstockError(
            f"{name} is not a list of headers.", "Write it as name=value,name=value."
        )
    if not pieces:
        return {}
    from opentelemetry.util.re import parse_env_headers

    headers = dict(parse_env_headers(",".join(pieces), liberal=True))
    for value in headers.values():  # without its percent-encoding
        _check_printable(name, value)
    return headers
