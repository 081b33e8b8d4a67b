"""A run as one HTML page that needs nothing else: times, rows, results, the gate's evidence."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from penstock.errors import StoreError
from penstock.gates import Decision
from penstock.gates.page import document, section, table
from penstock.gates.page import parts as gate_parts
from penstock.gates.plots import Bar, bars
from penstock.printing import clock, result, row_counts

if TYPE_CHECKING:
    from penstock.artifacts import Artifact
    from penstock.ledger.records import RunRecord
    from penstock.nodes import Report
    from penstock.pipeline import Pipeline

_KINDS = {"SUCCEEDED": "PASS", "FAILED": "BLOCK", "BLOCKED": "BLOCK"}


def to_html(record: RunRecord, report: Report, decision: Decision | None) -> str:
    """The page.

    Args:
        record: The run; what was typed into its recipe is not shown.
        report: What its stages came to.
        decision: The gate's; None if it has not come so far.
    """
    ended = "" if record.ended_s is None else f" to {clock(record.ended_s)}"
    head = (
        f'<header><div class="verdict">{escape(record.status)}</div>'
        f"<h1>{escape(record.recipe)}: {escape(record.message or record.status.lower())}</h1>"
        f'<p class="soft">Run {escape(record.id)}, {clock(record.started_s)}{ended} UTC.</p>'
        "</header>\n"
    )
    parts = [head, section("Stages", "", table(_stages(report)))]
    if report.stages:
        parts.append(section("Where the time went", "Of this run, in seconds.", _times(report)))
    rows = row_bars(report.artifacts)
    if rows:
        legend = "Of what each stage looked at: kept, and removed or held back."
        parts.append(section("Where the rows went", legend, bars(rows, "Rows of each stage")))
    if decision is not None:
        why = " ".join(decision.reasons)
        parts += [section(f"Gate: {decision.verdict}", why, ""), *gate_parts(decision)]
    parts.append(section("What it is made of", "", table(_fingerprints(report))))
    kind = _KINDS.get(record.status, "INCONCLUSIVE")
    return document(f"Run {record.id}: {record.status}", kind, parts)


def page_of(pipeline: Pipeline, run_id: str) -> str:
    """The page of a run, as ledger and store have it now.

    Raises:
        LedgerError: There is no such run.
    """
    report = pipeline.report(run_id)
    return to_html(pipeline.ledger.run(run_id), report, _decision(pipeline, report))


def _decision(pipeline: Pipeline, report: Report) -> Decision | None:
    artifact = report.artifacts.get("gate")
    if artifact is None:
        return None
    try:
        path = pipeline.store.folder(artifact) / "decision.json"
        return Decision.from_json(path.read_text(encoding="utf-8"))
    except (OSError, StoreError):  # swept away, or an outage: the rest can be shown
        return None


def _stages(report: Report) -> list[tuple[str, ...]]:
    rows = []
    for one in report.stages:
        artifact = report.artifacts.get(one.stage)
        said = one.note if artifact is None else result(artifact)
        rows.append((one.stage, one.outcome, *row_counts(artifact), said))
    return [("stage", "outcome", "in", "removed", "out", "result"), *rows]


def _times(report: Report) -> str:
    times = [
        Bar(one.stage, ((one.duration_s, "better"),), f"{one.duration_s:,.1f} s, {one.outcome}")
        for one in report.stages
    ]
    return bars(times, "Time of each stage")


def row_bars(artifacts: Mapping[str, Artifact]) -> list[Bar]:
    """Rows that each stage kept and removed; without those that looked at none."""
    found = []
    for stage, artifact in artifacts.items():
        counted = artifact.summary.get("rows", {})
        kept = int(counted.get("out", 0))
        removed = int(counted.get("removed", counted.get("quarantined", 0)))
        if kept or removed:
            said = f"{kept:,} kept" + (f", {removed:,} removed" if removed else "")
            found.append(Bar(stage, ((kept, "better"), (removed, "worse")), said))
    return found


def _fingerprints(report: Report) -> list[tuple[str, ...]]:
    rows = [
        (stage, artifact.fingerprint[:20], artifact.digest[:20], artifact.run_id or "")
        for stage, artifact in report.artifacts.items()
    ]
    return [("stage", "fingerprint", "digest", "made by run"), *rows]
