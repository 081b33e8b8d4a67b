"""A Ray cluster as KubeRay's operator makes it, for serving and for runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import yaml

from penstock.errors import RecipeError
from penstock.orchestrators.kubernetes.pods import (
    container,
    penstock_volumes,
    pod,
    port,
    resources,
    shared_memory,
)
from penstock.orchestrators.kubernetes.project import Manifest, Project
from penstock.serve_section import ModelConfig

COMPONENT = "ray"
_PORTS = [("gcs", 6379), ("dashboard", 8265), ("client", 10001), ("serve", 8000)]


def ray_service(project: Project) -> list[Manifest]:
    """A RayService: the cluster on which gateways start an application for each version.

    Its own application says only whether the cluster can hold Penstock's models. What
    is served is the pointer's to say, and moves without a new manifest.
    """
    groups = [_group(project, name, model) for name, model in project.ray_models.items()]
    return [
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": project.metadata(project.part(COMPONENT), COMPONENT),
            "spec": {
                # With a new cluster the gateways, which are part of the old one, would all end
                # at once.
                "upgradeStrategy": {"type": "None"},
                "serveConfigV2": yaml.safe_dump(serve_config(project), sort_keys=False),
                "rayClusterConfig": ray_cluster(
                    project,
                    component=COMPONENT,
                    head_sizes=resources("2", "8Gi"),
                    env=_environment(project),
                    groups=groups,
                    scales=any(one["minReplicas"] < one["maxReplicas"] for one in groups),
                ),
            },
        }
    ]


def serve_config(project: Project) -> Manifest:
    """What Ray Serve itself is told."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "0.0.0.0", "port": 8000},  # noqa: S104
        "applications": [
            {
                # Not penstock-...: gateways remove those that none of them uses.
                "name": "store-check",
                "route_prefix": "/",
                "import_path": "penstock.serving.backends.ray_store_check:application",
                "args": {"store": project.store_folder or ""},
            }
        ],
    }


def ray_cluster(
    project: Project,
    component: str,
    head_sizes: Manifest,
    env: Sequence[Manifest],
    groups: Sequence[Manifest],
    scales: bool = False,
) -> Manifest:
    """A cluster's spec, with token authentication and without work on its head.

    Args:
        project: Whose.
        component: Its pods' label.
        head_sizes: What the head takes.
        env: Of the head.
        groups: Of workers.
        scales: Ray's own autoscaler adds and removes workers.
    """
    volumes, containers = _ray_container(project, "ray-head", head_sizes, env)
    containers["ports"] = [port(name, number) for name, number in _PORTS]
    template = {
        "metadata": {"labels": project.labels(component)},
        # The autoscaler asks Kubernetes for pods, by an account that KubeRay makes for it.
        "spec": pod(project, [containers], volumes, service_account=not scales),
    }
    sidecar = container("", "", resources=resources("500m", "512Mi"))
    autoscaler = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "idleTimeoutSeconds": 120,
            "resources": sidecar["resources"],
            "securityContext": {**sidecar["securityContext"], "readOnlyRootFilesystem": False},
        },
    }
    return {
        "rayVersion": project.options.ray_version,
        "authOptions": {"mode": "token", "secretName": project.options.secret},
        **(autoscaler if scales else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
            "template": template,
        },
        "workerGroupSpecs": list(groups),
    }


def worker_group(
    project: Project,
    name: str,
    workers: tuple[int, int, int],
    sizes: Manifest,
    env: Sequence[Manifest],
) -> Manifest:
    """Workers that are all alike.

    Args:
        project: Whose.
        name: Of the group.
        workers: How many at first, at least and at most.
        sizes: What each takes.
        env: Of each.
    """
    volumes, runs = _ray_container(project, "ray-worker", sizes, env)
    first, least, most = workers
    return {
        "groupName": name,
        "replicas": first,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": {
            "metadata": {"labels": project.labels(COMPONENT)},
            "spec": pod(project, [runs], volumes, terminationGracePeriodSeconds=120),
        },
    }


def _group(project: Project, name: str, model: ModelConfig) -> Manifest:
    """Workers for one model: a pod for each copy, or for as many as share a GPU."""
    cpus, gpus = model.resources.num_cpus, model.resources.num_gpus
    together = math.floor(1 / gpus) if 0 < gpus < 1 else 1
    least = math.ceil(model.replicas.min / together)
    # A new version's copies load while the old one's still answer.
    most = math.ceil(model.replicas.max / together) + max(1, least)
    cores = max(1, math.ceil(cpus * together))
    return worker_group(
        project,
        project.slug(name),
        workers=(least, least, most),
        sizes=resources(str(cores), project.options.memory, math.ceil(gpus)),
        env=_environment(project),
    )


def _environment(project: Project) -> list[Manifest]:
    # Replicas are told what to load and read no recipe: another one leaves the cluster as it is.
    return project.environment(project.recipe.serve.models, recipe=False)


def _ray_container(
    project: Project, name: str, sizes: Manifest, env: Sequence[Manifest]
) -> tuple[list[Manifest], Manifest]:
    reads_recipe = any(one["name"] == "PENSTOCK_RECIPE" for one in env)
    volumes, mounts = penstock_volumes(project, reads_recipe)
    volume, mount = shared_memory("4Gi")
    runs = container(
        name,
        project.options.image,
        env=env,
        resources=sizes,
        volumeMounts=[*mounts, mount],
    )
    return [*volumes, volume], runs


def require_shared_store(project: Project) -> None:
    """Check that replicas will find what they are to load.

    Raises:
        RecipeError: The store is a bucket, whose files only the gateway's own host has.
    """
    registered = [name for name, one in project.ray_models.items() if one.source is None]
    if registered and project.in_object_store:
        raise RecipeError(
            f"serve.models.{registered[0]}: replicas on Ray read the store as "
            f"a folder, and it is {project.recipe.store}.",
            "Give the store a folder that all hosts mount, as in store: /mnt/penstock.",
        )
