"""The files that Dagster and Prefect load, as short as they can be."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.exported import marked
from penstock.orchestrators.base import Flow

_HEAD = """\
# Written by: penstock export {tool}
# Edit it as you like: edited files are not overwritten, and go on working.
"""
_BODIES = {
    "dagster": """\
from penstock.orchestrators.dagster import build_definitions

defs = build_definitions({recipe})
""",
    "prefect": """\
from penstock.orchestrators.prefect import build_flow, deployment

RECIPE = {recipe}
flow = build_flow(RECIPE)

if __name__ == "__main__":
    flow.serve(**deployment(RECIPE))
""",
}


def path_of(flow: Flow, tool: str) -> Path:
    """Where the file goes, if nothing else is asked for."""
    return Path(f"{flow.name}_{tool}.py")


def text_of(flow: Flow, tool: str) -> str:
    """The file's text, which names the recipe by its absolute path."""
    body = _BODIES[tool].format(recipe=json.dumps(str(flow.recipe)))
    return marked(_HEAD.format(tool=tool), body)
