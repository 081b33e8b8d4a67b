"""Grafana's panels in few words: a title, a question to Prometheus, a unit.

Everything is asked of the data source, recipe and models that are chosen at a dashboard's head.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from typing import Literal

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from penstock.errors import PenstockError

RECIPE = 'recipe="$recipe"'
MODEL = 'recipe="$recipe", model=~"$model"'
RATE = "[$__rate_interval]"

_SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="$datasource")
_HEIGHTS = {"stat": 4, "graph": 8, "table": 8}
_TAG = "penstock"
Kind = Literal["stat", "graph", "table"]


@dataclass(frozen=True)
class Ask:
    """A question to Prometheus.

    Attributes:
        expr: PromQL.
        legend: How a series is called, as in ``{{model}}``.
    """

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        asks: Where its numbers come from.
        unit: As Grafana calls it: ``s``, ``percentunit``, ``reqps``, ...
        kind: A number, lines over time, or a table of now.
        width: Of 24.
        about: Shown behind the title's "i".
        red_above: A number above this is red.
        stacked: Lines are parts of a whole.
    """

    title: str
    asks: tuple[Ask, ...]
    unit: str = "short"
    kind: Kind = "graph"
    width: int = 12
    about: str = ""
    red_above: float | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard.

    Attributes:
        uid: Its address, which links to it keep.
        title: Its name.
        about: What it answers.
        rows: What is on it.
    """

    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]


def percentiles(title: str, histogram: str, about: str) -> Panel:
    """Lines for the median, and for what one in 20 and one in 100 exceed, by model."""
    buckets = f"sum by (le, model) (rate({histogram}_bucket{{{MODEL}}}{RATE}))"
    asks = tuple(
        Ask(f"histogram_quantile({quantile}, {buckets})", f"{{{{model}}}} {name}")
        for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )
    return Panel(title, asks, "s", about=about)


def now(title: str, expr: str, unit: str, about: str, red_above: float | None = None) -> Panel:
    """A number as it is now."""
    return Panel(title, (Ask(expr),), unit, "stat", 4, about, red_above)


def lines(
    title: str, expr: str, legend: str, about: str, unit: str = "short", stacked: bool = False
) -> Panel:
    """Lines of one question."""
    return Panel(title, (Ask(expr, legend),), unit, about=about, stacked=stacked)


def as_json(board: Board) -> str:
    """A dashboard as Grafana reads it.

    Raises:
        PenstockError: Its text cannot be encoded.
    """
    builder = (
        builders.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags([_TAG])
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(_to_the_others())
    )
    for variable in _variables():
        builder = builder.with_variable(variable)
    number = count(1)
    for row in board.rows:
        builder = builder.with_row(builders.Row(row.title).id(next(number)))
        for panel in row.panels:
            builder = builder.with_panel(_panel(panel).id(next(number)))
    try:
        built = json.dumps(builder.build(), cls=JSONEncoder, sort_keys=True, indent=2)
    except (TypeError, ValueError) as error:
        raise PenstockError(f"The dashboard {board.uid} cannot be written: {error}") from error
    return built + "\n"


def _to_the_others() -> builders.DashboardLink:
    return (
        builders.DashboardLink("Penstock")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )


def _variables() -> list[builders.DatasourceVariable | builders.QueryVariable]:
    source = builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    recipe = _query("recipe", "Recipe", "label_values(penstock_ledger_up, recipe)")
    served = f"label_values(llm_requests_total{{{RECIPE}}}, model)"
    model = _query("model", "Model", served).multi(True).include_all(True).all_value(".*")
    everything = dashboard.VariableOption(selected=True, text="All", value="$__all")
    return [source, recipe, model.current(everything)]


def _query(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(_SOURCE)
        .query(query)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    )


_AnyPanel = stat.Panel | timeseries.Panel | table.Panel


def _panel(panel: Panel) -> _AnyPanel:
    made: _AnyPanel
    if panel.kind == "stat":
        made = _number(panel)
    elif panel.kind == "graph":
        made = _graph(panel)
    else:
        made = table.Panel()
    made = (
        made.title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(_HEIGHTS[panel.kind])
    )
    for nth, ask in enumerate(panel.asks):
        made = made.with_target(_target(panel.kind, nth, ask))
    return made


def _target(kind: Kind, nth: int, ask: Ask) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(ask.expr).ref_id(chr(ord("A") + nth)).datasource(_SOURCE)
    if ask.legend:
        target = target.legend_format(ask.legend)
    if kind == "graph":
        return target.range()
    target = target.instant()
    return target.format(PromQueryFormat.TABLE) if kind == "table" else target


def _number(panel: Panel) -> stat.Panel:
    green = dashboard.Threshold(value=None, color="green")
    steps = [green]
    if panel.red_above is not None:
        steps.append(dashboard.Threshold(value=panel.red_above, color="red"))
    levels = builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)
    last = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    return (
        stat.Panel()
        .reduce_options(last)
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .thresholds(levels)
        .no_value("none")
    )


def _graph(panel: Panel) -> timeseries.Panel:
    mode = common.StackingMode.NORMAL if panel.stacked else common.StackingMode.NONE
    return (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(30 if panel.stacked else 8)
        .show_points(common.VisibilityMode.AUTO)
        .stacking(common_builders.StackingConfig().mode(mode))
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )
