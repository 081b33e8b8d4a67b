"""Files for clusters: Kubernetes and Databricks."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.export import Check, Folder, Force, export_app, given_options, put_files
from penstock.cli.options import DEFAULT, RecipePath, Set, overrides_of

app = typer.Typer()  # its commands are under `export`


@export_app.command("kubernetes")
def export_kubernetes(
    context: typer.Context,
    output: Folder,
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
    egress_ports: Annotated[
        list[int] | None, typer.Option("--egress-port", help="Beside 443 and 5432. Repeatable.")
    ] = None,
    monitoring_namespace: Annotated[
        str | None, typer.Option(help="Where Prometheus is: monitoring.")
    ] = None,
    client_namespaces: Annotated[
        list[str] | None,
        typer.Option("--client-namespace", help="May call the gateway; null: all. Repeatable."),
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

    loaded = load_unexpanded(recipe, set_ or [], overrides_of(set_))
    options = KubernetesOptions.checked(
        loaded.recipe.name, **given_options(context, KubernetesOptions)
    )
    files = bundle(loaded, options)
    theirs = {name for name in files if name.startswith(OVERLAYS) and (output / name).exists()}
    ours = {name: text for name, text in files.items() if name not in theirs}
    put_files(output, ours, force, check)


@export_app.command("databricks")
def export_databricks(
    context: typer.Context,
    output: Folder,
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

    loaded = load_unexpanded(recipe, set_ or [], overrides_of(set_))
    options = DatabricksOptions.checked(
        loaded.recipe.name, **given_options(context, DatabricksOptions)
    )
    put_files(output, databricks_bundle(loaded, options), force, check)
