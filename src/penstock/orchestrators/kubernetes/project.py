"""A recipe in a cluster: its names, where its files are, and what its pods must be told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from penstock.errors import RecipeError
from penstock.orchestrators.kubernetes.options import KubernetesOptions, label_of
from penstock.orchestrators.unexpanded import STORE_VARIABLES, Unexpanded, named_variables
from penstock.recipe import Recipe
from penstock.serve_section import ModelConfig

Manifest = dict[str, Any]

# Where the recipe is in every pod; what is relative in it starts here.
HOME = PurePosixPath("/srv/penstock")
USER_ID = 10001
MLFLOW_PORT, COLLECTOR_PORT, VLLM_PORT = 5000, 4318, 8000
# The key must be called so: https://docs.ray.io/en/master/cluster/kubernetes/references/api.html
RAY_TOKEN_KEY = "auth_token"  # noqa: S105
VLLM_KEY = "VLLM_API_KEY"


@dataclass(frozen=True)
class Project:
    """What all manifests are made from.

    Attributes:
        loaded: The recipe.
        options: What differs between clusters.
    """

    loaded: Unexpanded
    options: KubernetesOptions

    @property
    def recipe(self) -> Recipe:
        """With ``${VAR}`` wherever the file has it."""
        return self.loaded.recipe

    @property
    def name(self) -> str:
        """What everything's name begins with."""
        return self.options.name

    def part(self, *words: str) -> str:
        """The name of a thing of this project."""
        return "-".join((self.name, *words))

    def labels(self, component: str) -> dict[str, str]:
        """Of everything that belongs to a component.

        KubeRay puts its own ``app.kubernetes.io/name`` on pods: select by these two.
        """
        return {
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": component,
        }

    def metadata(self, name: str, component: str) -> Manifest:
        """Name, namespace and labels."""
        return {
            "name": name,
            "namespace": self.options.namespace,
            "labels": {
                "app.kubernetes.io/name": "penstock",
                **self.labels(component),
                "app.kubernetes.io/managed-by": "penstock-export",
            },
        }

    @property
    def recipe_map(self) -> str:
        """The ConfigMap with the recipe: named by its content, so that a change rolls pods."""
        digest = hashlib.sha256(self.recipe.written.encode()).hexdigest()
        return self.part("recipe", digest[:10])

    @property
    def in_object_store(self) -> bool:
        """Whether the store is a bucket; else it is a volume that pods share."""
        return "://" in self.recipe.store

    @property
    def store_folder(self) -> str | None:
        """Where the shared volume is mounted; None with an object store."""
        return None if self.in_object_store else str(HOME / self.recipe.store)

    @property
    def makes_mlflow(self) -> bool:
        """Whether an MLflow server is part of it."""
        asked = self.options.mlflow
        return self.recipe.tracking is None if asked is None else asked

    @property
    def overrides(self) -> list[str]:
        """What every penstock command there is told beside the recipe."""
        added = (
            [f"tracking=http://{self.part('mlflow')}:{MLFLOW_PORT}"] if self.makes_mlflow else []
        )
        return set_words(*self.loaded.overrides, *added)

    def models(self, backend: str) -> dict[str, ModelConfig]:
        """Served models that a backend computes."""
        served = self.recipe.served.models
        return {name: one for name, one in served.items() if one.backend_name == backend}

    @property
    def ray_models(self) -> dict[str, ModelConfig]:
        """Models for a Ray cluster of this project."""
        # Where an address is named, somebody else runs the cluster.
        found = self.models("ray_serve")
        return {name: one for name, one in found.items() if not one.options.get("address")}

    @property
    def vllm_servers(self) -> dict[str, ModelConfig]:
        """Models for which vLLM runs by itself: those that no promotion changes."""
        return {
            name: one
            for name, one in self.models("vllm").items()
            if not one.options.get("url") and (one.source or isinstance(one.version, int))
        }

    @property
    def vllm_inside(self) -> dict[str, ModelConfig]:
        """Models that follow an alias: the gateway starts vLLM for each version."""
        found = self.models("vllm")
        return {
            name: one
            for name, one in found.items()
            if not one.options.get("url") and name not in self.vllm_servers
        }

    def slug(self, model: str) -> str:
        """A model's name as part of others.

        Raises:
            RecipeError: Nothing is left of it, it is too long, or two become the same.
        """
        slug = label_of(model)
        same = [one for one in self.recipe.served.models if label_of(one) == slug]
        if not slug or len(slug) > 24 or len(same) > 1:
            raise RecipeError(
                f"serve.models.{model}: Kubernetes cannot tell it by {slug!r}.",
                "At most 24 small letters, digits and dashes must tell each model from the others.",
            )
        return slug

    def environment(self, *sections: Any, recipe: bool = True) -> list[Manifest]:
        """Variables of a container that runs penstock.

        Args:
            sections: Parts of the recipe whose ``*_env`` settings it reads.
            recipe: It loads the recipe, for which all of its variables must be there.
        """
        needed = {*(self.loaded.variables if recipe else ()), *named_variables(sections)}
        plain = {"HOME": "/tmp"}  # noqa: S108 - an emptyDir of the pod's own
        plain |= {"PENSTOCK_RECIPE": str(HOME / "recipe.yaml")} if recipe else {}
        held = STORE_VARIABLES.get(self.recipe.store.partition("://")[0], ())
        held = (*held, *(("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")))
        return [
            *values(plain),
            *(self.secret(name) for name in sorted(needed)),
            *(self.secret(name, optional=True) for name in held if name not in needed),
        ]

    def secret(self, variable: str, key: str | None = None, optional: bool = False) -> Manifest:
        """A variable whose value is in the secret."""
        reference: Manifest = {"name": self.options.secret, "key": key or variable}
        if optional:
            reference["optional"] = True
        return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def values(plain: Mapping[str, str]) -> list[Manifest]:
    """Variables that are no secret."""
    return [{"name": name, "value": value} for name, value in plain.items()]


def as_word(value: Any) -> str:
    """A value as ``--set`` takes it, as one line."""
    return json.dumps(value, ensure_ascii=False)


def set_words(*overrides: str) -> list[str]:
    """``--set`` for each of them."""
    return [word for one in overrides for word in ("--set", one)]


def require_deployable(project: Project) -> None:
    """Check that the recipe can be served from more than one pod.

    Raises:
        RecipeError: It cannot, and what to change.
    """
    recipe = project.recipe
    if recipe.ledger is None or recipe.ledger.startswith("sqlite"):
        raise RecipeError(
            f"ledger: {recipe.ledger or 'none'}: SQLite is for one host, and pods are many.",
            "Name PostgreSQL by a variable: ledger: ${PENSTOCK_LEDGER}",
        )
    if not project.makes_mlflow and (recipe.tracking or "").startswith("sqlite"):
        raise RecipeError(
            f"tracking: {recipe.tracking}: SQLite is for one host, and pods are many.",
            "Name an MLflow server, or give --mlflow for one of the bundle's own.",
        )
    if not recipe.serve.keys:
        raise RecipeError(
            "serve.keys is false, and others than this machine will reach the gateway.",
            "Set serve.keys: true; penstock keys create makes keys.",
        )
    if recipe.serve.port == 0 or recipe.serve.metrics_port == 0:
        raise RecipeError(
            "serve.port or serve.metrics_port: 0 picks any port, and a Service must know which.",
            "Name one, or leave them out: 8000 and 9090.",
        )
    if "${" in recipe.store or (not project.in_object_store and ".." in recipe.store):
        raise RecipeError(
            f"store: {recipe.store}: what is mounted where must be known now.",
            "Write s3://bucket/prefix, or a folder below or outside the recipe's: /mnt/penstock.",
        )
    if recipe.tracking is None and project.options.mlflow is False:
        raise RecipeError("--no-mlflow, and tracking is null.", "Name an MLflow server: tracking.")
