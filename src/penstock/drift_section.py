"""The recipe's ``observe.drift`` section: when traffic counts as changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from penstock.section import Section
from penstock.serve_section import DEFAULT_EMBEDDING

TextColumn = Literal["input", "output"]
Against = Literal["training", "since_promotion"]


class FalseAlarms(Section):
    """How often traffic that has not changed may raise an alarm."""

    chance: float = Field(0.05, gt=0, lt=1, description="Of any alarm in so many windows.")
    windows: int = Field(365, ge=1, description="Since a promotion, or since the last alarm.")


class DriftSection(Section):
    """Windows of the request log, and what they are compared with."""

    window_s: float = Field(
        24 * 3600.0,
        ge=60,
        description="Length of a window, aligned to midnight UTC. It should cover what repeats: "
        "by hours, night is news every evening.",
    )
    min_rows: int = Field(
        200, ge=20, description="A window with fewer conversations is not judged."
    )
    max_rows: int = Field(
        5_000, ge=20, le=50_000, description="Of more, so many are taken by chance."
    )
    columns: Annotated[list[TextColumn], Field(min_length=1)] = Field(
        ["input", "output"], description="What users said last, and what was answered."
    )
    against: Annotated[list[Against], Field(min_length=1)] = Field(
        ["training", "since_promotion"],
        description="The rows that the serving version was trained on, and the windows since it "
        "serves.",
    )
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="Of the tests of one window. They raise no alarm."
    )
    false_alarms: FalseAlarms = FalseAlarms()
    embedding: str = Field(
        DEFAULT_EMBEDDING,
        min_length=1,
        description="What makes vectors: a packaged model, or a local folder.",
    )

    @model_validator(mode="after")
    def _possible(self) -> DriftSection:
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows {self.min_rows} is above max_rows {self.max_rows}")
        for name in ("columns", "against"):
            chosen = getattr(self, name)
            if len(set(chosen)) != len(chosen):
                raise ValueError(f"{name}: {chosen} names something twice")
        return self
