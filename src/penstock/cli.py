"""The command line: parses, calls, prints; decides nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock import __version__
from penstock.errors import LedgerError, PenstockError, RecipeError

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline

app = typer.Typer(
    help="The gated pipe that feeds a production LLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
model_app = typer.Typer(help="Registered model versions.", no_args_is_help=True)
app.add_typer(model_app, name="model")
quarantine_app = typer.Typer(help="Rows that validation held back.", no_args_is_help=True)
app.add_typer(quarantine_app, name="quarantine")

RecipePath = Annotated[
    Path, typer.Option("--recipe", "-r", help="The recipe.", envvar="PENSTOCK_RECIPE")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value, as in train.max_steps=10. Repeatable."),
]
DEFAULT = Path("recipe.yaml")

_INTERRUPTED = 130  # what Typer makes of Ctrl-C, as shells do

# Read by libraries when they are imported, so set before any of them is: their
# bars would break into ours, and nothing here reports to anybody.
_ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
}


@app.command()
def run(
    recipe: RecipePath = DEFAULT,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Take all before this stage from the ledger.")
    ] = None,
    force: Annotated[list[str] | None, typer.Option(help="Run this stage again.")] = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Run the loop once: only what is missing runs."""
    from penstock import printing

    pipeline = _open(recipe, set_, quiet=json_)
    report = pipeline.run(until=until, start=start, force=tuple(force or ()))
    printing.as_json(report) if json_ else printing.report_table(report)
    raise typer.Exit(report.exit_code)


@app.command()
def plan(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Say for every stage whether it would run, and why."""
    from penstock import printing

    planned = _open(recipe, set_, quiet=True).plan()
    printing.as_json(planned) if json_ else printing.plan_table(planned)


@app.command()
def step(
    stage: Annotated[str, typer.Argument(help="Which stage.")],
    run_id: Annotated[
        str, typer.Option("--run", help="The run; 'new' opens one and prints its id.")
    ],
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Run one stage of a run, as an orchestrator's task does."""
    from penstock import printing

    pipeline = _open(recipe, set_, quiet=json_)
    if run_id == "new":
        run_id = pipeline.start().id
    report = pipeline.step(stage, run_id)
    printing.as_json(report) if json_ else printing.report_table(report)
    raise typer.Exit(report.exit_code if stage in ("gate", "deploy") else 0)


@app.command()
def runs(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """List runs, newest first."""
    from penstock import printing

    pipeline = _open(recipe, set_, quiet=True)
    found = pipeline.ledger.runs(pipeline.recipe.name)
    if json_:
        printing.as_json(found)
        return
    rows = [
        (r.id, r.status, f"{r.ended_s - r.started_s:.1f} s" if r.ended_s else "", r.message)
        for r in found
    ]
    printing.table(("run", "status", "time", "message"), rows)


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(help="A run's id, or the start of it.")],
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Show what each stage of a run came to."""
    from penstock import printing

    pipeline = _open(recipe, set_, quiet=True)
    report = pipeline.report(run_id)
    printing.as_json(report) if json_ else printing.report_table(report)


@app.command()
def schema() -> None:
    """Print the recipe's JSON Schema, for editors."""
    from penstock import printing
    from penstock.recipe import json_schema

    printing.as_json(json_schema())


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to put the recipe.")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Your JSONL, CSV or Parquet file. Repeatable.")
    ] = None,
) -> None:
    """Write a commented recipe to start from."""
    from penstock import printing
    from penstock.starter import write_starter

    path = write_starter(folder, data or [])
    printing.OUT.print(f"Wrote {path}. Next:\n  cd {folder} && penstock plan && penstock run")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def gate(
    context: typer.Context,
    results: Annotated[Path, typer.Option(help="lm-eval's output of the candidate.")],
    baseline: Annotated[
        Path | None, typer.Option(help="lm-eval's output of what serves now.")
    ] = None,
    min_: Annotated[list[str] | None, typer.Option("--min", help="TASK=FLOOR. Repeatable.")] = None,
    max_: Annotated[
        list[str] | None, typer.Option("--max", help="TASK=CEILING. Repeatable.")
    ] = None,
    max_regression: Annotated[
        float, typer.Option(help="What may be lost against the baseline.")
    ] = 0.02,
    alpha: Annotated[float, typer.Option(help="One-sided error rate.")] = 0.05,
    on_inconclusive: Annotated[str, typer.Option(help="block or point_estimate.")] = "block",
    html: Annotated[Path | None, typer.Option(help="Write the report page here.")] = None,
    json_: Json = False,
) -> None:
    """Judge lm-eval results of any origin. Exit code 0 PASS, 3 BLOCK, 4 INCONCLUSIVE.

    --min-TASK FLOOR and --max-TASK CEILING are short for --min TASK=FLOOR and
    --max TASK=CEILING, as in --min-mmlu 0.65.
    """
    from penstock import gates, printing

    floors, ceilings = _short_bounds(context)
    policy = gates.GatePolicy(
        min=_pairs("--min", [*(min_ or []), *floors]),
        max=_pairs("--max", [*(max_ or []), *ceilings]),
        max_regression=max_regression,
        alpha=alpha,
        on_inconclusive=_choice("--on-inconclusive", on_inconclusive, ("block", "point_estimate")),
    )
    decision = gates.gate_results(results, baseline, policy)
    if html is not None:
        html.write_text(gates.to_html(decision), encoding="utf-8")
    if json_:
        print(decision.to_json())
    else:
        printing.decision(decision)
    raise typer.Exit(decision.verdict.exit_code)


@app.command()
def lineage(
    response_id: Annotated[str, typer.Argument(help="A response's id.")],
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Walk a response back to its source rows."""
    from penstock import printing
    from penstock.lineage import trace

    pipeline = _open(recipe, set_, quiet=True)
    found = trace(response_id, pipeline.ledger, pipeline.store)
    printing.as_json(found) if json_ else printing.lineage(found)


@app.command()
def serve(
    recipe: RecipePath = DEFAULT,
    host: Annotated[str | None, typer.Option(help="Bind here instead.")] = None,
    port: Annotated[int | None, typer.Option(help="Listen here instead.")] = None,
    set_: Set = None,
) -> None:
    """Serve what the production pointer names, and follow it."""
    overrides = list(set_ or [])
    overrides += [f"serve.host={host}"] if host is not None else []
    overrides += [f"serve.port={port}"] if port is not None else []
    from penstock.serving.production import serve_production

    serve_production(_open(recipe, overrides, quiet=True))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to play it.")] = Path("demo"),
    serve: Annotated[bool, typer.Option("--serve", help="Leave the server up.")] = False,
    port: Annotated[int, typer.Option(help="Where to serve.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="Where to expose metrics.")] = 9090,
    seed: Annotated[int | None, typer.Option(help="Another seed, another run.")] = None,
) -> None:
    """Play the loop in three acts on this Python's own documentation."""
    from penstock.demo import play

    play(folder, keep_serving=serve, port=port, metrics_port=metrics_port, seed=seed)


@model_app.command("list")
def model_list(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """List registered versions."""
    from penstock import printing

    pipeline = _open(recipe, set_, quiet=True)
    models = pipeline.ledger.models()
    if json_:
        printing.as_json(models)
        return
    alias = pipeline.recipe.deploy.alias
    rows = []
    for model in models:
        pointer = pipeline.ledger.pointer(model.name, alias)
        here = alias if pointer is not None and pointer.version == model.version else ""
        rows.append(
            (model.name, model.version, here, model.data_version, model.run_id, model.digest[:12])
        )
    printing.table(("model", "version", "alias", "data", "run", "digest"), rows)


@model_app.command("download")
def model_download(
    output_dir: Annotated[Path, typer.Option(help="A new folder.")],
    version: Annotated[int | None, typer.Option(help="Null takes what serves.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Null takes the recipe's.")] = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
) -> None:
    """Copy a version's files, checked against their digests."""
    from penstock import models, printing

    pipeline = _open(recipe, set_, quiet=True)
    model = models.download(pipeline, model_name, version, output_dir)
    printing.OUT.print(f"{model.name} version {model.version} is in {output_dir}")


@model_app.command("promote")
def model_promote(
    version: Annotated[int, typer.Option(help="Which version.")],
    model_name: Annotated[str | None, typer.Option(help="Null takes the recipe's.")] = None,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "by hand",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
) -> None:
    """Point production at a version that has passed the gate."""
    from penstock import models, printing

    pipeline = _open(recipe, set_, quiet=True)
    move = models.promote(pipeline, model_name, version, reason)
    printing.OUT.print(f"production is version {move.version} now (epoch {move.epoch})")


@model_app.command("rollback")
def model_rollback(
    model_name: Annotated[str | None, typer.Option(help="Null takes the recipe's.")] = None,
    reason: Annotated[str, typer.Option(help="For the audit log.")] = "by hand",
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
) -> None:
    """Point production back at what it pointed at before, in one step."""
    from penstock import models, printing

    pipeline = _open(recipe, set_, quiet=True)
    move = models.rollback(pipeline, model_name, reason)
    printing.OUT.print(f"production is version {move.version} now (epoch {move.epoch})")


@model_app.command("history")
def model_history(
    model_name: Annotated[str | None, typer.Option(help="Null takes the recipe's.")] = None,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """List every move of the production pointer."""
    from penstock import printing

    pipeline = _open(recipe, set_, quiet=True)
    name = model_name or pipeline.recipe.model_name
    moves = pipeline.ledger.history(name, pipeline.recipe.deploy.alias)
    if json_:
        printing.as_json(moves)
        return
    rows = [
        (m.epoch, printing.clock(m.at_s), m.action, m.from_version or "", m.to_version, m.actor,
         m.reason)
        for m in moves
    ]  # fmt: skip
    printing.table(("epoch", "at", "action", "from", "to", "by", "reason"), rows)


@quarantine_app.command("list")
def quarantine_list(recipe: RecipePath = DEFAULT, set_: Set = None, json_: Json = False) -> None:
    """Count held rows by source and rule."""
    from penstock import printing, quarantine

    found = quarantine.held(_open(recipe, set_, quiet=True))
    if json_:
        printing.as_json(found)
        return
    rows = [(one.source, one.rule, f"{one.num_rows:,}", one.example[:12]) for one in found]
    printing.table(("source", "rule", "rows", "such as"), rows)


@quarantine_app.command("show")
def quarantine_show(
    row_id: Annotated[str, typer.Argument(help="The start of a row's id.")] = "",
    source: Annotated[str, typer.Option(help="Rows of this source only.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    recipe: RecipePath = DEFAULT,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Show held rows: where they came from, the rule they broke, and their columns."""
    from penstock import printing, quarantine

    found = quarantine.rows(_open(recipe, set_, quiet=True), row_id, source, limit)
    if json_:
        printing.as_json(found)
        return
    for one in found:
        heading = f"{one.row_id[:12]}  {one.source}  {one.origin}"
        row = {f"row.{column}": value for column, value in one.row.items()}
        printing.fields(heading, {"rule": one.rule, "value": one.value, **row})


def main() -> None:
    """Run the command line; a user's mistake ends in words, never in a traceback."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from sqlalchemy.exc import SQLAlchemyError

    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            _complain("Stopped.", "What was finished is kept; the next run goes on from there.")
        raise
    except PenstockError as error:
        _complain(error.message, error.hint)
        sys.exit(error.exit_code)
    except SQLAlchemyError as error:
        _complain(f"The ledger failed: {str(error).splitlines()[0]}", "Check the database.")
        sys.exit(LedgerError.exit_code)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"penstock {__version__}")
        raise typer.Exit


def _open(recipe: Path, set_: list[str] | None, quiet: bool) -> Pipeline:
    from penstock import printing
    from penstock.pipeline import open_pipeline

    progress: Any = None if quiet else printing.Bars()
    return open_pipeline(recipe, _overrides(set_), progress)


def _overrides(set_: list[str] | None) -> dict[str, Any]:
    import yaml

    out = {}
    for item in set_ or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise RecipeError(f"--set {item!r} has no '='.", "Write --set train.max_steps=10")
        out[key] = yaml.safe_load(value)
    return out


def _short_bounds(context: typer.Context) -> tuple[list[str], list[str]]:
    """``--min-TASK VALUE`` and ``--max-TASK VALUE`` as TASK=VALUE, floors and ceilings."""
    bounds: dict[str, list[str]] = {"--min-": [], "--max-": []}
    rest = iter(context.args)
    for word in rest:
        flag, _, value = word.partition("=")
        kind, task = flag[:6], flag[6:]
        if kind not in bounds or not task:
            what = "option" if word.startswith("-") else "argument"
            context.fail(f"Unexpected {what} {word!r}. Bounds are --min-TASK or --max-TASK.")
        value = value or next(rest, "")
        bounds[kind].append(f"{task}={value}")
    return bounds["--min-"], bounds["--max-"]


def _pairs(flag: str, items: list[str] | None) -> dict[str, float]:
    out = {}
    for item in items or []:
        key, _, value = item.rpartition("=")
        try:
            out[key] = float(value)
        except ValueError:
            raise RecipeError(f"{flag} {item!r} is not TASK=NUMBER.") from None
        if not key:
            raise RecipeError(f"{flag} {item!r} is not TASK=NUMBER.")
    return out


def _choice(flag: str, received: str, valid: tuple[str, ...]) -> Any:
    from penstock.registry import did_you_mean

    if received not in valid:
        raise RecipeError(f"{flag} {received!r}.{did_you_mean(received, valid)}")
    return received


def _complain(message: str, hint: str) -> None:
    from rich.text import Text

    from penstock.printing import ERR

    ERR.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)
    if hint:
        ERR.print(Text(hint, style="dim"), soft_wrap=True)


if __name__ == "__main__":
    main()
