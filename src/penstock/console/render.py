"""Templates: HTML in which every value is escaped."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from penstock.console.guard import FIELD, PREFIX, state_of
from penstock.printing import clock

if TYPE_CHECKING:
    from penstock.console.desk import Desk

_NAV = (
    ("/", "Loop"),
    ("/runs", "Runs"),
    ("/gates", "Gates"),
    ("/versions", "Versions"),
    ("/rollouts", "Rollouts"),
    ("/traffic", "Traffic"),
    ("/alarms", "Alarms"),
    ("/drift", "Drift and quality"),
    ("/quarantine", "Quarantine"),
    ("/feedback", "Feedback"),
    ("/cost", "Cost"),
)


def render(
    desk: Desk, request: Request, template: str, status: int = 200, **values: Any
) -> Response:
    """A page.

    Args:
        desk: Whose.
        request: Tells which page is open, and holds the token that forms send back.
        template: Its file.
        status: HTTP's.
        values: What it shows; all of it is escaped.
    """
    _, token, _ = state_of(request)
    path = request.url.path.removeprefix(PREFIX)
    page = _environment().get_template(template)
    text = page.render(
        recipe=desk.name, nav=_NAV, path=path, at=PREFIX, field=FIELD, token=token, **values
    )
    return HTMLResponse(text, status)


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"clock": clock, "count": _count, "pretty": _pretty}
    return made


def _count(value: int) -> str:
    return f"{value:,}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
