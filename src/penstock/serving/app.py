"""The gateway as an ASGI app: its paths, and the layer around them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from penstock.errors import PenstockError
from penstock.serve_section import Serve
from penstock.serving import alerts, endpoints
from penstock.serving.answering import json_response
from penstock.serving.exchange import ExchangeLayer
from penstock.serving.feedback import feedback
from penstock.serving.gateway import Gateway, Surroundings
from penstock.serving.keys import check_model, visible_models
from penstock.serving.openapi import document
from penstock.serving.replies import to_json

_OWNER = "penstock"


def create_app(
    config: Serve,
    around: Surroundings,
    on_fatal: Callable[[PenstockError], None] | None = None,
) -> ExchangeLayer:
    """The gateway, for any ASGI server that runs lifespans.

    Args:
        config: The recipe's ``serve`` section, completed.
        around: What the gateway works with.
        on_fatal: Called with an error that makes serving on pointless.
    """
    gateway = Gateway(config, around, on_fatal)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    router = Router(_routes(), redirect_slashes=False, lifespan=lifespan)
    return ExchangeLayer(router, gateway)


def _routes() -> list[Route]:
    return [
        Route("/", endpoints.short_form, methods=["POST"]),
        Route("/v1/chat/completions", endpoints.chat_completions, methods=["POST"]),
        Route("/v1/completions", endpoints.completions, methods=["POST"]),
        Route("/v1/embeddings", endpoints.embeddings, methods=["POST"]),
        Route("/v1/rerank", endpoints.rerank, methods=["POST"]),
        Route("/v2/rerank", endpoints.rerank, methods=["POST"]),
        Route("/v1/classify", endpoints.classify, methods=["POST"]),
        Route("/v1/feedback", feedback, methods=["POST"]),
        Route(alerts.PATH, alerts.alerts, methods=["POST"]),
        Route("/v1/models", _models),
        Route("/v1/models/{name:path}", _model),
        Route("/openapi.json", _openapi),
        Route("/healthz", _health),
        Route("/readyz", _readiness),
    ]


async def _models(request: Request) -> Response:
    gateway: Gateway = request.state.gateway
    data = [_model_entry(gateway, name) for name in _visible(request)]
    return json_response(to_json({"object": "list", "data": data}))


async def _model(request: Request) -> Response:
    gateway: Gateway = request.state.gateway
    name = request.path_params["name"]
    check_model(request.state.exchange.key, name, gateway.router.names)
    return json_response(to_json(_model_entry(gateway, name)))


def _visible(request: Request) -> list[str]:
    return visible_models(request.state.exchange.key, request.state.gateway.router.names)


def _model_entry(gateway: Gateway, name: str) -> dict[str, object]:
    created = int(gateway.started_at_s)
    return {"id": name, "object": "model", "created": created, "owned_by": _OWNER}


async def _openapi(request: Request) -> Response:
    """What is offered, for tools that make clients and tests of it."""
    return json_response(to_json(document(_visible(request))))


async def _health(_: Request) -> Response:
    """The process answers; a supervisor that gets nothing should restart it."""
    return json_response(to_json({"status": "ok"}))


async def _readiness(request: Request) -> Response:
    """Whether to send traffic here, and what is missing if not."""
    gateway: Gateway = request.state.gateway
    response = json_response(to_json(gateway.readiness()), status=200 if gateway.ready else 503)
    if not gateway.ready:
        response.headers["retry-after"] = "2"
    return response
