"""Asking Airflow for a run, and reporting what may start one, by its REST API (v2).

A run has the name that its key gives it, and Airflow has no two runs of one name:
what is asked for again, because an answer was lost or two asked at once, is there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import RecipeError
from penstock.orchestrators.airflow_plan import EVENTS, asset_uri
from penstock.orchestrators.asking import NotStarted, client_of
from penstock.orchestrators.base import Flow, checked_key, read_flow

if TYPE_CHECKING:
    import httpx

# What Airflow lets a run be called (`[core] allowed_run_id_pattern`).
_RUN_ID = re.compile(r"[A-Za-z0-9_.~:+-]{1,200}")
_EXISTS = 409


def run_id_of(key: str) -> str:
    """What Airflow calls the run of a key."""
    name = checked_key(key)
    if not _RUN_ID.fullmatch(name):
        name = hashlib.sha256(name.encode()).hexdigest()[:40]
    return f"penstock__{name}"


def trigger(recipe: Path, key: str, conf: Mapping[str, Any]) -> str:
    """Start a run of a recipe's DAG, once for each key.

    Args:
        recipe: The recipe's file.
        key: The same key is the same run, however often it is asked for.
        conf: As in ``orchestrators/base.py``.

    Returns:
        Airflow's name for the run.

    Raises:
        RecipeError: A value may not be set for one run.
        NotStarted: Airflow cannot be reached (transient), or refuses.
    """
    flow = read_flow(recipe)
    flow.set_flags(conf.get("set") or {})
    run_id = run_id_of(key)
    body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
    with _client(flow) as client:
        runs = f"/api/v2/dags/{flow.name}/dagRuns"
        answer = client.post(runs, json=body)
        is_there = answer.status_code == _EXISTS or (
            # Also the answer to one of two who asked at the same moment.
            answer.is_server_error and client.get(f"{runs}/{run_id}").is_success
        )
        if not is_there:
            _check(answer, f"start a run of {flow.name}")
    return run_id


def report_event(recipe: Path, event: str, details: Mapping[str, Any]) -> int:
    """Report an event of one of a recipe's assets, which starts its DAG.

    Events are not told apart by a key: those that come while a run is waiting are one run's.

    Args:
        recipe: The recipe's file.
        event: ``new-data`` or ``drift``.
        details: Kept with the event, for people to read.

    Returns:
        Airflow's number for the event.

    Raises:
        RecipeError: There is no such event.
        NotStarted: It cannot be reached (transient), refuses, or has not read the DAG yet.
    """
    flow = read_flow(recipe)
    if event not in EVENTS:
        raise RecipeError(f"There is no event {event!r}.", f"There are: {', '.join(EVENTS)}")
    name = f"{flow.name}/{event}"
    with _client(flow) as client:
        answer = client.get("/api/v2/assets", params={"name_pattern": name, "limit": 100})
        found = _check(answer, "list assets")["assets"]
        uri = asset_uri(flow.name, event)
        asset = next((one for one in found if one["uri"] == uri), None)
        if asset is None:
            raise NotStarted(
                f"Airflow knows no asset {uri}.",
                f"Its DAG {flow.name!r} declares it: see that it is there and not broken.",
            )
        body = {"asset_id": asset["id"], "extra": dict(details)}
        told = _check(client.post("/api/v2/assets/events", json=body), f"report {uri}")
    return int(told["id"])


@contextmanager
def _client(flow: Flow) -> Iterator[httpx.Client]:
    with client_of("airflow", flow.settings.airflow.url, {}) as client:
        client.headers["authorization"] = f"Bearer {_token(client)}"
        yield client


def _token(client: httpx.Client) -> str:
    """The token of the environment, or one for the user of the environment.

    Raises:
        NotStarted: There is neither, or the user is refused.
    """
    token = os.environ.get("PENSTOCK_AIRFLOW_TOKEN")
    if token:
        return token
    user = os.environ.get("PENSTOCK_AIRFLOW_USER")
    password = os.environ.get("PENSTOCK_AIRFLOW_PASSWORD")
    if not user or not password:
        raise NotStarted(
            "There are no credentials for Airflow.",
            "Set PENSTOCK_AIRFLOW_TOKEN, or PENSTOCK_AIRFLOW_USER and PENSTOCK_AIRFLOW_PASSWORD.",
        )
    answer = client.post("/auth/token", json={"username": user, "password": password})
    return str(_check(answer, f"log {user} in")["access_token"])


def _check(answer: httpx.Response, what: str) -> Any:
    """The answer's JSON.

    Raises:
        NotStarted: It is none, or an error.
    """
    code = answer.status_code
    if not answer.is_success:
        raise NotStarted(
            f"Airflow refused to {what}: status {code}, {answer.text[:300]}",
            {
                401: "Check the credentials in the environment.",
                403: "The user may not do that.",
                404: "Is the DAG there, read, and without an import error?",
            }.get(code, ""),
            transient=code == 429 or code >= 500,
        )
    try:
        return answer.json()
    except ValueError:
        raise NotStarted(f"Airflow answered {what} with no JSON.", transient=True) from None
