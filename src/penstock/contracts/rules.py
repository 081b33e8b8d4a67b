"""Rules about rows for language models, ready to use in ``validate.rules``.

A rule looks at each row by itself and says of each that breaks it what it found,
in words that can be shown: a rule about secrets names their kind and never
quotes them.

To add one, write a class like ``RowRule`` below and add one line to
``registry.BUILTIN``, or name it in a recipe as ``"module:Object"``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import polars as pl
import pyarrow as pa
from pydantic import Field, model_validator

from penstock.artifacts import digest_of, file_digest
from penstock.errors import RecipeError
from penstock.recipe import Recipe
from penstock.section import Section
from penstock.tokenizer import load_tokenizer
from penstock.train_section import registered
from penstock.transforms import pii, repetition

SECRETS = ("private_key", "jwt", "aws_key", "github_token", "slack_token", "api_key")
PERSONAL = tuple(name for name in pii.NAMES if name not in SECRETS)

# Rae et al. 2021, table A1.
MAX_DUPLICATE_LINES = 0.3

Columns = tuple[str, ...]
_TEXTS = ("instruction", "response")


class RowRule(Protocol):
    """A rule about single rows.

    Built as ``Class(options, recipe)``.
    """

    revision: ClassVar[int]  # bumped by hand when the same rows would be judged otherwise
    Options: ClassVar[type[Section]]

    def __init__(self, options: Any, recipe: Recipe) -> None: ...

    @property
    def columns(self) -> Columns:
        """What it looks at."""
        ...

    @property
    def identity(self) -> str:
        """What else decides, such as the digest of a file; empty for most."""
        ...

    def faults(self, rows: pa.Table) -> pl.Series:
        """What is wrong with each row, in a few words; null where it holds. Shape (n,)."""
        ...


class TextOptions(Section):
    """Which texts to look at."""

    columns: Columns = Field(_TEXTS, min_length=1, description="Text columns.")


class _TextRule:
    """A rule that each of some text columns must meet; null meets all of them."""

    revision: ClassVar[int] = 1
    Options: ClassVar[type[Section]] = TextOptions
    identity = ""

    def __init__(self, options: Any, recipe: Recipe) -> None:
        self.options = options

    @property
    def columns(self) -> Columns:
        """What it looks at."""
        return tuple(self.options.columns)

    def faults(self, rows: pa.Table) -> pl.Series:
        """The first fault of each row, with the column it is in."""
        found = pl.Series([None] * rows.num_rows, dtype=pl.String)
        for column in self.columns:
            fault = self.fault(_text(rows, column))
            found = pl.select(pl.coalesce(found, pl.lit(f"{column}: ") + fault)).to_series()
        return found

    def fault(self, text: pl.Series) -> pl.Series:
        """What is wrong with each text; null where nothing is."""
        raise NotImplementedError


def _text(rows: pa.Table, column: str) -> pl.Series:
    values = pl.Series(rows[column])
    if values.dtype not in (pl.String, pl.Null):
        raise RecipeError(
            f"validate.rules: column {column!r} is {rows[column].type}, not text.",
            "Leave it out of the rule's `columns`.",
        )
    return values.cast(pl.String)


def _where(condition: pl.Series, words: pl.Series | str) -> pl.Series:
    """``words`` where the condition holds, and null elsewhere."""
    shown = pl.lit(words) if isinstance(words, str) else words
    return pl.select(pl.when(condition).then(shown)).to_series()


class TokensOptions(TextOptions):
    """How long a row may be."""

    min: int = Field(1, ge=0, description="Fewest tokens, over all columns together.")
    max: int = Field(ge=1, description="Most tokens, over all columns together.")
    tokenizer: str | None = Field(
        None,
        description="Folder of a tokenizer, or a hub name with its commit as in "
        "`org/model@COMMIT`. Null takes that of `train.base`.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> TokensOptions:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if (self.tokenizer or "").startswith("models:"):
            raise ValueError(
                f"tokenizer is {self.tokenizer!r}: that of a registered version is taken from "
                "`train.base` only; leave `tokenizer` out, or name a folder"
            )
        return self


class Tokens:
    """A row's length in tokens of the model's tokenizer, without a chat template."""

    revision: ClassVar[int] = 1
    Options: ClassVar[type[Section]] = TokensOptions

    def __init__(self, options: TokensOptions, recipe: Recipe) -> None:
        self._options = options
        self.columns = options.columns
        self._tokenizer: Any = None
        self._hub_revision: str | None = None
        name, revision = options.tokenizer, None
        if name is None:
            name, revision = recipe.train.base, recipe.train.base_revision
        if name == "scratch":
            raise RecipeError(
                "validate.rules: `tokens` has no tokenizer: that of a model from scratch is "
                "only trained later, on the rows that are valid.",
                "Name one under `tokenizer`, or bound characters with `validate.length`.",
            )
        if registered(name) is not None:
            # Its files are the same for good, and only looked for when there are rows.
            self.identity = self._location = name
            return
        folder = (recipe.folder / name).resolve()
        if not folder.is_dir() and revision is None:
            name, _, revision = name.partition("@")
            if not revision:
                raise RecipeError(
                    f"validate.rules: `tokens`: there is no folder {folder}, and as a hub name "
                    f"{name!r} has no pinned commit.",
                    "Write the tokenizer as org/model@COMMIT.",
                )
        self._location = str(folder) if folder.is_dir() else name
        self._hub_revision = None if folder.is_dir() else revision
        self.identity = _digest(folder) if folder.is_dir() else f"{name}@{revision}"

    def faults(self, rows: pa.Table) -> pl.Series:
        """Rows that are too short or too long."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._location, self._hub_revision)
        total = pl.zeros(rows.num_rows, pl.Int64, eager=True)
        for column in self._options.columns:
            total = total + self._lengths(_text(rows, column).fill_null(""))
        bad = (total < self._options.min) | (total > self._options.max)
        return _where(bad, total.cast(pl.String) + " tokens")

    def _lengths(self, text: pl.Series) -> pl.Series:
        if not len(text):
            return pl.Series([], dtype=pl.Int64)
        ids = self._tokenizer(text.to_list(), add_special_tokens=False)["input_ids"]
        return pl.Series([len(some) for some in ids], dtype=pl.Int64)


def _digest(folder: Any) -> str:
    """SHA-256 over the files that make a tokenizer."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    mine = [path for path in files if path.suffix != ".safetensors"]
    return digest_of({path.name: file_digest(path) for path in mine})


class ResponseOptions(Section):
    """Which texts to look at."""

    columns: Columns = Field(("response",), min_length=1, description="Text columns.")


class RepetitionOptions(ResponseOptions):
    """Which texts to look at."""

    min_words: int = Field(
        50, ge=1, description="Shorter texts are not judged: any phrase is a large share of one."
    )


class Repetition(_TextRule):
    """Text that goes in circles: lines or phrases that stood there before, by Gopher's limits."""

    Options: ClassVar[type[Section]] = RepetitionOptions

    def fault(self, text: pl.Series) -> pl.Series:
        """Texts that repeat themselves."""
        judged = text.str.count_matches(r"\S+") >= self.options.min_words
        known = _where(judged, text).fill_null("")
        lines = _where(repetition.lines(known) > MAX_DUPLICATE_LINES, "repeats lines")
        found = (lines, repetition.top_ngrams(known), repetition.duplicate_ngrams(known))
        return pl.select(pl.coalesce(*found)).to_series()


# How assistants decline and disclaim, in English; looked for where an answer begins.
_REFUSAL = (
    r"(?i)\b(?:as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|i(?:'|’)?\s?a?m (?:just |only )?an? (?:ai|language model)\b"
    r"|i(?:'|’| a)m (?:really |very |so )?sorry,? (?:but |i )"
    r"|i (?:cannot|can(?:'|’)?t|can not|am (?:not able|unable) to|won(?:'|’)?t) "
    r"(?:help|assist|provide|fulfil+|comply|answer|create|generate|support|do that|share|discuss)"
    r"|i must (?:decline|refuse)"
    r"|(?:against|violates?) (?:my|our|openai(?:'|’)?s) (?:policy|policies|guidelines|programming))"
)


def refusals(text: pl.Series, first_characters: int = 200) -> pl.Series:
    """The words by which texts refuse where they begin; null where they do not.

    Args:
        text: Answers.
        first_characters: So much of each is read.
    """
    return text.str.slice(0, first_characters).str.extract(f"({_REFUSAL})", 1)


class RefusalOptions(ResponseOptions):
    """Where to look for a refusal, and for which."""

    first_characters: int = Field(
        200, ge=1, description="An answer declines where it begins, if it does."
    )
    also: tuple[str, ...] = Field((), description="Further phrases, in any case of letters.")


class Refusal(_TextRule):
    """Answers that decline, or speak of being a language model."""

    Options: ClassVar[type[Section]] = RefusalOptions

    def fault(self, text: pl.Series) -> pl.Series:
        """Texts that refuse, with the words they do it by."""
        start = text.str.slice(0, self.options.first_characters)
        found = refusals(text, self.options.first_characters)
        for phrase in self.options.also:
            same = start.str.to_lowercase().str.contains(phrase.lower(), literal=True)
            found = pl.select(pl.coalesce(found, _where(same.fill_null(False), phrase))).to_series()
        return _where(found.is_not_null(), "says " + found)


_DAMAGE = (
    # UTF-8 read as Latin-1 or Windows-1252, once or twice.
    r"Ã[\u0080-\u00bf]|Â[\u0080-\u00bf]|â(?:€|\u0080)|Ã(?:Â|ƒ)|ï»¿|ðŸ"
    # The mark of what could not be decoded, and a byte order mark within.
    r"|\ufffd|\ufeff"
    # Controls that no text holds; tab, line feed and carriage return are left.
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u0080-\u0084\u0086-\u009f]"
    # What has no meaning in any text.
    r"|[\ufdd0-\ufdef\ufffe\uffff]"
)


class Encoding(_TextRule):
    """Text that was decoded wrongly on the way, or holds control characters."""

    def fault(self, text: pl.Series) -> pl.Series:
        """Texts that are damaged, with the first damage spelled out."""
        found = text.str.extract(f"({_DAMAGE})", 1)
        shown = found.map_elements(ascii, return_dtype=pl.String, skip_nulls=True)
        return _where(found.is_not_null(), "holds " + shown)


class SecretsOptions(TextOptions):
    """Which secrets to look for."""

    kinds: Columns = Field(SECRETS, min_length=1, description=f"Of: {', '.join(SECRETS)}.")

    @model_validator(mode="after")
    def _known(self) -> SecretsOptions:
        _require_kinds(self.kinds, SECRETS)
        return self


class PersonalDataOptions(TextOptions):
    """Which personal data to look for."""

    kinds: Columns = Field(PERSONAL, min_length=1, description=f"Of: {', '.join(PERSONAL)}.")

    @model_validator(mode="after")
    def _known(self) -> PersonalDataOptions:
        _require_kinds(self.kinds, PERSONAL)
        return self


def _require_kinds(kinds: Sequence[str], known: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"{kind!r} is not a kind. Valid: {', '.join(known)}.")


class Secrets(_TextRule):
    """Keys, tokens and the like; the kind is told, and never the secret."""

    Options: ClassVar[type[Section]] = SecretsOptions

    def fault(self, text: pl.Series) -> pl.Series:
        """Texts that hold one, with the first kind."""
        kinds = [kind for kind in pii.KINDS if kind.name in self.options.kinds]
        _, counts = pii.redact(text, kinds, "")
        found = pl.Series([None] * len(text), dtype=pl.String)
        for kind in kinds:
            if kind.name in counts:
                holds = _where(counts[kind.name] > 0, f"holds {kind.meaning}")
                found = pl.select(pl.coalesce(found, holds)).to_series()
        return found


class PersonalData(Secrets):
    """Names of people's things: addresses, numbers, accounts; the kind is told, not the value."""

    Options: ClassVar[type[Section]] = PersonalDataOptions


class MessagesOptions(Section):
    """What a chat must look like."""

    column: str = Field("messages", description="A list of {role, content}, or that as JSON text.")
    roles: Columns = Field(
        ("system", "user", "assistant"), min_length=1, description="That may speak."
    )
    alternate: bool = Field(
        True, description="User and assistant in turn, the user first, after any system turn."
    )
    ends_with: str | None = Field(
        "assistant", description="Whose turn is the last; null: anyone's."
    )


class Messages:
    """A chat whose turns can be trained on."""

    revision: ClassVar[int] = 1
    Options: ClassVar[type[Section]] = MessagesOptions
    identity = ""

    def __init__(self, options: MessagesOptions, recipe: Recipe) -> None:
        self._options = options
        self.columns = (options.column,)

    def faults(self, rows: pa.Table) -> pl.Series:
        """What is wrong with each chat."""
        chats = rows[self._options.column].to_pylist()
        return pl.Series([next(self._faults(chat), None) for chat in chats], dtype=pl.String)

    def _faults(self, chat: Any) -> Iterator[str]:
        turns = _turns(chat)
        if turns is None:
            yield "is no list of {role, content}"
            return
        if not turns:
            yield "has no turn"
            return
        for i, (role, content) in enumerate(turns):
            if role not in self._options.roles:
                yield f"turn {i}: role {role!r} is none of {', '.join(self._options.roles)}"
            if not isinstance(content, str) or not content.strip():
                yield f"turn {i}: {role} says nothing"
        roles = [role for role, _ in turns]
        if self._options.alternate:
            yield from _out_of_turn(roles)
        if self._options.ends_with not in (None, roles[-1]):
            yield f"ends with {roles[-1]}, not {self._options.ends_with}"


def _turns(chat: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(chat, str):
        try:
            chat = json.loads(chat)
        except (ValueError, RecursionError):
            return None
    if not isinstance(chat, list) or not all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in chat
    ):
        return None
    return [(turn["role"], turn["content"]) for turn in chat]


def _out_of_turn(roles: list[str]) -> Iterator[str]:
    if "system" in roles[1:]:
        yield f"turn {roles.index('system', 1)}: system speaks after the start"
    speakers = [role for role in roles if role != "system"]
    if speakers and speakers[0] != "user":
        yield f"begins with {speakers[0]}, not user"
    for before, after in pairwise(speakers):
        if before == after:
            yield f"{after} speaks twice in a row"


class PreferencePairOptions(Section):
    """Which columns hold a pair."""

    prompt: str | None = Field(
        "prompt", description="What both answer; null if they begin with it."
    )
    chosen: str = Field("chosen", description="The better answer: text, or a list of turns.")
    rejected: str = Field("rejected", description="The worse answer, in the same form.")


class PreferencePair:
    """Two answers to one prompt of which one is better: both there, and not the same."""

    revision: ClassVar[int] = 1
    Options: ClassVar[type[Section]] = PreferencePairOptions
    identity = ""

    def __init__(self, options: PreferencePairOptions, recipe: Recipe) -> None:
        self._options = options
        columns = (options.prompt, options.chosen, options.rejected)
        self.columns = tuple(column for column in columns if column is not None)

    def faults(self, rows: pa.Table) -> pl.Series:
        """What is wrong with each pair."""
        columns = [rows[column].to_pylist() for column in self.columns]
        pairs = zip(*columns, strict=True)
        return pl.Series([next(self._faults(*pair), None) for pair in pairs], dtype=pl.String)

    def _faults(self, *values: Any) -> Iterator[str]:
        for column, value in zip(self.columns, values, strict=True):
            if not (value.strip() if isinstance(value, str) else value):
                yield f"{column} is empty"
        chosen, rejected = values[-2:]
        if isinstance(chosen, str) and isinstance(rejected, str):
            if chosen.split() == rejected.split():
                yield "chosen and rejected are the same"
            return
        one, other = _turns(chosen), _turns(rejected)
        if one is None or other is None:
            yield "chosen and rejected are not both text, and not both lists of {role, content}"
        elif one == other:
            yield "chosen and rejected are the same"
        elif self._options.prompt is None and one[:1] != other[:1]:
            yield "chosen and rejected answer different prompts"
        elif one[-1][0] != "assistant" or other[-1][0] != "assistant":
            yield "chosen and rejected do not both end with the assistant"
