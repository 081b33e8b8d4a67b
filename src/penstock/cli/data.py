"""Rows: bringing them in, what could not be taken, and what validation held back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.options import DEFAULT, Json, RecipePath, Set, open_recipe

if TYPE_CHECKING:
    from penstock.stages.decisions import Action, Decision

app = typer.Typer()
quarantine_app = typer.Typer(help="Rows that validation held back.", no_args_is_help=True)
app.add_typer(quarantine_app, name="quarantine")

Source = Annotated[str, typer.Option(help="Rows of this source only.")]
Rule = Annotated[str, typer.Option(help="Rows that broke a rule with this in its text.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]
RowIds = Annotated[list[str] | None, typer.Argument(help="Starts of row ids.")]
All = Annotated[bool, typer.Option("--all", help="All rows that match.")]
Why = Annotated[str, typer.Option("--reason", help="Why; kept with the decision.")]


@app.command()
def explain(
    row: Annotated[
        str, typer.Argument(help="A row's id or the start of it, or its origin, as file:line.")
    ],
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Tell a row's story: its origin, what became of it, which models learned from it."""
    from penstock import printing
    from penstock.explain import explain as tell

    stories = tell(open_recipe(recipe, set_, quiet=True), row)
    if json_:
        printing.as_json([{**asdict(story), "state": story.state} for story in stories])
        return
    for story in stories:
        printing.story(story)


@app.command("dead-letters")
def dead_letters(
    source: Source = "",
    show: Annotated[bool, typer.Option("--show", help="Each letter, not only counts.")] = False,
    limit: Limit = 20,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Input that could not become rows, counted by reason."""
    from penstock import dead_letters, printing

    pipeline = open_recipe(recipe, set_, quiet=True)
    if show:
        letters = dead_letters.letters(pipeline, source, limit)
        if json_:
            printing.as_json(letters)
            return
        rows = [(one.source, one.origin, one.reason, one.excerpt) for one in letters]
        printing.table(("source", "where", "reason", "begins"), rows)
        return
    reasons = dead_letters.reasons(pipeline, source)
    if json_:
        printing.as_json(reasons)
    elif not reasons:
        printing.note("There are no dead letters: all input became rows.")
    else:
        rows = [(one.source, one.reason, f"{one.num_letters:,}", one.example) for one in reasons]
        printing.table(("source", "reason", "letters", "such as"), rows)


@app.command("ingest")
def ingest_command(
    recipe: RecipePath = DEFAULT,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until a signal comes, as a service.")
    ] = False,
    every_rows: Annotated[
        int, typer.Option(min=1, help="Following: commit when so many rows wait.")
    ] = 100_000,
    every_s: Annotated[
        float, typer.Option(min=0.1, help="Following: commit after so many seconds.")
    ] = 10.0,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Following: lag for Prometheus, on 127.0.0.1.")
    ] = 9091,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Ingest what the sources have now; with --follow, what arrives as well."""
    from penstock import printing

    pipeline = open_recipe(recipe, set_, quiet=json_)
    if follow:
        from penstock.follow import follow as follow_sources

        follow_sources(pipeline, every_rows, every_s, metrics_port)
        return
    report = pipeline.run(until="ingest")
    printing.as_json(report) if json_ else printing.report_table(report)


@quarantine_app.command("list")
def quarantine_list(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Count held rows by source and rule."""
    from penstock import printing, quarantine

    found = quarantine.held(open_recipe(recipe, set_, quiet=True))
    if json_:
        printing.as_json(found)
        return
    if not found:
        printing.note("Nothing is in quarantine: all rows met the contract.")
        return
    rows = [
        (one.source, one.rule, f"{one.num_open:,}", one.num_released, one.num_dropped, one.example)
        for one in found
    ]
    shown = [(*some[:3], f"{some[3]:,}", f"{some[4]:,}", some[5][:12]) for some in rows]
    printing.table(("source", "rule", "held", "released", "dropped", "such as"), shown)


@quarantine_app.command("show")
def quarantine_show(
    row_id: Annotated[str, typer.Argument(help="The start of a row's id.")] = "",
    source: Source = "",
    rule: Rule = "",
    limit: Limit = 20,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Show held rows: where they came from, the rule they broke, and their columns."""
    from penstock import printing, quarantine

    found = quarantine.rows(open_recipe(recipe, set_, quiet=True), row_id, source, rule, limit)
    if json_:
        printing.as_json(found)
        return
    if not found:
        printing.note("Nothing is in quarantine: all rows met the contract.")
    for one in found:
        heading = f"{one.row_id[:12]}  {one.source}  {one.origin}"
        row = {f"row.{column}": value for column, value in one.row.items()}
        decided = {"decision": _decision(one.decision)} if one.decision else {}
        printing.fields(heading, {"rule": one.rule, "value": one.value, **decided, **row})


@quarantine_app.command("release")
def quarantine_release(
    row_ids: RowIds = None,
    source: Source = "",
    rule: Rule = "",
    all_: All = False,
    reason: Why = "",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Let rows through as if they had met the contract, from the next run on."""
    _decide("release", row_ids, source, rule, all_, reason, recipe, set_, json_)


@quarantine_app.command("drop")
def quarantine_drop(
    row_ids: RowIds = None,
    source: Source = "",
    rule: Rule = "",
    all_: All = False,
    reason: Why = "",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Give rows up: they stay out, and no longer count as bad."""
    _decide("drop", row_ids, source, rule, all_, reason, recipe, set_, json_)


def _decide(
    action: Action,
    row_ids: list[str] | None,
    source: str,
    rule: str,
    all_: bool,
    reason: str,
    recipe: RecipePath,
    set_: list[str] | None,
    json_: bool,
) -> None:
    from penstock import printing, quarantine
    from penstock.errors import RecipeError

    if bool(row_ids) == bool(all_ or source or rule):
        raise RecipeError(
            "Say which rows: by the start of their ids, or by --source, --rule or --all.",
            f"As in: penstock quarantine {action} 3f2a9c --reason 'checked by hand'",
        )
    pipeline = open_recipe(recipe, set_, quiet=True)
    decided = quarantine.decide(pipeline, action, row_ids or (), source, rule, reason)
    if json_:
        printing.as_json([one.row_id for one in decided])
        return
    past = {"release": "released", "drop": "dropped"}[action]
    rows = "row" if len(decided) == 1 else "rows"
    printing.note(f"{len(decided):,} {rows} {past}. The next run goes by it.")


def _decision(decision: Decision) -> str:
    from penstock import printing

    past = {"release": "released", "drop": "dropped"}[decision.action]
    reason = f": {decision.reason}" if decision.reason else ""
    return f"{past} by {decision.by} at {printing.clock(decision.at_s)}{reason}"
