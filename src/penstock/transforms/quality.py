"""Rules of thumb that tell text from what is left of a web page.

Each rule is one measure of a text and the limits on it. Gopher's rules and
limits are those of Rae et al. 2021 (https://arxiv.org/abs/2112.11446, A1.1); C4's
those of Raffel et al. 2020 (https://arxiv.org/abs/1910.10683, 2.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from penstock.sources.base import AnyOptions, Options
from penstock.transforms import repetition
from penstock.transforms.base import (
    REMOVED_SCHEMA,
    ROW_ID,
    Outcome,
    removed_rows,
    require_text,
)

_WORDS = r"\S+"
_LINES = r"(?m)^[^\S\n]*\S"
_BULLETS = r"(?m)^[^\S\n]*(?:[\u2022\u2023\u25aa\u25cf\u25e6\u00b7]|[*-][^\S\n])"
_ELLIPSES = r"(?m)(?:\.\.\.|…)[^\S\n]*$"
_SENTENCE_ENDS = r"[.!?…][\x22'”’)\]]*(?:\s|$)"

_GOPHER = "Rae et al. 2021"
GOPHER_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


class QualityOptions(Options):
    """Limits; null or false turns a rule off. The defaults are the papers'."""

    columns: tuple[str, ...] = Field(
        ("response",), min_length=1, description="Text columns; each must meet every rule."
    )
    min_words: int | None = Field(50, ge=1, description="Gopher.")
    max_words: int | None = Field(100_000, ge=1, description="Gopher.")
    min_mean_word_length: float | None = Field(3, gt=0, description="Gopher; in characters.")
    max_mean_word_length: float | None = Field(10, gt=0, description="Gopher; in characters.")
    max_symbols: float | None = Field(
        0.1, ge=0, description="Gopher; number signs and, apart, ellipses, to a word."
    )
    max_bullet_lines: float | None = Field(
        0.9, ge=0, le=1, description="Gopher; share of lines that begin with a bullet."
    )
    max_ellipsis_lines: float | None = Field(
        0.3, ge=0, le=1, description="Gopher; share of lines that end in an ellipsis."
    )
    min_alphabetic_words: float | None = Field(
        0.8, ge=0, le=1, description="Gopher; share of words that hold a letter."
    )
    min_stop_words: int | None = Field(
        2, ge=1, description="Gopher; so many different ones of `stop_words`."
    )
    stop_words: tuple[str, ...] = Field(
        GOPHER_STOP_WORDS, min_length=1, description="For other languages, give their own."
    )
    max_duplicate_lines: float | None = Field(
        0.3, ge=0, le=1, description="Gopher; share of lines that stood there before."
    )
    max_duplicate_line_characters: float | None = Field(
        0.2, ge=0, le=1, description="Gopher; the same, counted in characters."
    )
    max_duplicate_paragraphs: float | None = Field(0.3, ge=0, le=1, description="Gopher.")
    max_duplicate_paragraph_characters: float | None = Field(0.2, ge=0, le=1, description="Gopher.")
    top_ngrams: bool = Field(
        True,
        description="Gopher; characters in the most frequent 2-, 3- and 4-gram: "
        "at most 20, 18 and 16 %.",
    )
    duplicate_ngrams: bool = Field(
        True,
        description="Gopher; characters in 5- to 10-grams that stood there before: "
        "at most 15 to 10 %.",
    )
    min_sentences: int | None = Field(3, ge=1, description="C4.")
    curly_brackets: bool = Field(True, description="C4; `{` shows a program, not a text.")
    lorem_ipsum: bool = Field(True, description="C4; no placeholder text.")
    javascript: bool = Field(
        True, description="C4 takes out lines with the word; here the row goes."
    )


# Texts, none of them null -> a number each, null where there is none.
Measure: TypeAlias = Callable[[pl.Series], pl.Series]
# Texts, none of them null -> what was measured where it breaks the rule, null elsewhere.
Faults: TypeAlias = Callable[[pl.Series], pl.Series]


@dataclass(frozen=True)
class Rule:
    """One thing that is wrong with a text.

    Attributes:
        option: The option that sets it, which is its name in the ledger.
        reason: What is wrong with a text that breaks it.
        paper: Where it comes from.
        faults: Finds the texts that break it.
    """

    option: str
    reason: str
    paper: str
    faults: Faults


class Quality:
    """Remove rows that Gopher's or C4's rules of thumb take for no proper text.

    The first rule that a row breaks is the one that is recorded, with what was
    measured. Null is not text, and is not judged.
    """

    name: ClassVar[str] = "quality"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = QualityOptions

    def __init__(self, options: QualityOptions) -> None:
        self._options = options

    def open(self) -> None:
        """There is nothing to load."""

    def __call__(self, rows: pa.Table) -> Outcome:
        """Keep the rows that break no rule."""
        require_text(rows.schema, self._options.columns, self.name)
        removed = [REMOVED_SCHEMA.empty_table()]
        for column in self._options.columns:
            for rule in rules(self._options):
                rows, gone = self._apply(rule, rows, column)
                removed.append(gone)
        return Outcome(rows, pa.concat_tables(removed))

    def _apply(self, rule: Rule, rows: pa.Table, column: str) -> tuple[pa.Table, pa.Table]:
        """The rows that hold, and the ledger rows of those that do not."""
        is_text = pc.is_valid(rows[column])
        faults = rule.faults(pl.Series(rows[column].filter(is_text), dtype=pl.String))
        if faults.is_null().all():
            return rows, REMOVED_SCHEMA.empty_table()
        places = pl.Series(is_text).arg_true()
        found = pl.repeat(None, rows.num_rows, dtype=pl.String, eager=True).scatter(places, faults)
        bad = found.is_not_null().to_arrow()
        evidence = (f"{rule.option}: " + found.drop_nulls()).to_arrow()
        reason = f"{column} {rule.reason} ({rule.paper})"
        gone = removed_rows(rows[ROW_ID].filter(bad), self.name, reason, evidence)
        return rows.filter(pc.invert(bad)), gone


def rules(options: QualityOptions) -> Iterator[Rule]:
    """The rules that are on, the cheapest first."""
    yield from _of_c4(options)
    yield from _of_gopher(options)
    yield from _of_repetition(options)


def _of_c4(o: QualityOptions) -> Iterator[Rule]:
    script = _count(r"(?i)\bjavascript\b")
    for option, reason, measure, least, most in (
        (
            "lorem_ipsum",
            "is placeholder text",
            _count("(?i)lorem ipsum"),
            None,
            _none(o.lorem_ipsum),
        ),
        ("curly_brackets", "holds a curly bracket", _count(r"\{"), None, _none(o.curly_brackets)),
        ("javascript", "speaks of JavaScript", script, None, _none(o.javascript)),
        ("min_sentences", "has too few sentences", _count(_SENTENCE_ENDS), o.min_sentences, None),
    ):
        if least is not None or most is not None:
            yield Rule(option, reason, "Raffel et al. 2020", _limited(measure, least, most))


def _of_gopher(o: QualityOptions) -> Iterator[Rule]:
    letters = r"[^\s\p{L}]*\p{L}\S*"
    for option, reason, measure, least, most in (
        ("min_words", "has too few words", _count(_WORDS), o.min_words, None),
        ("max_words", "has too many words", _count(_WORDS), None, o.max_words),
        ("min_mean_word_length", "has too short words", _ratio(r"\S", _WORDS),
         o.min_mean_word_length, None),
        ("max_mean_word_length", "has too long words", _ratio(r"\S", _WORDS), None,
         o.max_mean_word_length),
        ("max_symbols", "has too many number signs", _ratio("#", _WORDS), None, o.max_symbols),
        ("max_symbols", "has too many ellipses", _ratio(r"\.\.\.|…", _WORDS), None, o.max_symbols),
        ("max_bullet_lines", "is a list", _ratio(_BULLETS, _LINES), None, o.max_bullet_lines),
        ("max_ellipsis_lines", "has lines that are cut off", _ratio(_ELLIPSES, _LINES), None,
         o.max_ellipsis_lines),
        ("min_alphabetic_words", "has too few words with a letter", _ratio(letters, _WORDS),
         o.min_alphabetic_words, None),
        ("min_stop_words", "has too few stop words", _stop_words(o.stop_words), o.min_stop_words,
         None),
    ):  # fmt: skip
        if least is not None or most is not None:
            yield Rule(option, reason, _GOPHER, _limited(measure, least, most))


def _of_repetition(o: QualityOptions) -> Iterator[Rule]:
    for option, reason, measure, most in (
        ("max_duplicate_lines", "repeats lines", repetition.lines, o.max_duplicate_lines),
        ("max_duplicate_line_characters", "repeats lines", repetition.line_characters,
         o.max_duplicate_line_characters),
        ("max_duplicate_paragraphs", "repeats paragraphs", repetition.paragraphs,
         o.max_duplicate_paragraphs),
        ("max_duplicate_paragraph_characters", "repeats paragraphs",
         repetition.paragraph_characters, o.max_duplicate_paragraph_characters),
    ):  # fmt: skip
        if most is not None:
            yield Rule(option, reason, _GOPHER, _limited(measure, None, most))
    if o.top_ngrams:
        yield Rule("top_ngrams", "is largely one phrase", _GOPHER, repetition.top_ngrams)
    if o.duplicate_ngrams:
        yield Rule("duplicate_ngrams", "repeats phrases", _GOPHER, repetition.duplicate_ngrams)


def _none(is_on: bool) -> float | None:
    """The most that is allowed where a rule is on."""
    return 0 if is_on else None


def _limited(measure: Measure, least: float | None, most: float | None) -> Faults:
    def faults(text: pl.Series) -> pl.Series:
        measured = measure(text)
        bad = pl.repeat(False, len(text), eager=True)
        if least is not None:
            bad = bad | (measured < least)
        if most is not None:
            bad = bad | (measured > most)
        places = bad.fill_null(False).arg_true()
        shown = pl.Series([f"{number:.4g}" for number in measured.gather(places)], dtype=pl.String)
        return pl.repeat(None, len(text), dtype=pl.String, eager=True).scatter(places, shown)

    return faults


def _count(pattern: str) -> Measure:
    def count(text: pl.Series) -> pl.Series:
        return text.str.count_matches(pattern).cast(pl.Float64)

    return count


def _ratio(pattern: str, to: str) -> Measure:
    def ratio(text: pl.Series) -> pl.Series:
        whole = _count(to)(text)
        return _count(pattern)(text) / whole.set(whole == 0, None)

    return ratio


def _stop_words(words: tuple[str, ...]) -> Measure:
    def count(text: pl.Series) -> pl.Series:
        total = pl.zeros(len(text), pl.Float64, eager=True)
        for word in dict.fromkeys(words):
            total = total + text.str.contains(rf"(?i)\b{re.escape(word)}\b").cast(pl.Float64)
        return total

    return count
