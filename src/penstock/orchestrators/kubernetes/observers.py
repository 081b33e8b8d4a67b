"""What looks at traffic after the fact: the drift check, the judge, and what sends scores on.

Each is a Deployment of one pod; a second would only wait for the first. None is made unless
the recipe asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from penstock.orchestrators.kubernetes.observing import TRACE_KEYS
from penstock.orchestrators.kubernetes.pods import (
    container,
    deployment,
    penstock_volumes,
    pod,
    port,
    resources,
    service,
)
from penstock.orchestrators.kubernetes.project import Manifest, Project

DRIFT, JUDGE, SCORES = "drift", "judge", "scores"
MEASURED = (DRIFT, JUDGE)  # they have metrics
METRICS_PORT = 9091
_JUDGE_EVERY_S, _SCORES_EVERY_S = 600, 300
_DRIFT_EVERY_S = (60, 3600)


def observers(project: Project) -> dict[str, list[Manifest]]:
    """Name -> what is made for it."""
    return dict(_observers(project))


def _observers(project: Project) -> Iterator[tuple[str, list[Manifest]]]:
    observe, traces = project.recipe.observe, project.recipe.serve.traces
    if observe.drift is not None:
        # Several times a window, so that its end is noticed soon.
        least_s, most_s = _DRIFT_EVERY_S
        every_s = min(max(observe.drift.window_s / 12, least_s), most_s)
        yield DRIFT, _measured(project, DRIFT, ["drift", "--every-s", f"{every_s:g}"])
    if observe.judge is not None:
        env = project.environment(observe.judge)
        words = ["judge", "run", "--every-s", str(_JUDGE_EVERY_S)]
        yield JUDGE, _measured(project, JUDGE, words, env)
    if traces is not None and traces.to != "otlp":
        names, needed = TRACE_KEYS[traces.to]
        keys = [project.secret(name, optional=not needed) for name in names]
        words = ["scores", "--every-s", str(_SCORES_EVERY_S)]
        yield SCORES, [_deployment(project, SCORES, words, [*project.environment(), *keys])]


def _measured(
    project: Project,
    component: str,
    words: Sequence[str],
    env: Sequence[Manifest] | None = None,
) -> list[Manifest]:
    """A Deployment with metrics, and a Service in front of them."""
    # The pod's own network; a policy says who may ask.
    shown = ["--metrics-host", "0.0.0.0", "--metrics-port", str(METRICS_PORT)]  # noqa: S104
    ports = [port("metrics", METRICS_PORT)]
    made = _deployment(project, component, [*words, *shown], env, ports)
    return [made, service(project, component, [("metrics", METRICS_PORT)])]


def _deployment(
    project: Project,
    component: str,
    words: Sequence[str],
    env: Sequence[Manifest] | None = None,
    ports: Sequence[Manifest] = (),
) -> Manifest:
    volumes, mounts = penstock_volumes(project)
    runs = container(
        component,
        project.options.image,
        command=["penstock", *words, *project.overrides],
        env=project.environment() if env is None else list(env),
        ports=list(ports),
        resources=resources("500m", "2Gi"),
        volumeMounts=mounts,
    )
    spec = pod(project, [runs], volumes)
    return deployment(project, component, spec, replicas=1, strategy={"type": "Recreate"})
