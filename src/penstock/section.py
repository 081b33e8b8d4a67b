"""What every section of a recipe is made of: frozen models, their marks and short forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from penstock import registry


class Place:
    """Marks a field that says where, not what: it never enters a fingerprint."""


class Later:
    """Marks a field that came after results were made without it.

    While it is null it is not in the canonical form, so those results stay hits.
    """


def known(seam: str) -> Callable[[str], str]:
    """A check that a name stands for something; ``"module:Object"`` is found when used."""

    def check(name: str) -> str:
        if ":" not in name and name not in registry.names(seam):
            raise ValueError(
                f"not one of the {seam}.{registry.did_you_mean(name, registry.names(seam))}"
            )
        return name

    return check


class WithoutKey:
    """Says in a JSON Schema that an object does not have a key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        """The object's own schema, with the key ruled out."""
        return {**handler(core), "not": {"required": [self.key]}}


class Section(BaseModel):
    """Base of all recipe sections and adapter options: frozen, no unknown keys."""

    # Built with the recipe that holds it: of the others, most are never used in one command.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Plugin(Section):
    """A section whose ``type`` chooses an adapter, which checks the other keys itself."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, defer_build=True)

    type: str = Field(description='A registered name, or "module:Object" beside the recipe.')

    @property
    def extra(self) -> dict[str, Any]:
        """The keys that are the adapter's own options."""
        return dict(self.__pydantic_extra__ or {})


def named_step(value: Any) -> Any:
    """Accept ``dedupe`` and ``filter: {...}`` for ``{type: ..., ...}``."""
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, dict) and "type" not in value and len(value) == 1:
        (name, options), *_ = value.items()
        if options is None or isinstance(options, dict):
            return {"type": name, **(options or {})}
    return value


# ``filter: {...}``: one key, which is the name.
ShortStep = Annotated[
    dict[str, dict[str, Any] | None], Field(min_length=1, max_length=1), WithoutKey("type")
]
