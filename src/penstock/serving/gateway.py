"""What the endpoints of one gateway share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from penstock.errors import PenstockError
from penstock.monitoring.metrics import ServingMetrics
from penstock.serving.admission import Admission
from penstock.serving.config import EmbeddingConfig, ServeConfig
from penstock.serving.features import OnlineFeatures
from penstock.serving.loading import load_embedding, load_version
from penstock.serving.routes import Pointers, Route, RouteTable
from penstock.serving.watcher import PointerWatcher

logger = logging.getLogger(__name__)


class Gateway:
    """Routes, limits and metrics of one gateway.

    Args:
        config: What the user set.
        pointers: Which version to serve.
        on_fatal: Called with what makes serving on pointless, an embedding model
            that cannot be loaded.

    Attributes:
        table: The route of the generating model.
        embedding: The route of the embedding model, once it is loaded.
    """

    def __init__(
        self,
        config: ServeConfig,
        pointers: Pointers,
        on_fatal: Callable[[PenstockError], None] | None = None,
    ) -> None:
        self.config = config
        self.started_at_s = time.time()
        self.metrics = ServingMetrics()
        self.features = OnlineFeatures(config.features, self.metrics)
        self.table = RouteTable()
        self.embedding: Route | None = None
        self._on_fatal = on_fatal
        limits = (config.max_concurrency, config.max_queue, self.metrics)
        self.generate_admission = Admission(config.model, *limits)
        self.embed_admission = Admission(
            config.embedding.model if config.embedding else "none", *limits
        )
        self.watcher = PointerWatcher(
            pointers,
            lambda served: load_version(config, served),
            self.table,
            self.metrics,
            config.poll_interval_s,
        )
        self._loading: asyncio.Task[None] | None = None

    @property
    def model_names(self) -> list[str]:
        """What clients may ask for."""
        embedding = self.config.embedding
        return [self.config.model] + ([embedding.model] if embedding else [])

    @property
    def ready(self) -> bool:
        """Whether every endpoint can answer."""
        embedding_ready = self.config.embedding is None or self.embedding is not None
        return self.table.current is not None and embedding_ready

    def readiness(self) -> dict[str, object]:
        """What ``/readyz`` says: what serves, and what keeps the wanted version from it."""
        route, wanted, failure = self.table.current, self.watcher.wanted, self.watcher.failure
        return {
            "status": "ready" if self.ready else "not_ready",
            "model": self.config.model,
            "version": route.served.version if route else None,
            "epoch": route.served.epoch if route else None,
            "wanted_version": wanted.version if wanted else None,
            "embedding_ready": self.config.embedding is None or self.embedding is not None,
            "load_failure": failure
            and {
                "version": failure.version,
                "epoch": failure.epoch,
                "attempts": failure.attempts,
                "error": failure.error,
            },
        }

    async def start(self) -> None:
        """Begin to load the models; returns at once."""
        self.watcher.start()
        if self.config.embedding is not None:
            self._loading = asyncio.create_task(self._load_embedding(self.config.embedding))

    async def stop(self) -> None:
        """Stop following the pointer and free the models."""
        await self.watcher.stop()
        if self._loading is not None:
            await self._loading
        if self.embedding is not None:
            self.embedding.retire()
            await self.embedding.closed()
        await self.table.close()

    async def _load_embedding(self, embedding: EmbeddingConfig) -> None:
        try:
            self.embedding = await asyncio.to_thread(load_embedding, self.config, embedding)
        except PenstockError as error:
            # The pointer does not move this model, so waiting cannot help.
            logger.error("The embedding model cannot be loaded: %s %s", error.message, error.hint)
            if self._on_fatal is not None:
                self._on_fatal(error)
