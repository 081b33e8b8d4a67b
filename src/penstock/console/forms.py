"""What every form has: a question, what it rests on, a reason, and a word when it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from penstock.console.desk import Desk
from penstock.console.guard import PREFIX, printable
from penstock.console.render import render
from penstock.errors import RecipeError

# What a page says after it was done; the address names the words and never holds them.
DONE = {
    "promoted": "The pointer has moved. Gateways follow within a second.",
    "rolled-back": "The pointer is back. Gateways follow within a second.",
    "trial-promoted": "The version on trial was promoted.",
    "trial-stopped": "The trial has ended; the version that serves answers everything.",
    "released": "Released. The next run takes the rows as if they had met the contract.",
    "dropped": "Dropped. The rows stay out and no longer count against max_bad_rows.",
    "acknowledged": "Acknowledged. A run may still start for it.",
    "vetoed": "Vetoed. No run starts for it.",
    "paused": "Paused. No run starts by itself until somebody resumes.",
    "resumed": "Resumed. The next look decides anew.",
    "approved": "Agreed. The next look may start a run.",
}
_ALONE = (
    " MLflow did not answer, so its alias has not followed yet; the next run or promotion makes it "
    "follow. Do nothing again."
)
DONE |= {f"{word}-alone": DONE[word] + _ALONE for word in ("promoted", "rolled-back")}
_MAX_REASON = 500


@dataclass(frozen=True)
class Question:
    """What is asked before something is done.

    Attributes:
        title: What would be done.
        facts: What it rests on, for the reader.
        button: What the button says.
        command: The command that does the same.
        back: Where the page leads when it is not done.
        hidden: What must still hold when it is done; sent back with the form.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    button: str
    command: str
    back: str
    hidden: Mapping[str, str] = field(default_factory=dict)


def ask(desk: Desk, request: Request, question: Question) -> Response:
    """The page that asks once more."""
    return render(desk, request, "confirm.html", asked=question)


def reason_of(form: Mapping[str, str]) -> str:
    """Why, as a person has written it.

    Raises:
        RecipeError: There is no reason, or it is too long.
    """
    reason = printable(form.get("reason", ""))
    if not reason or len(reason) > _MAX_REASON:
        raise RecipeError(
            f"The reason has {len(reason)} characters.",
            f"Say why, in at most {_MAX_REASON}; it is kept in the ledger. Nothing was done.",
        )
    return reason


def number_of(form: Mapping[str, str], name: str) -> int:
    """A number that the form has sent back.

    Raises:
        RecipeError: It is none.
    """
    text = form.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise RecipeError(f"The form has no {name}.", "Open it again. Nothing was done.")
    return int(text)


def done(path: str, what: str) -> Response:
    """Lead to a page that says what was done."""
    return RedirectResponse(f"{PREFIX}{path}?{urlencode({'done': what})}", 303)


def word_of(request: Request) -> str:
    """What a page says of what was just done; empty if nothing was."""
    return DONE.get(request.query_params.get("done", ""), "")
