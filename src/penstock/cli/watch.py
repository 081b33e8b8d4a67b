"""The loop by itself: watch, halt, forbid, agree; and what was decided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.options import DEFAULT, Json, RecipePath, Set, open_recipe
from penstock.errors import RecipeError

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline
    from penstock.retrain import Loop
    from penstock.retrain_section import RetrainSection

app = typer.Typer()
watch_app = typer.Typer(help="Start the next run when there is a reason to.")
app.add_typer(watch_app, name="watch")

Reason = Annotated[str, typer.Option(help="Why; it is written down.")]


@watch_app.callback(invoke_without_command=True)
def watch(
    context: typer.Context,
    once: Annotated[
        bool, typer.Option(help="Look once; see a run that is started here to its end.")
    ] = False,
    poll_s: Annotated[float, typer.Option(min=0.01, help="Between two looks.")] = 2.0,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Watch for alarms, and start the runs they ask for, until a signal comes."""
    if context.invoked_subcommand is not None:
        return
    from penstock import printing
    from penstock.watching import watch_once, watch_until_signal

    pipeline, section, _ = _opened(recipe, set_)
    if once:
        decision = watch_once(pipeline, section, poll_s)
        if json_:
            printing.as_json(None if decision is None else decision.to_dict())
            return
        said = "another watcher is at it" if decision is None else decision.reason
        printing.note(said if decision is None else f"{decision.move}: {said}")
        return
    printing.note(f"Watching {pipeline.recipe.name}; Ctrl-C ends it")
    watch_until_signal(pipeline, section, poll_s)


@watch_app.command("status")
def watch_status(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Show what would be decided now, and the runs that were started."""
    from penstock import printing
    from penstock.gates.retrain_policy import decide, failures_in_a_row, spent_usd

    _, _, loop = _opened(recipe, set_)
    story = loop.story()
    situation = loop.situation(story)
    decision = decide(situation, loop.policy)
    if json_:
        shown = {
            "decision": decision.to_dict(),
            "situation": situation.to_dict(),
            "failures_in_a_row": failures_in_a_row(situation),
            "spent_usd": spent_usd(situation, loop.policy),
        }
        printing.as_json(shown)
        return
    until = "" if decision.until_s is None else f" until {printing.clock(decision.until_s)}"
    printing.note(f"{decision.move}: {decision.reason}{until}")
    printing.note(
        f"{len(situation.waiting)} open alarms, {failures_in_a_row(situation)} failures in a row, "
        f"{spent_usd(situation, loop.policy):.2f} USD in 30 days"
    )
    rows = [
        (one.key, printing.clock(one.at_s), one.outcome or "on", _took(one.duration_s))
        for one in situation.starts[-10:]
    ]
    printing.table(("run", "decided", "outcome", "time"), rows)


@watch_app.command("log")
def watch_log(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Show what was decided, and whether each decision comes out the same again."""
    from penstock import printing
    from penstock.retrain import recomputed

    _, _, loop = _opened(recipe, set_)
    lines = [(one, recomputed(one)) for one in loop.log.lines()]
    if json_:
        printing.as_json([vars(one) | {"same": same} for one, same in lines])
        return
    words = {True: "same", False: "DIFFERS", None: ""}
    rows = [
        (
            str(one.epoch),
            printing.clock(one.at_s),
            one.action,
            one.start_key or "",
            one.reason,
            words[same],
        )
        for one, same in lines
    ]
    printing.table(("", "at", "what", "run", "why", "again"), rows)


@watch_app.command("start")
def watch_start(
    reason: Reason, recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False
) -> None:
    """Ask for a run, as a person: it waits for nothing but the limits."""
    import time
    import uuid

    from penstock import printing
    from penstock.ledger import actor
    from penstock.ledger.alarms import Alarm

    _, _, loop = _opened(recipe, set_)
    evidence = {"by": actor(), "reason": _given(reason)}
    key = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    record = loop.alarms.raise_(
        Alarm(loop.recipe.name, "person", key, time.time(), "info", evidence)
    )
    if json_:
        printing.as_json(record)
        return
    printing.note(f"Alarm {record.number}: the watcher starts a run for it")


@watch_app.command("pause")
def watch_pause(reason: Reason, recipe: RecipePath = DEFAULT, set_: Set = None) -> None:
    """Start nothing until somebody resumes; a run that is on goes on."""
    from penstock import printing
    from penstock.ledger.retrain_log import Entry, Line

    _, _, loop = _opened(recipe, set_)
    loop.log.add(Entry(Line.PAUSE, _given(reason)))
    printing.note("Paused. Go on: penstock watch resume --reason ...")


@watch_app.command("resume")
def watch_resume(reason: Reason, recipe: RecipePath = DEFAULT, set_: Set = None) -> None:
    """Go on after a pause, or after too many failures: those are forgiven."""
    from penstock import printing
    from penstock.ledger.retrain_log import Entry, Line

    _, _, loop = _opened(recipe, set_)
    loop.log.add(Entry(Line.RESUME, _given(reason)))
    printing.note("Resumed.")


@watch_app.command("approve")
def watch_approve(reason: Reason, recipe: RecipePath = DEFAULT, set_: Set = None) -> None:
    """Agree to a start for the alarms that are open now."""
    from penstock import printing
    from penstock.ledger.retrain_log import Entry, Line

    _, _, loop = _opened(recipe, set_)
    waiting = loop.alarms.open(loop.recipe.name)
    if not waiting:
        printing.note("No alarm is open.")
        return
    number = waiting[-1].number
    loop.log.add(Entry(Line.APPROVE, _given(reason), {"up_to": number}))
    printing.note(f"Agreed to a start for {len(waiting)} open alarms, up to {number}")


@watch_app.command("veto")
def watch_veto(
    reason: Reason,
    alarm: Annotated[int | None, typer.Argument(help="Which; else all that are open.")] = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
) -> None:
    """Forbid a start for alarms that are open now."""
    from penstock import printing
    from penstock.ledger.alarms import AlarmState

    _, _, loop = _opened(recipe, set_)
    numbers = (
        [one.number for one in loop.alarms.open(loop.recipe.name)] if alarm is None else [alarm]
    )
    for number in numbers:
        loop.alarms.find(number, loop.recipe.name)
        loop.alarms.decide(number, AlarmState.VETOED, _given(reason))
    printing.note(f"Forbidden: {len(numbers)} alarms start nothing")


def _opened(recipe: Any, set_: list[str] | None) -> tuple[Pipeline, RetrainSection, Loop]:
    """The recipe, what it says of retraining, and its loop.

    Raises:
        RecipeError: It says nothing of it.
    """
    from penstock.retrain import Loop

    pipeline = open_recipe(recipe, set_, quiet=True)
    section = pipeline.recipe.observe.retrain
    if section is None:
        raise RecipeError(
            "The recipe has no observe.retrain, so nothing says when a run may start by itself.",
            "Write `observe: {retrain: {}}` for the defaults.",
        )
    return pipeline, section, Loop(pipeline.recipe, pipeline.ledger, section.policy())


def _given(reason: str) -> str:
    if not reason.strip():
        raise RecipeError("--reason is empty.")
    return reason.strip()


def _took(duration_s: float | None) -> str:
    return "" if duration_s is None else f"{duration_s:.1f} s"
