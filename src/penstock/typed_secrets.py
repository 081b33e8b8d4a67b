"""Secrets that somebody typed into a recipe, out of what is shown of it.

A recipe names secrets as ``${VAR}``, and these stay as they are. Whoever types one in has it
in the ledger with the recipe: there it stays, for the run is to be gone on with; pages and
commands show a placeholder.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml

from penstock.ledger.records import RunRecord

MASK = "[SECRET]"

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_SECRET = frozenset(
    {
        *("password", "passwd", "pwd", "passphrase", "secret", "token", "apikey"),
        *("credential", "credentials", "authorization", "cookie", "signature"),
    }
)
_KEY_OF = frozenset({"api", "access", "account", "auth", "private", "secret", "shared", "signing"})
# Not the secret, but where it is found; and what tokenizers call their marks.
_NAMES = frozenset({"env", "file", "path", "name", "variable", "pad", "eos", "bos", "unk", "mask"})
_VARIABLE = re.compile(r"(?:[A-Za-z]+ )?\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_USER = re.compile(r"(?<=://)(?!(?:\$\{\w+\}:?)+@)[^/\s'\"]+(?=@)")
_QUERY = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|secret|token|key|sig|signature)=)(?!\$\{)[^&;\s'\"]+",
    re.IGNORECASE,
)
# In comments and in what is no YAML, a value ends nobody knows where: with the line.
_KEY = re.compile(r"(?<![\w.-])([\w.-]+)['\"]?\s*[:=]\s*(?=\S)")


def without_secrets(run: RunRecord) -> RunRecord:
    """A run as it may be shown."""
    return replace(run, written=masked(run.written), overrides=masked_values(run.overrides))


def masked(written: str) -> str:
    """A recipe's text with a placeholder for what is, or may be, a secret in it."""
    try:
        tree = yaml.compose(written, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return _known("\n".join(map(_line_masked, written.split("\n"))))
    text = written
    for start, end in sorted(_spans(tree, False, set()), reverse=True):
        last = start + len(written[start:end].rstrip())  # a block ends with its line
        text = text[:start] + MASK + text[last:]
    return _known("\n".join(map(_comment_masked, text.split("\n"))))


def masked_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, likewise."""
    return {name: _value(name, value) for name, value in values.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _value(f"{name}.{key}", one) for key, one in value.items()}
    if isinstance(value, list):
        return [_value(name, one) for one in value]
    if is_secret(name.rpartition(".")[2]) and _is_typed(value):
        return MASK
    return _known(value) if isinstance(value, str) else value


def is_secret(key: str) -> bool:
    """Whether what has this name is a secret, as far as a name can tell."""
    words = [word.lower() for word in _WORDS.findall(key)]
    if not words or words[-1] in _NAMES or words[0] in _NAMES:
        return False
    pairs = itertools.pairwise(words)
    return bool(_SECRET & set(words)) or any(
        first in _KEY_OF and second in ("key", "keys") for first, second in pairs
    )


def _is_typed(value: Any) -> bool:
    """Whether a value is one, and no name of a variable."""
    if value is None or isinstance(value, bool):
        return False
    return not (isinstance(value, str) and (not value or _VARIABLE.fullmatch(value)))


def _spans(node: Any, secret: bool, seen: set[int]) -> Iterator[tuple[int, int]]:
    """Where values of secret keys stand."""
    if id(node) in seen:  # an alias of what stands elsewhere
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            named = isinstance(key, yaml.ScalarNode) and is_secret(key.value)
            yield from _spans(value, secret or named, seen)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _spans(value, secret, seen)
    elif secret and isinstance(node, yaml.ScalarNode) and _is_typed(_read(node)):
        yield node.start_mark.index, node.end_mark.index


def _read(node: yaml.ScalarNode) -> Any:
    words = {"tag:yaml.org,2002:null": None, "tag:yaml.org,2002:bool": True}
    return words.get(node.tag, node.value)


def _comment_masked(line: str) -> str:
    before, mark, comment = line.partition("#")
    return before + mark + _line_masked(comment)


def _line_masked(line: str) -> str:
    for found in _KEY.finditer(line):
        if is_secret(found[1]) and _is_typed(line[found.end() :].strip()):
            return line[: found.end()] + MASK
    return line


def _known(text: str) -> str:
    """Without users in addresses, secrets in their queries, and what looks like a key."""
    import polars as pl

    from penstock.transforms import pii

    text = _QUERY.sub(rf"\g<1>{MASK}", _USER.sub(MASK, text))
    clean, _ = pii.redact(pl.Series([text], dtype=pl.String), pii.SECRETS, MASK)
    return str(clean[0])
