"""What a user may set about serving; imports nothing but Pydantic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

Port = Annotated[int, Field(ge=0, le=65535)]


class EmbeddingConfig(BaseModel):
    """The model behind ``/v1/embeddings``; the production pointer does not move it.

    Attributes:
        model: The name clients ask for.
        backend: A name from the registry's ``backends``.
        folder: A sentence-transformers folder; not needed for a packaged model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("all-MiniLM-L6-v2", min_length=1)
    backend: str = "sentence_transformers"
    folder: Path | None = None


class ServeConfig(BaseModel):
    """How one gateway process serves one model name.

    Attributes:
        model: The name clients ask for; versions of it come and go behind it.
        host: Where to listen. The gateway asks nobody for a password: before
            it listens on anything but loopback, put a proxy that does in front.
        port: 0 picks a free one.
        metrics_port: Prometheus metrics, on ``host``; 0 picks a free one, null turns them off.
        backend: A name from the registry's ``backends``.
        backend_options: Passed to the backend; see its class for the names.
        embedding: Null turns ``/v1/embeddings`` off.
        max_concurrency: Requests computed at once; the next ones wait.
        max_queue: Requests that may wait; the next ones get HTTP 429.
        request_timeout_s: From the first byte of a request to the last of its answer.
        max_body_bytes: Longer bodies get HTTP 413.
        drain_timeout_s: How long answers in flight may take after SIGTERM.
        poll_interval_s: How often the production pointer is read.
        features: A feature store, for models whose prompts hold features.
        cache_dir: Where converted models are kept; null is ``~/.cache/penstock``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    host: str = "127.0.0.1"
    port: Port = 8000
    metrics_port: Port | None = 9090
    backend: str = "ctranslate2"
    backend_options: dict[str, object] = Field(default_factory=dict)
    embedding: EmbeddingConfig | None = EmbeddingConfig()
    max_concurrency: int = Field(16, ge=1)
    max_queue: int = Field(64, ge=0)
    request_timeout_s: float = Field(60.0, gt=0)
    max_body_bytes: int = Field(1_048_576, ge=1_024)
    drain_timeout_s: float = Field(30.0, ge=0)
    poll_interval_s: float = Field(0.5, gt=0)
    features: SkipValidation[Any] = None
    cache_dir: Path | None = None
