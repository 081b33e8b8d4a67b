"""What watches the gateway: a collector that passes its traces on, and Prometheus' monitor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import yaml

from penstock.errors import RecipeError
from penstock.monitoring.alert_rules import rules
from penstock.monitoring.trace_targets import target
from penstock.orchestrators.kubernetes.pods import (
    container,
    deployment,
    http_probe,
    pod,
    port,
    resources,
    scratch,
    service,
)
from penstock.orchestrators.kubernetes.project import COLLECTOR_PORT, Manifest, Project
from penstock.traces_section import Destination, TracesConfig

COMPONENT = "collector"
_HEALTH_PORT = 13133
_CONFIG = "/etc/otelcol-contrib/config.yaml"
# Receiver -> variables with its keys, and whether it refuses traces without them.
TRACE_KEYS: Mapping[Destination, tuple[tuple[str, ...], bool]] = {
    "phoenix": (("PHOENIX_API_KEY",), False),
    "langfuse": (("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"), True),
    "langsmith": (("LANGSMITH_API_KEY",), True),
    "otlp": (("OTLP_AUTHORIZATION",), False),
}
_LANGFUSE_AUTH = "basicauth/langfuse"


def collector(project: Project, traces: TracesConfig) -> list[Manifest]:
    """ConfigMap, Deployment and Service of the collector.

    Raises:
        RecipeError: The recipe sends traces to its own host, which is no place for a pod.
    """
    text = yaml.safe_dump(collector_config(traces), sort_keys=False)
    config_map = project.part(COMPONENT, hashlib.sha256(text.encode()).hexdigest()[:10])
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": project.metadata(config_map, COMPONENT),
            "immutable": True,
            "data": {"config.yaml": text},
        },
        deployment(project, COMPONENT, _pod(project, traces, config_map), replicas=1),
        service(project, COMPONENT, [("otlp-http", COLLECTOR_PORT)]),
    ]


def collector_config(traces: TracesConfig) -> Manifest:
    """The collector's own configuration: one receiver, one exporter, a bound on memory.

    It receives under the path that the gateway's tool has, so the gateway need not know.
    """
    if traces.endpoint is None and traces.to in ("phoenix", "otlp"):
        raise RecipeError(
            f"serve.traces: {traces.to} without an endpoint is one on the gateway's own host.",
            "Name where it is in the cluster: serve.traces.endpoint.",
        )
    placeholders = dict.fromkeys(TRACE_KEYS[traces.to][0], "x")
    url = target(traces, placeholders).url
    here = traces.model_copy(update={"endpoint": "http://here"})
    path = urlsplit(target(here, placeholders).url).path
    extensions: dict[str, Any] = {"health_check": {"endpoint": f"0.0.0.0:{_HEALTH_PORT}"}}
    exporter: dict[str, Any] = {"traces_endpoint": url}
    if traces.to == "langfuse":
        pair = {"username": "LANGFUSE_PUBLIC_KEY", "password": "LANGFUSE_SECRET_KEY"}
        extensions[_LANGFUSE_AUTH] = {"client_auth": {k: f"${{env:{v}}}" for k, v in pair.items()}}
        exporter["auth"] = {"authenticator": _LANGFUSE_AUTH}
    if headers := _headers(traces):
        exporter["headers"] = headers
    receiver = {"endpoint": f"0.0.0.0:{COLLECTOR_PORT}", "traces_url_path": path}
    return {
        "receivers": {"otlp": {"protocols": {"http": receiver}}},
        "processors": {
            "memory_limiter": {
                "check_interval": "1s",
                "limit_percentage": 80,
                "spike_limit_percentage": 25,
            },
            "batch": {},
        },
        "exporters": {"otlp_http": exporter},
        "extensions": extensions,
        "service": {
            "extensions": list(extensions),
            "pipelines": {
                "traces": {
                    "receivers": ["otlp"],
                    "processors": ["memory_limiter", "batch"],
                    "exporters": ["otlp_http"],
                }
            },
        },
    }


def _headers(traces: TracesConfig) -> dict[str, str]:
    if traces.to == "phoenix":
        return {"authorization": "Bearer ${env:PHOENIX_API_KEY}"}
    if traces.to == "langfuse":
        return {"x-langfuse-ingestion-version": "4"}
    if traces.to == "langsmith":
        project = {"langsmith-project": traces.project} if traces.project else {}
        return {"x-api-key": "${env:LANGSMITH_API_KEY}", **project}
    return {"authorization": "${env:OTLP_AUTHORIZATION}"}


def _pod(project: Project, traces: TracesConfig, config_map: str) -> Manifest:
    keys, needed = TRACE_KEYS[traces.to]
    volume, mount = scratch()
    runs = container(
        COMPONENT,
        project.options.collector_image,
        args=[f"--config={_CONFIG}"],
        env=[project.secret(name, optional=not needed) for name in keys],
        ports=[port("otlp-http", COLLECTOR_PORT), port("health", _HEALTH_PORT)],
        resources=resources("200m", "512Mi"),
        volumeMounts=[
            mount,
            {
                "name": "config",
                "mountPath": _CONFIG,
                "subPath": "config.yaml",
                "readOnly": True,
            },
        ],
        readinessProbe=http_probe("/", "health", periodSeconds=5),
        livenessProbe=http_probe("/", "health", periodSeconds=10, failureThreshold=6),
    )
    return pod(project, [runs], [volume, {"name": "config", "configMap": {"name": config_map}}])


def service_monitor(project: Project, component: str) -> Manifest:
    """How Prometheus' operator finds the metrics of a component's pods."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": project.metadata(project.part(component), component),
        "spec": {
            "selector": {"matchLabels": project.labels(component)},
            "namespaceSelector": {"matchNames": [project.options.namespace]},
            "endpoints": [
                {
                    "port": "metrics",
                    "path": "/metrics",
                    "interval": "15s",
                    # What the rules tell recipes apart by.
                    "relabelings": [{"targetLabel": "recipe", "replacement": project.recipe.name}],
                }
            ],
        },
    }


def prometheus_rule(project: Project) -> Manifest:
    """The recipe's rules, as Prometheus' operator takes them."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": project.metadata(project.part("rules"), "gateway"),
        "spec": rules(project.recipe),
    }
