"""Files for clusters: Kubernetes and Databricks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli.export import export_app
from penstock.cli.options import DEFAULT, RecipePath, Set, overrides_of

app = typer.Typer()  # its commands are under `export`

Output = Annotated[Path, typer.Option(help="The folder to write to.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite changes made by hand.")]
Check = Annotated[bool, typer.Option("--check", help="Write nothing; fail on drift.")]


@export_app.command("kubernetes")
def export_kubernetes(
    output: Output,
    image: Annotated[str | None, typer.Option(help="Has Penstock, with a tag or digest.")] = None,
    recipe: RecipePath = DEFAULT,
    name: Annotated[str | None, typer.Option(help="Null is the recipe's.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Null is the name.")] = None,
    secret: Annotated[
        str | None, typer.Option(help="The secret pods read; null: NAME-secrets.")
    ] = None,
    min_replicas: Annotated[int | None, typer.Option(help="Gateways at least: 2.")] = None,
    max_replicas: Annotated[int | None, typer.Option(help="Gateways at most: 6.")] = None,
    queued: Annotated[
        int | None, typer.Option(help="Also scale by llm_queued_requests: so many in a gateway.")
    ] = None,
    cpu: Annotated[str | None, typer.Option(help="Of a gateway: 2.")] = None,
    memory: Annotated[str | None, typer.Option(help="Of a gateway: 4Gi.")] = None,
    run_cpu: Annotated[str | None, typer.Option(help="Of a run: 4.")] = None,
    run_memory: Annotated[str | None, typer.Option(help="Of a run: 16Gi.")] = None,
    run_gpus: Annotated[int | None, typer.Option(help="Of a run: 0.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Cron in UTC; null: no CronJob.")] = None,
    storage: Annotated[str | None, typer.Option(help="Of the shared volume: 100Gi.")] = None,
    storage_class: Annotated[str | None, typer.Option(help="Of the shared volume.")] = None,
    mlflow: Annotated[
        bool | None,
        typer.Option("--mlflow/--no-mlflow", help="Null: where the recipe names no tracking."),
    ] = None,
    egress_port: Annotated[
        list[int] | None, typer.Option(help="Beside 443 and 5432. Repeatable.")
    ] = None,
    monitoring_namespace: Annotated[
        str | None, typer.Option(help="Where Prometheus is: monitoring.")
    ] = None,
    client_namespace: Annotated[
        list[str] | None, typer.Option(help="May call the gateway; null: all. Repeatable.")
    ] = None,
    ray_version: Annotated[str | None, typer.Option(help="Of Ray in the image.")] = None,
    collector_image: Annotated[str | None, typer.Option(help="OpenTelemetry's collector.")] = None,
    vllm_image: Annotated[str | None, typer.Option(help="vLLM's.")] = None,
    set_: Set = None,
    force: Force = False,
    check: Check = False,
) -> None:
    """Write a kustomize base with overlays: gateway, runs, and all that stands beside them."""
    from penstock.orchestrators.kubernetes import KubernetesOptions, bundle
    from penstock.orchestrators.kubernetes.bundle import OVERLAYS
    from penstock.orchestrators.unexpanded import load_unexpanded

    given = {
        "image": image,
        "name": name,
        "namespace": namespace,
        "secret": secret,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "queued": queued,
        "cpu": cpu,
        "memory": memory,
        "run_cpu": run_cpu,
        "run_memory": run_memory,
        "run_gpus": run_gpus,
        "schedule": schedule,
        "storage": storage,
        "storage_class": storage_class,
        "mlflow": mlflow,
        "egress_ports": tuple(egress_port) if egress_port else None,
        "monitoring_namespace": monitoring_namespace,
        "client_namespaces": tuple(client_namespace) if client_namespace else None,
        "ray_version": ray_version,
        "collector_image": collector_image,
        "vllm_image": vllm_image,
    }
    loaded = load_unexpanded(recipe, set_ or [], overrides_of(set_))
    options = KubernetesOptions.checked(loaded.recipe.name, **_given(given))
    _put(output, bundle(loaded, options), OVERLAYS, force, check)


@export_app.command("databricks")
def export_databricks(
    output: Output,
    recipe: RecipePath = DEFAULT,
    name: Annotated[str | None, typer.Option(help="Null is the recipe's.")] = None,
    scope: Annotated[str | None, typer.Option(help="The secret scope; null is the name.")] = None,
    penstock: Annotated[
        str | None, typer.Option(help="What pip installs, or a wheel's path in a volume.")
    ] = None,
    node_type: Annotated[str | None, typer.Option(help="Of the jobs' cluster.")] = None,
    spark_version: Annotated[str | None, typer.Option(help="Of the jobs' cluster.")] = None,
    workers: Annotated[int | None, typer.Option(help="Beside the driver: 0.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Quartz cron in UTC; paused.")] = None,
    retries: Annotated[int | None, typer.Option(help="Of a task: 2.")] = None,
    retry_delay_s: Annotated[int | None, typer.Option(help="Between tries: 600.")] = None,
    timeout_s: Annotated[int | None, typer.Option(help="Of a task: six hours.")] = None,
    set_: Set = None,
    force: Force = False,
    check: Check = False,
) -> None:
    """Write a bundle with jobs for validation and preparation."""
    from penstock.orchestrators.databricks import DatabricksOptions, databricks_bundle
    from penstock.orchestrators.unexpanded import load_unexpanded

    given = {
        "name": name,
        "scope": scope,
        "penstock": penstock,
        "node_type": node_type,
        "spark_version": spark_version,
        "workers": workers,
        "schedule": schedule,
        "retries": retries,
        "retry_delay_s": retry_delay_s,
        "timeout_s": timeout_s,
    }
    loaded = load_unexpanded(recipe, set_ or [], overrides_of(set_))
    options = DatabricksOptions.checked(loaded.recipe.name, **_given(given))
    _put(output, databricks_bundle(loaded, options), None, force, check)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _put(
    output: Path, files: Mapping[str, str], theirs: str | None, force: bool, check: bool
) -> None:
    """Write files, or only check them; those that are the user's are written once."""
    from penstock import printing
    from penstock.exported import check_files, write_files

    ours = {
        name: text
        for name, text in files.items()
        if not (theirs and name.startswith(theirs) and (output / name).exists())
    }
    if check:
        check_files(output, ours)
        printing.note(f"{output} is up to date")
        return
    written = write_files(output, ours, force)
    for path in written:
        printing.note(f"{path} is written")
    if not written:
        printing.note(f"{output} is up to date")
