"""The recipe's file: read, ``${VAR}`` expanded, checked as a whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from penstock import registry
from penstock.errors import RecipeError
from penstock.mistakes import Mistake, mistakes_of, report, twice, value_at, without_secrets
from penstock.recipe import Recipe
from penstock.section import named_step


def load_recipe(
    path: Path | str,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Recipe:
    """Read, expand and check a recipe.

    Args:
        path: The YAML file.
        overrides: Dotted key -> value, as ``--set train.max_steps=10`` gives them.
        environ: What ``${VAR}`` stands for.

    Raises:
        RecipeError: Everything that is wrong with it, at once.
    """
    path = Path(path)
    written = _read(path)
    tree = _parse(written, path)
    for key, value in (overrides or {}).items():
        _set(tree, key, value)
    mistakes: list[Mistake] = []
    try:
        expanded = _expand(tree, (), mistakes, environ)
    except RecursionError:
        raise RecipeError(f"{path} is nested too deeply, or contains itself.") from None
    recipe = _build(expanded, tree, path.resolve().parent, mistakes)
    if mistakes or recipe is None:
        names = _VARIABLE.findall(f"{written} {overrides}")
        variables = {f"${{{name}}}": environ.get(name, "") for name in names}
        shown = [without_secrets(one, tree, variables) for one in mistakes]
        raise RecipeError(report(path, written, shown))
    recipe._folder, recipe._written = path.resolve().parent, written
    return recipe


def expanded_tree(
    path: Path, keys: Sequence[str]
) -> tuple[str, dict[str, Any], dict[str, Any], list[Mistake]]:
    """Some sections of a recipe, expanded and not checked, for who needs no more of it.

    Returns:
        The file as written, what stands under those keys before and after it is expanded, and
        what could not be expanded.

    Raises:
        RecipeError: It is no recipe at all.
    """
    written = _read(path)
    tree = {key: value for key, value in _parse(written, path).items() if key in keys}
    mistakes: list[Mistake] = []
    expanded = _expand(tree, (), mistakes)
    return written, tree, expanded, mistakes


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            f"There is no recipe at {path}.", "Write one with: penstock init DIR"
        ) from None
    except IsADirectoryError:
        raise RecipeError(
            f"{path} is a folder.", f"Name the file: {path / 'recipe.yaml'}"
        ) from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not a text file in UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from None


def _parse(written: str, path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(written)
        repeated = twice(written)
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: what looks like a date but is none, as in 2026-02-31.
        raise RecipeError(f"{path} is not YAML: {error}") from None
    except RecursionError:
        raise RecipeError(f"{path} is nested too deeply, or contains itself.") from None
    if repeated:
        # YAML's own rule is that the last one wins, in silence.
        raise RecipeError(report(path, written, repeated))
    if not isinstance(tree, dict):
        kind = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(
            f"{path} is {kind}, not a mapping of sections.", "Start from: penstock init DIR"
        )
    return tree


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"--set {key}: {parent!r} is not a section.")
    tree[last] = value


_VARIABLE = re.compile(r"\$\{([^}]*)\}")


def _expand(
    value: Any,
    path: tuple[str | int, ...],
    mistakes: list[Mistake],
    environ: Mapping[str, str] = os.environ,
) -> Any:
    """Replace ``${VAR}`` in every text; nothing else of the environment is read."""
    if isinstance(value, dict):
        return {key: _expand(item, (*path, key), mistakes, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*path, i), mistakes, environ) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in environ:
            mistakes.append(Mistake(path, f"the environment has no variable {name!r}"))
        return environ.get(name, "")

    return _VARIABLE.sub(variable, value)


def _build(
    tree: dict[str, Any], unexpanded: Any, folder: Path, mistakes: list[Mistake]
) -> Recipe | None:
    for seam, path, config in plugins_in(tree):
        written = named_step(value_at(unexpanded, path))
        mistakes.extend(_plugin_mistakes(seam, path, config, written, folder))
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        mistakes.extend(mistakes_of(error, Recipe, unexpanded))
        return None


def plugins_in(tree: Any) -> Iterator[tuple[str, tuple[str | int, ...], dict[str, Any]]]:
    """Every section that names an adapter: seam, path, and what was written."""
    sources = tree.get("sources")
    for name, config in sources.items() if isinstance(sources, dict) else ():
        if isinstance(config, dict):
            options = {key: value for key, value in config.items() if key != "columns"}
            yield "sources", ("sources", name), options
    if isinstance(tree.get("features"), dict):
        yield "features", ("features",), tree["features"]
    for section, seam in (("validate", "rules"), ("prepare", "transforms")):
        inner = tree.get(section)
        configs = inner.get(seam) if isinstance(inner, dict) else None
        for i, config in enumerate(configs if isinstance(configs, list) else ()):
            step = named_step(config)
            if isinstance(step, dict):
                yield seam, (section, seam, i), step
    for section, key, seam in (
        ("prepare", "engine", "engines"),
        ("train", "launcher", "launchers"),
        ("evaluate", "backend", "evaluators"),
    ):
        inner = tree.get(section)
        config = named_step(inner.get(key)) if isinstance(inner, dict) else None
        # What is no registered name, the recipe's own model says.
        if isinstance(config, dict) and config.get("type") in registry.names(seam):
            yield seam, (section, key), config
    yield from _backends(tree)


def _backends(tree: Any) -> Iterator[tuple[str, tuple[str | int, ...], dict[str, Any]]]:
    serve = tree.get("serve")
    models = serve.get("models") if isinstance(serve, dict) else None
    for name, model in models.items() if isinstance(models, dict) else ():
        config = named_step(model.get("backend")) if isinstance(model, dict) else None
        if isinstance(config, dict) and config.get("type") in registry.names("backends"):
            yield "backends", ("serve", "models", name, "backend"), config


def _plugin_mistakes(
    seam: str,
    path: tuple[str | int, ...],
    config: dict[str, Any],
    unexpanded: Any,
    folder: Path,
) -> Iterator[Mistake]:
    if not isinstance(config.get("type"), str):
        return  # the recipe's own model says so
    try:
        adapter = registry.resolve(seam, config["type"], folder)
    except RecipeError as error:
        yield Mistake((*path, "type"), f"{error.message} {error.hint}".strip())
        return
    options = {key: value for key, value in config.items() if key != "type"}
    if not hasattr(adapter, "Options"):
        text = f"{config['type']!r} is not one of the {seam}: it has no Options"
        yield Mistake((*path, "type"), text)
        return
    try:
        adapter.Options.model_validate(options)
    except ValidationError as error:
        for mistake in mistakes_of(error, adapter.Options, unexpanded):
            yield Mistake((*path, *mistake.path), mistake.text)
