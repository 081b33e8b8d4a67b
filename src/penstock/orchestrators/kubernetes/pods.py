"""What all pods have in common: who they are, what they may, and where they may write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.orchestrators.kubernetes.project import HOME, USER_ID, Manifest, Project

GPU = "nvidia.com/gpu"
_SCRATCH = "/tmp"  # noqa: S108 - an emptyDir of the pod's own


def container(name: str, image: str, **fields: Any) -> Manifest:
    """A container without rights, on a root that it cannot write."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        **{key: _unexpanded(key, value) for key, value in fields.items() if value},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _unexpanded(key: str, value: Any) -> Any:
    """Words of a command as they are: Kubernetes would expand $(NAME), and $$ is a dollar."""
    if key not in ("command", "args"):
        return value
    return [word.replace("$(", "$$(") for word in value]


def pod(
    project: Project,
    containers: Sequence[Manifest],
    volumes: Sequence[Manifest],
    service_account: bool = True,
    **fields: Any,
) -> Manifest:
    """A pod that the ``restricted`` Pod Security Standard admits.

    Args:
        project: Whose.
        containers: Made by ``container``.
        volumes: What they mount.
        service_account: False where an operator needs one of its own.
        fields: Further ones of the pod's.
    """
    account = {"serviceAccountName": project.name, "automountServiceAccountToken": False}
    return {
        **(account if service_account else {}),
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **{key: value for key, value in fields.items() if value},
        "containers": list(containers),
        "volumes": list(volumes),
    }


def resources(cpu: str, memory: str, gpus: int = 0) -> Manifest:
    """Requests, and limits where more would harm others; cores may be borrowed."""
    found: Manifest = {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}
    if gpus:
        found["requests"][GPU] = found["limits"][GPU] = gpus
    return found


def scratch() -> tuple[Manifest, Manifest]:
    """A volume for temporary files, and its mount."""
    return {"name": "scratch", "emptyDir": {}}, {"name": "scratch", "mountPath": _SCRATCH}


def shared_memory(size: str) -> tuple[Manifest, Manifest]:
    """Shared memory of more than the 64 MiB that a container has, and its mount."""
    volume = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}
    return volume, {"name": "shm", "mountPath": "/dev/shm"}  # noqa: S108 - where it always is


def penstock_volumes(
    project: Project, recipe: bool = True
) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes of a pod that runs penstock, and their mounts.

    The recipe is one mounted file in a folder that can be written: a mounted folder is a
    chain of links, and what is relative to a recipe would start at their end.

    Args:
        project: Whose.
        recipe: It is mounted.
    """
    volume, mount = scratch()
    volumes = [volume, {"name": "work", "emptyDir": {}}]
    mounts = [mount, {"name": "work", "mountPath": str(HOME)}]
    if recipe:
        file = {"mountPath": str(HOME / "recipe.yaml"), "subPath": "recipe.yaml"}
        volumes.append({"name": "recipe", "configMap": {"name": project.recipe_map}})
        mounts.append({"name": "recipe", **file, "readOnly": True})
    if project.store_folder is not None:
        claim = {"claimName": project.part("store")}
        volumes.append({"name": "store", "persistentVolumeClaim": claim})
        mounts.append({"name": "store", "mountPath": project.store_folder})
    return volumes, mounts


def http_probe(path: str, port: str, **numbers: int) -> Manifest:
    """A probe by HTTP."""
    return {"httpGet": {"path": path, "port": port}, **numbers}


def port(name: str, number: int) -> Manifest:
    """A port of a container."""
    return {"name": name, "containerPort": number}


def service(project: Project, component: str, ports: Sequence[tuple[str, int]]) -> Manifest:
    """A Service in front of a component's pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": project.metadata(project.part(component), component),
        "spec": {
            "selector": project.labels(component),
            "ports": [{"name": name, "port": number, "targetPort": name} for name, number in ports],
        },
    }


def deployment(project: Project, component: str, spec: Manifest, **fields: Any) -> Manifest:
    """A Deployment of a component's pods.

    Args:
        project: Whose.
        component: Its pods' label.
        spec: The pod.
        fields: Further ones of the Deployment's spec.
    """
    labels = project.labels(component)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": project.metadata(project.part(component), component),
        "spec": {
            **fields,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
