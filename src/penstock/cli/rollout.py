"""Versions on trial: start, look, promote, stop, and compute decisions again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.options import (
    DEFAULT,
    Json,
    LedgerUrl,
    ModelName,
    Page,
    RecipePath,
    Set,
    StageName,
    StoreFolder,
    Tracking,
    Where,
    open_recipe,
    write_page,
)
from penstock.errors import LedgerError, RecipeError

if TYPE_CHECKING:
    from penstock.ledger.rollout_records import Rollout
    from penstock.ledger.rollouts import Rollouts
    from penstock.promotion import Production
    from penstock.rollout_section import RolloutSection

app = typer.Typer()
rollout_app = typer.Typer(
    help="Versions on trial beside the one that serves.", no_args_is_help=True
)
app.add_typer(rollout_app, name="rollout")

Reason = Annotated[str, typer.Option(help="For the decision log.")]
Which = Annotated[str | None, typer.Argument(help="A rollout's id, or the start of it.")]


@rollout_app.command("start")
def rollout_start(
    context: typer.Context,
    version: Annotated[int, typer.Argument(help="Which version.")],
    steps: Annotated[str | None, typer.Option(help="Percent of the requests, as 1,5,25,100.")] = (
        None
    ),
    alpha: Annotated[
        float | None, typer.Option(help="Chance of taking back a version that is no worse.")
    ] = None,
    min_requests: Annotated[int | None, typer.Option(help="Answered in each step.")] = None,
    step_deadline_s: Annotated[float | None, typer.Option(help="For each step, seconds.")] = None,
    on_undecided: Annotated[
        str | None, typer.Option(help="At the deadline: rollback, continue or hold.")
    ] = None,
    reason: Reason = "by hand",
    model_name: ModelName = None,
    stage: StageName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
    json_: Json = False,
) -> None:
    """Put a version that has passed the gate on trial; what is not said is the recipe's."""
    from penstock import printing
    from penstock.rollout import Opening
    from penstock.rollout_control import start

    where = Where(context, recipe, set_, ledger, store, tracking)
    at = where.production(model_name, stage)
    given = {
        "steps": None if steps is None else _percents(steps),
        "alpha": alpha,
        "min_requests": min_requests,
        "step_deadline_s": step_deadline_s,
        "on_undecided": on_undecided,
    }
    section = _section(where, {name: value for name, value in given.items() if value is not None})
    at.ledger.model(at.name, version)
    serving = at.serving()
    if serving is None:
        raise LedgerError(
            f"Nothing serves as {at.name}@{at.alias} that it could be compared with.",
            f"Promote it: penstock promote --version {version}",
        )
    opening = Opening(at.name, at.alias, serving, version, section.terms(), section.steps, reason)
    begun = start(_rollouts(at), opening, at)
    if json_:
        printing.as_json(begun)
        return
    printing.note(f"Version {version} is on trial against version {serving}: rollout {begun.id}")


@rollout_app.command("status")
def rollout_status(
    context: typer.Context,
    rollout: Which = None,
    model_name: ModelName = None,
    stage: StageName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
    json_: Json = False,
    page: Page = None,
) -> None:
    """Show the rollout that is on, or the last one: counts, differences, evidence."""
    from penstock import printing
    from penstock.rollout_report import SIGNAL_HEADERS, counts, headline, signal_rows, status

    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    now = status(_rollouts(at), _named(at, rollout))
    if page is not None:
        from penstock.rollout_page import to_html

        write_page(page, to_html(now))
    if json_:
        printing.as_json(now)
        return
    printing.note(headline(now))
    printing.table(SIGNAL_HEADERS, list(signal_rows(now)))
    printing.note(counts(now))


@rollout_app.command("promote")
def rollout_promote(
    context: typer.Context,
    rollout: Which = None,
    reason: Reason = "by hand",
    model_name: ModelName = None,
    stage: StageName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
) -> None:
    """Promote the version on trial now, whatever the evidence."""
    from penstock import printing
    from penstock.rollout_control import promote_now

    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    ended = promote_now(_rollouts(at), _on(at, rollout), at, reason)
    printing.note(f"Rollout {ended.id} is {ended.state}: {ended.reason}")


@rollout_app.command("stop")
def rollout_stop(
    context: typer.Context,
    rollout: Which = None,
    reason: Reason = "by hand",
    model_name: ModelName = None,
    stage: StageName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
) -> None:
    """End the rollout; the version that serves answers everything again."""
    from penstock import printing
    from penstock.rollout_control import stop

    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    ended = stop(_rollouts(at), _on(at, rollout), reason)
    printing.note(f"Rollout {ended.id} is {ended.state}: {ended.reason}")


@rollout_app.command("replay")
def rollout_replay(
    context: typer.Context,
    rollout: Annotated[str, typer.Argument(help="A rollout's id, or the start of it.")],
    model_name: ModelName = None,
    stage: StageName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
    json_: Json = False,
) -> None:
    """Make all decisions again from the observations; exit 1 if one comes out otherwise."""
    from penstock import printing
    from penstock.rollout_replay import replay

    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    rollouts = _rollouts(at)
    found = replay(rollouts, _found(at, rollout))
    if json_:
        printing.as_json(found)
    else:
        rows = [
            (
                *(one.event.epoch, one.event.batch, one.event.action, one.event.reason),
                one.recomputed or "",
                "same" if one.same else f"DIFFERS: {one.note}",
            )
            for one in found
        ]
        printing.table(("", "batch", "decision", "reason", "computed again", ""), rows)
    raise typer.Exit(0 if all(one.same for one in found) else 1)


@rollout_app.command("prune")
def rollout_prune(
    context: typer.Context,
    older_than_days: Annotated[
        float, typer.Option(min=1, help="Rollouts that ended more than so many days ago.")
    ],
    model_name: ModelName = None,
    stage: StageName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
) -> None:
    """Remove what was observed in old rollouts; what was decided, and on what, stays."""
    import time

    from penstock import printing

    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    before_s = time.time() - older_than_days * 86_400
    num = _rollouts(at).prune(at.name, at.alias, before_s)
    printing.note(f"Observations of {num:,} rollouts are removed.")


@rollout_app.command("history")
def rollout_history(
    context: typer.Context,
    rollout: Which = None,
    model_name: ModelName = None,
    stage: StageName = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    ledger: LedgerUrl = None,
    store: StoreFolder = None,
    tracking: Tracking = None,
    json_: Json = False,
) -> None:
    """List rollouts, newest first; or the decision log of one."""
    from penstock import printing

    at = Where(context, recipe, set_, ledger, store, tracking).production(model_name, stage)
    rollouts = _rollouts(at)
    if rollout is not None:
        events = rollouts.events(_found(at, rollout).id)
        if json_:
            printing.as_json(events)
            return
        log = [
            (e.epoch, printing.clock(e.at_s), e.action, e.step + 1, f"{e.share:.1%}", e.actor,
             e.reason)
            for e in events
        ]  # fmt: skip
        printing.table(("", "at", "decision", "step", "share", "by", "reason"), log)
        return
    found = rollouts.of(at.name, at.alias)
    if json_:
        printing.as_json(found)
        return
    rows = [
        (one.id, one.challenger, one.champion, one.state, printing.clock(one.started_s), one.reason)
        for one in found
    ]
    printing.table(("rollout", "version", "against", "state", "started", "reason"), rows)


@rollout_app.command("control")
def rollout_control(recipe: RecipePath = DEFAULT, set_: Set = None) -> None:
    """Decide about rollouts until stopped, as `penstock serve` does beside its traffic."""
    import threading

    from penstock import models
    from penstock.rollout_control import Controller

    pipeline = open_recipe(recipe, set_, quiet=True)
    with Controller(pipeline.ledger, lambda name, alias: models.production(pipeline, name, alias)):
        threading.Event().wait()


def _rollouts(at: Production) -> Rollouts:
    from penstock.ledger.rollouts import Rollouts

    return Rollouts(at.ledger.database)


def _found(at: Production, rollout_id: str) -> Rollout:
    """A rollout of this model.

    Raises:
        LedgerError: There is none, or it is another model's.
    """
    from penstock.rollout_control import refuse_another

    found = _rollouts(at).find(rollout_id)
    refuse_another(found, at)
    return found


def _named(at: Production, rollout_id: str | None) -> Rollout:
    """The rollout that is named; else the one that is on, else the last one."""
    if rollout_id is not None:
        return _found(at, rollout_id)
    rollouts = _rollouts(at)
    found = rollouts.open(at.name, at.alias) or next(iter(rollouts.of(at.name, at.alias, 1)), None)
    if found is None:
        raise LedgerError(
            f"There was no rollout of {at.name}@{at.alias} yet.", "penstock rollout start VERSION"
        )
    return found


def _on(at: Production, rollout_id: str | None) -> Rollout:
    if rollout_id is not None:
        return _found(at, rollout_id)
    found = _rollouts(at).open(at.name, at.alias)
    if found is None:
        raise LedgerError(f"No version of {at.name}@{at.alias} is on trial.")
    return found


def _section(where: Where, given: dict[str, Any]) -> RolloutSection:
    """The recipe's ``deploy.rollout``, or the defaults, with what was typed."""
    from pydantic import ValidationError

    from penstock.rollout_section import RolloutSection

    section = None
    if where.uses_recipe:
        section = open_recipe(where.recipe, where.set_, True).recipe.deploy.rollout
    try:
        return RolloutSection(**((section or RolloutSection()).model_dump() | given))
    except ValidationError as error:
        first = error.errors()[0]
        said = "".join(f"{part}: " for part in first["loc"])
        raise RecipeError(f"{said}{first['msg'].removeprefix('Value error, ')}.") from None


def _percents(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--steps {text!r} is no list of numbers.", "Write 1,5,25,100.") from None
