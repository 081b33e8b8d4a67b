from decimal import Decimal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.errors import RecipeError
from penstock.serve_section import ModelConfig
from penstock.serving.prices import Price, PriceList, to_dollars, to_nanousd


def test_a_price_of_a_recipe_is_the_decimal_that_is_written_there():
    text = "{prompt_per_million: 0.1, completion_per_million: 0.000003}"
    price = Price.model_validate(yaml.safe_load(text))
    assert price.prompt_per_million == Decimal("0.1")
    assert price.nanousd(1_000_000, 0) == 100_000_000
    assert price.nanousd(0, 1_000_000) == 3_000


def test_ten_thousand_tenths_make_exactly_a_thousand():
    price = Price(prompt_per_million=Decimal("0.1"))
    assert sum(price.nanousd(10, 0) for _ in range(10_000)) == price.nanousd(100_000, 0)


def test_a_part_of_a_billionth_is_rounded_up_once_for_a_request():
    price = Price(prompt_per_million=Decimal("0.0001"), completion_per_million=Decimal("0.0001"))
    assert price.nanousd(1, 1) == 1


@given(
    prompt=st.decimals(0, 100, places=6),
    completion=st.decimals(0, 100, places=6),
    reserved=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_what_is_used_never_costs_more_than_what_was_reserved(prompt, completion, reserved, part):
    price = Price(prompt_per_million=prompt, completion_per_million=completion)
    used = [int(most * share) for most, share in zip(reserved, part, strict=True)]
    assert price.nanousd(*used) <= price.nanousd(*reserved)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_per_million": -1},
        {"prompt_per_million": "0.0000001"},
        {"prompt_per_million": "NaN"},
        {"prompt_per_million": 1, "currency": "EUR"},
        {"prompt_per_million": 1, "cached_per_million": 1},
        {},
    ],
)
def test_what_is_no_price_is_refused(wrong):
    with pytest.raises(ValidationError):
        Price.model_validate(wrong)


def test_a_model_that_is_not_listed_costs_nothing_and_is_known_to_be_missing():
    prices = PriceList({"m": Price(prompt_per_million=1)})
    assert prices.nanousd("m", 1, 1) == 1_000
    assert prices.nanousd("other", 1, 1) == 0
    assert "m" in prices
    assert "other" not in prices


def test_prices_of_a_recipe_are_those_it_sets_even_if_they_are_nothing():
    models = {
        "cheap": {"price": {"prompt_per_million": 0.1}},
        "free": {"price": {}},
        "unpriced": {},
    }
    prices = PriceList.of({name: ModelConfig(**one) for name, one in models.items()})
    assert prices.nanousd("cheap", 3, 0) == 300
    assert prices.nanousd("free", 3, 3) == 0
    assert "free" in prices
    assert "unpriced" not in prices


def test_a_price_that_cannot_be_counted_exactly_is_refused_with_its_place():
    models = {"fine": ModelConfig(price={"prompt_per_million": 0.00000012})}
    with pytest.raises(RecipeError, match=r"serve\.models\.fine\.price"):
        PriceList.of(models)


@pytest.mark.parametrize(
    ("nanousd", "dollars"),
    [(0, "0.00"), (10**9, "1.00"), (1, "1E-9"), (1_230_000_000, "1.23"), (150, "1.5E-7")],
)
def test_billionths_are_shown_as_dollars(nanousd, dollars):
    assert str(to_dollars(nanousd)) == dollars
    assert to_nanousd(to_dollars(nanousd)) == nanousd
