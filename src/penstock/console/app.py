"""The console's paths, how errors look, and serving it on its own."""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from penstock import models
from penstock.console import actions, pages
from penstock.console.desk import Desk
from penstock.console.guard import MIN_KEY_CHARACTERS, PREFIX, Guard, not_found
from penstock.console.render import render
from penstock.errors import PenstockError, RecipeError
from penstock.pipeline import Pipeline
from penstock.promotion import Production
from penstock.serving.keys import is_loopback

logger = logging.getLogger(__name__)

KEY_VARIABLE = "PENSTOCK_CONSOLE_KEY"
_STYLE = Path(__file__).parent / "templates" / "console.css"

Handler = Callable[[Request], Response]


def create_console(
    pipeline: Pipeline,
    key: str | None = None,
    production: Callable[[], Production] | None = None,
) -> ASGIApp:
    """The console of a project, as an ASGI app below ``/console``.

    Args:
        pipeline: The project.
        key: What browsers must show; None lets in whoever is on this machine.
        production: Opens the alias that the project's deploy stage moves; None opens the
            recipe's.
    """
    desk = Desk(pipeline, production or (lambda: models.production(pipeline)))
    router = Router(
        [
            Route("/", lambda request: RedirectResponse(f"{PREFIX}/")),
            Route(PREFIX, lambda request: RedirectResponse(f"{PREFIX}/")),
            Route(f"{PREFIX}/console.css", _style),
            *(
                Route(PREFIX + path, _shown(desk, handler), methods=["GET"])
                for path, handler in pages.PAGES.items()
            ),
            *(
                Route(PREFIX + path, _shown(desk, handler), methods=["GET", "POST"])
                for path, handler in actions.ACTIONS.items()
            ),
        ],
        redirect_slashes=False,
        default=_nowhere,
    )
    return Guard(router, key)


def admin_key() -> str | None:
    """The admin key of this process's environment; None if there is none.

    Raises:
        RecipeError: It is too short to be one.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and len(key) < MIN_KEY_CHARACTERS:
        raise RecipeError(
            f"{KEY_VARIABLE} has {len(key)} characters; {MIN_KEY_CHARACTERS} are needed.",
            "Make one with: openssl rand -base64 32",
        )
    return key


def gateway_console(pipeline: Pipeline) -> ASGIApp:
    """The console as a part of the project's gateway.

    Raises:
        RecipeError: Others can reach the gateway, and there is no admin key.
    """
    key, host = admin_key(), pipeline.recipe.serve.host
    if key is None and not is_loopback(host):
        raise RecipeError(
            f"The console would be on {host!r}, where others can reach it, and ask nobody for a "
            "key.",
            f"Set {KEY_VARIABLE} (openssl rand -base64 32), or listen on 127.0.0.1.",
        )
    return create_console(pipeline, key)


def serve_console(pipeline: Pipeline, port: int, announce: Callable[[str], None]) -> None:
    """Serve the console on 127.0.0.1 until a signal comes.

    Args:
        pipeline: The project.
        port: 0 picks a free one.
        announce: Called with the console's URL once the port is open.

    Raises:
        PenstockError: The port is taken.
    """
    import uvicorn

    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise PenstockError(
            f"The console cannot listen on 127.0.0.1:{port}: {error.strerror or error}.",
            "Choose another: penstock console --port 8011",
        ) from error
    with listening:
        config = uvicorn.Config(
            create_console(pipeline, admin_key()),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
        )
        announce(f"http://127.0.0.1:{listening.getsockname()[1]}{PREFIX}/")
        uvicorn.Server(config).run(sockets=[listening])


def _shown(desk: Desk, handler: Callable[[Desk, Request], Response]) -> Handler:
    """A handler whose errors are pages; Starlette runs it in a thread."""

    @functools.wraps(handler)
    def answer(request: Request) -> Response:
        try:
            return handler(desk, request)
        except PenstockError as error:
            status = 409 if request.method == "POST" else 404
            return render(desk, request, "error.html", status, error=error)
        except Exception:
            logger.exception("The console's page %s failed", request.url.path)
            broken = PenstockError("This page broke.", "The console's log says why.")
            return render(desk, request, "error.html", 500, error=broken)

    return answer


def _style(_: Request) -> Response:
    return Response(_STYLE.read_text(encoding="utf-8"), media_type="text/css")


async def _nowhere(scope: Any, receive: Any, send: Any) -> None:
    await not_found("There is no such page.")(scope, receive, send)
