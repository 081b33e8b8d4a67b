"""Pages that ask once more, and do what a command would do.

Each is two requests: GET shows what would happen, with what it rests on in hidden fields;
POST does it if that still holds, under the name of who asked, with the reason given.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from penstock import quarantine, rollout_control
from penstock.artifacts import digest_of
from penstock.console import alarm_actions
from penstock.console.desk import Desk
from penstock.console.forms import Question, ask, done, number_of, reason_of
from penstock.console.guard import state_of
from penstock.errors import MirrorBehind, PenstockError, RecipeError, StalePromotion
from penstock.ledger.processes import acting_as
from penstock.ledger.rollout_records import State
from penstock.stages.decisions import Action

logger = logging.getLogger(__name__)


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
        return ask(desk, request, asked)
    person, _, form = state_of(request)
    expected = None if form.get("expect") == "none" else number_of(form, "expect")
    reason = reason_of(form)
    with acting_as(person):
        return _moved(
            lambda: desk.production().promote(model.version, reason, expected), "promoted"
        )


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
        return ask(desk, request, asked)
    person, _, form = state_of(request)
    epoch, reason = number_of(form, "epoch"), reason_of(form)
    with acting_as(person):
        return _moved(lambda: desk.production().rollback(reason, epoch=epoch), "rolled-back")


def _moved(move: Callable[[], object], word: str) -> Response:
    """Move the pointer; that MLflow's alias has not followed yet is no failure, and is said."""
    try:
        move()
    except MirrorBehind as error:
        logger.warning("%s %s", error.message, error.hint)
        return done("/versions", f"{word}-alone")
    return done("/versions", word)


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
        return ask(desk, request, asked)
    person, _, form = state_of(request)
    if rollout.epoch != number_of(form, "epoch"):
        raise StalePromotion("The trial has gone on since.", "Look at it again.")
    reason = reason_of(form)
    with acting_as(person):
        if what == "promote":
            ended = rollout_control.promote_now(rollouts, rollout, desk.production(), reason)
            if ended.state is not State.PROMOTED:
                raise StalePromotion(f"It is {ended.state}: {ended.reason}.", "See what serves.")
        else:
            rollout_control.stop(rollouts, rollout, reason)
    return done(page, "trial-promoted" if what == "promote" else "trial-stopped")


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
        return ask(desk, request, asked)
    reason = reason_of(form)
    if form.get("shown") != shown:
        raise StalePromotion(
            "The rows, or what was decided about them, have changed since.", "Look at them again."
        )
    with acting_as(person):
        quarantine.decide_about(desk.pipeline, action, chosen, reason)
    return done("/quarantine", "released" if action == "release" else "dropped")


ACTIONS: dict[str, Callable[[Desk, Request], Response]] = {
    "/versions/{version:int}/promote": promote,
    "/rollback": roll_back,
    "/rollouts/{rollout_id}/promote": promote_trial,
    "/rollouts/{rollout_id}/stop": stop_trial,
    "/quarantine/release": release,
    "/quarantine/drop": drop,
    "/alarms/{number:int}/acknowledge": alarm_actions.acknowledge,
    "/alarms/{number:int}/veto": alarm_actions.veto,
    "/alarms/pause": alarm_actions.pause,
    "/alarms/resume": alarm_actions.resume,
    "/alarms/approve": alarm_actions.approve,
}
