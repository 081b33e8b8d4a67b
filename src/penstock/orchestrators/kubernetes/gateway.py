"""The gateway: replicas that scale with the load, roll without a gap and drain before they end."""

from __future__ import annotations

import math
from typing import Any

from penstock.orchestrators.kubernetes.pods import (
    container,
    deployment,
    http_probe,
    penstock_volumes,
    pod,
    port,
    resources,
    service,
    shared_memory,
)
from penstock.orchestrators.kubernetes.project import (
    COLLECTOR_PORT,
    RAY_TOKEN_KEY,
    VLLM_KEY,
    VLLM_PORT,
    Manifest,
    Project,
    as_word,
    set_words,
    values,
)

COMPONENT = "gateway"
# Until all nodes have heard that a pod goes, requests still come to it.
_LEAVE_S = 5
# Workers wait this long for what their processes say at the end, and then some.
_AFTER_DRAIN_S = 10
_HELD_ELSEWHERE = "held-by-the-collector"
_TRACE_KEYS = {
    "langfuse": ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"),
    "langsmith": ("LANGSMITH_API_KEY",),
}


def gateway(project: Project) -> list[Manifest]:
    """Deployment, Service, HorizontalPodAutoscaler and PodDisruptionBudget."""
    serve = project.recipe.serve
    ports = [("http", serve.port)]
    if serve.metrics_port is not None:
        ports.append(("metrics", serve.metrics_port))
    labels = project.labels(COMPONENT)
    return [
        deployment(
            project,
            COMPONENT,
            _pod(project, ports),
            # How many there are is the autoscaler's to say.
            strategy={"type": "RollingUpdate", "rollingUpdate": _ROLLING},
        ),
        service(project, COMPONENT, ports),
        _autoscaler(project),
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": project.metadata(project.part(COMPONENT), COMPONENT),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
        },
    ]


_ROLLING = {"maxUnavailable": 0, "maxSurge": 1}


def _pod(project: Project, ports: list[tuple[str, int]]) -> Manifest:
    options, serve = project.options, project.recipe.serve
    volumes, mounts = penstock_volumes(project)
    gpus = sum(max(1, math.ceil(one.resources.num_gpus)) for one in project.vllm_inside.values())
    if gpus or project.ray_models:
        volume, mount = shared_memory("2Gi")
        volumes, mounts = [*volumes, volume], [*mounts, mount]
    runs = container(
        COMPONENT,
        options.image,
        **_command(project),
        env=_environment(project),
        ports=[port(name, number) for name, number in ports],
        resources=resources(options.cpu, options.memory, gpus),
        volumeMounts=mounts,
        **_probes(project),
        lifecycle={"preStop": {"sleep": {"seconds": _LEAVE_S}}},
    )
    return pod(
        project,
        [runs],
        volumes,
        terminationGracePeriodSeconds=_LEAVE_S + math.ceil(serve.drain_timeout_s) + _AFTER_DRAIN_S,
        topologySpreadConstraints=[
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": project.labels(COMPONENT)},
            }
        ],
    )


def _probes(project: Project) -> Manifest:
    # /healthz answers as soon as the process does, before any model is loaded; one
    # that starts vLLM or joins Ray first still has ten minutes.
    return {
        "startupProbe": http_probe("/healthz", "http", periodSeconds=5, failureThreshold=120),
        "readinessProbe": http_probe(
            "/readyz", "http", periodSeconds=5, timeoutSeconds=5, failureThreshold=2
        ),
        "livenessProbe": http_probe(
            "/healthz", "http", periodSeconds=10, timeoutSeconds=5, failureThreshold=6
        ),
    }


def _command(project: Project) -> Manifest:
    words = ["penstock", "serve", "--host", "0.0.0.0", *_overrides(project)]  # noqa: S104
    if not project.ray_models:
        return {"command": words}
    # A gateway's host must be part of the cluster. It brings no cores to it.
    joins = (
        f"ray start --address={project.part('ray')}-head-svc:6379 --num-cpus=0 --num-gpus=0 "
        '--object-store-memory=200000000 --disable-usage-stats && exec "$@"'
    )
    return {"command": ["sh", "-c", joins, "sh"], "args": words}


def _overrides(project: Project) -> list[str]:
    added = []
    if project.recipe.serve.traces is not None:
        added.append(f"serve.traces.endpoint=http://{project.part('collector')}:{COLLECTOR_PORT}")
    if project.vllm_servers:
        added.append(f"serve.models={as_word(_models(project))}")
    return [*project.overrides, *set_words(*added)]


def _models(project: Project) -> dict[str, Any]:
    """The models as the recipe has them, but for where vLLM is."""
    found = {}
    for name, model in project.recipe.served.models.items():
        found[name] = model.model_dump(mode="json", exclude_unset=True)
        if name in project.vllm_servers:
            slug = project.slug(name)
            found[name]["backend"] = {
                "type": "vllm",
                "url": f"http://{project.part('vllm', slug)}:{VLLM_PORT}/v1",
                "served_name": slug,
                "api_key_env": VLLM_KEY,
                **{k: v for k, v in model.options.items() if k == "timeout_s"},
            }
    return found


def _environment(project: Project) -> list[Manifest]:
    serve = project.recipe.serve
    env = project.environment(serve.models)
    # Without it the gateway takes no alerts.
    env.append(project.secret(project.recipe.observe.slo.secret_env, optional=True))
    if serve.traces is not None:
        # The collector has the keys; the gateway only has to have some.
        keys = _TRACE_KEYS.get(serve.traces.to, ())
        env = [*env, *values(dict.fromkeys(keys, _HELD_ELSEWHERE))]
    if project.vllm_servers:
        env.append(project.secret(VLLM_KEY))
    if project.ray_models:
        env += values({"RAY_ADDRESS": "auto", "RAY_AUTH_MODE": "token"})
        env.append(project.secret("RAY_AUTH_TOKEN", RAY_TOKEN_KEY))
    return env


def _autoscaler(project: Project) -> Manifest:
    options = project.options
    metrics: list[Manifest] = [
        {
            "type": "Resource",
            "resource": {
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 70},
            },
        }
    ]
    if options.queued is not None:
        target = {"type": "AverageValue", "averageValue": str(options.queued)}
        pods = {"metric": {"name": "llm_queued_requests"}, "target": target}
        metrics.append({"type": "Pods", "pods": pods})
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": project.metadata(project.part(COMPONENT), COMPONENT),
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": project.part(COMPONENT),
            },
            "minReplicas": options.min_replicas,
            "maxReplicas": options.max_replicas,
            "metrics": metrics,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }
