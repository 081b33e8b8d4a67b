"""How features of a user or a thing become part of a prompt, in training and in serving alike.

Prepare writes it, training puts it into the model's folder, and serving reads it
from there: a rollback also goes back to the prompt that the version was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

# The file in a model's folder that says how its prompts were made.
PROMPT_FILE = "penstock_features.json"
# The placeholder of the user's own text.
INSTRUCTION = "instruction"

Value: TypeAlias = str | int | float | bool


@dataclass(frozen=True)
class Prompt:
    """How features become part of a prompt; the same in training and in serving.

    Attributes:
        names: Features, as VIEW:FEATURE.
        entities: Join key -> column of the rows and key of a request's metadata.
        template: The text with placeholders.
        defaults: Feature -> value where an entity has none.
    """

    names: tuple[str, ...]
    entities: Mapping[str, str]
    template: str
    defaults: Mapping[str, Value]

    @classmethod
    def load(cls, folder: Path) -> Prompt | None:
        """What a model's folder says; None for a model without features."""
        try:
            text = (folder / PROMPT_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        fields = json.loads(text)
        return cls(**{**fields, "names": tuple(fields["names"])})

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True)
        (folder / PROMPT_FILE).write_text(text, encoding="utf-8")

    def fill(self, instruction: str, values: Mapping[str, Value | None]) -> str | None:
        """Make a prompt of an instruction and the values of its entity.

        Args:
            instruction: The user's own text.
            values: VIEW:FEATURE -> value.

        Returns:
            The prompt; None where a value is missing and has no default.
        """
        texts = {INSTRUCTION: instruction}
        for name in self.names:
            short = short_name(name)
            value = values.get(name)
            value = self.defaults.get(short) if _is_missing(value) else value
            if value is None:
                return None
            texts[short] = shown(value)
        return self.template.format_map(texts)

    def missing(self, values: Mapping[str, Value | None]) -> list[str]:
        """The features that have neither a value nor a default."""
        return [
            name
            for name in self.names
            if _is_missing(values.get(name)) and short_name(name) not in self.defaults
        ]


def shown(value: Value) -> str:
    """A value as text. An offline store makes 3.0 of 3 where a column has gaps; we do not."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _is_missing(value: Value | None) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def short_name(name: str) -> str:
    """``plan`` of ``profile:plan``."""
    return name.rpartition(":")[2]
