"""Features of a request's entity, as they are now, in its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.errors import FeatureError, InvalidRequest, NotReady
from penstock.features.base import FeatureStore
from penstock.monitoring.metrics import ServingMetrics
from penstock.prompt import Prompt, Value


class OnlineFeatures:
    """Makes prompts as the model's training made them; blocking, so it runs in threads.

    Args:
        store: Where to look features up; None when the recipe names no store.
        metrics: Told how lookups end.
    """

    def __init__(self, store: FeatureStore | None, metrics: ServingMetrics) -> None:
        self._store = store
        self._lookups = metrics.feature_lookups

    def filled(
        self, prompt: Prompt, messages: Sequence[dict[str, str]], metadata: Mapping[str, str]
    ) -> list[dict[str, str]]:
        """The conversation with features in its first user turn.

        Args:
            prompt: The model's own.
            messages: ``{"role": ..., "content": ...}``, oldest first.
            metadata: The request's; holds the entity's keys.

        Raises:
            InvalidRequest: The entity is not named, or has no features.
            NotReady: The feature store does not answer and there is a value without a default.
        """
        turn = next((i for i, one in enumerate(messages) if one["role"] == "user"), None)
        if turn is None:
            raise InvalidRequest("There is no user message.", param="messages")
        values = self._values(prompt, metadata)
        text = prompt.fill(messages[turn]["content"], values)
        if text is None:
            missing = ", ".join(prompt.missing(values))
            raise InvalidRequest(
                f"Nothing is known of this entity: {missing}.",
                "Send the key of an entity that the feature store knows.",
                "metadata",
            )
        filled = {**messages[turn], "content": text}
        return [*messages[:turn], filled, *messages[turn + 1 :]]

    def _values(self, prompt: Prompt, metadata: Mapping[str, str]) -> Mapping[str, Value | None]:
        can_do_without = not prompt.missing({})
        unnamed = [name for name in prompt.entities.values() if name not in metadata]
        if unnamed and not can_do_without:
            raise InvalidRequest(
                f"'metadata' does not say {', '.join(unnamed)}.",
                f'Send "metadata": {{"{unnamed[0]}": "..."}}.',
                "metadata",
            )
        if unnamed:
            self._lookups.labels("unnamed").inc()
            return {}
        if self._store is None:
            raise NotReady(
                "This model's prompts need features, and the recipe names no feature store.",
                "Put its `features` section back into the recipe, and start the server again.",
            )
        entity = {key: metadata[name] for key, name in prompt.entities.items()}
        try:
            values = self._store.now(entity, prompt.names)
        except FeatureError as error:
            self._lookups.labels("failed").inc()
            if can_do_without:
                return {}
            raise NotReady("The feature store does not answer.", "Try again.") from error
        self._lookups.labels("missing" if prompt.missing(values) else "found").inc()
        return values
