"""Asking models until one answers: further tries, then fallbacks, while nothing was sent yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from penstock.errors import (
    ContextExceeded,
    NotReady,
    Overloaded,
    ReplicaLost,
    ServingError,
    Timeout,
)
from penstock.monitoring.metrics import ServingMetrics
from penstock.serving.facts import Facts, FailedTry
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
        again, left = False, model.config.retries
        while True:
            if failure is not None:
                kind = "same_model" if again else "fallback"
                metrics.retried.labels(model.name, kind).inc()
            try:
                return await _noted(Try(model, again), facts, ask)
            except ServingError as error:
                on_trial = not again and facts.arm == "challenger"
                if not _may_be_tried_elsewhere(error, on_trial):
                    raise
                failure = failure or error
                if isinstance(error, Overloaded):
                    break  # the queue is the same for both versions
                if not on_trial:
                    if left == 0 or isinstance(error, NotReady | Timeout):
                        break  # it would say the same again
                    left -= 1
                again = True
    if failure is None:
        raise AssertionError("no model to ask")
    raise failure


async def _noted(one: Try, facts: Facts, ask: Callable[[Try], Awaitable[Answer]]) -> Answer:
    """What one try gives; if it fails, the facts say whose failure that was."""
    facts.num_tries += 1
    num_draws = len(facts.draws)
    facts.arm = "champion"
    try:
        return await ask(one)
    except ServingError as error:
        drawn = facts.draws[-1] if len(facts.draws) > num_draws else None
        if drawn is not None and drawn.error is None and is_failure(error):
            drawn.error = error.code
        version = None
        if facts.served is not None and facts.model == one.model.name:
            version = facts.served.version
        facts.failed_tries.append(FailedTry(one.model.name, version, facts.arm, error.code))
        raise


def is_failure(error: ServingError) -> bool:
    """Whether an error is the model's: it broke, or it reads less than another one would."""
    return error.status >= 500 or isinstance(error, ContextExceeded)


def _may_be_tried_elsewhere(error: ServingError, on_trial: bool) -> bool:
    if on_trial and is_failure(error):
        return True
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
        # A copy that ended says nothing of the others; all that it was busy with fail at once.
        if error.status >= 500 and not isinstance(error, NotReady | ReplicaLost):
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
