"""What tokens cost: exact, in whole billionths of a dollar."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from penstock.errors import RecipeError
from penstock.serve_section import ModelConfig

_NANO = 10**9
_PICO_PER_NANO = 1_000
# With six decimals for a million tokens, one token costs a whole number of picodollars.
PerMillion = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=6)]


class Price(BaseModel):
    """What a model's tokens cost, as decimals: what a recipe writes as 0.1 is a tenth here.

    Attributes:
        prompt_per_million: For a million tokens that the model reads.
        completion_per_million: For a million tokens that it writes.
        currency: One for all models, so that costs can be added.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_per_million: PerMillion
    completion_per_million: PerMillion = Decimal(0)
    currency: Literal["USD"] = "USD"

    def nanousd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What a request costs, in billionths of a dollar, rounded up once."""
        prompt, completion = self._pico
        return -(-(prompt_tokens * prompt + completion_tokens * completion) // _PICO_PER_NANO)

    @cached_property
    def _pico(self) -> tuple[int, int]:
        """Picodollars for a token: as many as micro-dollars for a million of them."""
        return int(self.prompt_per_million * 10**6), int(self.completion_per_million * 10**6)


class PriceList:
    """The prices of the models of one gateway; a model that is not listed costs nothing."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = dict(prices)

    @classmethod
    def of(cls, models: Mapping[str, ModelConfig]) -> PriceList:
        """The prices that a recipe sets; a model whose price it does not mention has none.

        Raises:
            RecipeError: A price is too fine or too high to be counted exactly.
        """
        set_here = {n: one.price for n, one in models.items() if "price" in one.model_fields_set}
        prices = {}
        for name, price in set_here.items():
            try:
                prices[name] = Price.model_validate(price.model_dump())
            except ValidationError as error:
                raise RecipeError(
                    f"serve.models.{name}.price: {error.errors()[0]['msg']}.",
                    "A price is for a million tokens, at most 1,000,000 with six decimals.",
                ) from None
        return cls(prices)

    def __contains__(self, model: str) -> bool:
        return model in self._prices

    def nanousd(self, model: str, prompt_tokens: int, completion_tokens: int) -> int:
        """What a request costs, in billionths of a dollar."""
        price = self._prices.get(model)
        return 0 if price is None else price.nanousd(prompt_tokens, completion_tokens)


def to_nanousd(dollars: Decimal) -> int:
    """Dollars as whole billionths of a dollar; what is below them is cut off."""
    return int(dollars * _NANO)


def to_dollars(nanousd: int) -> Decimal:
    """Billionths of a dollar as dollars, without trailing zeros but to the cent."""
    exact = (Decimal(nanousd) / _NANO).normalize()
    cents = exact.as_tuple().exponent
    return exact if isinstance(cents, int) and cents < -2 else exact.quantize(Decimal("0.01"))
