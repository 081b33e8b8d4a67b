"""The recipe's `train` section: from what a version is made, how, and where."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from penstock.classifier_section import Classifier
from penstock.section import Later, Place, Plugin, Section, ShortStep, known, named_step


class ModelShape(Section):
    """A Llama-style model to train from scratch."""

    hidden_size: int = Field(128, ge=8, description="Width.")
    intermediate_size: int = Field(384, ge=8, description="Width of the feed-forward layers.")
    num_layers: int = Field(3, ge=1, description="Depth.")
    num_heads: int = Field(4, ge=1, description="Attention heads; they divide `hidden_size`.")
    num_kv_heads: int = Field(4, ge=1, description="Key and value heads; they divide `num_heads`.")
    max_position_embeddings: int = Field(512, ge=16, description="Longest context, in tokens.")
    tie_embeddings: bool = Field(True, description="Input and output share one embedding.")

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelShape:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}"
            )
        return self


# As in MLflow: models:/NAME/VERSION.
_REGISTERED = re.compile(r"models:/([A-Za-z][A-Za-z0-9_.-]*)/([1-9][0-9]*)")


def registered(base: str) -> tuple[str, int] | None:
    """Name and version of a base that is a registered version, or None."""
    found = _REGISTERED.fullmatch(base)
    return None if found is None else (found[1], int(found[2]))


def _pinned_version(base: str) -> str:
    if base.startswith("models:") and registered(base) is None:
        raise ValueError(
            "a registered version is models:/NAME/VERSION, such as models:/support/3; "
            "an alias may mean another version tomorrow"
        )
    return base


class LauncherConfig(Plugin):
    """Where the training loop runs."""

    type: Annotated[str, AfterValidator(known("launchers"))] = Field(
        "local", description="Where the training loop runs. `launcher: ray` is short for it."
    )


class Lora(Section):
    """Low-rank adapters, trained in place of the weights and merged into them at the end."""

    rank: int = Field(16, ge=1, description="Of each update: more learns more, and costs more.")
    alpha: float = Field(32.0, gt=0, description="Updates are scaled by `alpha` / `rank`.")
    dropout: float = Field(0.0, ge=0, lt=1, description="On what the adapters read.")
    target_modules: list[str] | None = Field(
        None,
        min_length=1,
        description="Linear layers that get one, by the last part of their names; null: all "
        "but the output layer.",
    )


class Train(Section):
    """How a model version is made."""

    launcher: Annotated[
        LauncherConfig,
        Place(),
        BeforeValidator(named_step, json_schema_input_type=LauncherConfig | str | ShortStep),
    ] = LauncherConfig()
    base: Annotated[str, AfterValidator(_pinned_version)] = Field(
        "scratch",
        description="'scratch', or what to start from: a local folder, `models:/NAME/VERSION` "
        "of a registered version, or a hub name.",
    )
    base_revision: str | None = Field(None, description="Commit of a hub model; required for one.")
    lora: Annotated[Lora | None, Later()] = Field(
        None,
        description="Null trains all weights, and so does the first training of a model "
        "from scratch.",
    )
    classifier: Annotated[Classifier | None, Later()] = Field(
        None,
        description="Null: a model that generates. Else one that classifies; of this section it "
        "reads nothing else.",
    )
    continue_from_production: bool = Field(
        True, description="Continue from the served version when there is one."
    )
    rows: Literal["all", "new"] = Field(
        "all", description="When continuing: all rows, or those new since that version."
    )
    replay: float = Field(0.25, ge=0, le=1, description="Share of older rows mixed in with 'new'.")
    model: ModelShape = ModelShape()
    epochs: float = Field(1.0, gt=0, description="Passes over the rows.")
    max_steps: int | None = Field(None, ge=1, description="Ends training early, or at last.")
    batch_size: int = Field(
        32, ge=1, description="Rows per batch, over all workers: they share it."
    )
    gradient_accumulation: int = Field(1, ge=1, description="Batches per optimizer step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak.")
    continue_learning_rate: float | None = Field(
        None, gt=0, description="When continuing; null takes learning_rate."
    )
    continue_epochs: float | None = Field(None, gt=0, description="When continuing.")
    continue_max_steps: int | None = Field(None, ge=1, description="When continuing.")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="How the learning rate goes down."
    )
    warmup_steps: int = Field(20, ge=0, description="Steps until the peak.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    packing: Annotated[Literal["whole", "split"] | None, Later()] = Field(
        None,
        description="Rows in blocks of `prepare.max_length`: `whole`, as they fit best, or "
        "`split`, one after the other and cut at each block's end. Null: chats are not packed, "
        "plain text is split.",
    )
    packed_attention: Annotated[Literal["apart", "across"] | None, Later()] = Field(
        None,
        description="Whether rows of a block see the rows before them. Null: `apart`, they do not.",
    )
    group_by_length: bool = Field(True, description="Batches hold rows of similar length.")
    checkpoint_every_steps: Annotated[int, Place()] = Field(
        200, ge=1, description="A killed training continues from the newest checkpoint."
    )
