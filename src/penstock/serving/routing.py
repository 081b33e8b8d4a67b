"""Who answers a request: the model it names, or one that a route's rules choose."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from penstock.errors import UnknownModel
from penstock.monitoring.metrics import ServingMetrics
from penstock.serve_section import RouteConfig, When
from penstock.serving.backends.base import Capability
from penstock.serving.models import ServedModel
from penstock.serving.sticky import place, weighted

logger = logging.getLogger(__name__)

# A longer text's intent is in its beginning, and a classifier reads no more.
_INTENT_CHARS = 1_000


@dataclass(frozen=True)
class Asked:
    """What a request says that decides where it goes.

    Attributes:
        name: The model or route it names.
        text: The last thing the user said.
        num_chars: Length of the whole prompt.
        metadata: The request's own.
        tenant: Whose key it came with.
        conversation: Requests with the same one go the same way.
    """

    name: str
    text: str = ""
    num_chars: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    conversation: str | None = None


@dataclass(frozen=True)
class Choice:
    """Who is asked.

    Attributes:
        models: The first one, and those after it if it fails.
        why: ``name``, ``rule``, ``intent`` or ``split``.
        shadow: Who gets a copy.
    """

    models: tuple[ServedModel, ...]
    why: str
    shadow: ServedModel | None = None


class Router:
    """Chooses models.

    Args:
        models: By name.
        routes: By name.
        metrics: Told about choices.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        routes: Mapping[str, RouteConfig],
        metrics: ServingMetrics,
    ) -> None:
        self._models = models
        self._routes = routes
        self._metrics = metrics

    @cached_property
    def names(self) -> list[str]:
        """What clients may ask for."""
        return [*self._models, *self._routes]

    async def choose(self, asked: Asked, task: Capability) -> Choice:
        """Who answers.

        Raises:
            UnknownModel: Neither a model nor a route has that name.
        """
        if asked.name in self._models:
            choice = self._chosen(asked.name, [], "name")
        elif asked.name in self._routes:
            choice = await self._by_route(self._routes[asked.name], asked)
        else:
            names = ", ".join(repr(name) for name in self.names)
            raise UnknownModel(
                f"There is no model {asked.name[:200]!r}.", f"This gateway serves {names}."
            )
        self._metrics.routed.labels(asked.name, choice.models[0].name, choice.why).inc()
        return choice

    async def _by_route(self, route: RouteConfig, asked: Asked) -> Choice:
        intent = await self._intent(route, asked)
        for rule in route.rules:
            if _fits(rule.when, asked, intent):
                why = "intent" if rule.when.intent else "rule"
                return self._chosen(rule.to, route.fallbacks, why, self._shadow(route))
        to = weighted(route.to, place(asked.conversation, asked.name))
        why = "split" if len(route.to) > 1 else "name"
        return self._chosen(to, route.fallbacks, why, self._shadow(route))

    def _chosen(
        self, name: str, fallbacks: list[str], why: str, shadow: ServedModel | None = None
    ) -> Choice:
        model = self._models[name]
        order = dict.fromkeys([name, *model.config.fallbacks, *fallbacks])
        return Choice(tuple(self._models[one] for one in order), why, shadow)

    def _shadow(self, route: RouteConfig) -> ServedModel | None:
        if route.shadow is None or place(None, "") >= route.shadow.share:
            return None
        return self._models[route.shadow.to]

    async def _intent(self, route: RouteConfig, asked: Asked) -> str | None:
        """What the request is about; None if the classifier is not sure, or does not answer."""
        if route.classifier is None or not any(rule.when.intent for rule in route.rules):
            return None
        classifier = self._models[route.classifier]
        try:
            leased, _ = classifier.table.route()
            with leased.lease():
                scores, _ = await leased.backend.classify([asked.text[:_INTENT_CHARS]])
                best = int(np.argmax(scores[0]))
                sure = float(scores[0][best]) >= route.min_confidence
                return leased.backend.labels[best] if sure else None
        except Exception as error:
            # Rather an answer from the model that answers otherwise than none.
            logger.warning("The classifier %s did not answer: %s", route.classifier, error)
            return None


def _fits(when: When, asked: Asked, intent: str | None) -> bool:
    least, most = when.min_prompt_chars, when.max_prompt_chars
    return (
        (when.intent is None or when.intent == intent)
        and (when.tenant is None or when.tenant == asked.tenant)
        and all(asked.metadata.get(key) == value for key, value in when.metadata.items())
        and (least is None or asked.num_chars >= least)
        and (most is None or asked.num_chars <= most)
    )
