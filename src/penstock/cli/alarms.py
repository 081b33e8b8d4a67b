"""Alarms: what was seen, and what has become of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.options import DEFAULT, Json, RecipePath, Set, open_recipe
from penstock.errors import RecipeError

if TYPE_CHECKING:
    from penstock.ledger.alarms import Alarms

app = typer.Typer()
alarms_app = typer.Typer(help="What was seen that may start a run.", no_args_is_help=True)
app.add_typer(alarms_app, name="alarms")

Number = Annotated[int, typer.Argument(help="Which.")]
Reason = Annotated[str, typer.Option(help="Why; it is written down.")]


@alarms_app.command("list")
def alarms_list(
    all_: Annotated[bool, typer.Option("--all", help="Also those that are not open.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """List alarms, newest first."""
    from penstock import printing

    alarms, name = _opened(recipe, set_)
    found = alarms.of(name, limit) if all_ else alarms.open(name)[: -limit - 1 : -1]
    if json_:
        printing.as_json(found)
        return
    rows = [
        (
            str(one.number),
            printing.clock(one.received_s),
            one.alarm.kind,
            one.alarm.severity,
            one.alarm.key,
            f"{one.state} {one.start_key or ''}".strip(),
        )
        for one in found
    ]
    printing.table(("", "at", "kind", "severity", "key", "state"), rows)


@alarms_app.command("show")
def alarms_show(
    number: Number,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Show what an alarm rests on, and who decided what about it."""
    import json

    from penstock import printing

    alarms, name = _opened(recipe, set_)
    record, events = alarms.find(number, name), alarms.events(number)
    if json_:
        printing.as_json({"alarm": record, "events": events})
        return
    printing.note(f"{record.alarm.kind} {record.alarm.key}: {record.state}")
    printing.note(json.dumps(dict(record.alarm.evidence), indent=2, ensure_ascii=False))
    rows = [(printing.clock(e.at_s), e.state, e.reason, e.actor) for e in events]
    printing.table(("at", "state", "why", "who"), rows)


@alarms_app.command("raise")
def alarms_raise(
    kind: Annotated[str, typer.Argument(help="drift, quality, feedback, alert, schedule, person.")],
    key: Annotated[str, typer.Option(help="Names the event; raised again it is the same alarm.")],
    severity: Annotated[str, typer.Option(help="info, warning or critical.")] = "warning",
    evidence: Annotated[str, typer.Option(help="What it rests on, as a JSON object.")] = "{}",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Raise an alarm, as a check of your own would."""
    from penstock import printing
    from penstock.ledger.alarms import Alarm

    alarms, name = _opened(recipe, set_)
    known: Any = {"kind": kind, "severity": severity}
    record = alarms.raise_(
        Alarm(name, key=key, raised_s=time.time(), evidence=_object(evidence), **known)
    )
    printing.as_json(record) if json_ else printing.note(f"Alarm {record.number}: {record.state}")


@alarms_app.command("acknowledge")
def alarms_acknowledge(
    number: Number,
    reason: Reason,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
) -> None:
    """Say that somebody has seen it; it may still start a run."""
    _decide(recipe, set_, number, "acknowledged", reason)


@alarms_app.command("close")
def alarms_close(
    number: Number,
    reason: Reason,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
) -> None:
    """Say that it is over or was none; it starts nothing any more."""
    _decide(recipe, set_, number, "closed", reason)


def _opened(recipe: Any, set_: list[str] | None) -> tuple[Alarms, str]:
    from penstock.ledger.alarms import Alarms

    pipeline = open_recipe(recipe, set_, quiet=True)
    return Alarms(pipeline.ledger), pipeline.recipe.name


def _decide(recipe: Any, set_: list[str] | None, number: int, state: str, reason: str) -> None:
    from penstock import printing
    from penstock.ledger.alarms import AlarmState

    alarms, name = _opened(recipe, set_)
    alarms.find(number, name)
    record = alarms.decide(number, AlarmState(state), reason)
    printing.note(f"Alarm {record.number}: {record.state}")


def _object(text: str) -> dict[str, Any]:
    import json

    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RecipeError(f"--evidence {text!r} is no JSON object.")
    return value
