"""The recipe: the one YAML file a user writes, as frozen models.

A recipe says *what* is wanted. Fields that say *where* (paths, hosts, workers,
credentials) carry the ``Place`` marker and stay out of ``canonical``, the form
that enters fingerprints: moving a project or adding a worker retrains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    model_validator,
)

from penstock import registry
from penstock.classifier_section import HELD_OUT, require_fit
from penstock.data_section import (
    FeaturesConfig,
    Ingest,
    Prepare,
    SourceConfig,
    Validate,
)
from penstock.folders import SCHEMES
from penstock.observe_section import Observe
from penstock.orchestrate_section import Orchestrate
from penstock.rollout_section import RolloutSection
from penstock.section import Later, Place, Plugin, Section, ShortStep, known, named_step
from penstock.serve_section import Serve
from penstock.train_section import Train

DEFAULT_EVALUATOR = "hf"


class EvaluatorConfig(Plugin):
    """What the model computes in while lm-eval measures it."""

    type: Annotated[str, AfterValidator(known("evaluators"))] = Field(
        DEFAULT_EVALUATOR,
        description="What the model computes in. `backend: vllm` is short for it. Any but `hf` "
        "enters the fingerprint, with its options and its library's version.",
    )


class Evaluate(Section):
    """What lm-eval measures."""

    tasks: list[str] = Field(
        min_length=1,
        description="lm-eval tasks by name. `held_out` is made from the validation split: "
        "bits per byte of its responses, or a classifier's accuracy (`acc`).",
    )
    task_dir: Annotated[str | None, Place()] = Field(None, description="A folder of task YAMLs.")
    num_fewshot: int | None = Field(None, ge=0, description="Null takes each task's own.")
    limit: int | None = Field(None, ge=1, description="Items per task; null takes all.")
    batch_size: int = Field(64, ge=1, description="Requests per batch.")
    # The stage adds it to its settings, where it is not the default.
    backend: Annotated[
        EvaluatorConfig,
        Place(),
        BeforeValidator(named_step, json_schema_input_type=EvaluatorConfig | str | ShortStep),
    ] = EvaluatorConfig()
    apply_chat_template: bool = Field(
        False, description="Ask through the chat template, as a user would."
    )


Margin = Annotated[float, Field(ge=0)]


class Gate(Section):
    """What a candidate must show before it may serve."""

    min: dict[str, float] = Field(default_factory=dict, description="TASK or TASK/METRIC -> floor.")
    max: dict[str, float] = Field(
        default_factory=dict, description="The same for metrics where lower is better."
    )
    max_regression: Margin | dict[str, Margin] = Field(
        0.02, description="What may be lost against the baseline: one number, or metric -> number."
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Chance of passing a true regression as large as the margin.",
    )
    on_inconclusive: Literal["block", "point_estimate"] = Field(
        "block",
        description="`point_estimate` accepts the plain difference, and the decision records it.",
    )

    @model_validator(mode="after")
    def _first_model_has_floors(self) -> Gate:
        if not self.min and not self.max:
            raise ValueError("needs a floor under min or max: the first model has only those")
        return self


class Register(Section):
    """Under which name versions are registered."""

    model: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,199}$",
        description="Null takes the recipe's name.",
    )


class Deploy(Section):
    """Which pointer a passed version moves."""

    alias: str = Field(
        "production",
        pattern=r"^[a-z][a-z0-9_-]*$",
        description="Name of the pointer that serving follows.",
    )
    # It says how to get there, not what is deployed.
    rollout: Annotated[RolloutSection | None, Place()] = Field(
        None,
        description="How a version that passed takes over; null moves the pointer at once. `{}` "
        "takes the defaults.",
    )


class Recipe(Section):
    """Everything a user says about one model, from rows to serving."""

    name: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,99}$",
        description="Of the recipe; the registered model is called the same unless "
        "`register.model` says otherwise.",
    )
    seed: int = Field(
        17, ge=0, lt=2**31, description="Of training, evaluation and the gate's resampling."
    )
    store: Annotated[str, Place()] = Field(
        ".penstock",
        description="Folder of all tables and artifacts, relative to the recipe; or a URL in an "
        "object store, as in s3://bucket/prefix.",
    )
    ledger: Annotated[str | None, Place()] = Field(
        None, description="SQLAlchemy URL; null is SQLite in the store, if that is a folder."
    )
    tracking: Annotated[str | None, Place()] = Field(
        None, description="MLflow tracking URI; null is SQLite in the store, if that is a folder."
    )
    sources: dict[str, SourceConfig] = Field(min_length=1, description="Source name -> the source.")
    features: FeaturesConfig | None = Field(None, description="Null: prompts are what rows say.")
    ingest: Ingest = Ingest()
    validate_: Validate = Field(Validate(), alias="validate")
    prepare: Prepare = Prepare()
    train: Train = Train()
    evaluate: Evaluate
    gate: Gate
    register_: Register = Field(Register(), alias="register")
    deploy: Deploy = Deploy()
    serve: Annotated[Serve, Place()] = Serve()
    observe: Annotated[Observe, Place()] = Observe()
    orchestrate: Annotated[Orchestrate, Place()] = Orchestrate()

    @model_validator(mode="after")
    def _hosts_share_one_ledger(self) -> Recipe:
        if "://" not in self.store:
            return self
        scheme, _, rest = self.store.partition("://")
        if scheme not in SCHEMES or not rest.strip("/"):
            raise ValueError(
                f"store: {self.store!r} is neither a folder nor a URL such as s3://bucket/prefix "
                f"(also: {', '.join(SCHEMES[1:])})"
            )
        if "@" in rest.partition("/")[0] and scheme not in ("abfs", "abfss"):
            raise ValueError("store: a URL with credentials in it: set them in the environment")
        missing = [name for name in ("ledger", "tracking") if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"store: hosts that share an object store must share what says what is in it: "
                f"set {' and '.join(missing)} (PostgreSQL and an MLflow server; or, for one host "
                "alone, sqlite:///ledger.db and sqlite:///mlflow.db)"
            )
        return self

    @model_validator(mode="after")
    def _examples_fit_the_model(self) -> Recipe:
        longest = self.train.model.max_position_embeddings
        if self.train.base == "scratch" and self.prepare.max_length > longest:
            raise ValueError(
                f"prepare.max_length {self.prepare.max_length} is above "
                f"train.model.max_position_embeddings {longest}"
            )
        return self

    @model_validator(mode="after")
    def _text_and_packing_fit(self) -> Recipe:
        if self.train.packing == "split" and self.prepare.text_column is None:
            raise ValueError(
                "train.packing: 'split' would cut chats in two, and the second half would be "
                "an answer to nothing: use 'whole', or prepare.text_column for plain text"
            )
        if self.train.packed_attention is not None and self.packing is None:
            raise ValueError("train.packed_attention is about packed rows: set train.packing")
        if self.features is not None and self.prepare.text_column is not None:
            raise ValueError("features are put into prompts: prepare.text_column has none")
        return self

    @model_validator(mode="after")
    def _held_out_has_rows(self) -> Recipe:
        if HELD_OUT not in self.evaluate.tasks:
            return self
        steps = self.prepare.transforms
        # A transform that is not ours may add the column itself.
        own = any(step.type not in registry.BUILTIN["transforms"] for step in steps)
        split = [step.extra.get("validation") for step in steps if step.type == "split"]
        if (not split and not own) or 0 in split:
            raise ValueError(
                f"evaluate.tasks: {HELD_OUT!r} is made from validation rows: "
                "add to prepare.transforms: {split: {validation: 0.05}}"
            )
        return self

    @model_validator(mode="after")
    def _classifier_fits(self) -> Recipe:
        if self.train.classifier is not None:
            require_fit(self)
        return self

    _folder: Path = PrivateAttr(default_factory=Path)
    _written: str = PrivateAttr(default="")

    @property
    def folder(self) -> Path:
        """The folder the recipe was read from; relative paths start here."""
        return self._folder

    @property
    def written(self) -> str:
        """The YAML as the user wrote it, with ``${VAR}`` unexpanded: safe to record."""
        return self._written

    def database(self, url: str) -> str:
        """A database URL with its file, if it is SQLite's, found from the recipe's folder."""
        relative = url.removeprefix("sqlite:///")
        if relative == url or relative in {"", ":memory:"} or relative.startswith(("/", "file:")):
            return url
        return f"sqlite:///{(self.folder / relative).resolve()}"

    @property
    def packing(self) -> Literal["whole", "split"] | None:
        """How rows are packed for training; None if they are not."""
        if self.train.packing is None and self.prepare.text_column is not None:
            return "split"
        return self.train.packing

    @property
    def model_name(self) -> str:
        """The registered model's name."""
        return self.register_.model or self.name

    @property
    def served(self) -> Serve:
        """The serve section, with the models that are served when it names none."""
        return self.serve.completed(
            self.model_name, "generate" if self.train.classifier is None else "classify"
        )

    def plugin(self, seam: str, config: Plugin) -> tuple[Any, Section]:
        """The adapter class behind a section, and its checked options."""
        adapter = registry.resolve(seam, config.type, self.folder)
        return adapter, adapter.Options.model_validate(config.extra)


def canonical(section: BaseModel) -> dict[str, Any]:
    """What ``section`` means, as plain JSON values, without its places."""
    out: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        later = value is None and any(isinstance(mark, Later) for mark in info.metadata)
        if not later and not any(isinstance(mark, Place) for mark in info.metadata):
            out[name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return canonical(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors; built-in adapters' options included."""
    schema = Recipe.model_json_schema(by_alias=True)
    for seam, definition in (
        ("sources", "SourceConfig"),
        ("features", "FeaturesConfig"),
        ("transforms", "TransformConfig"),
        ("rules", "RuleConfig"),
        ("engines", "EngineConfig"),
        ("launchers", "LauncherConfig"),
        ("evaluators", "EvaluatorConfig"),
        ("backends", "BackendConfig"),
    ):
        properties = schema["$defs"][definition]["properties"]
        properties["type"]["examples"] = registry.names(seam)
        for name in registry.names(seam):
            options = registry.resolve(seam, name).Options.model_json_schema()
            schema["$defs"] |= options.pop("$defs", {})
            for key, value in options.get("properties", {}).items():
                properties.setdefault(key, value)
    return schema
