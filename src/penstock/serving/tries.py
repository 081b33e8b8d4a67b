"""Asking models until one answers: further tries, then fallbacks, while nothing was sent yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from penstock.errors import NotReady, Overloaded, ServingError, Timeout
from penstock.monitoring.metrics import ServingMetrics
from penstock.serving.facts import Facts
from penstock.serving.http_errors import internal_error
from penstock.serving.models import ServedModel
from penstock.serving.routes import Route

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Try:
    """One try to get an answer.

    Attributes:
        model: Who is asked.
        again: The same model has failed this request before.
    """

    model: ServedModel
    again: bool


async def first_answer(
    models: tuple[ServedModel, ...],
    facts: Facts,
    metrics: ServingMetrics,
    ask: Callable[[Try], Awaitable[Answer]],
) -> Answer:
    """What the first model says that says anything.

    Args:
        models: In the order in which they are asked.
        facts: Of the request.
        metrics: Told about further tries.
        ask: Asks one model.

    Raises:
        ServingError: The request is wrong, or all models failed: the first one's error.
    """
    failure: ServingError | None = None
    for model in models:
        for number in range(1 + model.config.retries):
            if failure is not None:
                kind = "same_model" if number else "fallback"
                metrics.retried.labels(model.name, kind).inc()
            facts.num_tries += 1
            try:
                return await ask(Try(model, again=number > 0))
            except ServingError as error:
                if not _may_be_tried_elsewhere(error):
                    raise
                failure = failure or error
                if isinstance(error, Overloaded | NotReady | Timeout):
                    break  # it would say the same again
    if failure is None:
        raise AssertionError("no model to ask")
    raise failure


def _may_be_tried_elsewhere(error: ServingError) -> bool:
    return error.status >= 500 or isinstance(error, Overloaded)


@contextlib.asynccontextmanager
async def judged(route: Route) -> AsyncIterator[None]:
    """Around what a backend computes: its breaker learns how that went.

    Raises:
        ServingError: The backend failed; what else it raised is the cause.
    """
    try:
        yield
    except ServingError as error:
        if error.status >= 500 and not isinstance(error, NotReady):
            route.breaker.failed()
        raise
    except Exception as error:
        route.breaker.failed()
        raise internal_error() from error
    else:
        route.breaker.succeeded()


@contextlib.asynccontextmanager
async def within(timeout_s: float | None) -> AsyncIterator[None]:
    """Give a model so long.

    Raises:
        Timeout: It took longer.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        # The gateway's own deadline cancels; only this one's end is a TimeoutError.
        raise Timeout(f"The model did not answer within {timeout_s:g} s.") from error
