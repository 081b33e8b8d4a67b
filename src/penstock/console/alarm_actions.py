"""What a person says to alarms and to the loop that they drive; see ``actions.py``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from penstock.console.alarm_views import AlarmDesk, LoopView
from penstock.console.desk import Desk
from penstock.console.forms import Question, ask, done, number_of, reason_of
from penstock.console.guard import state_of
from penstock.errors import PenstockError, StalePromotion
from penstock.ledger.alarms import AlarmState
from penstock.ledger.processes import acting_as
from penstock.ledger.retrain_log import Entry, Line


def acknowledge(desk: Desk, request: Request) -> Response:
    """Say that somebody has seen an alarm."""
    return _say(desk, request, AlarmState.ACKNOWLEDGED)


def veto(desk: Desk, request: Request) -> Response:
    """Forbid a start for an alarm."""
    return _say(desk, request, AlarmState.VETOED)


def _say(desk: Desk, request: Request, state: AlarmState) -> Response:
    alarms = AlarmDesk(desk.pipeline)
    record = alarms.find(request.path_params["number"])
    number, page = record.number, f"/alarms/{record.number}"
    if not record.is_open:
        raise PenstockError(f"Alarm {number} is {record.state} already.", "Nothing was done.")
    if request.method != "POST":
        is_veto = state is AlarmState.VETOED
        verb = "Veto" if is_veto else "Acknowledge"
        command = f"watch veto {number}" if is_veto else f"alarms acknowledge {number}"
        asked = Question(
            title=f"{verb} alarm {number}?",
            facts=[
                ("What was seen", f"{record.alarm.kind}, {record.alarm.severity}"),
                ("Name", record.alarm.key),
                ("Then", "no run starts for it" if is_veto else "a run may still start for it"),
            ],
            button=f"{verb} alarm {number}",
            command=f"penstock {command} --reason ...",
            back=page,
            hidden={"state": record.state},
        )
        return ask(desk, request, asked)
    person, _, form = state_of(request)
    reason = reason_of(form)
    if form.get("state") != record.state:
        raise StalePromotion(f"Alarm {number} is {record.state} now.", "Look at it again.")
    with acting_as(person):
        alarms.alarms.decide(number, state, reason)
    return done(page, "vetoed" if state is AlarmState.VETOED else "acknowledged")


def pause(desk: Desk, request: Request) -> Response:
    """Let nothing start until somebody resumes."""
    alarms, loop = _loop(desk)
    if loop.pause is not None:
        raise PenstockError("The loop is paused already.", loop.pause.reason)
    if request.method != "POST":
        asked = Question(
            title="Pause the loop?",
            facts=[
                ("Then", "no run starts by itself until somebody resumes"),
                ("A run that is on", "goes on"),
            ],
            button="Pause the loop",
            command="penstock watch pause --reason ...",
            back="/alarms",
        )
        return ask(desk, request, asked)
    return _write(alarms, request, Line.PAUSE, "paused")


def resume(desk: Desk, request: Request) -> Response:
    """Let the loop go on, after a pause or after too many failures."""
    alarms, loop = _loop(desk)
    halted = "no" if loop.pause is None else str(loop.pause.epoch)
    if request.method != "POST":
        asked = Question(
            title="Let the loop go on?",
            facts=[
                ("Paused", "no" if loop.pause is None else f"yes: {loop.pause.reason}"),
                ("Failures until now", "are forgiven"),
            ],
            button="Resume",
            command="penstock watch resume --reason ...",
            back="/alarms",
            hidden={"pause": halted},
        )
        return ask(desk, request, asked)
    if state_of(request)[2].get("pause") != halted:
        raise StalePromotion("The loop was paused or resumed since.", "Look at it again.")
    return _write(alarms, request, Line.RESUME, "resumed")


def approve(desk: Desk, request: Request) -> Response:
    """Agree to a start for the alarms that were shown as open."""
    alarms, _ = _loop(desk)
    if request.method != "POST":
        newest = next(iter(alarms.newest(is_open=True, limit=1)), None)
        if newest is None:
            raise PenstockError("No alarm is open.", "There is nothing to agree to.")
        asked = Question(
            title="Agree to a start?",
            facts=[
                ("Open alarms", f"{alarms.num_open():,}"),
                ("Agreed for", f"alarms up to {newest.number}; later ones are asked about again"),
            ],
            button="Agree to a start",
            command="penstock watch approve --reason ...",
            back="/alarms",
            hidden={"up_to": str(newest.number)},
        )
        return ask(desk, request, asked)
    up_to = number_of(state_of(request)[2], "up_to")
    alarms.find(up_to)
    return _write(alarms, request, Line.APPROVE, "approved", {"up_to": up_to})


def _loop(desk: Desk) -> tuple[AlarmDesk, LoopView]:
    alarms = AlarmDesk(desk.pipeline)
    loop = alarms.loop()
    if loop.policy is None:
        raise PenstockError(
            "The recipe has no observe.retrain, so nothing starts by itself.",
            "Write `observe: {retrain: {}}` for the defaults.",
        )
    return alarms, loop


def _write(
    alarms: AlarmDesk,
    request: Request,
    line: Line,
    word: str,
    evidence: dict[str, int] | None = None,
) -> Response:
    person, _, form = state_of(request)
    with acting_as(person):
        alarms.log.add(Entry(line, reason_of(form), evidence or {}))
    return done("/alarms", word)
