"""Files for Prometheus and Alertmanager: what to scrape, when to alert, and whom to tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from penstock.errors import RecipeError
from penstock.exported import as_yaml
from penstock.monitoring.alert_rules import rules
from penstock.monitoring.rule_tests import rule_tests
from penstock.monitoring.slo_rules import INTERVAL_S
from penstock.recipe import Recipe

RULES = "rules.yml"
RULE_TESTS = "rules_test.yml"
ALERTS_PATH = "/v1/alerts"

_HEAD = "# Written by `penstock export prometheus`.\n"
_SCRAPE_S = 15
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # asked for, not listened on
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_LAST_PORT = 65_535


@dataclass(frozen=True)
class Addresses:
    """Where things are, as Prometheus and Alertmanager see them.

    Attributes:
        targets: Of the gateways' metrics, each HOST:PORT.
        gateway: Base URL of the gateway that takes alerts.
        alertmanager: HOST:PORT.
        secret_file: File with the webhook's secret, relative to Alertmanager's configuration.
    """

    targets: tuple[str, ...]
    gateway: str
    alertmanager: str = "127.0.0.1:9093"
    secret_file: str = "penstock_alerts_secret"  # noqa: S105  # a file's name

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        targets: tuple[str, ...] = (),
        gateway: str | None = None,
        **others: str,
    ) -> Addresses:
        """As the recipe says, where nothing else is said.

        Raises:
            RecipeError: The recipe does not say where, or an address is none.
        """
        serve = recipe.serve
        host = _ANYWHERE.get(serve.host, serve.host)
        host = f"[{host}]" if ":" in host else host
        if not targets:
            targets = (f"{host}:{_known(serve.metrics_port, 'serve.metrics_port', '--target')}",)
        if gateway is None:
            gateway = f"http://{host}:{_known(serve.port, 'serve.port', '--gateway')}"
        if not re.fullmatch(r"https?://[^\s/@?#]+/?", gateway):
            raise RecipeError(
                f"--gateway {gateway!r} is no base URL.", "Write http://HOST:PORT, without more."
            )
        out = cls(targets, gateway.rstrip("/"), **others)
        for address in (*out.targets, out.alertmanager):
            _check_address(address)
        return out


def _known(port: int | None, setting: str, option: str) -> int:
    if port is None:
        raise RecipeError(
            f"{setting} is null, so there is nothing to scrape.", f"Set {setting}, as in 9090."
        )
    if port == 0:
        raise RecipeError(
            f"{setting} is 0, a port that is free at the time, so nobody else can know it.",
            f"Set {setting}, or give {option}.",
        )
    return port


def _check_address(address: str) -> None:
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[2]) <= _LAST_PORT:
        raise RecipeError(f"{address!r} is not HOST:PORT.", "Write it as in 10.0.0.7:9090.")


def prometheus_files(recipe: Recipe, at: Addresses) -> dict[str, str]:
    """All files, by name.

    Raises:
        RecipeError: The recipe's metrics are off.
    """
    return {
        "prometheus.yml": _HEAD
        + "# Keep as many days as the error budget has:\n"
        + f"#   --storage.tsdb.retention.time={recipe.observe.slo.window_days}d\n"
        + _yaml(prometheus(recipe, at)),
        RULES: _HEAD + f"# Check: promtool check rules {RULES}\n" + _yaml(rules(recipe)),
        RULE_TESTS: _HEAD
        + f"# Run: promtool test rules {RULE_TESTS}\n"
        + _yaml(rule_tests(recipe, RULES)),
        "alertmanager.yml": _HEAD
        + "# Add receivers for people: https://prometheus.io/docs/alerting/latest/configuration/\n"
        + f"# The secret is what ${recipe.observe.slo.secret_env} is for the gateway.\n"
        + _yaml(alertmanager(at)),
    }


def prometheus(recipe: Recipe, at: Addresses) -> dict[str, Any]:
    """Prometheus' own configuration."""
    target = {"targets": list(at.targets), "labels": {"recipe": recipe.name}}
    return {
        "global": {
            "scrape_interval": f"{_SCRAPE_S}s",
            "evaluation_interval": f"{INTERVAL_S}s",
        },
        "rule_files": [RULES],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [at.alertmanager]}]}]},
        "scrape_configs": [{"job_name": "penstock", "static_configs": [target]}],
    }


def alertmanager(at: Addresses) -> dict[str, Any]:
    """Alertmanager's configuration: Penstock hears of every alert, and of its end."""
    secret = {"type": "Bearer", "credentials_file": at.secret_file}
    webhook = {
        "url": f"{at.gateway}{ALERTS_PATH}",
        "send_resolved": True,
        "http_config": {"authorization": secret, "follow_redirects": False},
    }
    same = ["recipe", "model", "slo"]
    return {
        "route": {
            "receiver": "penstock",
            "group_by": ["alertname", *same],
            "group_wait": "10s",
            "group_interval": "1m",
            "repeat_interval": "12h",
        },
        "receivers": [{"name": "penstock", "webhook_configs": [webhook]}],
        # Who was woken for a budget need not hear of it again more quietly.
        "inhibit_rules": [
            {
                "source_matchers": ["alertname = SloBurnsFast"],
                "target_matchers": ["alertname =~ SloBurnsSlowly|ErrorBudgetSpent"],
                "equal": same,
            }
        ],
    }


def _yaml(value: Any) -> str:
    return as_yaml(value, width=100)
