"""All files of ``penstock export kubernetes``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from penstock.exported import as_yaml
from penstock.orchestrators.kubernetes.gateway import gateway
from penstock.orchestrators.kubernetes.network import network_policies
from penstock.orchestrators.kubernetes.observers import MEASURED, observers
from penstock.orchestrators.kubernetes.observing import collector, prometheus_rule, service_monitor
from penstock.orchestrators.kubernetes.options import KubernetesOptions
from penstock.orchestrators.kubernetes.project import Manifest, Project, require_deployable
from penstock.orchestrators.kubernetes.ray_cluster import ray_service, require_shared_store
from penstock.orchestrators.kubernetes.readme import readme
from penstock.orchestrators.kubernetes.runs import run_by_hand, run_on_ray, scheduled_run, watcher
from penstock.orchestrators.kubernetes.tracking import mlflow
from penstock.orchestrators.kubernetes.vllm import vllm
from penstock.orchestrators.unexpanded import Unexpanded

_HEAD = "# Written by: penstock export kubernetes. Change it by an overlay, or export again.\n"
# Files that are the user's once they are there.
OVERLAYS = "overlays/"


def bundle(loaded: Unexpanded, options: KubernetesOptions) -> dict[str, str]:
    """Path -> text; the same recipe and options give the same bytes.

    Raises:
        RecipeError: The recipe cannot be served from pods as it is.
    """
    project = Project(loaded, options)
    require_deployable(project)
    require_shared_store(project)
    base = _base(project)
    jobs = _jobs(project)
    files = {f"base/{name}.yaml": _text(manifests) for name, manifests in base.items()}
    files["base/kustomization.yaml"] = _text([_kustomization([f"{name}.yaml" for name in base])])
    files |= {f"jobs/{name}.yaml": _text([manifest]) for name, manifest in jobs.items()}
    monitored = project.recipe.serve.metrics_port is not None
    if monitored:
        components = [one for one in ("gateway", *MEASURED) if one in base]
        watched = {
            "service-monitor": [service_monitor(project, one) for one in components],
            "prometheus-rule": [prometheus_rule(project)],
        }
        files |= {f"monitoring/{name}.yaml": _text(made) for name, made in watched.items()}
        names = [f"{name}.yaml" for name in watched]
        files["monitoring/kustomization.yaml"] = _text([_kustomization(names)])
    files |= _overlays(project, monitored)
    files["README.md"] = readme(project, [*_flat(base), *jobs.values()], list(jobs))
    return dict(sorted(files.items()))


def _base(project: Project) -> dict[str, list[Manifest]]:
    traces = project.recipe.serve.traces
    found = {"project": _project(project), "gateway": gateway(project)}
    if project.makes_mlflow:
        found["mlflow"] = mlflow(project)
    if traces is not None:
        found["collector"] = collector(project, traces)
    if project.ray_models:
        found["ray"] = ray_service(project)
    for name, model in project.vllm_servers.items():
        found[f"vllm-{project.slug(name)}"] = vllm(project, name, model)
    if project.options.schedule is not None:
        found["run"] = [scheduled_run(project)]
    if (retrain := project.recipe.observe.retrain) is not None:
        found["watch"] = [watcher(project, retrain.through)]
    found |= observers(project)
    found["network"] = network_policies(project)
    return found


def _project(project: Project) -> list[Manifest]:
    """Namespace, ServiceAccount, the recipe, and the shared volume if there is one."""
    recipe = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": project.metadata(project.recipe_map, "recipe"),
        "immutable": True,
        "data": {"recipe.yaml": project.recipe.written},
    }
    return [
        _namespace(project),
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": project.metadata(project.name, "account"),
            "automountServiceAccountToken": False,
        },
        recipe,
        *([] if project.in_object_store else [_claim(project)]),
    ]


def _namespace(project: Project) -> Manifest:
    metadata = project.metadata(project.options.namespace, "namespace")
    del metadata["namespace"]
    # Pods that ask for more than ours do are not admitted.
    metadata["labels"]["pod-security.kubernetes.io/enforce"] = "restricted"
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _claim(project: Project) -> Manifest:
    options = project.options
    storage = {"storageClassName": options.storage_class} if options.storage_class else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": project.metadata(project.part("store"), "store"),
        "spec": {
            # Runs write on one node what gateways read on others.
            "accessModes": ["ReadWriteMany"],
            **storage,
            "resources": {"requests": {"storage": options.storage}},
        },
    }


def _jobs(project: Project) -> dict[str, Manifest]:
    found = {"run": run_by_hand(project)}
    # Ray's workers read what the head has written, in a folder they share.
    if project.recipe.train.launcher.type == "ray" and not project.in_object_store:
        found["run-on-ray"] = run_on_ray(project)
    return found


def _overlays(project: Project, monitored: bool) -> dict[str, str]:
    gateway_name = project.part("gateway")
    smaller = {
        "target": {"kind": "HorizontalPodAutoscaler", "name": gateway_name},
        "patch": yaml.safe_dump(
            [
                {"op": "replace", "path": "/spec/minReplicas", "value": 1},
                {"op": "replace", "path": "/spec/maxReplicas", "value": 1},
            ],
            sort_keys=False,
        ),
    }
    production = ["../../base", *(["../../monitoring"] if monitored else [])]
    return {
        f"{OVERLAYS}development/kustomization.yaml": _text(
            [_kustomization(["../../base"], patches=[smaller])], _OVERLAY_HEAD
        ),
        f"{OVERLAYS}production/kustomization.yaml": _text(
            [_kustomization(production)], _OVERLAY_HEAD
        ),
    }


_OVERLAY_HEAD = (
    "# Yours: penstock export kubernetes writes it once and never again.\n"
    "# https://kubectl.docs.kubernetes.io/references/kustomize/kustomization/\n"
)


def _kustomization(resources: Sequence[str], **fields: Any) -> Manifest:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(resources),
        **fields,
    }


def _flat(base: dict[str, list[Manifest]]) -> list[Manifest]:
    return [one for manifests in base.values() for one in manifests]


def _text(manifests: Sequence[Manifest], head: str = _HEAD) -> str:
    return head + as_yaml(*manifests)
