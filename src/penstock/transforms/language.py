"""Which language a row is in, and rows in other languages out."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from penstock.errors import RecipeError
from penstock.registry import did_you_mean, require
from penstock.sources.base import AnyOptions, Options
from penstock.transforms.base import ROW_ID, Outcome, removed_rows, require_text

# A page's language shows in its beginning; reading on only takes time.
_READ_CHARACTERS = 2000


class LanguageOptions(Options):
    """Which languages stay."""

    keep: tuple[str, ...] = Field(
        ("en",), min_length=1, description="Languages that stay, as ISO 639 codes."
    )
    columns: tuple[str, ...] = Field(
        ("instruction", "response"), min_length=1, description="Judged together, as one text."
    )
    min_probability: float = Field(
        0.5, gt=0, le=1, description="That the text is in one of the languages to keep."
    )
    min_characters: int = Field(20, ge=1, description="Shorter texts are not judged: they stay.")
    among: tuple[str, ...] | None = Field(
        None, description="Languages that rows can be in at all; null is every one known."
    )

    @model_validator(mode="after")
    def _possible(self) -> LanguageOptions:
        for code in self.keep:
            if self.among is not None and code not in self.among:
                raise ValueError(f"keep: {code!r} is not in among")
        return self


class Language:
    """Remove rows that are not in one of the languages to keep.

    Told by py3langid (naive Bayes over byte sequences; Lui and Baldwin 2012),
    whose model comes with the package. The probabilities of all languages to
    keep are added up, so that relatives such as ``no`` and ``nn`` do not take
    from each other.
    """

    name: ClassVar[str] = "language"
    revision: ClassVar[int] = 1
    Options: ClassVar[AnyOptions] = LanguageOptions

    def __init__(self, options: LanguageOptions) -> None:
        self._options = options

    def open(self) -> None:
        """Load the model.

        Raises:
            MissingExtra: py3langid is not installed.
            RecipeError: The model does not know a language.
        """
        _identifier(self._options.among)
        known = _identifier(None).labels
        for code in self._options.keep:
            if code not in known:
                raise RecipeError(
                    f"language: {code!r} is not a language py3langid knows."
                    f"{did_you_mean(code, sorted(known))}"
                )

    def __call__(self, rows: pa.Table) -> Outcome:
        """Keep the rows in the right language, and those too short to tell."""
        options = self._options
        require_text(rows.schema, options.columns, self.name)
        verdicts = [self._fault(text) for text in _texts(rows, options.columns).to_pylist()]
        evidence = pa.array(verdicts, pa.string())
        gone = pc.is_valid(evidence)
        reason = f"not in {' or '.join(options.keep)}"
        removed = removed_rows(rows.filter(gone)[ROW_ID], self.name, reason, evidence.filter(gone))
        return Outcome(rows.filter(pc.invert(gone)), removed)

    def _fault(self, text: str) -> str | None:
        """What the text is instead, with its probability; None for a row that stays."""
        if len(text.strip()) < self._options.min_characters:
            return None
        ranking = _identifier(self._options.among).rank(text[:_READ_CHARACTERS])
        kept = sum(p for language, p in ranking if language in self._options.keep)
        if kept >= self._options.min_probability:
            return None
        language, probability = ranking[0]
        return f"{language} {probability:.2f}, {' or '.join(self._options.keep)} {kept:.2f}"


def known_languages() -> list[str]:
    """Every language that can be told, sorted.

    Raises:
        MissingExtra: py3langid is not installed.
    """
    return sorted(map(str, _identifier(None).labels))


def language_of(text: str) -> str:
    """The likeliest language of a text, as an ISO 639 code.

    Raises:
        MissingExtra: py3langid is not installed.
    """
    return str(_identifier(None).classify(text[:_READ_CHARACTERS])[0])


@cache
def _identifier(among: tuple[str, ...] | None) -> Any:
    """One model for a process and a choice of languages; loading takes half a second."""
    langid = require("py3langid.langid", "text")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    try:
        identifier.set_languages(among)
    except ValueError as error:
        raise RecipeError(
            f"language.among: {error}", f"Known: {', '.join(sorted(identifier.labels))}."
        ) from None
    return identifier


def _texts(rows: pa.Table, columns: tuple[str, ...]) -> pa.ChunkedArray:
    texts = [pc.fill_null(rows[column].cast(pa.large_string()), "") for column in columns]
    return pc.binary_join_element_wise(*texts, pa.scalar("\n", pa.large_string()))
