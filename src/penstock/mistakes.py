"""What is wrong with a recipe, said so that it can be mended.

Every mistake names the line and the path in the file, what was received, what
is valid, and the nearest spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from penstock import registry


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong: where in the file, and what."""

    path: tuple[str | int, ...]
    text: str


def mistakes_of(
    error: ValidationError, model: type[BaseModel], unexpanded: Any
) -> Iterator[Mistake]:
    """Everything Pydantic found, in a user's words.

    Args:
        error: What Pydantic found.
        model: The model that was to be built.
        unexpanded: The tree as written: what ``${VAR}`` stands for is not shown.
    """
    for detail in error.errors():
        path = _as_written(detail["loc"], unexpanded)
        if not path:  # two sections that contradict each other; the sentence names both
            yield Mistake(path, _said(detail))
            continue
        # What the user wrote, not what ${VAR} stands for: that may be a secret.
        received = _shorten(value_at(unexpanded, path))
        if detail["type"] == "extra_forbidden":
            near = registry.did_you_mean(str(path[-1]), _keys_at(model, path[:-1]))
            yield Mistake(path, f"unknown key.{near}")
        elif detail["type"] == "missing":
            yield Mistake(path, "is required and missing")
        elif detail["type"] == "invalid_key":
            # on: and 7: are not texts in YAML.
            yield Mistake(path, f"received {received} under a key that is no text: quote the key")
        elif detail["type"] == "literal_error":
            valid = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
            yield Mistake(path, f"received {received}.{registry.did_you_mean(received, valid)}")
        else:
            yield Mistake(path, f"received {received}: {_said(detail)}")


def _said(detail: Mapping[str, Any]) -> str:
    """Pydantic's sentence, and what YAML made of a word that was not quoted."""
    text = str(detail["msg"]).removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    if isinstance(detail["input"], bool) and "string" in detail["type"]:
        text += " (YAML reads an unquoted yes, no, on or off so: quote it)"
    return text


def without_secrets(mistake: Mistake, unexpanded: Any, variables: Mapping[str, str]) -> Mistake:
    """The mistake with ``${VAR}`` in place of what it stands for, which may be a secret.

    Args:
        mistake: What to show.
        unexpanded: The tree as written.
        variables: ``${VAR}`` -> what it stands for.
    """
    path = mistake.path
    while path and value_at(unexpanded, path) is None:
        path = path[:-1]
    about, text = repr(value_at(unexpanded, path)), mistake.text
    for name, meant in variables.items():
        for shown in (repr(meant)[1:-1], meant) if name in about and meant else ():
            text = re.sub(rf"(?<!\w){re.escape(shown)}(?!\w)", name, text)
    return Mistake(mistake.path, text)


def value_at(tree: Any, path: tuple[str | int, ...]) -> Any:
    """The value at ``path``, or None where the file does not go that far."""
    for part in path:
        if isinstance(tree, str) and part == "type":
            return tree  # ``engine: ray`` is short for its type
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _as_written(loc: tuple[str | int, ...], tree: Any) -> tuple[str | int, ...]:
    """Pydantic's path without the branches of unions in it, which no user wrote."""
    path: tuple[str | int, ...] = ()
    for part in loc:
        here = value_at(tree, path)
        is_key = isinstance(here, dict) and part in here
        is_branch = isinstance(part, str) and ("[" in part or part in {"float", "int", "str"})
        if is_key or not is_branch:
            path += (part,)
    return path


def _keys_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The valid keys of the section at ``path``."""
    current: Any = model
    for part in path:
        field = _fields(current).get(str(part)) if _is_model(current) else None
        current = _model_in(field.annotation) if field else current
    return sorted(_fields(current)) if _is_model(current) else []


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _model_in(annotation: Any) -> Any:
    """The section model inside ``X``, ``X | None``, ``dict[str, X]`` or ``list[X]``."""
    if _is_model(annotation):
        return annotation
    inner = (_model_in(item) for item in getattr(annotation, "__args__", ()))
    return next((item for item in inner if item is not None), None)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def report(path: Path, written: str, mistakes: list[Mistake]) -> str:
    """All mistakes in one text, each with its line and its path in the file."""
    lines = _line_numbers(written)
    count = f"{len(mistakes)} mistake" + ("s" if len(mistakes) != 1 else "")
    rows = [f"{path}: {count}"]
    for mistake in mistakes:
        dotted = ".".join(str(part) for part in mistake.path)
        line = next(
            (lines[mistake.path[:n]] for n in range(len(mistake.path), 0, -1)
             if mistake.path[:n] in lines),
            1,
        )  # fmt: skip
        place = f"line {line}, {dotted}: " if dotted else ""
        rows.append(f"  {place}{mistake.text}")
    return "\n".join(rows)


def twice(written: str) -> list[Mistake]:
    """Keys that stand twice in one section."""
    lines: dict[tuple[str | int, ...], int] = {}
    found: dict[tuple[str | int, ...], Mistake] = {}
    for path, line in _places(written):
        inside = any(path[:n] in found for n in range(1, len(path)))
        if path in lines and path[-1] != "<<" and not inside:
            found[path] = Mistake(path, f"is written twice, first in line {lines[path]}")
        lines.setdefault(path, line)
    return list(found.values())


def _line_numbers(written: str) -> dict[tuple[str | int, ...], int]:
    """Path in the tree -> line in the file."""
    return dict(_places(written))


def _places(written: str) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Every path in the file with its line, in the file's order."""

    def walk(
        node: yaml.Node | None, path: tuple[str | int, ...], above: tuple[int, ...]
    ) -> Iterator[tuple[tuple[str | int, ...], int]]:
        if id(node) in above:
            return  # an alias to a section that it is in
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*path, str(key.value))
                yield place, key.start_mark.line + 1
                yield from walk(value, place, (*above, id(node)))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                yield (*path, i), value.start_mark.line + 1
                yield from walk(value, (*path, i), (*above, id(node)))

    return walk(yaml.compose(written, Loader=yaml.SafeLoader), (), ())
