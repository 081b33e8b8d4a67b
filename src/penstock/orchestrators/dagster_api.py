"""Asking Dagster for a run, by its GraphQL API.

A run carries its key as a tag, and its tasks open Penstock's run by that tag. Dagster
itself does not keep two runs of one tag apart: if two ask in the same moment and it
starts both, both are the same run to Penstock, and nothing is done twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.orchestrators.asking import NotStarted, client_of, json_of, reason_of
from penstock.orchestrators.base import Flow, checked_key, read_flow

if TYPE_CHECKING:
    import httpx

# Names the run for Penstock.
KEY_TAG = "penstock/key"
REASON_TAG = "penstock/reason"

_RUNS = """
query PenstockRuns($filter: RunsFilter!) {
  runsOrError(filter: $filter, limit: 1) {
    __typename
    ... on Runs { results { runId } }
    ... on Error { message }
  }
}
"""
_JOBS = """
query PenstockJobs {
  repositoriesOrError {
    __typename
    ... on RepositoryConnection { nodes { name location { name } pipelines { name } } }
    ... on Error { message }
  }
}
"""
_LAUNCH = """
mutation PenstockLaunch($executionParams: ExecutionParams!) {
  launchRun(executionParams: $executionParams) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message }
  }
}
"""
_HINTS = {401: "Set PENSTOCK_DAGSTER_TOKEN.", 404: "Is it the webserver's address?"}


def job_name(flow: Flow) -> str:
    """The job's name; Dagster's names are words."""
    return re.sub(r"[^A-Za-z0-9_]", "_", flow.name)


def settings_name(flow: Flow) -> str:
    """The name of the resource that takes a run's settings."""
    return f"{job_name(flow)}_run"


def trigger(recipe: Path, key: str, conf: Mapping[str, Any]) -> str:
    """Start a run of a recipe's job, once for each key.

    Args:
        recipe: The recipe's file.
        key: The same key is the same run, however often it is asked for.
        conf: As in ``orchestrators/base.py``.

    Returns:
        The key: the run has the tag ``penstock/key`` with the value ``dagster:KEY``.

    Raises:
        RecipeError: A value may not be set for one run.
        NotStarted: Dagster cannot be reached (transient), or refuses.
    """
    flow = read_flow(recipe)
    flow.set_flags(conf.get("set") or {})
    tags = {KEY_TAG: f"dagster:{checked_key(key)}", REASON_TAG: reason_of(conf)}
    token = os.environ.get("PENSTOCK_DAGSTER_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with client_of("dagster", flow.settings.dagster.url, headers) as client:
        same = {"key": KEY_TAG, "value": tags[KEY_TAG]}
        if not _ask(client, _RUNS, filter={"tags": [same]})["results"]:
            _ask(client, _LAUNCH, executionParams=_execution(client, flow, tags, conf))
    return key


def _execution(
    client: httpx.Client, flow: Flow, tags: Mapping[str, str], conf: Mapping[str, Any]
) -> dict[str, Any]:
    config = {"resources": {settings_name(flow): {"config": {"set": conf.get("set") or {}}}}}
    return {
        "selector": _selector(client, flow),
        "runConfigData": config,
        "executionMetadata": {
            "tags": [{"key": name, "value": value} for name, value in tags.items() if value]
        },
    }


def _selector(client: httpx.Client, flow: Flow) -> dict[str, str]:
    """Where the recipe's job is loaded.

    Raises:
        NotStarted: Nowhere, or in several places.
    """
    places = [
        {"repositoryLocationName": one["location"]["name"], "repositoryName": one["name"]}
        for one in _ask(client, _JOBS)["nodes"]
        if any(job["name"] == job_name(flow) for job in one["pipelines"])
    ]
    if len(places) != 1:
        raise NotStarted(
            f"Dagster has {len(places)} jobs of the name {job_name(flow)!r}.",
            "One code location loads build_definitions(RECIPE); see that it is not broken.",
        )
    return {**places[0], "jobName": job_name(flow)}


def _ask(client: httpx.Client, query: str, **variables: Any) -> Any:
    """What the one field of a query came to.

    Raises:
        NotStarted: An error.
    """
    body = {"query": query, "variables": variables}
    answer = json_of(client.post("/graphql", json=body), "dagster", _HINTS)
    if not isinstance(answer, dict) or answer.get("errors") or not answer.get("data"):
        raise NotStarted(f"Dagster does not understand: {str(answer)[:500]}")
    (found,) = answer["data"].values()
    wrong = found.get("message") or "; ".join(one["message"] for one in found.get("errors", ()))
    if wrong:
        raise NotStarted(f"Dagster refused, {found['__typename']}: {wrong[:500]}")
    return found
