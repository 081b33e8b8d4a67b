"""Penstock's Grafana dashboards: service, models and rollout, data and drift, cost."""

from __future__ import annotations

from typing import Any

from penstock.errors import MissingExtra
from penstock.exported import as_yaml

try:
    from penstock.monitoring import loop_boards, service_boards
    from penstock.monitoring.panels import Board, as_json
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("grafana_foundation_sdk"):
        raise
    raise MissingExtra("grafana-foundation-sdk", "grafana") from None

_FOLDER = "Penstock"
_HEAD = "# Written by `penstock export grafana`.\n"


def grafana_files(prometheus_url: str, folder: str) -> dict[str, str]:
    """Dashboards, and what makes Grafana read them when it starts.

    Args:
        prometheus_url: Where Grafana finds Prometheus.
        folder: Where Grafana will find the dashboards.
    """
    files = {f"dashboards/{board.uid}.json": as_json(board) for board in boards()}
    return files | {
        "provisioning/dashboards/penstock.yml": _HEAD + as_yaml(_provider(folder), width=100),
        "provisioning/datasources/penstock.yml": _HEAD
        + as_yaml(_source(prometheus_url), width=100),
    }


def _provider(folder: str) -> dict[str, Any]:
    provider = {
        "name": "penstock",
        "folder": _FOLDER,
        "type": "file",
        "allowUiUpdates": False,
        "options": {"path": folder},
    }
    return {"apiVersion": 1, "providers": [provider]}


def _source(url: str) -> dict[str, Any]:
    source = {
        "name": "Prometheus",
        "uid": "penstock-prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": url,
        "isDefault": True,
        "jsonData": {"timeInterval": "15s"},
    }
    return {"apiVersion": 1, "datasources": [source]}


def boards() -> tuple[Board, ...]:
    """All of them."""
    return service_boards.service(), service_boards.models(), loop_boards.data(), loop_boards.cost()
