"""Validate: new rows that meet the contract go on, the others are quarantined.

Only the increment is looked at: the rows whose raw version is above the one
this contract has already passed. Two passes over it keep memory flat: the first
collects the failing rows, the second writes, once it is clear that the run goes on.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock import registry
from penstock.artifacts import digest_of, store_errors
from penstock.contracts.base import Contract, Finding, Rule
from penstock.errors import SourceError, ValidationFailed
from penstock.recipe import Recipe, Validate, canonical
from penstock.stages.base import Job, Pinned, Stage
from penstock.stages.ingest import raw_tables
from penstock.tables import ROW, VERSION, Position, Table, conform, numbered
from penstock.transforms.base import ORIGIN, ROW_ID, SOURCE

QUARANTINE = "quarantine"
_QUARANTINE_SCHEMA = pa.schema(
    [
        (ROW_ID, pa.string()),
        (SOURCE, pa.string()),
        (ORIGIN, pa.string()),
        ("rule", pa.string()),
        ("value", pa.string()),
        ("row", pa.string()),
        (VERSION, pa.int64()),
        (ROW, pa.int64()),
    ]
)


def rules(section: Validate) -> list[Rule]:
    """The section's short forms and named expectations as one list."""
    out = [Rule("expect_column_values_to_not_be_null", {"column": c}) for c in section.not_null]
    for column, bounds in section.length.items():
        kwargs = {"column": column, "min_value": bounds.min, "max_value": bounds.max}
        out.append(Rule("expect_column_value_lengths_to_be_between", kwargs))
    for column, bounds_ in section.range.items():
        kwargs = {"column": column, "min_value": bounds_.min, "max_value": bounds_.max}
        out.append(Rule("expect_column_values_to_be_between", kwargs))
    return out + [Rule(one.name, one.kwargs) for one in section.expectations]


def valid_tables(recipe: Recipe) -> dict[str, str]:
    """Source name -> the name of its table of valid rows.

    Named by what decides whether a row is in it, so ``max_bad_rows`` is left
    out: tolerating more failures does not change which rows fail.
    """
    contract = canonical(recipe.validate_)
    contract.pop("max_bad_rows")
    return {
        name: f"valid-{name}-{digest_of([raw, recipe.sources[name].columns, contract])[:8]}"
        for name, raw in raw_tables(recipe).items()
    }


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    columns = {name: dict(config.columns) for name, config in recipe.sources.items()}
    return {"validate": canonical(recipe.validate_), "columns": columns}


def _run(job: Job) -> dict[str, Any]:
    increments = [_increment(job, name) for name in job.recipe.sources]
    contract = registry.resolve("contracts", "great_expectations")(rules(job.recipe.validate_))
    findings = {one.source: _check(job, contract, one) for one in increments if one.num_rows}
    contract.write_report(job.folder / "data_docs.html")
    for one in increments:
        _quarantine(job, one, findings.get(one.source, []))
    _refuse_if_too_bad(job, increments, findings)
    quarantined = 0
    for one in increments:
        failing = _failing_ids(findings.get(one.source, []))
        quarantined += len(failing)
        _pass_on(one, failing)
    return _summary(job, increments, quarantined)


STAGE = Stage("validate", 1, ("ingest",), _settings, _run, writes_tables=True)


@dataclass(frozen=True)
class _Increment:
    """The rows of one source that no recorded result of this contract covers.

    Attributes:
        source: Its name.
        columns: Our column names -> the source's own.
        raw: Where the rows are.
        valid: Where those that hold go.
        after: The last raw version covered before.
        upto: The raw version this run reaches to.
        num_rows: How many rows there are between the two.
    """

    source: str
    columns: Mapping[str, str]
    raw: Table
    valid: Table
    after: int
    upto: int
    num_rows: int

    def rows(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, under our column names."""
        theirs = {theirs: ours for ours, theirs in self.columns.items()}
        read = None if columns is None else [self.columns.get(name, name) for name in columns]
        return (
            batch.rename_columns([theirs.get(n, n) for n in batch.schema.names])
            for batch in self.raw.scan(self.after, self.upto, read)
        )

    def schema(self) -> pa.Schema:
        """All columns, under our names."""
        theirs = {theirs: ours for ours, theirs in self.columns.items()}
        raw = self.raw.schema()
        return pa.schema([raw.field(name).with_name(theirs.get(name, name)) for name in raw.names])


def _increment(job: Job, source: str) -> _Increment:
    raw = Table(job.store.table(job.recipe.name, raw_tables(job.recipe)[source]))
    valid = Table(job.store.table(job.recipe.name, valid_tables(job.recipe)[source]))
    valid.sweep()
    upto = job.inputs["ingest"].summary["tables"][str(raw.path.relative_to(job.store.root))]
    columns = job.recipe.sources[source].columns
    _check_mapping(source, columns, raw.schema().names)
    path = str(valid.path.relative_to(job.store.root))
    after = job.before().get("covered", {}).get(path, -1)
    num_rows = sum(batch.num_rows for batch in raw.scan(after, upto, [VERSION]))
    return _Increment(source, columns, raw, valid, after, upto, num_rows)


def _check_mapping(source: str, columns: Mapping[str, str], have: list[str]) -> None:
    own = [name for name in have if not name.startswith("_")]
    for ours, theirs in columns.items():
        if theirs not in have:
            raise SourceError(
                f"sources.{source}.columns: there is no column {theirs!r} to be {ours!r}."
                f"{registry.did_you_mean(theirs, own)}"
            )
        if ours in have and ours not in columns.values():
            raise SourceError(
                f"sources.{source}.columns: {theirs!r} is to be {ours!r}, "
                f"but the rows already have a column {ours!r}.",
                f"Map the other one away, as in: {ours}_original: {ours}",
            )


def _check(job: Job, contract: Contract, one: _Increment) -> list[Finding]:
    wanted = {rule.column for rule in rules(job.recipe.validate_) if rule.column}
    have = one.schema().names
    for column in sorted(wanted - set(have)):
        own = [name for name in have if not name.startswith("_")]
        raise ValidationFailed(
            f"The rows of source {one.source!r} have no column {column!r}. They have: "
            f"{', '.join(own)}.",
            f"Name it under sources.{one.source}.columns, or take the rule about {column!r} "
            "out of `validate`.",
        )
    named = all(rule.column for rule in rules(job.recipe.validate_))
    columns = [ROW_ID, *sorted(wanted)] if named else None
    with job.progress.track(f"validate {one.source}", one.num_rows) as advance:

        def pieces() -> Iterator[pa.Table]:
            for batch in one.rows(columns):
                yield pa.Table.from_batches([batch])
                advance(batch.num_rows)

        return contract.check(one.source, pieces())


def _refuse_if_too_bad(
    job: Job, increments: list[_Increment], findings: Mapping[str, list[Finding]]
) -> None:
    total = sum(one.num_rows for one in increments)
    bad = sum(len(_failing_ids(some)) for some in findings.values())
    allowed = job.recipe.validate_.max_bad_rows
    unmet = [(source, f) for source, some in findings.items() for f in some if not f.is_met]
    # A rule about a whole column has no rows to tolerate.
    columns_unmet = [pair for pair in unmet if not pair[1].failing]
    if not unmet or (not columns_unmet and bad <= allowed * total):
        return
    report = job.store.root / "reports" / f"validation-{job.fingerprint[:12]}.html"
    with store_errors(report):
        report.parent.mkdir(exist_ok=True)
        shutil.copyfile(job.folder / "data_docs.html", report)
    lines = [f"Data validation failed: {_counted(len(unmet), 'expectation')} not met"]
    lines += [f"  {source}: {_finding_text(finding)}" for source, finding in unmet]
    lines.append(f"{bad:,} of {total:,} new rows fail ({bad / max(1, total):.2%}).")
    raise ValidationFailed(
        "\n".join(lines),
        f"See {report} and the quarantine table. The rows have been ingested: to leave them in "
        f"quarantine and go on, allow a share of bad rows once, as in --set "
        f"validate.max_bad_rows={_above(bad / max(1, total))} (now {allowed}).",
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("s" if count != 1 else "")


def _above(share: float) -> float:
    """The share, rounded up to a number that can be typed."""
    return min(0.999, math.ceil(share * 1000) / 1000)


def _finding_text(finding: Finding) -> str:
    if not finding.failing:
        return f"{finding.rule}: observed {finding.observed}"
    row_id, value = next(iter(finding.failing.items()))
    return f"{finding.rule}: {len(finding.failing):,} rows, such as {value!r} (row {row_id})"


def _failing_ids(findings: list[Finding]) -> dict[str, Finding]:
    """Row id -> the first rule it fails."""
    out: dict[str, Finding] = {}
    for finding in findings:
        for row_id in finding.failing:
            out.setdefault(row_id, finding)
    return out


def _quarantine(job: Job, one: _Increment, findings: list[Finding]) -> None:
    """Keep the failing rows with the rule they broke, each row once."""
    failing = _failing_ids(findings)
    if not failing:
        return
    table = Table(job.store.table(job.recipe.name, QUARANTINE))
    table.sweep()
    stream = one.valid.path.name
    seen = table.position(stream)

    def rows(version: int) -> Iterator[pa.RecordBatch]:
        wanted = pa.array(list(failing), pa.string())
        bad = (b.filter(pc.is_in(b[ROW_ID], wanted)) for b in one.rows())
        new = (b.filter(pc.greater(b[VERSION], seen)) for b in bad)
        return numbered((_quarantine_batch(b, failing) for b in new), version, _QUARANTINE_SCHEMA)

    table.append_once(Position(stream, one.upto), _QUARANTINE_SCHEMA, rows)


def _quarantine_batch(batch: pa.RecordBatch, failing: Mapping[str, Finding]) -> pa.RecordBatch:
    ids = batch[ROW_ID].to_pylist()
    content = batch.drop_columns([ROW_ID, SOURCE, ORIGIN, VERSION, ROW]).to_pylist()
    columns = {
        ROW_ID: ids,
        SOURCE: batch[SOURCE].to_pylist(),
        ORIGIN: batch[ORIGIN].to_pylist(),
        "rule": [str(failing[row_id].rule) for row_id in ids],
        "value": [failing[row_id].failing[row_id] for row_id in ids],
        "row": [json.dumps(row, default=str, ensure_ascii=False) for row in content],
    }
    return pa.RecordBatch.from_pydict(columns, schema=pa.schema(list(_QUARANTINE_SCHEMA)[:6]))


def _pass_on(one: _Increment, failing: Mapping[str, Finding]) -> None:
    """Append the rows that hold; each keeps the raw version that brought it."""
    if not one.num_rows:
        return
    schema = one.schema()
    committed = one.valid.position(one.source)
    bad = pa.array(list(failing), pa.string())

    def good(batch: pa.RecordBatch) -> pa.RecordBatch:
        holds = pc.invert(pc.is_in(batch[ROW_ID], bad))
        new = pc.greater(batch[VERSION], committed)
        return conform(batch.filter(pc.and_(holds, new)), schema)

    def rows(_: int) -> Iterator[pa.RecordBatch]:
        return map(good, one.rows())

    one.valid.append_once(Position(one.source, one.upto), schema, rows)


def _summary(job: Job, increments: list[_Increment], quarantined: int) -> dict[str, Any]:
    root = job.store.root
    before = {str(one.valid.path.relative_to(root)): one.valid for one in increments}
    num_in = sum(one.num_rows for one in increments)
    return {
        "tables": {path: table.version() for path, table in before.items()},
        "valid_rows": {path: table.count_rows() for path, table in before.items()},
        "covered": {str(one.valid.path.relative_to(root)): one.upto for one in increments},
        # Which raw version the valid rows reach to: the data version people see.
        "data": {one.source: one.upto for one in increments},
        "rows": {"in": num_in, "quarantined": quarantined, "out": num_in - quarantined},
    }
