"""vLLM by itself, for models that no promotion changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from penstock.errors import RecipeError
from penstock.orchestrators.kubernetes.pods import (
    container,
    deployment,
    http_probe,
    penstock_volumes,
    pod,
    port,
    resources,
    scratch,
    service,
    shared_memory,
)
from penstock.orchestrators.kubernetes.project import (
    VLLM_KEY,
    VLLM_PORT,
    Manifest,
    Project,
    values,
)
from penstock.serve_section import ModelConfig
from penstock.serving.backends.vllm import VllmOptions

COMPONENT = "vllm"
_MODEL = "/models/model"


def vllm(project: Project, name: str, model: ModelConfig) -> list[Manifest]:
    """Deployment and Service of one model.

    Raises:
        RecipeError: The model is a folder of the machine that exports, or has no revision.
    """
    options = VllmOptions.model_validate(model.options)
    component = f"{COMPONENT}-{project.slug(name)}"
    return [
        deployment(
            project,
            component,
            _pod(project, name, model, options),
            replicas=max(1, model.replicas.min),
            strategy={"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
        ),
        service(project, component, [("http", VLLM_PORT)]),
    ]


def _pod(project: Project, name: str, model: ModelConfig, options: VllmOptions) -> Manifest:
    volume, mount = scratch()
    memory, shared = shared_memory("8Gi")
    models = {"name": "models", "mountPath": "/models"}
    volumes: list[Manifest] = [volume, memory, {"name": "models", "emptyDir": {}}]
    runs = container(
        COMPONENT,
        project.options.vllm_image,
        command=[*("vllm", "serve"), *_words(project, name, model, options)],
        env=_environment(project, model),
        ports=[port("http", VLLM_PORT)],
        resources=resources("4", "32Gi", num_gpus(model, options)),
        volumeMounts=[mount, shared, models],
        startupProbe=http_probe(
            "/health",
            "http",
            periodSeconds=10,
            failureThreshold=math.ceil(options.start_timeout_s / 10),
        ),
        readinessProbe=http_probe("/health", "http", periodSeconds=5, timeoutSeconds=5),
        livenessProbe=http_probe(
            "/health", "http", periodSeconds=10, timeoutSeconds=5, failureThreshold=6
        ),
        lifecycle={"preStop": {"sleep": {"seconds": 5}}},
    )
    first: list[Manifest] = []
    if model.source is None:
        # The two share what is called models, and scratch of this pod's.
        theirs, mounts = penstock_volumes(project)
        volumes += [one for one in theirs if one["name"] != "scratch"]
        first = [_download(project, model, [*mounts, models])]
    return pod(
        project,
        [runs],
        volumes,
        initContainers=first,
        terminationGracePeriodSeconds=math.ceil(project.recipe.serve.request_timeout_s) + 10,
    )


def _download(project: Project, model: ModelConfig, mounts: Sequence[Manifest]) -> Manifest:
    words = ["--version", str(model.version), "--output-dir", _MODEL]
    if model.registered is not None:
        words += ["--model-name", model.registered]
    return container(
        "download",
        project.options.image,
        command=["penstock", "model", "download", *words, *project.overrides],
        env=project.environment(),
        resources=resources("500m", "1Gi"),
        volumeMounts=list(mounts),
    )


def _words(project: Project, name: str, model: ModelConfig, options: VllmOptions) -> list[str]:
    return [
        *_what(name, model),
        *("--served-model-name", project.slug(name)),
        *("--host", "0.0.0.0", "--port", str(VLLM_PORT)),  # noqa: S104
        # What a request does not say is the gateway's to say, not the model folder's.
        *("--generation-config", "vllm"),
        *map(str, options.args),
    ]


def _what(name: str, model: ModelConfig) -> list[str]:
    if model.source is None:
        return [_MODEL]
    if model.revision is None or model.source.startswith(("/", ".", "~")):
        raise RecipeError(
            f"serve.models.{name}: {model.source} is no model that a pod could fetch.",
            "Register it, or name a hub model with its revision.",
        )
    return [model.source, "--revision", model.revision]


def num_gpus(model: ModelConfig, options: VllmOptions) -> int:
    """What the recipe says, what its words for vLLM need, or one."""
    words = [str(one) for one in options.args]
    for i, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in ("--tensor-parallel-size", "-tp"):
            return int(value or words[i + 1])
    return max(1, math.ceil(model.resources.num_gpus))


def _environment(project: Project, model: ModelConfig) -> list[Manifest]:
    plain: dict[str, Any] = {
        # Who has no name in the image has none for caches of compiled code either.
        "USER": "vllm",
        "HOME": "/tmp",  # noqa: S108
        "HF_HOME": "/models/hub",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    env = [*values(plain), project.secret(VLLM_KEY)]
    return env if model.source is None else [*env, project.secret("HF_TOKEN", optional=True)]
