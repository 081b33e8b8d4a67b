"""A Databricks bundle: jobs that validate and prepare, by hand, by an orchestrator, on a schedule.

Three jobs, since Databricks hands values over in three ways:

- ``stages`` takes a job parameter, the run, and does both stages of it;
- ``stage`` has no job parameters, so that whoever starts it may send a whole command line
  (``python_params``), as an Airflow task of one stage does;
- ``data`` does all up to ``prepare`` and has a schedule, paused until somebody resumes it.

A bundle's files are synchronised with the workspace, the recipe with them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from penstock import __version__
from penstock.errors import RecipeError
from penstock.exported import as_yaml
from penstock.orchestrators.unexpanded import STORE_VARIABLES, Unexpanded, named_variables

Values = dict[str, Any]

PACKAGE, ENTRY_POINT = "penstock", "penstock-databricks-task"
_RECIPE = "${workspace.file_path}/recipe.yaml"
_HEAD = "# Written by: penstock export databricks. Change it by a target, or export again.\n"
_CLUSTER = "penstock"
_SINGLE_NODE = {
    "spark.databricks.cluster.profile": "singleNode",
    "spark.master": "local[*]",
}

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")]
# A requirement as pip takes it, or a wheel in a volume or in the workspace.
_Library = Annotated[str, StringConstraints(pattern=r"^(/\S+\.whl|[A-Za-z0-9][^\s'\"$`\\{}]*)$")]


class DatabricksOptions(BaseModel):
    """What differs between two teams' workspaces."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Name
    scope: _Name
    penstock: _Library = f"penstock[contracts,postgres,registry,s3]=={__version__}"
    node_type: str = Field("i3.xlarge", pattern=r"^[A-Za-z0-9._-]+$")
    # The newest with long-term support whose Python is one of Penstock's.
    spark_version: str = Field("16.4.x-scala2.12", pattern=r"^[A-Za-z0-9._-]+$")
    workers: int = Field(0, ge=0, le=1000)
    # Quartz: seconds come first.
    schedule: str = Field("0 0 3 ? * MON", pattern=r"^\S+( \S+){5,6}$")
    retries: int = Field(2, ge=0, le=20)
    retry_delay_s: int = Field(600, ge=0)
    timeout_s: int = Field(6 * 3600, ge=60)

    @classmethod
    def checked(cls, recipe_name: str, **values: Any) -> DatabricksOptions:
        """The options, or what is wrong with them in words.

        Args:
            recipe_name: What things are called unless a name is given.
            values: Those that were given.

        Raises:
            RecipeError: A value is none that Databricks takes.
        """
        name = values.setdefault("name", re.sub(r"[^A-Za-z0-9_-]", "-", recipe_name))
        values.setdefault("scope", name)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = [
                f"--{str(one['loc'][0]).replace('_', '-')}: received {one['input']!r}: {one['msg']}"
                for one in error.errors()
            ]
            raise RecipeError("\n".join(wrong)) from None


def databricks_bundle(loaded: Unexpanded, options: DatabricksOptions) -> dict[str, str]:
    """Path -> text; the same recipe and options give the same bytes.

    Raises:
        RecipeError: The recipe cannot be run there as it is.
    """
    _require_shared(loaded)
    jobs = {
        f"{options.name}-stages": _stages(loaded, options),
        f"{options.name}-stage": _stage(loaded, options),
        f"{options.name}-data": _data(loaded, options),
    }
    return {
        "databricks.yml": _text(_bundle(options)),
        "recipe.yaml": loaded.recipe.written,
        "resources/jobs.yml": _text({"resources": {"jobs": jobs}}),
    }


def _bundle(options: DatabricksOptions) -> Values:
    there = "/Workspace/Users/${var.service_principal}/.bundle/${bundle.name}/${bundle.target}"
    return {
        "bundle": {"name": options.name},
        "include": ["resources/*.yml"],
        "variables": {
            "service_principal": {
                "description": "Application id of who deploys to prod and runs there.",
                "default": "",
            },
            "operators": {
                "description": "The group that may start and stop runs.",
                "default": "users",
            },
        },
        "targets": {
            "dev": {"mode": "development", "default": True},
            "prod": {
                "mode": "production",
                "workspace": {"root_path": there},
                "run_as": {"service_principal_name": "${var.service_principal}"},
            },
        },
    }


def _stages(loaded: Unexpanded, options: DatabricksOptions) -> Values:
    run = ["--run", "{{job.parameters.run}}"]
    tasks = [
        _task(options, stage, ["step", stage, *run, *_common(loaded)])
        for stage in ("validate", "prepare")
    ]
    tasks[1]["depends_on"] = [{"task_key": "validate"}]
    # Without a run there is nothing to validate: the default says so to penstock.
    parameters = [{"name": "run", "default": "name-one"}]
    return _job(loaded, options, "stages", tasks, 4, parameters=parameters)


def _stage(loaded: Unexpanded, options: DatabricksOptions) -> Values:
    # Started without a command line, it only says what a run would do.
    task = _task(options, "stage", ["plan", *_common(loaded)])
    return _job(loaded, options, "stage", [task], 4)


def _data(loaded: Unexpanded, options: DatabricksOptions) -> Values:
    task = _task(options, "data", ["run", "--until", "prepare", *_common(loaded)])
    schedule = {
        "quartz_cron_expression": options.schedule,
        "timezone_id": "UTC",
        "pause_status": "PAUSED",
    }
    return _job(loaded, options, "data", [task], 1, schedule=schedule)


def _job(
    loaded: Unexpanded,
    options: DatabricksOptions,
    what: str,
    tasks: list[Values],
    at_once: int,
    **fields: Any,
) -> Values:
    return {
        "name": f"{options.name}-{what}",
        "tags": {"penstock": options.name},
        **fields,
        "max_concurrent_runs": at_once,
        "queue": {"enabled": True},
        "tasks": tasks,
        "job_clusters": [{"job_cluster_key": _CLUSTER, "new_cluster": _cluster(loaded, options)}],
        "permissions": [{"level": "CAN_MANAGE_RUN", "group_name": "${var.operators}"}],
    }


def _task(options: DatabricksOptions, key: str, words: list[str]) -> Values:
    is_wheel = options.penstock.endswith(".whl")
    library = {"whl": options.penstock} if is_wheel else {"pypi": {"package": options.penstock}}
    return {
        "task_key": key,
        "job_cluster_key": _CLUSTER,
        "libraries": [library],
        "python_wheel_task": {
            "package_name": PACKAGE,
            "entry_point": ENTRY_POINT,
            "parameters": words,
        },
        # A stage that is repeated is a hit, or goes on where it was.
        "max_retries": options.retries,
        "min_retry_interval_millis": options.retry_delay_s * 1000,
        "retry_on_timeout": False,
        "timeout_seconds": options.timeout_s,
    }


def _cluster(loaded: Unexpanded, options: DatabricksOptions) -> Values:
    single = {"spark_conf": _SINGLE_NODE, "custom_tags": {"ResourceClass": "SingleNode"}}
    return {
        "spark_version": options.spark_version,
        "node_type_id": options.node_type,
        "num_workers": options.workers,
        "data_security_mode": "SINGLE_USER",
        **({} if options.workers else single),
        "spark_env_vars": {
            name: f"{{{{secrets/{options.scope}/{name}}}}}" for name in secret_names(loaded)
        },
    }


def secret_names(loaded: Unexpanded) -> list[str]:
    """Variables that the scope must hold: all that the recipe and its store name."""
    scheme = loaded.recipe.store.partition("://")[0]
    needed = {*loaded.variables, *named_variables(loaded.recipe.sources)}
    keys = [one for one in STORE_VARIABLES.get(scheme, ()) if one != "AWS_ENDPOINT_URL"]
    return sorted({*needed, *keys})


def _common(loaded: Unexpanded) -> list[str]:
    words = ["--recipe", _RECIPE]
    for override in loaded.overrides:
        if "${" in override or "{{" in override:
            raise RecipeError(
                f"--set {override}: Databricks would put a value of its own in there.",
                "Write it into the recipe, which is sent as it is.",
            )
        words += ["--set", override]
    return words


def _require_shared(loaded: Unexpanded) -> None:
    """Check that a cluster that comes and goes can run it."""
    recipe = loaded.recipe
    if "://" not in recipe.store:
        raise RecipeError(
            f"store: {recipe.store} is a folder, and a job's cluster is gone when it ends.",
            "Give the store a bucket: s3://bucket/prefix.",
        )
    for name, url in (("ledger", recipe.ledger), ("tracking", recipe.tracking)):
        if url is not None and url.startswith("sqlite"):
            raise RecipeError(
                f"{name}: SQLite is for one host, and a job's cluster is another each time.",
                f"Name it by a variable: {name}: ${{PENSTOCK_{name.upper()}}}",
            )


def _text(tree: Values) -> str:
    return _HEAD + as_yaml(tree)
