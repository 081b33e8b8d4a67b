"""The gate on lm-eval results of any origin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.artifacts import store_errors
from penstock.cli.options import Json
from penstock.errors import PenstockError, RecipeError

app = typer.Typer()


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
    decision_: Annotated[
        Path | None,
        typer.Option("--decision", help="Write JSON here, for penstock promote --decision."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Append the report to $GITHUB_STEP_SUMMARY.")
    ] = False,
    json_: Json = False,
) -> None:
    """Judge lm-eval results of any origin. Exit code 0 PASS, 3 BLOCK, 4 INCONCLUSIVE.

    --min-TASK FLOOR and --max-TASK CEILING are short for --min TASK=FLOOR and
    --max TASK=CEILING, as in --min-mmlu 0.65.
    """
    from penstock import gates, printing
    from penstock.gates import Decision

    floors, ceilings = _short_bounds(context)
    policy = gates.GatePolicy(
        min=pairs("--min", [*(min_ or []), *floors]),
        max=pairs("--max", [*(max_ or []), *ceilings]),
        max_regression=max_regression,
        alpha=alpha,
        on_inconclusive=_choice("--on-inconclusive", on_inconclusive, ("block", "point_estimate")),
    )
    summary_file = _summary_file() if summary else None
    try:
        decision = gates.gate_results(results, baseline, policy)
    except PenstockError as error:
        if summary_file is not None:
            _append(summary_file, gates.error_to_markdown(error))
        raise
    reports = ((html, gates.to_html), (markdown, gates.to_markdown), (decision_, Decision.to_json))
    for path, text_of in reports:
        if path is not None:
            _write(path, text_of(decision))
    if summary_file is not None:
        _append(summary_file, gates.to_markdown(decision))
    if json_:
        print(decision.to_json())
    else:
        printing.decision(decision)
    raise typer.Exit(decision.verdict.exit_code)


def _summary_file() -> Path:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        raise RecipeError(
            "--summary needs $GITHUB_STEP_SUMMARY, which GitHub sets.",
            "Elsewhere write the report with: --markdown FILE",
        )
    return Path(path)


def _write(path: Path, text: str) -> None:
    with store_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _append(path: Path, text: str) -> None:
    with store_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


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


def pairs(flag: str, items: list[str] | None) -> dict[str, float]:
    """TASK=NUMBER words as a mapping."""
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
