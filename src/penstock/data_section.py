"""The recipe's sections about rows: `sources`, `features`, `ingest`, `validate`, `prepare`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from penstock.section import Later, Place, Plugin, Section, ShortStep, known, named_step


class SourceConfig(Plugin):
    """One source of raw rows."""

    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Our column name -> the source's own, where they differ.",
    )


class FeaturesConfig(Plugin):
    """Features of the user or thing that a row is about, as part of its prompt."""


class TransformConfig(Plugin):
    """One step of preparation."""


class ContractFile(Section):
    """A contract in a file of its own."""

    engine: Literal["soda"] = Field(description="Whose contract it is.")
    file: Annotated[str, Place()] = Field(
        description="The contract, relative to the recipe; it enters by its digest."
    )
    python: Annotated[str | None, Place()] = Field(
        None,
        description="The interpreter that has the engine, relative to the recipe; null is "
        "Penstock's own.",
    )


class RuleConfig(Plugin):
    """One rule about rows."""


class Ingest(Section):
    """When there is enough new data to run for."""

    min_new_examples: int = Field(
        1000, ge=0, description="With fewer new examples since the last trained version: SKIPPED."
    )


def _check_order(rule: Any) -> Any:
    if rule.min > rule.max:
        raise ValueError(f"min {rule.min} is above max {rule.max}")
    return rule


class LengthRule(Section):
    """Bounds on a text column, in characters."""

    min: int = Field(ge=0, description="Shortest.")
    max: int = Field(ge=1, description="Longest.")

    _ordered = model_validator(mode="after")(_check_order)


class RangeRule(Section):
    """Bounds on a numeric column."""

    min: float = Field(description="Smallest.")
    max: float = Field(description="Largest.")

    _ordered = model_validator(mode="after")(_check_order)


class Expectation(Section):
    """Any Great Expectations expectation by name."""

    name: str = Field(description="Such as expect_column_values_to_match_regex.")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Its arguments.")


class Validate(Section):
    """The contract every new row must meet."""

    not_null: list[str] = Field(
        ["instruction", "response"], description="Columns that must hold a value."
    )
    length: dict[str, LengthRule] = Field(
        {
            "instruction": LengthRule(min=10, max=4096),
            "response": LengthRule(min=5, max=8192),
        },
        description="Column -> bounds on its text, in characters.",
    )
    range: dict[str, RangeRule] = Field(
        {"quality_score": RangeRule(min=0.6, max=1.0)},
        description="Column -> bounds on its number.",
    )
    expectations: list[Expectation] = Field(
        [], description="Further rules of Great Expectations, by name."
    )
    rules: list[
        Annotated[
            RuleConfig,
            BeforeValidator(named_step, json_schema_input_type=RuleConfig | str | ShortStep),
        ]
    ] = Field(
        [],
        description="Rules about rows for language models, listed below. `encoding` is short for "
        "`{type: encoding}`.",
    )
    contracts: list[ContractFile] = Field([], description="Contracts in files of their own.")
    max_bad_rows: float = Field(
        0.0, ge=0, lt=1, description="Share of failing rows that is tolerated (and quarantined)."
    )


class TokenizerConfig(Section):
    """A byte-level BPE tokenizer, trained when the model starts from scratch."""

    vocab_size: int = Field(4096, ge=300, le=200_000, description="Most tokens it may have.")


class EngineConfig(Plugin):
    """Where transforms run."""

    type: Annotated[str, AfterValidator(known("engines"))] = Field(
        "local", description="Where transforms run. `engine: ray` is short for it."
    )


class Prepare(Section):
    """From valid rows to token ids with a loss mask."""

    engine: Annotated[
        EngineConfig,
        Place(),
        BeforeValidator(named_step, json_schema_input_type=EngineConfig | str | ShortStep),
    ] = EngineConfig()
    transforms: list[
        Annotated[
            TransformConfig,
            BeforeValidator(named_step, json_schema_input_type=TransformConfig | str | ShortStep),
        ]
    ] = Field(
        [
            TransformConfig(type="normalise"),
            TransformConfig(type="dedupe"),
            TransformConfig(type="split"),
        ],
        description="The steps, in order. `dedupe` is short for `{type: dedupe}`, "
        "and `filter: {...}` for `{type: filter, ...}`.",
    )
    tokenizer: TokenizerConfig = TokenizerConfig()
    chat_template: str | None = Field(
        None, description="Jinja; null takes the base model's, or Penstock's own from scratch."
    )
    text_column: Annotated[str | None, Later()] = Field(
        None,
        min_length=1,
        description="Null: chats of `instruction` and `response`. A column: plain text, for "
        "continued pretraining; every token is learned.",
    )
    max_length: int = Field(
        512,
        ge=8,
        description="Longer chats are removed, in tokens; packed rows make blocks of this length.",
    )
