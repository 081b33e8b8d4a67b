"""Asking Prefect for a run, by its REST API: it keeps runs of one idempotency key apart."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from penstock.orchestrators.asking import client_of, json_of, patiently, reason_of
from penstock.orchestrators.base import checked_key, read_flow

# The deployment's name; its flow has the recipe's.
DEPLOYMENT = "penstock"
_HINTS = {
    401: "Set PREFECT_API_KEY or PREFECT_API_AUTH_STRING.",
    404: "Is the deployment there? flow.serve(**deployment(RECIPE)) makes it.",
}


def trigger(recipe: Path, key: str, conf: Mapping[str, Any]) -> str:
    """Start a run of a recipe's deployment, once for each key.

    Args:
        recipe: The recipe's file.
        key: The same key is the same run, however often it is asked for.
        conf: As in ``orchestrators/base.py``.

    Returns:
        The id of Prefect's flow run.

    Raises:
        RecipeError: A value may not be set for one run.
        NotStarted: Prefect cannot be reached (transient), or refuses.
    """
    flow = read_flow(recipe)
    set_ = conf.get("set") or {}
    flow.set_flags(set_)
    wanted = {
        "idempotency_key": checked_key(key),
        "parameters": {"set": set_, "reason": reason_of(conf) or None},
        "state": {"type": "SCHEDULED"},
    }
    with client_of("prefect", flow.settings.prefect.url, _credentials()) as client:
        path = f"/deployments/name/{quote(flow.name, safe='')}/{DEPLOYMENT}"
        there = json_of(patiently(lambda: client.get(path)), "prefect", _HINTS)
        runs = f"/deployments/{there['id']}/create_flow_run"
        answer = patiently(lambda: client.post(runs, json=wanted))
        return str(json_of(answer, "prefect", _HINTS)["id"])


def _credentials() -> dict[str, str]:
    key, pair = os.environ.get("PREFECT_API_KEY"), os.environ.get("PREFECT_API_AUTH_STRING")
    if key:
        return {"authorization": f"Bearer {key}"}
    if pair:
        return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
