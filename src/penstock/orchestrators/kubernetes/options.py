"""What differs between two teams' clusters."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from penstock.errors import RecipeError
from penstock.orchestrate_section import Quantity

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/: RFC 1123's labels.
_LABEL = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
# Room for what is appended: -vllm-NAME, and the 16 characters KubeRay and Jobs add.
_LONGEST_NAME = 30
_IMAGE = re.compile(
    r"(?P<name>[a-z0-9]+([._-]+[a-z0-9]+)*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(@sha256:(?P<digest>[0-9a-f]{64}))?"
)
_CRON = re.compile(r"@(hourly|daily|weekly|monthly|yearly)|[0-9*/,A-Za-z-]+( [0-9*/,A-Za-z-]+){4}")


def _pinned(image: str) -> str:
    found = _IMAGE.fullmatch(image)
    if found is None:
        raise ValueError("not an image, such as registry.example.com/penstock:0.1.0")
    if found["digest"] is None and found["tag"] in (None, "latest"):
        raise ValueError("name a tag other than latest, or a digest: else nobody knows what runs")
    return image


def _cron(schedule: str) -> str:
    if not _CRON.fullmatch(schedule):
        raise ValueError("neither five fields of cron, as '0 3 * * 1', nor one such as @weekly")
    return schedule


Image = Annotated[str, AfterValidator(_pinned)]
Label = Annotated[str, Field(pattern=_LABEL, max_length=63)]
SecretName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253, min_length=1)
]
Cron = Annotated[str, AfterValidator(_cron)]
Port = Annotated[int, Field(ge=1, le=65535)]


class KubernetesOptions(BaseModel):
    """What ``penstock export kubernetes`` may be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Image = Field(description="Has Penstock, as deploy/Dockerfile builds it.")
    name: Annotated[str, Field(pattern=_LABEL, max_length=_LONGEST_NAME)]
    namespace: Label
    secret: SecretName
    min_replicas: int = Field(2, ge=1, description="Gateways at least.")
    max_replicas: int = Field(6, ge=1, description="Gateways at most.")
    queued: int | None = Field(
        None, ge=1, description="Another gateway for each so many waiting requests in one."
    )
    cpu: Quantity = "2"
    memory: Quantity = "4Gi"
    run_cpu: Quantity = "4"
    run_memory: Quantity = "16Gi"
    run_gpus: int = Field(0, ge=0)
    schedule: Cron | None = None
    storage: Quantity = "100Gi"
    storage_class: SecretName | None = None
    mlflow: bool | None = Field(None, description="Null: where the recipe names no tracking.")
    egress_ports: tuple[Port, ...] = ()
    monitoring_namespace: Label = "monitoring"
    client_namespaces: tuple[Label, ...] = Field((), description="Empty: the whole cluster.")
    ray_version: str = Field("2.60.0", pattern=r"^\d+\.\d+\.\d+$")
    collector_image: Image = "otel/opentelemetry-collector-contrib:0.162.0"
    vllm_image: Image = "vllm/vllm-openai:v0.32.0"

    @model_validator(mode="after")
    def _ordered(self) -> KubernetesOptions:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}"
            )
        return self

    @classmethod
    def checked(cls, recipe_name: str, **values: Any) -> KubernetesOptions:
        """The options, or what is wrong with them in words.

        Args:
            recipe_name: What things are called unless a name is given.
            values: Those that were given.

        Raises:
            RecipeError: A value is none that Kubernetes takes, or no image is named.
        """
        name = values.setdefault("name", label_of(recipe_name))
        values.setdefault("namespace", name)
        values.setdefault("secret", f"{name}-secrets")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError("\n".join(map(_said, error.errors()))) from None


def label_of(name: str) -> str:
    """A name as Kubernetes takes it, as far as small letters and dashes can say it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _said(detail: Any) -> str:
    if not detail["loc"]:
        return str(detail["msg"]).removeprefix("Value error, ")
    flag = f"--{str(detail['loc'][0]).replace('_', '-')}"
    if detail["type"] == "missing":
        return f"{flag} is missing: an image that deploy/Dockerfile built, with its tag."
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "string_pattern_mismatch":
        message = "small letters, digits and dashes, with a letter or digit at both ends"
        if "cpu" in flag or "memory" in flag or flag == "--storage":
            message = "a quantity, such as 500m, 2 or 4Gi"
    return f"{flag}: received {detail['input']!r}: {message}"
