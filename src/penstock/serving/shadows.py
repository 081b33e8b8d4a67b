"""Copies of requests, for a model whose answers nobody sees but those who compare them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from penstock.errors import ServingError, Timeout
from penstock.serving.exchange import CLIENT_LEFT, Exchange
from penstock.serving.gateway import Gateway
from penstock.serving.models import ServedModel
from penstock.serving.tries import Try

logger = logging.getLogger(__name__)

Ask = Callable[[Exchange, Try], Awaitable[object]]


def cast_shadow(gateway: Gateway, model: ServedModel, exchange: Exchange, ask: Ask) -> None:
    """Ask a model what a client has asked another; returns at once, and never fails.

    A model that has no free slot gets no copy: nobody is to wait for a shadow.

    Args:
        gateway: Told how it ended.
        model: Gets the copy.
        exchange: The client's.
        ask: Asks one model, for an exchange that sends nothing.
    """
    if not model.admission.idle:
        gateway.metrics.shadowed.labels(model.name, "left_out").inc()
        return
    gateway.keep(asyncio.create_task(_ask(gateway, model, exchange.shadow(), ask)))


async def _ask(gateway: Gateway, model: ServedModel, exchange: Exchange, ask: Ask) -> None:
    facts = exchange.facts
    facts.asked, facts.why, facts.model, facts.num_tries = model.name, "shadow", model.name, 1
    try:
        async with asyncio.timeout(gateway.config.request_timeout_s):
            await ask(exchange, Try(model, again=False))
        facts.status = 200
    except ServingError as error:
        facts.status, facts.error = error.status, error.code
    except TimeoutError:
        facts.status, facts.error = Timeout.status, Timeout.code
    except asyncio.CancelledError:
        facts.status = CLIENT_LEFT
    except Exception:
        logger.exception("The shadow %s failed", model.name)
        facts.status, facts.error = ServingError.status, ServingError.code
    facts.ended_s = time.monotonic()
    gateway.metrics.shadowed.labels(model.name, str(facts.status)).inc()
    gateway.observed(facts)
