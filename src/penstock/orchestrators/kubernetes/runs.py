"""Runs of the loop: on a schedule, once by hand, or on a Ray cluster made for the run."""

from __future__ import annotations

import math
import shlex
from typing import Any

from penstock.orchestrators.kubernetes.pods import (
    container,
    deployment,
    penstock_volumes,
    pod,
    resources,
)
from penstock.orchestrators.kubernetes.project import (
    Manifest,
    Project,
    as_word,
    set_words,
)
from penstock.orchestrators.kubernetes.ray_cluster import ray_cluster, worker_group

COMPONENT, WATCHER = "run", "watch"
# Until a run that the watcher started has ended by its signal; it is gone on with later.
_RUN_ENDS_S = 120
_ORCHESTRATORS_KEYS = (
    "PENSTOCK_AIRFLOW_TOKEN",
    "PENSTOCK_AIRFLOW_USER",
    "PENSTOCK_AIRFLOW_PASSWORD",
)
# A wrong recipe, the verdicts BLOCK and INCONCLUSIVE, data that break the contract: trying again
# changes nothing.
_FINAL_CODES = [2, 3, 4, 5]
# A drained node is nobody's fault.
_DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


def scheduled_run(project: Project) -> Manifest:
    """A CronJob: never two at once, and a run that was missed starts within the hour."""
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": project.metadata(project.part(COMPONENT), COMPONENT),
        "spec": {
            "schedule": project.options.schedule,
            "timeZone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {"spec": _job(project)},
        },
    }


def run_by_hand(project: Project) -> Manifest:
    """A Job for ``kubectl create``, which gives each its own name."""
    metadata = project.metadata("", COMPONENT)
    del metadata["name"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": f"{project.part(COMPONENT)}-", **metadata},
        "spec": {"ttlSecondsAfterFinished": 7 * 24 * 3600, **_job(project)},
    }


def watcher(project: Project, through: str) -> Manifest:
    """A Deployment of ``penstock watch``: one, for a second would only wait for the first.

    Args:
        project: Whose.
        through: As in ``observe.retrain``; ``here`` runs the loop in this pod.
    """
    options = project.options
    volumes, mounts = penstock_volumes(project)
    runs_here = through == "here"
    sizes = resources(options.run_cpu, options.run_memory, options.run_gpus)
    keys = () if runs_here else _ORCHESTRATORS_KEYS
    runs = container(
        WATCHER,
        options.image,
        command=["penstock", "watch", *project.overrides],
        env=[*_environment(project), *(project.secret(name, optional=True) for name in keys)],
        resources=sizes if runs_here else resources("500m", "2Gi"),
        volumeMounts=mounts,
    )
    spec = pod(project, [runs], volumes, terminationGracePeriodSeconds=_RUN_ENDS_S)
    return deployment(project, WATCHER, spec, replicas=1, strategy={"type": "Recreate"})


def _job(project: Project) -> Manifest:
    return {
        "backoffLimit": 2,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [_DISRUPTED]},
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": COMPONENT,
                        "operator": "In",
                        "values": _FINAL_CODES,
                    },
                },
            ]
        },
        "template": {
            "metadata": {"labels": project.labels(COMPONENT)},
            "spec": _pod(project),
        },
    }


def _pod(project: Project) -> Manifest:
    options = project.options
    volumes, mounts = penstock_volumes(project)
    runs = container(
        COMPONENT,
        options.image,
        command=["penstock", "run", *project.overrides],
        env=_environment(project),
        resources=resources(options.run_cpu, options.run_memory, options.run_gpus),
        volumeMounts=mounts,
    )
    return pod(project, [runs], volumes, restartPolicy="Never")


def run_on_ray(project: Project) -> Manifest:
    """A RayJob for ``kubectl create``: a cluster for one run, gone when it ends."""
    options = project.options
    launcher = _launcher(project)
    metadata = project.metadata("", COMPONENT)
    del metadata["name"]
    cpus = launcher.get("cpus_per_worker") or 1
    group = worker_group(
        project,
        "train",
        workers=(launcher["workers"],) * 3,
        sizes=resources(str(cpus), options.run_memory, math.ceil(launcher["gpus_per_worker"])),
        env=_environment(project),
    )
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"generateName": f"{project.part('ray-run')}-", **metadata},
        "spec": {
            "entrypoint": entrypoint(project),
            # Said to the cluster as it is, by no shell of a submitter in between.
            "submissionMode": "HTTPMode",
            "backoffLimit": 2,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 3600,
            "rayClusterSpec": ray_cluster(
                project,
                component=COMPONENT,
                head_sizes=resources(options.run_cpu, options.run_memory),
                env=_environment(project),
                groups=[group],
            ),
        },
    }


def entrypoint(project: Project) -> str:
    """The run on the head of its cluster, where its training finds Ray by ``auto``.

    The verdicts are results: a RayJob that fails by them would be tried again.
    """
    launcher = {"type": "ray", **_launcher(project), "address": "auto"}
    words = [*project.overrides, *set_words(f"train.launcher={as_word(launcher)}")]
    run = shlex.join(["penstock", "run", *words])
    return f"{run}; code=$?; case $code in 3|4) code=0 ;; esac; exit $code"


def _environment(project: Project) -> list[Manifest]:
    """What the stages read; a candidate is also tried in the backend that will serve it."""
    recipe = project.recipe
    return project.environment(
        recipe.sources,
        recipe.features,
        recipe.validate_,
        recipe.prepare,
        recipe.train,
        recipe.evaluate,
        recipe.serve.models,
    )


def _launcher(project: Project) -> dict[str, Any]:
    _, options = project.recipe.plugin("launchers", project.recipe.train.launcher)
    return options.model_dump(mode="json")
