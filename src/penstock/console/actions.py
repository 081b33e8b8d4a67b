"""Pages that ask once more, and do what a command would do.

Each is two requests: GET shows what would happen, with what it rests on in hidden fields;
POST does it if that still holds, under the name of who asked, with the reason given.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from penstock import quarantine, rollout_control
from penstock.artifacts import digest_of
from penstock.console.desk import Desk
from penstock.console.guard import PREFIX, printable, state_of
from penstock.console.render import render
from penstock.errors import PenstockError, RecipeError, StalePromotion
from penstock.ledger.processes import acting_as
from penstock.ledger.rollout_records import State
from penstock.stages.decisions import Action

# What a page says after it was done; the address names the words and never holds them.
DONE = {
    "promoted": "The pointer has moved. Gateways follow within a second.",
    "rolled-back": "The pointer is back. Gateways follow within a second.",
    "trial-promoted": "The version on trial was promoted.",
    "trial-stopped": "The trial has ended; the version that serves answers everything.",
    "released": "Released. The next run takes the rows as if they had met the contract.",
    "dropped": "Dropped. The rows stay out and no longer count against max_bad_rows.",
}
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


def promote(desk: Desk, request: Request) -> Response:
    """Point production at a version, if what serves is still what was shown."""
    model, serving = desk.model(request.path_params["version"]), desk.serving()
    now = "none" if serving.version is None else str(serving.version)
    if request.method != "POST":
        asked = Question(
            title=f"Promote version {model.version} of {model.name}?",
            facts=[
                ("Serves now", "nothing" if now == "none" else f"version {now}"),
                ("Would serve", f"version {model.version}, digest {model.digest[:12]}"),
                ("Trained on", model.data_version or "unknown"),
            ],
            button=f"Promote version {model.version}",
            command=f"penstock promote --version {model.version} --expect {now}",
            back="/versions",
            hidden={"expect": now},
        )
        return render(desk, request, "confirm.html", asked=asked)
    person, _, form = state_of(request)
    expected = None if form.get("expect") == "none" else _number(form, "expect")
    reason = _reason(form)
    with acting_as(person):
        desk.production().promote(model.version, reason, expected)
    return _done("/versions", "promoted")


def roll_back(desk: Desk, request: Request) -> Response:
    """Point production back, if the last move is still the one that was shown."""
    serving = desk.serving()
    if request.method != "POST":
        if serving.pointer is None or serving.previous is None:
            raise PenstockError("There is nothing to go back to.", "Nothing served before.")
        asked = Question(
            title=f"Roll back to version {serving.previous} of {serving.name}?",
            facts=[
                ("Serves now", f"version {serving.version}"),
                ("Would serve", f"version {serving.previous}"),
                ("Takes back", f"move {serving.pointer.epoch}: {serving.moves[0].reason}"),
            ],
            button=f"Roll back to version {serving.previous}",
            command="penstock model rollback",
            back="/versions",
            hidden={"epoch": str(serving.pointer.epoch)},
        )
        return render(desk, request, "confirm.html", asked=asked)
    person, _, form = state_of(request)
    epoch, reason = _number(form, "epoch"), _reason(form)
    with acting_as(person):
        desk.production().rollback(reason, epoch=epoch)
    return _done("/versions", "rolled-back")


def promote_trial(desk: Desk, request: Request) -> Response:
    """Promote the version on trial, whatever the evidence."""
    return _trial(desk, request, "promote")


def stop_trial(desk: Desk, request: Request) -> Response:
    """End a trial; the version that serves answers everything again."""
    return _trial(desk, request, "stop")


def _trial(desk: Desk, request: Request, what: str) -> Response:
    rollouts, rollout = desk.rollouts, desk.rollout(request.path_params["rollout_id"])
    page = f"/rollouts/{rollout.id}"
    if not rollout.is_open:
        raise PenstockError(f"Rollout {rollout.id} is {rollout.state}.", "It has ended already.")
    if request.method != "POST":
        challenger = f"version {rollout.challenger}"
        asked = Question(
            title=f"Promote {challenger} now?" if what == "promote" else f"Stop {challenger}?",
            facts=[
                ("On trial", f"{challenger} against version {rollout.champion}"),
                ("Step", f"{rollout.step + 1} of {len(rollout.steps)}, {rollout.share:.1%}"),
                ("Evidence", "is not waited for" if what == "promote" else "is kept"),
            ],
            button=f"Promote {challenger}" if what == "promote" else f"Stop {challenger}",
            command=f"penstock rollout {what} {rollout.id}",
            back=page,
            hidden={"epoch": str(rollout.epoch)},
        )
        return render(desk, request, "confirm.html", asked=asked)
    person, _, form = state_of(request)
    if rollout.epoch != _number(form, "epoch"):
        raise StalePromotion("The trial has gone on since.", "Look at it again.")
    reason = _reason(form)
    with acting_as(person):
        if what == "promote":
            ended = rollout_control.promote_now(rollouts, rollout, desk.production(), reason)
            if ended.state is not State.PROMOTED:
                raise StalePromotion(f"It is {ended.state}: {ended.reason}.", "See what serves.")
        else:
            rollout_control.stop(rollouts, rollout, reason)
    return _done(page, "trial-promoted" if what == "promote" else "trial-stopped")


def release(desk: Desk, request: Request) -> Response:
    """Let rows through."""
    return _decide(desk, request, "release")


def drop(desk: Desk, request: Request) -> Response:
    """Give rows up."""
    return _decide(desk, request, "drop")


def _decide(desk: Desk, request: Request, action: Action) -> Response:
    person, _, form = state_of(request)
    said = form if request.method == "POST" else request.query_params
    row, source, rule = (said.get(name, "") for name in ("row", "source", "rule"))
    if not (row or source or rule):
        raise RecipeError("No row was chosen.", "Choose rows on the quarantine page.")
    chosen = quarantine.rows(desk.pipeline, row, source, rule, limit=None)
    shown = digest_of([[one.row_id, one.decision and one.decision.at_s] for one in chosen])
    if request.method != "POST":
        verb = "Release" if action == "release" else "Drop"
        rows = "1 row" if len(chosen) == 1 else f"{len(chosen):,} rows"
        named = {"source": source, "rule": rule}
        words = [row] if row else [f"--{name}={said}" for name, said in named.items() if said]
        asked = Question(
            title=f"{verb} {rows}?",
            facts=[
                ("Source", source or chosen[0].source),
                ("Rule", rule or chosen[0].rule),
                ("First row", chosen[0].row_id),
            ],
            button=f"{verb} {rows}",
            command=shlex.join(["penstock", "quarantine", action, *words]),
            back="/quarantine",
            hidden={"row": row, **named, "shown": shown},
        )
        return render(desk, request, "confirm.html", asked=asked)
    reason = _reason(form)
    if form.get("shown") != shown:
        raise StalePromotion(
            "The rows, or what was decided about them, have changed since.", "Look at them again."
        )
    with acting_as(person):
        quarantine.decide_about(desk.pipeline, action, chosen, reason)
    return _done("/quarantine", "released" if action == "release" else "dropped")


def _reason(form: Mapping[str, str]) -> str:
    reason = printable(form.get("reason", ""))
    if not reason or len(reason) > _MAX_REASON:
        raise RecipeError(
            f"The reason has {len(reason)} characters.",
            f"Say why, in at most {_MAX_REASON}; it is kept in the ledger. Nothing was done.",
        )
    return reason


def _number(form: Mapping[str, str], name: str) -> int:
    text = form.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise RecipeError(f"The form has no {name}.", "Open it again. Nothing was done.")
    return int(text)


def _done(path: str, what: str) -> Response:
    return RedirectResponse(f"{PREFIX}{path}?{urlencode({'done': what})}", 303)


ACTIONS: dict[str, Callable[[Desk, Request], Response]] = {
    "/versions/{version:int}/promote": promote,
    "/rollback": roll_back,
    "/rollouts/{rollout_id}/promote": promote_trial,
    "/rollouts/{rollout_id}/stop": stop_trial,
    "/quarantine/release": release,
    "/quarantine/drop": drop,
}
