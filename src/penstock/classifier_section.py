"""The recipe's ``train.classifier`` section, and what of a recipe goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from penstock.section import Section
from penstock.serve_section import DEFAULT_EMBEDDING

if TYPE_CHECKING:
    from penstock.recipe import Recipe

# The task made of the validation split: bits per byte of its responses, or a classifier's
# accuracy. It needs nothing but the user's own rows.
HELD_OUT = "held_out"


class Classifier(Section):
    """Labels told apart by a head on the vectors of an encoder, which stays as it is."""

    text: str = Field("text", min_length=1, description="The column that is read.")
    label: str = Field("label", min_length=1, description="The column that says what it is.")
    encoder: str = Field(
        DEFAULT_EMBEDDING,
        min_length=1,
        description="What makes vectors: a packaged model, a local folder, or a hub name.",
    )
    encoder_revision: str | None = Field(
        None, description="Commit of a hub model; required for one."
    )
    regularisation: float = Field(
        0.1,
        gt=0,
        description="Half of this times the squared weights is added to the summed losses: more "
        "makes probabilities more even.",
    )


def require_fit(recipe: Recipe) -> None:
    """Check the other sections of a recipe that trains a classifier.

    Raises:
        ValueError: One says what only a model that writes can do.
    """
    if set(recipe.evaluate.tasks) != {HELD_OUT} or recipe.evaluate.backend.type != "hf":
        raise ValueError(
            f"evaluate: a classifier writes no text that lm-eval could judge: tasks must be "
            f"[{HELD_OUT}], and backend be left out"
        )
    for place, value in (
        ("prepare.text_column", recipe.prepare.text_column),
        ("features", recipe.features),
        ("train.packing", recipe.train.packing),
        ("train.lora", recipe.train.lora),
        ("train.base", None if recipe.train.base == "scratch" else recipe.train.base),
    ):
        if value is not None:
            raise ValueError(f"{place} is not for classifiers: leave it out")
    for name, model in recipe.serve.models.items():
        ours = model.source is None and model.registered in (None, recipe.model_name)
        if ours and model.task != "classify":
            raise ValueError(
                f"serve.models.{name}: this recipe trains a classifier, and task is "
                f"{model.task!r}: say task: classify"
            )
