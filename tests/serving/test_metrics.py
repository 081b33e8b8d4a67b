import contextlib
import shutil
import socket
import subprocess

import httpx
import pytest
from doubles import served

from penstock.errors import PenstockError
from penstock.monitoring.merged_metrics import MergedMetrics
from penstock.monitoring.metrics import MetricsServer, ServingMetrics

NAMES = {
    "llm_requests_total": ("model", "endpoint", "status"),
    "llm_request_duration_seconds": ("model", "endpoint"),
    "llm_tokens_generated_total": ("model",),
    "llm_active_requests": ("model",),
}


def filled():
    metrics = ServingMetrics()
    metrics.requests.labels("m", "/v1/completions", "200").inc()
    metrics.duration.labels("m", "/v1/completions").observe(0.3)
    metrics.tokens_generated.labels("m").inc(5)
    metrics.prompt_tokens.labels("m").inc(2)
    metrics.active.labels("m").inc()
    metrics.queued.labels("m").inc()
    metrics.queue_wait.labels("m").observe(0.1)
    metrics.first_token.labels("m").observe(0.1)
    metrics.load_failures.labels("m").inc()
    metrics.show_served("penny", "champion", served("x", 3, epoch=9))
    return metrics


@pytest.fixture
def shown():
    server = MetricsServer(filled(), "127.0.0.1", 0)
    yield httpx.get(server.url)
    server.close()


def test_the_promised_names_and_labels_are_there(shown):
    for name, labels in NAMES.items():
        lines = [line for line in shown.text.splitlines() if line.startswith(name)]
        assert lines, name
        for label in labels:
            assert f'{label}="' in lines[0], (name, label)


def test_duration_buckets_are_the_promised_ones(shown):
    bounds = [
        line.split('le="')[1].split('"')[0]
        for line in shown.text.splitlines()
        if line.startswith("llm_request_duration_seconds_bucket")
    ]
    assert bounds == ["0.1", "0.5", "1.0", "2.0", "5.0", "10.0", "30.0", "+Inf"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH")
def test_promtool_has_nothing_to_say(shown):
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=shown.text, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stderr + checked.stdout == ""


def test_only_the_served_version_has_a_series():
    metrics = filled()
    metrics.show_served("penny", "champion", served("x", 4, epoch=10))
    metrics.show_served("other", "champion", served("y", 1))
    samples = [s for family in metrics.registry.collect() for s in family.samples]
    shown = [s.labels["version"] for s in samples if s.name == "penstock_served_version_info"]
    assert shown == ["4", "1"]
    assert metrics.registry.get_sample_value("penstock_route_epoch", {"model": "penny"}) == 10
    metrics.show_served("penny", "champion", None)
    assert metrics.registry.get_sample_value("penstock_route_epoch", {"model": "penny"}) is None


def test_two_gateways_do_not_share_series():
    first, second = ServingMetrics(), ServingMetrics()
    first.tokens_generated.labels("m").inc()
    assert second.registry.get_sample_value("llm_tokens_generated_total", {"model": "m"}) is None


def test_a_taken_port_is_named_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PenstockError, match=str(port)) as caught:
            MetricsServer(ServingMetrics(), "127.0.0.1", port)
    assert "metrics_port" in caught.value.hint


def test_a_point_in_a_plot_leads_to_a_request():
    metrics = ServingMetrics()
    exemplar = {"trace_id": "a" * 32, "response_id": "chatcmpl-" + "b" * 49}
    metrics.duration.labels("m", "/").observe(0.2, exemplar)
    with contextlib.closing(MetricsServer(metrics, "127.0.0.1", 0)) as server:
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        text = httpx.get(server.url, headers=accept).text
    assert 'trace_id="aaaa' in text
    assert "response_id=" in text


def test_pages_of_several_processes_are_one_with_a_label_and_their_exemplars():
    pages = []
    with contextlib.ExitStack() as stack:
        for number in range(2):
            metrics = ServingMetrics()
            metrics.tokens_generated.labels("m").inc(number + 1)
            metrics.duration.labels("m", "/").observe(0.2, {"trace_id": f"t{number}"})
            server = stack.enter_context(contextlib.closing(MetricsServer(metrics, "127.0.0.1", 0)))
            pages.append(server.url)
        merged = MergedMetrics(lambda: {"0": pages[0], "1": pages[1], "2": "http://127.0.0.1:9"})
        shown = stack.enter_context(contextlib.closing(MetricsServer(merged, "127.0.0.1", 0)))
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        text = httpx.get(shown.url, headers=accept).text
    assert 'llm_tokens_generated_total{model="m",worker="0"} 1.0' in text
    assert 'llm_tokens_generated_total{model="m",worker="1"} 2.0' in text
    assert text.count("# TYPE llm_tokens_generated counter") == 1
    assert 'trace_id="t1"' in text
