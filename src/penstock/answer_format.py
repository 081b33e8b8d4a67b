"""Whether an answer has the form that a recipe asks for: JSON, or a regular expression."""

from __future__ import annotations

import json

JSON = "json"
# Nobody asks for a form that needs more of a text to be judged.
_MAX_CHARS = 1_000_000


class AnswerFormat:
    """A form of answers.

    Regular expressions are RE2's, as Arrow has them: linear in the text, whatever
    the pattern, while Python's may take for ever on a text that almost matches.

    Args:
        wanted: ``json``, or an expression that the whole answer must match.

    Raises:
        ValueError: It is no regular expression that RE2 knows.
    """

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        if wanted != JSON:
            self._matches("")

    def holds(self, answer: str) -> bool:
        """Whether an answer has it; may be called in any thread."""
        if len(answer) > _MAX_CHARS:
            return False
        return _is_json(answer) if self.wanted == JSON else self._matches(answer)

    def _matches(self, answer: str) -> bool:
        import pyarrow as pa
        import pyarrow.compute as pc

        pattern = rf"\A(?:{self.wanted})\z"
        try:
            found = pc.match_substring_regex(pa.array([answer], pa.string()), pattern)
        except pa.ArrowInvalid as error:
            raise ValueError(f"format {self.wanted!r} is no regular expression: {error}") from None
        return bool(found[0].as_py())


def _is_json(answer: str) -> bool:
    try:
        json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
