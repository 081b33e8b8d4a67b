"""What the gateway, and a follower of sources, tell Prometheus.

Each gateway has its own registry, so two in one process do not collide. Label
values come from the configuration and a fixed list of endpoints, never from a
request: a client that makes up names cannot make up series.
"""

from __future__ import annotations

from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)

from penstock.errors import PenstockError
from penstock.slo_section import DURATION_BUCKETS_S, FIRST_TOKEN_BUCKETS_S

# Each counter and histogram would add a series that Prometheus does not use.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library does not annotate it

UNKNOWN = "unknown"

_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Served(Protocol):
    """The parts of a served version that become labels."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> int: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def run_id(self) -> str: ...  # noqa: D102
    @property
    def data_version(self) -> str: ...  # noqa: D102


class HasRegistry(Protocol):
    """Metrics that can be shown."""

    @property
    def registry(self) -> CollectorRegistry: ...  # noqa: D102


class ServingMetrics:
    """All metrics of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shown: dict[tuple[str, str], tuple[str, ...]] = {}
        self._make_request_metrics()
        self._make_model_metrics()
        self._make_rollout_metrics()
        self._make_routing_metrics()
        self._make_record_metrics()

    def _make_request_metrics(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "llm_requests",
            "Requests answered, by HTTP status; 499 is a client that left.",
            ["model", "endpoint", "status"],
            registry=registry,
        )
        self.duration = Histogram(
            "llm_request_duration_seconds",
            "Time from a request's first byte to its answer's last.",
            ["model", "endpoint"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.active = Gauge(
            "llm_active_requests", "Requests in flight.", ["model"], registry=registry
        )
        self.queued = Gauge(
            "llm_queued_requests",
            "Requests that wait for a free slot.",
            ["model"],
            registry=registry,
        )
        self.queue_wait = Histogram(
            "llm_queue_wait_seconds",
            "Time that requests waited for a free slot.",
            ["model"],
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.first_token = Histogram(
            "llm_time_to_first_token_seconds",
            "Time from a request's first byte to its answer's first token.",
            ["model"],
            buckets=FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )

        self.token_time = Histogram(
            "llm_time_per_output_token_seconds",
            "Time between two tokens of an answer, its mean over the tokens after the first.",
            ["model"],
            buckets=_TOKEN_BUCKETS_S,
            registry=registry,
        )

    def _make_model_metrics(self) -> None:
        registry = self.registry
        self.tokens_generated = Counter(
            "llm_tokens_generated", "Tokens generated.", ["model"], registry=registry
        )
        self.prompt_tokens = Counter(
            "llm_prompt_tokens", "Prompt tokens read.", ["model"], registry=registry
        )
        self.feature_lookups = Counter(
            "penstock_feature_lookups",
            "Lookups in the feature store: found, missing, unnamed or failed.",
            ["outcome"],
            registry=registry,
        )
        self.served = Gauge(
            "penstock_served_version_info",
            "1 for the version that serves.",
            ["model", "arm", "version", "digest", "run", "data_version"],
            registry=registry,
        )
        self.epoch = Gauge(
            "penstock_route_epoch",
            "Epoch of the production pointer that is served.",
            ["model"],
            registry=registry,
        )
        self.load_failures = Counter(
            "penstock_load_failures",
            "Attempts to load a model version that failed.",
            ["model"],
            registry=registry,
        )
        self.poll_failures = Counter(
            "penstock_pointer_poll_failures",
            "Reads of the production pointer that failed.",
            registry=registry,
        )

    def _make_rollout_metrics(self) -> None:
        registry = self.registry
        self.rollout_share = Gauge(
            "penstock_rollout_share",
            "Share of the requests that the version on trial answers.",
            ["model"],
            registry=registry,
        )
        self.rollout_running = Gauge(
            "penstock_rollout_running",
            "1 while a version is on trial.",
            ["model"],
            registry=registry,
        )
        self.rollout_step = Gauge(
            "penstock_rollout_step",
            "Step of the trial that is on, from 1; 0 without one.",
            ["model"],
            registry=registry,
        )
        self.rollout_decisions = Counter(
            "penstock_rollout_decisions",
            "Decisions about trials that this process made: step, hold, rollback, promote, ...",
            ["model", "decision"],
            registry=registry,
        )
        self.observations_lost = Counter(
            "penstock_rollout_observations_lost",
            "Observations of trials that the ledger did not take in time.",
            registry=registry,
        )

    def _make_routing_metrics(self) -> None:
        registry = self.registry
        self.available = Gauge(
            "penstock_backend_available",
            "1 while requests are sent to a model, 0 while its breaker is open.",
            ["model"],
            registry=registry,
        )
        self.retried = Counter(
            "penstock_retries",
            "Further tries of requests that a model failed: the same model, or a fallback.",
            ["model", "kind"],
            registry=registry,
        )
        self.shadowed = Counter(
            "penstock_shadow_requests",
            "Copies of requests for a model that nobody waits for, by status; or left out.",
            ["model", "status"],
            registry=registry,
        )
        self.routed = Counter(
            "penstock_routed_requests",
            "Requests by the name that was asked for, who was chosen, and why.",
            ["route", "model", "why"],
            registry=registry,
        )

    def _make_record_metrics(self) -> None:
        registry = self.registry
        self.logged_requests = Counter(
            "penstock_logged_requests",
            "Rows of the request log: written, or dropped because the store was away too long.",
            ["outcome"],
            registry=registry,
        )
        self.log_failures = Counter(
            "penstock_log_failures",
            "Writes to the tables of requests and feedback that failed.",
            ["table"],
            registry=registry,
        )
        self.feedback = Counter(
            "penstock_feedback",
            "What was said about responses, by the model that gave them.",
            ["model", "kind", "thumb"],
            registry=registry,
        )

        self.alerts = Counter(
            "penstock_alerts_taken",
            "Alerts that came: firing, resolved, about another recipe, or the echo of an alarm.",
            ["outcome"],
            registry=registry,
        )

    def show_rollout(self, model: str, share: float, rollout: str, step: int) -> None:
        """Show the trial of a model's version; an empty id is none."""
        self.rollout_share.labels(model).set(share)
        self.rollout_running.labels(model).set(bool(rollout))
        self.rollout_step.labels(model).set(step + 1 if rollout else 0)

    def show_served(self, model: str, arm: str, served: Served | None) -> None:
        """Replace what one place of one model shows; the old version's series ends."""
        before = self._shown.pop((model, arm), None)
        if before is not None:
            self.served.remove(*before)
        if served is None:
            if before is not None and arm == "champion":
                self.epoch.remove(model)
            return
        labels = (
            model,
            arm,
            str(served.version),
            served.digest[:16],
            served.run_id,
            served.data_version,
        )
        self._shown[model, arm] = labels
        self.served.labels(*labels).set(1)
        if arm == "champion":
            self.epoch.labels(model).set(served.epoch)


class IngestMetrics:
    """What `penstock ingest --follow` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.lag = Gauge(
            "penstock_ingest_lag",
            "Offsets of a stream that grows, such as a Kafka partition, not ingested yet.",
            ["source", "stream"],
            registry=self.registry,
        )
        self.waiting = Gauge(
            "penstock_ingest_waiting_units",
            "Files and other units of a source that are not ingested yet.",
            ["source"],
            registry=self.registry,
        )
        self.rows = Gauge(
            "penstock_ingest_rows",
            "Rows in a source's raw table.",
            ["source"],
            registry=self.registry,
        )
        self.dead_letters = Gauge(
            "penstock_ingest_dead_letters",
            "Dead letters of all sources.",
            registry=self.registry,
        )
        self.commits = Counter(
            "penstock_ingest_commits",
            "Parts of a stream, or whole units, that were committed.",
            ["source"],
            registry=self.registry,
        )
        self.failures = Counter(
            "penstock_ingest_failures",
            "Times a source could not be asked or read.",
            ["source"],
            registry=self.registry,
        )
        self.committed_at = Gauge(
            "penstock_ingest_last_commit_timestamp_seconds",
            "When something of a source was last committed.",
            ["source"],
            registry=self.registry,
        )


class MetricsServer:
    """Answers ``GET /metrics`` for Prometheus, in a thread of its own.

    Args:
        metrics: What to show.
        host: Where to listen.
        port: 0 picks a free one.
        setting: Where a user chooses the port.

    Raises:
        PenstockError: The port is taken.
    """

    def __init__(
        self,
        metrics: HasRegistry,
        host: str,
        port: int,
        setting: str = "serve.metrics_port",
    ) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, metrics.registry)
        except OSError as error:
            raise PenstockError(
                f"Metrics cannot listen on {host}:{port}: {error.strerror}.",
                f"Stop what listens there, or set {setting} to another port.",
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
