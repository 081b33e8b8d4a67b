"""``POST /v1/feedback``: what people say about a response, by its id."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from penstock.day_tables import RESPONSE_ID
from penstock.errors import InvalidRequest, NotFound, PenstockError
from penstock.monitoring.feedback import FeedbackBook
from penstock.opinions import OpinionKind
from penstock.serving.answering import json_response
from penstock.serving.exchange import Exchange
from penstock.serving.facts import Facts
from penstock.serving.gateway import Gateway
from penstock.serving.replies import to_json
from penstock.serving.requests import FeedbackRequest, parse
from penstock.serving.response_id import parse_response_id

logger = logging.getLogger(__name__)

# Clocks of gateways may differ by so much.
_CLOCK_SKEW_S = 300
_MAX_KNOWN = 10_000


class FeedbackDesk:
    """Takes feedback on responses of this project's models.

    Args:
        book: Where it is kept.
        model_of: The name of the registered model whose digest begins so; None if there
            is none. May block.
        score: Lets the score of an answer count in the trial that it was part of, if
            any: the end of its id, and the score. May block.
    """

    def __init__(
        self,
        book: FeedbackBook,
        model_of: Callable[[str], str | None],
        score: Callable[[str, float], object] | None = None,
    ) -> None:
        self.book = book
        self._model_of = model_of
        self._score = score
        self._known: dict[str, str] = {}

    async def model_of(self, response_id: str, gateway: Gateway) -> str:
        """The name of the model that gave a response.

        Raises:
            InvalidRequest: It is no response id.
            NotFound: No model of ours can have given it.
        """
        try:
            parsed = parse_response_id(response_id)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, error.hint, "response_id") from None
        prefix = parsed.digest_prefix
        model = _served(prefix, gateway) or self._known.get(prefix)
        if model is None:
            model = await asyncio.to_thread(self._model_of, prefix)
        if model is None or parsed.time.timestamp() > time.time() + _CLOCK_SKEW_S:
            raise NotFound(
                f"No response {response_id!r} was given here.",
                "Copy the id from an answer's 'id'.",
                "response_id",
            )
        if len(self._known) < _MAX_KNOWN:
            self._known[prefix] = model
        return model

    async def count(self, response_id: str, scores: Sequence[float]) -> None:
        """Let scores count in a trial; what goes wrong is logged, for the feedback is kept."""
        if self._score is None or not scores:
            return
        try:
            await asyncio.to_thread(self._score, response_id.rpartition("-")[2], scores[-1])
        except PenstockError as error:
            logger.warning("A score does not count in a trial: %s", error)


def _served(digest_prefix: str, gateway: Gateway) -> str | None:
    for name, model in gateway.models.items():
        for route in (model.table.current, model.table.challenger):
            if route is not None and route.served.digest.startswith(digest_prefix):
                return name
    return None


async def feedback(request: Request) -> Response:
    """``POST /v1/feedback``."""
    gateway: Gateway = request.state.gateway
    exchange: Exchange = request.state.exchange
    desk = gateway.feedback
    if desk is None:
        raise NotFound("Feedback is not kept here.", "Serve a project: penstock serve.")
    given = parse(exchange.body, FeedbackRequest)
    opinions = list(_opinions(given))
    if not opinions:
        raise InvalidRequest("Nothing is said.", "Send 'score', 'thumb' or 'correction'.", "thumb")
    model = await desk.model_of(given.response_id, gateway)
    common = _common(given, model, exchange.facts)
    await desk.book.keep(
        [{**common, "kind": kind, "score": score, "text": text} for kind, score, text in opinions]
    )
    scores = [score for _, score, _ in opinions if score is not None]
    gateway.keep(asyncio.create_task(desk.count(given.response_id, scores)))
    kinds = [kind for kind, _, _ in opinions]
    for kind in kinds:
        thumb = given.thumb or "" if kind == "thumb" else ""
        gateway.metrics.feedback.labels(model, kind, thumb).inc()
    answer = {
        "object": "feedback",
        RESPONSE_ID: given.response_id,
        "rater": given.rater,
        "kinds": kinds,
    }
    return json_response(to_json(answer))


def _opinions(
    given: FeedbackRequest,
) -> Iterator[tuple[OpinionKind, float | None, str | None]]:
    """Kind, score and text of each thing that is said."""
    if given.thumb is not None:
        yield "thumb", float(given.thumb == "up"), None
    if given.score is not None:
        yield "score", given.score, None
    if given.correction is not None:
        yield "correction", None, given.correction


def _common(given: FeedbackRequest, model: str, facts: Facts) -> Mapping[str, Any]:
    """What all rows of one request say."""
    return {
        RESPONSE_ID: given.response_id,
        "rater": given.rater,
        "comment": given.comment,
        "tenant": facts.tenant,
        "key_id": facts.key_id,
        "model": model,
        "received_at": datetime.now(UTC),
    }
