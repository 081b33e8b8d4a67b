"""MLflow: the registry of versions, on a PostgreSQL that is named by a secret."""

from __future__ import annotations

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
from penstock.orchestrators.kubernetes.project import MLFLOW_PORT, Manifest, Project, values
from penstock.orchestrators.unexpanded import STORE_VARIABLES

COMPONENT = "mlflow"
_ARTIFACTS = "/srv/mlflow"
# Probes ask by a pod's own address.
_PRIVATE = ("localhost:*", "10.*", "172.1[6-9].*", "172.2?.*", "172.3[01].*", "192.168.*")


def mlflow(project: Project) -> list[Manifest]:
    """Deployment and Service of an MLflow server from Penstock's own image."""
    return [
        deployment(
            project,
            COMPONENT,
            _pod(project),
            # The server migrates its database as it starts: two at once would both.
            replicas=1,
            strategy={"type": "Recreate"},
        ),
        service(project, COMPONENT, [("http", MLFLOW_PORT)]),
    ]


def command(project: Project) -> list[str]:
    """How the server is started; its database comes from MLFLOW_BACKEND_STORE_URI."""
    name, store = project.part(COMPONENT), project.recipe.store
    place = f"{store.rstrip('/')}/mlflow" if project.in_object_store else _ARTIFACTS
    hosts = [name, f"{name}:{MLFLOW_PORT}", f"{name}.{project.options.namespace}.svc:{MLFLOW_PORT}"]
    return [
        *("mlflow", "server", "--host", "0.0.0.0", "--port", str(MLFLOW_PORT)),  # noqa: S104
        *("--workers", "2", "--artifacts-destination", place),
        *("--allowed-hosts", ",".join([*hosts, *_PRIVATE])),
    ]


def _pod(project: Project) -> Manifest:
    volume, mount = scratch()
    volumes, mounts = [volume], [mount]
    if not project.in_object_store:
        claim = {"claimName": project.part("store")}
        volumes.append({"name": "store", "persistentVolumeClaim": claim})
        mounts.append({"name": "store", "mountPath": _ARTIFACTS, "subPath": "mlflow"})
    scheme = project.recipe.store.partition("://")[0]
    runs = container(
        COMPONENT,
        project.options.image,
        command=command(project),
        env=[
            *values({"HOME": "/tmp", "MLFLOW_DISABLE_TELEMETRY": "true"}),  # noqa: S108
            project.secret("MLFLOW_BACKEND_STORE_URI"),
            *(project.secret(name, optional=True) for name in STORE_VARIABLES.get(scheme, ())),
        ],
        ports=[port("http", MLFLOW_PORT)],
        resources=resources("500m", "2Gi"),
        volumeMounts=mounts,
        startupProbe=http_probe("/health", "http", periodSeconds=5, failureThreshold=60),
        readinessProbe=http_probe("/health", "http", periodSeconds=5, timeoutSeconds=5),
        livenessProbe=http_probe(
            "/health", "http", periodSeconds=10, timeoutSeconds=5, failureThreshold=6
        ),
    )
    return pod(project, [runs], volumes)
