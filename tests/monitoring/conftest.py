import contextlib

import pytest
from prometheus_client import CollectorRegistry

from otlp_receiver import Receiver
from penstock.monitoring import trace_export
from penstock.monitoring.traces import Tracer
from penstock.traces_section import TracesConfig
from traced_request import KEYS


@pytest.fixture
def receiver():
    with Receiver() as running:
        yield running


@pytest.fixture
def outcomes():
    """What the metric says became of traces."""
    registry = CollectorRegistry()

    def count(outcome):
        return registry.get_sample_value("penstock_traces_total", {"outcome": outcome})

    count.registry = registry
    return count


@pytest.fixture
def start(receiver, outcomes, monkeypatch):
    """Starts tracers that send to the receiver; ``outcomes`` are the first one's."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(trace_export, "_LINGER_S", 0.02)
    registries = [CollectorRegistry() for _ in range(3)] + [outcomes.registry]
    with contextlib.ExitStack() as stack:

        def started(to="otlp", environ=None, **settings):
            config = TracesConfig(**{"to": to, "endpoint": receiver.url, **settings})
            tracer = Tracer(config, registries.pop(), KEYS | (environ or {}))
            tracer.start()
            stack.callback(tracer.close, 5)
            return tracer

        yield started
