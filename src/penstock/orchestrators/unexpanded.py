"""A recipe for another place: its variables stay names, and no secret may stand in its text.

Files for a cluster must not depend on the environment they are written in, and must hold
no secret. So ``${VAR}`` is left as it is and becomes a reference to the variable there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, SecretStr

from penstock import registry
from penstock.errors import RecipeError
from penstock.recipe import Recipe
from penstock.recipe_file import load_recipe, plugins_in

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
# What a shell, Kubernetes and Databricks all take for a variable's name.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"]+")
_KINDS = ("private_key", "jwt", "aws_key", "github_token", "slack_token", "api_key")

# Credentials that a store's own library reads by these names. A role is another way.
STORE_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
    **dict.fromkeys(
        ("az", "abfs", "abfss"), ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY")
    ),
}


class _Unexpanded(Mapping[str, str]):
    """An environment in which every variable stands for itself."""

    def __getitem__(self, name: str) -> str:
        return f"${{{name}}}"

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@dataclass(frozen=True)
class Unexpanded:
    """A recipe as it travels.

    Attributes:
        recipe: With ``${VAR}`` wherever the file has it.
        overrides: What ``--set`` says, as typed.
        variables: Names of variables without which the recipe does not load.
    """

    recipe: Recipe
    overrides: tuple[str, ...]
    variables: tuple[str, ...]


def load_unexpanded(path: Path, overrides: list[str], parsed: Mapping[str, Any]) -> Unexpanded:
    """Load a recipe, whatever the environment is.

    Args:
        path: The YAML file.
        overrides: ``key=value``, as typed.
        parsed: The same by dotted keys.

    Raises:
        RecipeError: It is wrong, or a secret stands in it.
    """
    recipe = load_recipe(path, parsed, _Unexpanded())
    text = "\n".join([recipe.written, *overrides])
    names = sorted(set(_VARIABLE.findall(text)))
    for name in names:
        if not _NAME.fullmatch(name):
            raise RecipeError(f"${{{name}}} is no variable's name.", "Letters, digits and _.")
    _refuse_secrets(path, text)
    _refuse_secret_options(path, parsed)
    return Unexpanded(recipe, tuple(overrides), tuple(names))


def named_variables(value: Any) -> tuple[str, ...]:
    """The variables that ``*_env`` settings name, anywhere below."""
    found: set[str] = set()
    for key, text in _leaves(value):
        if key.endswith("_env") and text:
            if not _NAME.fullmatch(text):
                raise RecipeError(f"{key}: {text!r} is no variable's name.")
            found.add(text)
    return tuple(sorted(found))


def ports_named(value: Any) -> tuple[int, ...]:
    """The ports of all URLs below, for who has to let them through."""
    found: set[int] = set()
    for _, text in _leaves(value):
        for url in _URL.findall(text):
            port = _port(url)
            found |= {port} if port else set()
    return tuple(sorted(found))


def _port(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        return None  # as in ${HOST}:${PORT}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, key)
    elif isinstance(value, str):
        yield key, value


def _refuse_secrets(path: Path, text: str) -> None:
    """Passwords in URLs, and what looks like a key; the message never repeats them."""
    import polars as pl

    from penstock.transforms import pii

    for number, line in enumerate(text.splitlines(), 1):
        if any(_has_password(url) for url in _URL.findall(line)):
            raise _secret(path, f"line {number}: a URL with a password in it")
    kinds = [kind for kind in pii.KINDS if kind.name in _KINDS]
    _, counts = pii.redact(pl.Series([text]), kinds, "")
    if counts:
        meaning = next(kind.meaning for kind in kinds if kind.name in counts)
        raise _secret(path, f"what looks like {meaning}")


def _has_password(url: str) -> bool:
    user, at, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
    password = user.partition(":")[2]
    return bool(at and password) and _VARIABLE.fullmatch(password) is None


def _refuse_secret_options(path: Path, parsed: Mapping[str, Any]) -> None:
    """Options that adapters themselves hold secret."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in parsed.items():
        here = tree
        *parents, last = key.split(".")
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    for seam, where, config in plugins_in(tree):
        adapter = registry.resolve(seam, config["type"], path.resolve().parent)
        options = {name: value for name, value in config.items() if name != "type"}
        for name, secret in _secrets(adapter.Options.model_validate(options)):
            if _VARIABLE.search(secret) is None:
                raise _secret(path, f"{'.'.join(map(str, (*where, name)))} as plain text")


def _secrets(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, SecretStr):
        yield key, value.get_secret_value()
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets(getattr(value, name), f"{key}.{name}".strip("."))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets(item, f"{key}.{name}".strip("."))


def _secret(path: Path, what: str) -> RecipeError:
    return RecipeError(
        f"{path} holds {what}.",
        "Write ${VAR} for it: the variable becomes a reference to a secret.",
    )
