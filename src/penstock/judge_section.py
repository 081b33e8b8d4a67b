"""The recipe's ``observe.judge`` section: which model judges answers, by what, and for how much."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from penstock.section import Section
from penstock.serve_section import Price


class JudgeSection(Section):
    """A model that judges logged answers, and what it takes until its word counts."""

    model: str = Field(min_length=1, max_length=200, description="What its server calls it.")
    base_url: str = Field(
        pattern=r"^https?://[^\s]+$",
        description="Of an OpenAI-compatible API, with its /v1. A Penstock gateway is one.",
    )
    api_key_env: str | None = Field(
        None, min_length=1, description="The environment variable that holds the server's key."
    )
    criteria: str = Field(
        min_length=1,
        max_length=4_000,
        description="What makes an answer good, in your words. Other words are another judge.",
    )
    sample: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Share of the logged answers, by a digest of their ids. Answers that people "
        "have scored are judged besides, for comparison.",
    )
    days: int = Field(30, ge=1, le=3_650, description="Older answers are not judged any more.")
    max_questions_per_day: int = Field(
        500, ge=1, description="Sent to the model in a UTC day; a pair takes two."
    )
    usd_per_day: float | None = Field(
        None, gt=0, description="For a UTC day; needs `price`. Null: only questions are counted."
    )
    price: Price = Price()
    min_labels: int = Field(
        50, ge=10, description="Answers that people have scored, before it may count."
    )
    min_kappa: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="What the lower end of kappa's 95 % interval must reach before it may count.",
    )
    good_from: float = Field(
        0.75,
        gt=0,
        le=1,
        description="An answer is good from this score: of people, and of the judge, whose marks "
        "1 to 5 are 0, 0.25, ... 1.",
    )
    max_labels_per_rater: int = Field(
        25, ge=1, description="More labels of one rater do not count: nobody decides alone."
    )
    reviewers: list[str] = Field(
        [], description="Tenants whose feedback counts for the answers of others, too."
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Chance of a `quality` alarm after a promotion that changed nothing.",
    )
    timeout_s: float = Field(60, gt=0, description="For one reply.")
    max_tries: int = Field(3, ge=1, le=10, description="While the server is away or overloaded.")
    num_concurrent: int = Field(4, ge=1, le=64, description="Questions under way at once.")
    max_characters: int = Field(
        24_000, ge=100, description="A longer question with its answers is not judged."
    )
    max_reply_tokens: int = Field(512, ge=16, description="For one reply.")
    reply_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What its server calls that limit."
    )
    temperature: float | None = Field(
        0, ge=0, le=2, description="Null: none is sent; some models take none."
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address_alone(cls, url: str) -> str:
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("an address without user, query and fragment; a key has no place here")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _has_a_price_to_count(self) -> JudgeSection:
        costs = self.price.prompt_per_million or self.price.completion_per_million
        if self.usd_per_day is not None and not costs:
            raise ValueError("usd_per_day: set price, or nothing can be counted")
        return self
