"""Write docs/recipe.md from the recipe's models.

python scripts/write_recipe_reference.py           # write it
python scripts/write_recipe_reference.py --check   # fail if it is out of date
"""

# ruff: noqa: E501  # the page's own sentences

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from penstock import registry
from penstock.recipe import Recipe
from penstock.section import Place, Plugin

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe.md"

_HEAD = """\
<!-- Written by scripts/write_recipe_reference.py. Edit the models in src/penstock/recipe.py instead. -->

# The recipe, key by key

A recipe is one YAML file. `penstock init DIR` writes one with comments, `penstock plan` checks it, and `penstock schema`
prints the same as JSON Schema, for editors. [Concepts](concepts.md) says what the words mean.

- An unknown key is an error. All mistakes are reported at once, each with its line.
- Relative paths start at the folder of the recipe.
- `${VAR}` in any text is replaced by the environment variable. The recipe is recorded with the name and not the value.
- `--set KEY=VALUE` overrides one value for one command: `penstock run --set train.max_steps=10`.
- "Fingerprint" says whether the key enters one. Keys with "no" say where, or how it is shown or served: changing
  them makes no stage run again.
"""

# Which stage first sees a section. All stages after it depend on it through their inputs.
_SEEN_BY = {
    "sources": "Seen by ingest; `columns` by validate. An option of a source that says where, as `paths` "
    'does, is marked "no": what was read is pinned by the snapshot.',
    "features": "Seen by prepare; `penstock serve` reads where the store is, and the rest from the model. "
    "[Put features into the prompt](how-to/use-a-feature-store.md) explains it.",
    "ingest": "Decides whether a run goes on after validate. It changes no result.",
    "validate": "Seen by validate.",
    "prepare": "Seen by prepare.",
    "train": "Seen by train. `base`, `base_revision` and `continue_from_production` enter as the identity of the "
    "model they choose. The `continue_*` keys replace the plain ones when training continues from production.",
    "evaluate": "Seen by evaluate, for the candidate and for the baseline. The files in `task_dir` enter by "
    "their digest. [Evaluate](how-to/evaluation.md) explains the backends.",
    "gate": "Seen by gate. [Judge lm-eval results](how-to/gate-lm-eval-results.md) explains names and margins.",
    "register": "Seen by register and deploy.",
    "deploy": "Seen by deploy.",
    "serve": "Read by `penstock serve`, and by register, which tries the backend. [Serve](how-to/serve.md) explains it.",
    "observe": "Read by what watches. [Dashboards and alerts](how-to/dashboards-and-alerts.md) explains `slo`.",
    "orchestrate": "Read when a DAG, assets or a flow are made, and when a run is asked for. [Airflow](how-to/airflow.md), [Dagster](how-to/dagster.md) and [Prefect](how-to/prefect.md) explain it.",
}

# Mappings whose keys are names; the keys of the others are columns.
_BY_NAME = {"sources", "serve.models", "serve.routes"}
_PLACES = {"orchestrate.executors": "STAGE"}
# Not a place, and yet in no stage's settings.
_NO_FINGERPRINT = {"ingest.min_new_examples"}
# Under a place, and yet in a stage's settings.
_FINGERPRINT = {"evaluate.backend.type"}


@dataclass(frozen=True)
class Key:
    """One line of a table."""

    path: str
    type: str
    default: str
    enters: bool
    meaning: str

    def line(self) -> str:
        """As Markdown."""
        cells = (
            f"`{self.path}`",
            self.type,
            self.default,
            "yes" if self.enters else "no",
            self.meaning,
        )
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_TABLE = "| key | type | default | fingerprint | meaning |\n|---|---|---|---|---|"


def page() -> str:
    """The whole page."""
    sections = {info.alias or name: info for name, info in Recipe.model_fields.items()}
    plain = {name: info for name, info in sections.items() if name not in _SEEN_BY}
    out = [_HEAD, "## Top level\n", _table(_keys_of(plain, "", True))]
    for name in _SEEN_BY:
        out += [f"## {name}\n", f"{_SEEN_BY[name]}\n", _table(_section(name, sections[name]))]
        out += list(_adapters(name))
    return "\n".join(out).rstrip() + "\n"


def _table(keys: Iterator[Key]) -> str:
    return "\n".join([_TABLE, *(key.line() for key in keys)]) + "\n"


def _section(name: str, info: FieldInfo) -> Iterator[Key]:
    enters = not _is_place(info)
    if name == "sources":
        yield _key("sources", info, enters)
    yield from _inner(name, info.annotation, enters)


def _keys_of(fields: dict[str, FieldInfo], prefix: str, enters: bool) -> Iterator[Key]:
    for name, info in fields.items():
        path = f"{prefix}{name}"
        here = enters and not _is_place(info)
        if not _is_section(info.annotation):
            yield _key(path, info, here)
        yield from _inner(path, info.annotation, here)


def _inner(path: str, annotation: Any, enters: bool) -> Iterator[Key]:
    """The keys of the section inside ``X``, ``X | None``, ``dict[str, X]`` or ``list[X]``."""
    if _is_section(annotation):
        yield from _keys_of(_fields(annotation), f"{path}.", enters)
        return
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _inner(path, inner[0], enters)
    elif origin in (Union, types.UnionType):
        for one in inner:
            yield from _inner(path, one, enters)
    elif origin is dict:
        place = "NAME" if path in _BY_NAME else _PLACES.get(path, "COLUMN")
        yield from _inner(f"{path}.{place}", inner[1], enters)
    elif origin is list:
        yield from _inner(f"{path}[]", inner[0], enters)


def _key(path: str, info: FieldInfo, enters: bool, lookup: str = "") -> Key:
    meaning = info.description
    if meaning is None:
        sys.exit(f"{lookup or path} has no description: give its Field one.")
    seams = {
        "prepare.engine.type": "engines",
        "train.launcher.type": "launchers",
        "evaluate.backend.type": "evaluators",
        "serve.models.NAME.backend.type": "backends",
    }
    if path in seams:
        seam = seams[path]
        meaning += f" Built in: {_names(seam)}."
    return Key(
        path=path,
        type=_type(info.annotation) + _bounds(info.metadata),
        default=_default(info),
        enters=(enters or path in _FINGERPRINT) and path not in _NO_FINGERPRINT,
        meaning=meaning,
    )


def _adapters(section: str) -> Iterator[str]:
    if section == "sources":
        yield from _options("sources", "Options of the source")
    if section == "features":
        yield from _options("features", "Options of the feature store")
    if section == "validate":
        yield from _options("rules", "Options of the rule")
    if section == "prepare":
        yield from _options("engines", "Options of the engine")
        yield from _options("transforms", "Options of the transform")
    if section == "train":
        yield from _options("launchers", "Options of the launcher")
    if section == "evaluate":
        yield from _options("evaluators", "Options of the backend")
    if section == "serve":
        yield from _options("backends", "Options of the backend")


def _options(seam: str, title: str) -> Iterator[str]:
    for name in registry.BUILTIN[seam]:
        adapter = registry.resolve(seam, name)
        fields = adapter.Options.model_fields
        if not fields:
            continue
        yield f"### {title} `{name}`\n"
        yield f"{_first_sentence(adapter)}\n"
        # Where a training runs does not matter for what it is, nor how it is served.
        yield _table(_keys_of(fields, "", enters=seam not in ("launchers", "backends")))


def _first_sentence(adapter: Any) -> str:
    paragraph = (inspect.getdoc(adapter) or "").partition("\n\n")[0]
    return " ".join(paragraph.replace("``", "`").split())


def _names(seam: str) -> str:
    return ", ".join(f"`{name}`" for name in registry.BUILTIN[seam])


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_place(info: FieldInfo) -> bool:
    return any(isinstance(mark, Place) for mark in info.metadata)


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in inner)
    if origin is dict:
        return f"mapping of text to {_type(inner[1])}"
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    if _is_section(annotation):
        return (
            "step"
            if issubclass(annotation, Plugin) and "columns" not in annotation.model_fields
            else "section"
        )
    return _WORDS[annotation]


_WORDS = {
    str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null", Path: "path",
    Any: "anything", SecretStr: "text",
}  # fmt: skip
_SIGNS = {
    "ge": ">=",
    "gt": ">",
    "le": "<=",
    "lt": "<",
    "min_length": "length >=",
    "max_length": "length <=",
}


def _bounds(metadata: list[Any]) -> str:
    found = []
    for mark in metadata:
        for name, sign in _SIGNS.items():
            if getattr(mark, name, None) is not None:
                found.append(f"{sign} {getattr(mark, name)}")
        if getattr(mark, "pattern", None):
            found.append(f"matches `{mark.pattern}`")
    return f", {', '.join(found)}" if found else ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    text = json.dumps(_plain(value), ensure_ascii=False)
    # Sections are listed key by key below; their whole default would only repeat it.
    return "see below" if isinstance(value, BaseModel) else f"`{text}`"


def _plain(value: Any) -> Any:
    if isinstance(value, Plugin):
        return value.type if not value.extra else {"type": value.type, **value.extra}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Fail if the page is out of date.")
    options = parser.parse_args()
    new = page()
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if not options.check:
        PAGE.write_text(new, encoding="utf-8")
        return 0
    if new == old:
        return 0
    changes = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "docs/recipe.md", "models", lineterm=""
    )
    print("\n".join(changes))
    print("docs/recipe.md is out of date. Run: python scripts/write_recipe_reference.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
