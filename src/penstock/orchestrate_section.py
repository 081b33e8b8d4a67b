"""The recipe's ``orchestrate`` section: when runs start, where stages run, who is told."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from penstock.section import Section

# As in walk.py, which knows how each is done: this is read where none of that is installed.
Stage = Literal[
    "ingest",
    "validate",
    "prepare",
    "train",
    "evaluate",
    "baseline",
    "gate",
    "register",
    "deploy",
]
STAGES: tuple[str, ...] = get_args(Stage)
# A job there gets the same command line; what it needs to be worth a cluster, these stages have.
ON_DATABRICKS = ("validate", "prepare")
ON_KUBERNETES = ("train", "evaluate", "baseline")

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}$")]
Variable = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]{0,199}$")]
# What ends up as one word of a command line or of a manifest.
Plain = Annotated[str, Field(pattern=r"^[^\s'\"$`\\{}%]{1,500}$")]
Mail = Annotated[str, Field(pattern=r"^[^@\s,;<>\"]+@[^@\s,;<>\"]+$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Dotted = Annotated[str, Field(pattern=r"^[a-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_-]+)+$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]+(-+[a-z0-9]+)*$", max_length=63)]

_PRESET = re.compile(r"@(hourly|daily|weekly|monthly|quarterly|yearly)")
_FIELD = re.compile(r"[0-9*/,A-Za-z#-]+")


def _check_schedule(schedule: str) -> str:
    fields = schedule.split(" ")
    if not _PRESET.fullmatch(schedule) and not (
        len(fields) == 5 and all(_FIELD.fullmatch(one) for one in fields)
    ):
        raise ValueError("neither five fields of cron, as '0 3 * * 1', nor one such as @weekly")
    return schedule


def _check_address(url: str) -> str:
    # The message does not repeat it: what is wrong with it may be a password in it.
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("not a URL such as http://127.0.0.1:8080")
    if "@" in parts.netloc:
        raise ValueError("a URL with credentials in it: set them in the environment")
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_check_address)]


class Here(Section):
    """On the orchestrator's own host."""

    type: Literal["here"] = Field("here", description="On the orchestrator's own host.")


class Virtualenv(Section):
    """In another Python environment of the same host, which has Penstock."""

    type: Literal["virtualenv"] = Field(
        description="By another Python of the same host, whose environment has Penstock."
    )
    python: Plain = Field(description="Its interpreter.")


class Databricks(Section):
    """As a run of a job that is there already; for validate and prepare."""

    type: Literal["databricks"] = Field(
        description="As a run of a job that is there already; for validate and prepare."
    )
    job_id: int = Field(ge=1, description="The job.")
    connection: Word = Field("databricks_default", description="Airflow's connection.")
    poll_s: int = Field(30, ge=1, description="How often it is asked whether the run has ended.")
    recipe: Plain | None = Field(None, description="The recipe's path there. Null: as here.")


class Kubernetes(Section):
    """In a pod; for train, evaluate and baseline."""

    type: Literal["kubernetes"] = Field(description="In a pod; for train, evaluate and baseline.")
    image: Plain = Field(description="Has Penstock; pin it by tag or digest.")
    namespace: Label = Field("default", description="Where.")
    startup_timeout_s: int = Field(
        600, ge=1, description="How long the image may take to be pulled and started."
    )
    cpu: Quantity | None = Field(None, description="Requested, as in `4` or `500m`.")
    memory: Quantity | None = Field(None, description="Requested, and the limit, as in `32Gi`.")
    gpus: int = Field(0, ge=0, description="How many.")
    gpu_resource: Plain = Field("nvidia.com/gpu", description="What the cluster calls them.")
    service_account: Label | None = Field(None, description="The pod's.")
    secrets: list[Label] = Field([], description="Secrets whose keys become variables.")
    connection: Word | None = Field(
        None,
        description="Airflow's connection. Null: the cluster Airflow is in, or the kubeconfig.",
    )
    recipe: Plain | None = Field(None, description="The recipe's path there. Null: as here.")


Executor = Annotated[Here | Virtualenv | Databricks | Kubernetes, Field(discriminator="type")]


class Notify(Section):
    """Who is told when a run fails, or the data break the contract."""

    email: list[Mail] = Field([], description="Addresses.")
    email_from: Mail | None = Field(
        None, description="The sender. Null: that of the orchestrator's mail settings."
    )
    smtp_connection: Word = Field("smtp_default", description="Airflow's connection.")
    webhooks: list[Variable] = Field(
        [],
        description="Names of environment variables, each of which holds a URL that gets JSON: "
        "such a URL often is a secret.",
    )


class Airflow(Section):
    """Where Airflow is asked to start a run."""

    url: Url = Field(
        "http://127.0.0.1:8080",
        description="Of its API server. `PENSTOCK_AIRFLOW_TOKEN`, or `PENSTOCK_AIRFLOW_USER` and "
        "`PENSTOCK_AIRFLOW_PASSWORD`, are read from the environment.",
    )


class Dagster(Section):
    """Where Dagster is asked to start a run."""

    url: Url = Field(
        "http://127.0.0.1:3000",
        description="Of its webserver. `PENSTOCK_DAGSTER_TOKEN` is read from the environment, if "
        "it is behind something that asks for one.",
    )


class Prefect(Section):
    """Where Prefect is asked to start a run."""

    url: Url = Field(
        "http://127.0.0.1:4200/api",
        description="Of its API. `PREFECT_API_KEY` or `PREFECT_API_AUTH_STRING` are read from the "
        "environment, as Prefect does.",
    )


class Orchestrate(Section):
    """Runs started by Airflow, Dagster or Prefect: each stage is a task there."""

    schedule: Annotated[str, AfterValidator(_check_schedule)] | None = Field(
        "@weekly", description="Cron or a name such as @weekly, in UTC. Null: only when asked."
    )
    retries: int = Field(2, ge=0, le=20, description="Of each task, before it has failed.")
    retry_delay_s: float = Field(600.0, ge=0, description="Between tries.")
    owner: Word = Field("penstock", description="Whose it is.")
    tags: list[Word] = Field(["penstock"], description="To find it by.")
    on_events: bool = Field(
        True, description="Also start when new data or a drift alarm is reported as an event."
    )
    notify: Notify = Notify()
    executors: dict[Stage, Executor] = Field(
        {}, description="Stage -> where it runs. What is not named runs `here`."
    )
    penstock: Plain | None = Field(
        None,
        description="The command for `here`. Null: the one beside the orchestrator's Python, or on "
        "the PATH.",
    )
    console: Url | None = Field(
        None,
        description="Where people find the console, as in https://gateway.example.org/console: "
        "tasks link to the pages of their run, gate, trial and drift.",
    )
    settable: list[Dotted] = Field(
        ["ingest.min_new_examples"],
        description="Values of the recipe that who starts a run may set for that run.",
    )
    airflow: Airflow = Airflow()
    dagster: Dagster = Dagster()
    prefect: Prefect = Prefect()

    @model_validator(mode="after")
    def _executors_fit(self) -> Orchestrate:
        for stage, executor in self.executors.items():
            allowed = {"databricks": ON_DATABRICKS, "kubernetes": ON_KUBERNETES}.get(
                executor.type, STAGES
            )
            if stage not in allowed:
                raise ValueError(
                    f"executors.{stage}: {executor.type} is for {', '.join(allowed)} only"
                )
        return self
