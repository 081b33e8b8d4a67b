"""The recipe's ``serve`` section: models, how requests find them, and the gateway's limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from penstock.answer_format import AnswerFormat
from penstock.section import Plugin, Section, ShortStep, known, named_step
from penstock.traces_section import TracesConfig

ModelTask = Literal["generate", "embed", "rerank", "classify"]
ModelName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]

# What computes a task unless a recipe says otherwise, and on what.
DEFAULT_BACKENDS: dict[ModelTask, str] = {
    "generate": "ctranslate2",
    "embed": "sentence_transformers",
    "rerank": "sentence_transformers",
    "classify": "sentence_transformers",
}
DEFAULT_EMBEDDING = "all-MiniLM-L6-v2"


def answer_format(pattern: str) -> str:
    """A check that a format is one."""
    if pattern != "json":
        AnswerFormat(pattern)
    return pattern


class BackendConfig(Plugin):
    """What computes a model's answers."""

    type: Annotated[str, AfterValidator(known("backends"))] = Field(
        description="What computes. `backend: vllm` is short for it."
    )


class Replicas(Section):
    """How many copies of a model there may be, where the backend scales it."""

    min: int = Field(1, ge=0, description="At least so many.")
    max: int = Field(1, ge=1, description="At most so many.")
    target_ongoing_requests: float = Field(
        5, gt=0, description="More requests in flight for each copy than this: another copy."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Resources(Section):
    """What one copy of a model takes, where the backend places it."""

    num_cpus: float = Field(1, ge=0, description="Cores.")
    num_gpus: float = Field(0, ge=0, description="GPUs; 0.5 lets two copies share one.")


class Price(Section):
    """What tokens cost, in US dollars for a million."""

    prompt_per_million: float = Field(0, ge=0, description="Tokens read.")
    completion_per_million: float = Field(0, ge=0, description="Tokens written.")


class ModelConfig(Section):
    """One model that clients may ask for."""

    task: ModelTask = Field("generate", description="What it does.")
    registered: ModelName | None = Field(
        None,
        description="A registered model, whose versions come and go behind this name. Null, and "
        "no `source`: the one that this recipe trains.",
    )
    version: Annotated[int, Field(ge=1)] | ModelName | None = Field(
        None,
        description="Of a registered model: an alias, which is followed, or a number. Null is "
        "`deploy.alias`.",
    )
    source: ModelName | None = Field(
        None,
        description="A model that is not registered: a packaged one, a folder, a hub name, or "
        "what the server behind an `openai` backend calls it.",
    )
    revision: str | None = Field(None, description="Commit of a hub model; required for one.")
    backend: (
        Annotated[
            BackendConfig,
            BeforeValidator(named_step, json_schema_input_type=BackendConfig | str | ShortStep),
        ]
        | None
    ) = Field(None, description="Null: `ctranslate2` generates, `sentence_transformers` the rest.")
    labels: list[ModelName] = Field(
        [], description="Of a classifier without a trained head: what texts may be about."
    )
    format: Annotated[str, AfterValidator(answer_format)] | None = Field(
        None,
        description="What every answer must be: `json`, or a regular expression (RE2) that the "
        "whole answer matches. A version on trial that fails this more often is taken back.",
    )
    replicas: Replicas = Replicas()
    resources: Resources = Resources()
    price: Price = Price()
    max_concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Requests computed at once; null is `serve.max_concurrency`."
    )
    max_queue: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Requests that wait; null is `serve.max_queue`."
    )
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="For the first token, or a whole answer that is not streamed."
    )
    retries: int = Field(1, ge=0, le=5, description="Further tries before anything was sent.")
    fallbacks: list[ModelName] = Field([], description="Models asked, in order, when it fails.")

    @property
    def backend_name(self) -> str:
        """What computes."""
        return self.backend.type if self.backend else DEFAULT_BACKENDS[self.task]

    @property
    def options(self) -> dict[str, Any]:
        """What the user set for the backend."""
        return self.backend.extra if self.backend else {}

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if self.registered is not None and self.source is not None:
            raise ValueError("registered and source: a model comes from one of them")
        if self.labels and self.task != "classify":
            raise ValueError(f"labels are a classifier's, and task is {self.task!r}")
        return self


class When(Section):
    """Which requests a rule is about; all that is said must hold."""

    intent: ModelName | None = Field(None, description="What the classifier calls the request.")
    tenant: str | None = Field(None, description="Whose key it is.")
    metadata: dict[str, str] = Field({}, description="What the request's `metadata` says.")
    min_prompt_chars: int | None = Field(None, ge=0, description="Prompts at least this long.")
    max_prompt_chars: int | None = Field(None, ge=0, description="Prompts at most this long.")


class Rule(Section):
    """Where some requests go."""

    when: When = Field(description="Which requests.")
    to: ModelName = Field(description="The model that answers them.")


class Shadow(Section):
    """A model that gets copies of requests, and whose answers nobody sees."""

    to: ModelName = Field(description="The model.")
    share: float = Field(1.0, gt=0, le=1, description="Of the requests.")


class RouteConfig(Section):
    """A name behind which several models answer."""

    rules: list[Rule] = Field([], description="The first that fits decides.")
    to: dict[ModelName, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="Otherwise: model -> weight. A conversation stays where it is."
    )
    classifier: ModelName | None = Field(None, description="The model that tells intents.")
    min_confidence: float = Field(
        0.5, ge=0, le=1, description="A classifier that is less sure than this has not spoken."
    )
    fallbacks: list[ModelName] = Field([], description="Models asked when the chosen one fails.")
    shadow: Shadow | None = Field(None, description="Null: nobody listens.")

    @property
    def targets(self) -> set[str]:
        """All models that may answer."""
        shadow = {self.shadow.to} if self.shadow else set()
        return {*self.to, *(rule.to for rule in self.rules), *self.fallbacks} | shadow

    @model_validator(mode="before")
    @classmethod
    def _one_target(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("to"), str):
            return {**value, "to": {value["to"]: 1.0}}
        return value

    @model_validator(mode="after")
    def _intents_have_a_classifier(self) -> RouteConfig:
        if self.classifier is None and any(rule.when.intent for rule in self.rules):
            raise ValueError("rules name intents: name the classifier that tells them")
        return self


class LogConfig(Section):
    """The request log: a row for each request, in the project's store."""

    sample: float = Field(1.0, gt=0, le=1, description="Share of the requests that get a row.")
    content: bool = Field(False, description="Keep what was asked and answered, too.")
    redact: bool = Field(
        True,
        description="Personal data and secrets give way to placeholders, in content and feedback.",
    )
    flush_s: float = Field(
        10.0, gt=0, description="Rows are written this often; a kill loses no older ones."
    )
    flush_rows: int = Field(1_000, ge=1, description="So many rows are written at once, earlier.")
    retention_days: Annotated[int, Field(ge=1)] | None = Field(
        90, description="Older days go, with their feedback. Null: nothing goes."
    )


class Serve(Section):
    """The gateway; none of it enters a fingerprint."""

    host: str = Field("127.0.0.1", description="Where to listen.")
    port: int = Field(8000, ge=0, le=65535, description="0 picks a free one.")
    metrics_port: int | None = Field(9090, ge=0, le=65535, description="Null: no metrics.")
    workers: int = Field(
        1, ge=1, le=256, description="Gateway processes behind the port; each loads the models."
    )
    keys: bool = Field(
        False,
        description="Whether clients need an API key. Required where others than this machine "
        "can reach the gateway.",
    )
    models: dict[ModelName, ModelConfig] = Field(
        {},
        description="Name -> model. Empty: the model that this recipe trains, and the packaged "
        f"embedding model `{DEFAULT_EMBEDDING}`.",
    )
    routes: dict[ModelName, RouteConfig] = Field(
        {}, description="Further names clients may ask for -> who answers."
    )
    try_before_promotion: bool = Field(
        True,
        description="A model that passed the gate is loaded in its backend and answers one "
        "prompt, or it is not registered.",
    )
    max_queue: int = Field(64, ge=0, description="Requests that wait; the next get HTTP 429.")
    max_concurrency: int = Field(16, ge=1, description="Requests computed at once, per model.")
    request_timeout_s: float = Field(
        60.0, gt=0, description="From a request's first byte to its answer's last; then HTTP 504."
    )
    max_body_bytes: int = Field(2**20, ge=1024, description="Longer bodies get HTTP 413.")
    drain_timeout_s: float = Field(30.0, ge=0, description="For answers in flight at SIGTERM.")
    log: LogConfig | None = Field(LogConfig(), description="Null: requests are not logged.")
    poll_interval_s: float = Field(0.5, gt=0, description="How often the pointer is read.")
    traces: TracesConfig | None = Field(None, description="Null: no request is traced.")
    console: bool = Field(
        False,
        description="Pages about the project below `/console`. Where others can reach the "
        "gateway, `PENSTOCK_CONSOLE_KEY` must hold an admin key.",
    )

    @model_validator(mode="after")
    def _names_are_known(self) -> Serve:
        if self.routes and not self.models:
            raise ValueError("routes: name the models that they choose from under serve.models")
        for where, name in self._mentioned():
            if name not in self.models:
                raise ValueError(f"{where}: there is no model {name!r} under serve.models")
        if both := self.models.keys() & self.routes.keys():
            raise ValueError(f"routes: {min(both)!r} is a model's name already")
        return self

    @model_validator(mode="after")
    def _who_stands_in_does_the_same(self) -> Serve:
        for name, model in self.models.items():
            self._check_tasks(f"models.{name}.fallbacks", {name, *model.fallbacks})
        for name, route in self.routes.items():
            self._check_tasks(f"routes.{name}", route.targets)
            if route.classifier and self.models[route.classifier].task != "classify":
                raise ValueError(
                    f"routes.{name}.classifier: {route.classifier!r} does not classify"
                )
        return self

    def _check_tasks(self, where: str, names: set[str]) -> None:
        tasks = {self.models[name].task for name in names}
        if len(tasks) > 1:
            raise ValueError(
                f"{where}: these models do different things: {', '.join(sorted(tasks))}"
            )

    def _mentioned(self) -> Iterator[tuple[str, str]]:
        for name, model in self.models.items():
            yield from ((f"models.{name}.fallbacks", other) for other in model.fallbacks)
        for name, route in self.routes.items():
            classifier = {route.classifier} if route.classifier else set()
            yield from ((f"routes.{name}", other) for other in sorted(route.targets | classifier))

    def of_registered(self, model: str) -> ModelConfig | None:
        """What is said about a registered model, by the first name that it is served under."""
        served = (one for one in self.models.values() if one.registered == model)
        return next(served, None)

    def completed(self, trained: str, task: ModelTask = "generate") -> Serve:
        """With the models that are served when none are named.

        Args:
            trained: The registered model that the recipe trains.
            task: What that does.
        """
        models = self.models or {
            trained: ModelConfig(task=task),
            DEFAULT_EMBEDDING: ModelConfig(task="embed", source=DEFAULT_EMBEDDING),
        }
        named = {name: _named(model, trained) for name, model in models.items()}
        return self.model_copy(update={"models": named})


def _named(model: ModelConfig, trained: str) -> ModelConfig:
    if model.source is not None or model.registered is not None:
        return model
    return model.model_copy(update={"registered": trained})
