"""What a feature store is: values of entities as they were at a time, and as they are now.

A recipe's ``features`` section puts such values into the prompt. In training
each row gets the values of its own time (a later value would teach the model
to know the future), in serving the values of now. Both fill the same template,
which travels in the model's folder: a rollback also goes back to the prompt
that the version was trained with.

To add a feature store, write one file with a class like ``FeatureStore`` below,
add one line to ``registry.BUILTIN`` (or name it in a recipe as
``"module:Object"``), and pass ``tests/conformance/test_feature_stores.py``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
from pydantic import Field, model_validator

from penstock.prompt import INSTRUCTION, Prompt, Value, short_name
from penstock.section import Section

# The column of ``at``'s rows that holds their times: timestamp[us, UTC].
TIME = "event_timestamp"

_REFERENCE = re.compile(r"[A-Za-z_]\w*:[A-Za-z_]\w*")


class FeatureOptions(Section):
    """Which features enter a prompt, and how."""

    names: tuple[str, ...] = Field(min_length=1, description="Features, as VIEW:FEATURE.")
    entities: dict[str, str] = Field(
        min_length=1,
        description="The store's join key -> the column of the rows that holds it; requests "
        "carry it under the same name in `metadata`.",
    )
    timestamp: str = Field(
        description="The column with each row's time: a timestamp, or text in ISO 8601."
    )
    template: str = Field(
        description="The prompt, with {FEATURE} and {instruction} in braces; {{ is a brace."
    )
    defaults: dict[str, Value] = Field(
        {},
        description="FEATURE -> value for entities that have none. Without one, such a row is "
        "removed, and such a request refused.",
    )

    @model_validator(mode="after")
    def _template_fits(self) -> FeatureOptions:
        for name in self.names:
            if not _REFERENCE.fullmatch(name):
                raise ValueError(f"names: {name!r} is not VIEW:FEATURE")
        short = [short_name(name) for name in self.names]
        if len({*short, INSTRUCTION}) <= len(short):
            raise ValueError("names: two features are called the same, or one 'instruction'")
        wanted = set(_fields(self.template))
        if wanted != {*short, INSTRUCTION}:
            raise ValueError(
                f"template: has {_listed(wanted)}, needs {_listed({*short, INSTRUCTION})}"
            )
        unknown = self.defaults.keys() - set(short)
        if unknown:
            raise ValueError(f"defaults: {_listed(unknown)} is not among the features")
        return self

    @property
    def prompt(self) -> Prompt:
        """How features and instruction become a prompt."""
        return Prompt(self.names, self.entities, self.template, self.defaults)


class FeatureStore(Protocol):
    """A place that knows features of entities over time.

    Built as ``Class(options, folder)``, as sources are; it must survive pickling
    before it is first used, since an engine may ask from other processes.
    """

    Options: ClassVar[type[FeatureOptions]]

    def __init__(self, options: Any, folder: Path) -> None: ...

    def version(self) -> str:
        """What tells the values there are now from others, as far as that is cheap to know.

        Asked when a run starts, and part of what identifies prepared examples: while
        it is the same, the features of a row are taken to be the same. Empty where
        nothing can be known.

        Raises:
            FeatureError: There is no store where the options say.
        """
        ...

    def at(self, rows: pa.Table, names: tuple[str, ...]) -> pa.Table:
        """Look values up as they were known at each row's time.

        Args:
            rows: The join keys and ``TIME``, shape (n,); rows may repeat.
            names: Features, as VIEW:FEATURE.

        Returns:
            One column for each name, shape (n,), in the order of ``rows``; null
            where nothing was known yet.

        Raises:
            FeatureError: The store cannot be asked, or a name is not known.
        """
        ...

    def now(self, entity: Mapping[str, str], names: tuple[str, ...]) -> dict[str, Value | None]:
        """Look one entity's values up as they are now; null where there are none.

        Raises:
            FeatureError: The store cannot be asked, or a name is not known.
        """
        ...


def _fields(template: str) -> list[str]:
    """The placeholders of a template: plain names, nothing that is looked up or called.

    Raises:
        ValueError: A brace is not closed, or a placeholder is more than a name.
    """
    names = []
    for _, name, specification, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or specification or conversion:
            raise ValueError(f"template: {{{name}}} is not a plain name in braces")
        names.append(name)
    return names


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
