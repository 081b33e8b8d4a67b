"""What the command line shows: tables, one-line facts and progress bars."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

if TYPE_CHECKING:
    from penstock.artifacts import Artifact
    from penstock.explain import Prepared, Story
    from penstock.lineage import Lineage
    from penstock.pipeline import Planned, Report

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)

_COLOURS = {
    "hit": "cyan", "ran": "green", "run": "yellow", "skip": "dim", "skipped": "dim",
    "failed": "red", "SUCCEEDED": "green", "PASS": "green", "BLOCKED": "red", "BLOCK": "red",
    "FAILED": "red", "INCONCLUSIVE": "yellow", "SKIPPED": "dim", "INTERRUPTED": "yellow",
}  # fmt: skip


class Bars:
    """Progress as bars on the terminal, on standard error so that output can be piped."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=ERR,
            transient=True,
        )
        self._depth = 0

    @contextmanager
    def track(self, label: str, total: int | None = None) -> Iterator[_Bar]:
        """Show one bar while the block runs."""
        self._depth += 1
        if self._depth == 1:
            self._progress.start()
        task = self._progress.add_task(label, total=total, detail="")
        began = time.monotonic()
        try:
            yield _Bar(self._progress, task)
            if not ERR.is_terminal:
                ERR.print(f"  {label}: {time.monotonic() - began:.1f} s")
        finally:
            self._progress.remove_task(task)
            self._depth -= 1
            if self._depth == 0:
                self._progress.stop()

    def say(self, text: str) -> None:
        """Show one line above the bars."""
        self._progress.console.print(Text(text, style="dim"))


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._total = 0

    def __call__(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def expect(self, total: int) -> None:
        """Add what turned out to come; the bar had no end before."""
        self._total += total
        self._progress.update(self._task, total=self._total)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows under a header; known words get their colour."""
    shown = Table(*columns, title=title or None, title_justify="left", header_style="bold")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row))
    OUT.print(shown)


def as_json(value: Any) -> None:
    """Print for a machine: JSON on standard output, and nothing else."""
    print(json.dumps(_plain(value), indent=2, default=str))


def line(value: Any) -> None:
    """Print for a program that reads the last line: JSON on one line."""
    print(json.dumps(_plain(value), default=str), flush=True)


def plan_table(planned: Sequence[Planned]) -> None:
    """What a run would do."""
    rows = [(p.node, p.action, p.reason, (p.fingerprint or "")[:12]) for p in planned]
    table(("stage", "would", "because", "fingerprint"), rows)


def report_table(report: Report) -> None:
    """What a run did: stages, times, rows and results."""
    rows = []
    for record in report.stages:
        artifact = report.artifacts.get(record.stage)
        rows.append(
            (
                record.stage,
                record.outcome,
                f"{record.duration_s:.1f} s",
                *row_counts(artifact),
                result(artifact) if artifact is not None else record.note,
            )
        )
    columns = ("stage", "outcome", "time", "in", "removed", "out", "result")
    table(columns, rows, f"run {report.run_id}")
    OUT.print(
        Text.assemble(
            (report.status, _COLOURS.get(report.status, "")),
            f": {report.message} ({report.duration_s:.1f} s)",
        )
    )


def row_counts(artifact: Artifact | None) -> tuple[str, str, str]:
    """Rows in, removed (or quarantined) and out, as text."""
    rows: Mapping[str, int] = artifact.summary.get("rows", {}) if artifact is not None else {}
    removed = rows.get("removed", rows.get("quarantined"))
    return (_count(rows.get("in")), _count(removed), _count(rows.get("out")))


def note(text: str) -> None:
    """One sentence in place of a table, or after one."""
    OUT.print(Text(_harmless(text)))


def fields(heading: str, values: Mapping[str, object]) -> None:
    """One thing and its fields, a line each."""
    OUT.print(Text(_harmless(heading), style="bold"))
    for name, value in values.items():
        OUT.print(Text.assemble((f"  {_harmless(name)}: ", "dim"), _harmless(value)))


def result(artifact: Artifact) -> str:
    """The one line that says what a stage's result is."""
    summary = artifact.summary
    return _RESULTS[artifact.stage](summary)


def metrics(values: Mapping[str, float]) -> str:
    """Metrics in one line, the most telling first."""
    telling = ("acc", "acc_norm", "bits_per_byte", "exact_match")
    chosen = [(key, value) for key, value in values.items() if key.split("/")[-1] in telling]
    return ", ".join(f"{key} {value:.4f}" for key, value in chosen or list(values.items())[:4])


def decision(decision: Any) -> None:
    """A gate's verdict with its evidence."""
    from penstock.gates import summary_rows

    header, *rows = summary_rows(decision)
    table(header, rows)
    verdict = decision.verdict.value
    OUT.print(
        Text.assemble((verdict, f"bold {_COLOURS[verdict]}"), ": ", " ".join(decision.reasons))
    )
    for note in decision.notes:
        OUT.print(Text(note, style="dim"))


def lineage(found: Lineage) -> None:
    """A response's ancestry as a tree."""
    model, trained = found.model, found.trained
    tree = Tree(f"response [bold]{found.response_id}")
    if found.request is not None:
        _request_branch(tree, found.request)
    for one in found.opinions:
        said = f"{one.score:g}" if one.score is not None else one.text or ""
        text = f"{one.kind} by {one.rater}: {said[:200]} {one.comment or ''}"
        tree.add(Text(_harmless(text.strip()), style="dim"))
    node = tree.add(f"model {model.name} version {model.version}, digest {model.digest[:12]}")
    base = " <- ".join((*found.ancestors, "scratch") if found.ancestors else ("scratch",))
    node = node.add(
        f"training {trained.fingerprint[:12]} in run {trained.run_id}: "
        f"{trained.summary['num_steps']:,} steps on {trained.summary['rows']['out']:,} rows, "
        f"from {base}"
    )
    rows = found.prepared["rows"]
    steps = ", ".join(f"{step} {count:,}" for step, count in found.prepared["removed"].items())
    node = node.add(
        f"preparation: {rows['in']:,} rows in, {rows['removed']:,} removed"
        f"{f' ({steps})' if steps else ''}, {rows['out']:,} out"
    )
    rows = found.validated["rows"]
    node = node.add(f"validation: {rows['in']:,} new rows, {rows['quarantined']:,} quarantined")
    for source in found.sources:
        units = ", ".join(source.units[:6]) + (" ..." if len(source.units) > 6 else "")
        counted = f"{len(source.units)} unit" + ("s" if len(source.units) != 1 else "")
        text = f"source {source.source}@{source.version}: {source.num_rows:,} rows from {counted}"
        branch = node.add(Text(_harmless(f"{text} ({units})")))
        for row in source.examples:
            text = f"{row['row_id'][:12]} {row['origin']}: {row['text']}"
            branch.add(Text(_harmless(text), style="dim"))
    OUT.print(tree)


def _request_branch(tree: Tree, request: Mapping[str, Any]) -> None:
    """What the log says of a request."""
    error = f" ({request['error']})" if request["error"] else ""
    text = (
        f"asked at {request['received_at']:%Y-%m-%d %H:%M:%S} UTC for {request['asked']}: "
        f"{request['endpoint']}, status {request['status']}{error}, {request['arm']}, "
        f"{request['prompt_tokens']:,} + {request['completion_tokens']:,} tokens "
        f"in {request['duration_s']:.2f} s"
    )
    node = tree.add(Text(_harmless(text)))
    for name in ("prompt", "answer"):
        if request[name]:
            node.add(Text(_harmless(f"{name}: {request[name][:200]}"), style="dim"))


def story(found: Story) -> None:
    """A row's story as a tree."""
    name = f"row {found.row_id}" if found.row_id else "input"
    tree = Tree(Text(_harmless(f"{name} of {found.source}: {found.state}"), style="bold"))
    came = tree.add(Text(_harmless(f"came from {found.origin} in version {found.version}")))
    for column, value in found.row.items():
        came.add(Text(_harmless(f"{column}: {str(value)[:200]}"), style="dim"))
    if found.dead_letter is not None:
        tree.add(Text(_harmless(f"could not become a row: {found.dead_letter}")))
    for held in found.held:
        node = tree.add(Text(_harmless(f"held back: {held.rule}, value {held.value!r}")))
        if held.decision is not None:
            one = held.decision
            text = f"{one.action} by {one.by} at {clock(one.at_s)} ({one.reason})"
            node.add(Text(_harmless(text)))
    for prepared in found.prepared:
        _prepared_branch(tree, prepared)
    OUT.print(tree)


def _prepared_branch(tree: Tree, prepared: Prepared) -> None:
    """What a preparation made of a row, and who learned from that."""
    what = prepared.outcome
    if prepared.split is not None:
        what = f"kept in {prepared.split}, {prepared.num_tokens:,} tokens"
        if prepared.redacted:
            counts = ", ".join(f"{count} {kind}" for kind, count in prepared.redacted.items())
            what += f", redacted {counts}"
    elif prepared.step is not None:
        what = f"removed by {prepared.step}: {prepared.reason}: {prepared.evidence}"
    runs = ", ".join(prepared.runs[:4]) + (" ..." if len(prepared.runs) > 4 else "")
    node = tree.add(Text(_harmless(f"preparation {prepared.fingerprint[:12]} (in {runs}): {what}")))
    for training in prepared.trainings:
        seen = "learned from it" if training.is_in else "left it out: it takes new rows"
        branch = node.add(f"training {training.fingerprint[:12]} in run {training.run_id} {seen}")
        for piece in training.pieces:
            end = piece["start"] + piece["length"]
            branch.add(f"tokens {piece['start']:,} to {end:,} of block {piece['block']:,}")
        for model in training.models:
            branch.add(Text(_harmless(model)))
        for model in training.descendants:
            branch.add(Text(_harmless(f"{model}, which continues from it")))


def clock(at_s: float) -> str:
    """A moment as people read it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s))


_RESULTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "ingest": lambda s: (
        f"{s['rows']['total']:,} rows in all, {s['dead_letters']:,} dead letters"
        f"{_added(s.get('new_columns', ()))}"
    ),
    "validate": lambda s: f"data version {_data(s['data'])}",
    "prepare": lambda s: ", ".join(f"{n:,} {split}" for split, n in sorted(s["splits"].items())),
    "train": lambda s: (
        f"{s['num_parameters']:,} parameters from {s['base'] or 'scratch'}, "
        f"{s['num_steps']:,} steps, loss {s['train_loss']:.3f}"
    ),
    "evaluate": lambda s: metrics(s["metrics"]),
    "gate": lambda s: str(s["verdict"]),  # its reasons end the run's message
    "register": lambda s: f"{s['model']} version {s['version']}",
    "deploy": lambda s: str(s["message"]),
}


def _added(columns: Sequence[str]) -> str:
    return f", new columns: {', '.join(columns)}" if columns else ""


def _data(data: Mapping[str, int]) -> str:
    return ",".join(f"{source}@{version}" for source, version in sorted(data.items()))


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _harmless(value: object) -> str:
    """Text from outside without what a terminal would obey: escapes are spelled out."""
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in str(value)
    )


def _cell(value: object) -> Text:
    text = _harmless(value)
    return Text(text, style=_COLOURS.get(text, ""))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
