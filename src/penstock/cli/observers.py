"""Files for the tools that watch: Prometheus with Alertmanager, and Grafana."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.export import Folder, Force, export_app, put_files
from penstock.cli.options import DEFAULT, RecipePath, Set, overrides_of

app = typer.Typer()  # its commands are under `export`


@export_app.command("prometheus")
def export_prometheus(
    output: Folder,
    recipe: RecipePath = DEFAULT,
    target: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT of a gateway's metrics; null is the recipe's. Repeatable."),
    ] = None,
    gateway: Annotated[
        str | None, typer.Option(help="URL of the gateway that takes alerts; null is the recipe's.")
    ] = None,
    alertmanager: Annotated[str, typer.Option(help="Its HOST:PORT.")] = "127.0.0.1:9093",
    secret_file: Annotated[
        str | None, typer.Option(help="With the webhook's secret, as Alertmanager finds it.")
    ] = None,
    set_: Set = None,
    force: Force = False,
) -> None:
    """Write what to scrape, recording and alert rules with their tests, and Alertmanager's part."""
    from penstock.monitoring.prometheus_files import Addresses, prometheus_files
    from penstock.recipe_file import load_recipe

    loaded = load_recipe(recipe, overrides_of(set_))
    at = Addresses.of(
        loaded,
        tuple(target or ()),
        gateway,
        alertmanager=alertmanager,
        **({} if secret_file is None else {"secret_file": secret_file}),
    )
    put_files(output, prometheus_files(loaded, at), force)


@export_app.command("grafana")
def export_grafana(
    output: Folder,
    prometheus: Annotated[
        str, typer.Option(help="Prometheus' URL, as Grafana sees it.")
    ] = "http://127.0.0.1:9091",
    dashboards: Annotated[
        str | None, typer.Option(help="Where Grafana finds them; null is where they are written.")
    ] = None,
    force: Force = False,
) -> None:
    """Write dashboards, and what makes Grafana read them: service, models, data, cost."""
    from penstock.monitoring.dashboards import grafana_files

    folder = dashboards or str((output / "dashboards").resolve())
    put_files(output, grafana_files(prometheus, folder), force)
