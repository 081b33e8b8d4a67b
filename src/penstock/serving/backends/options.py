"""Reading what a user set for a backend."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.errors import RecipeError
from penstock.registry import did_you_mean


def read_options(
    backend: str, given: Mapping[str, object], defaults: Mapping[str, int]
) -> dict[str, int]:
    """Defaults overlaid with what was given; all options are whole numbers from 0.

    Raises:
        RecipeError: An option is unknown or not a whole number.
    """
    options = dict(defaults)
    for name, value in given.items():
        if name not in defaults:
            raise RecipeError(
                f"The {backend} backend has no option {name!r}."
                f"{did_you_mean(name, sorted(defaults))}"
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise RecipeError(
                f"The {backend} backend's {name} is {value!r}; it must be a whole number from 0."
            )
        options[name] = value
    return options
