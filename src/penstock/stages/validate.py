"""Validate: new rows that meet the contract go on, the others are quarantined.

Only the increment is looked at: the rows whose raw version is above the one
this contract has already passed. Two passes over it keep memory flat: the first
collects the failing rows, the second writes, once it is clear that the run goes on.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock import registry
from penstock.artifacts import digest_of, file_digest, store_errors
from penstock.contracts.base import Contract, Finding, Rule
from penstock.data_section import ContractFile, Validate
from penstock.errors import RecipeError, SourceError, ValidationFailed
from penstock.recipe import Recipe, canonical
from penstock.stages import decisions
from penstock.stages.base import Advance, Job, Pinned, Stage
from penstock.stages.decisions import Decision
from penstock.stages.ingest import raw_tables
from penstock.store import Store
from penstock.tables import ROW, VERSION, Position, Table, conform, numbered
from penstock.train_section import registered
from penstock.transforms.base import ORIGIN, ROW_ID, SOURCE
from penstock.version_files import fetched, find

QUARANTINE = "quarantine"
_QUARANTINE_SCHEMA = pa.schema(
    [
        (ROW_ID, pa.string()),
        (SOURCE, pa.string()),
        (ORIGIN, pa.string()),
        ("contract", pa.string()),
        ("rule", pa.string()),
        ("value", pa.string()),
        ("row", pa.string()),
        (VERSION, pa.int64()),
        (ROW, pa.int64()),
    ]
)


@dataclass(frozen=True)
class _Check:
    """A contract engine with its rules.

    Attributes:
        contract: What checks.
        columns: What it looks at; None is everything.
        report: Name of its page.
    """

    contract: Contract
    columns: tuple[str, ...] | None
    report: str


def expectations(section: Validate) -> list[Rule]:
    """The section's short forms and named expectations as one list."""
    out = [Rule("expect_column_values_to_not_be_null", {"column": c}) for c in section.not_null]
    for column, bounds in section.length.items():
        kwargs = {"column": column, "min_value": bounds.min, "max_value": bounds.max}
        out.append(Rule("expect_column_value_lengths_to_be_between", kwargs))
    for column, bounds_ in section.range.items():
        kwargs = {"column": column, "min_value": bounds_.min, "max_value": bounds_.max}
        out.append(Rule("expect_column_values_to_be_between", kwargs))
    return out + [Rule(one.name, one.kwargs) for one in section.expectations]


def _row_rules(recipe: Recipe) -> list[tuple[Rule, Any]]:
    """The rules about rows: what each is called, and the rule."""
    out = []
    for config in recipe.validate_.rules:
        rule, options = recipe.plugin("rules", config)
        told = options.model_dump(mode="json", exclude_unset=True)
        out.append((Rule(config.type, told), rule(options, recipe)))
    return out


def _checks(recipe: Recipe) -> list[_Check]:
    expected, about_rows = expectations(recipe.validate_), _row_rules(recipe)
    checks = []
    if expected:
        named = all(rule.column for rule in expected)
        columns = tuple(sorted({rule.column for rule in expected if rule.column}))
        contract = registry.resolve("contracts", "great_expectations")(expected)
        checks.append(_Check(contract, columns if named else None, "data_docs.html"))
    if about_rows:
        columns = tuple(sorted({column for _, rule in about_rows for column in rule.columns}))
        contract = registry.resolve("contracts", "rows")(about_rows)
        checks.append(_Check(contract, columns, "row_rules.html"))
    for i, config in enumerate(recipe.validate_.contracts):
        python = None if config.python is None else str(recipe.folder / config.python)
        file = _contract_file(recipe, config)
        contract = registry.resolve("contracts", config.engine)(file, python)
        checks.append(_Check(contract, None, f"{config.engine}_{i}.html"))
    return checks


def _with_base_at_hand(job: Job) -> Recipe:
    """The recipe, with the folder of its base where that is a registered version.

    A rule may look into the base, and knows nothing of ledger and store.
    """
    version = registered(job.recipe.train.base)
    if version is None or not job.recipe.validate_.rules:
        return job.recipe
    model = find(*version, job.recipe, job.store, job.ledger)
    folder = fetched(model, job.recipe, job.store, job.ledger)
    train = job.recipe.train.model_copy(update={"base": str(folder)})
    return job.recipe.model_copy(update={"train": train})


def _contract_file(recipe: Recipe, config: ContractFile) -> Path:
    file = recipe.folder / config.file
    if not file.is_file():
        raise RecipeError(f"validate.contracts: there is no file {file}.")
    return file


def _canonical(recipe: Recipe) -> dict[str, Any]:
    """What the contract says, for fingerprints."""
    contract = canonical(recipe.validate_)
    rules = contract.pop("rules")
    if rules:
        contract["rules"] = [
            [config.type, rule.revision, canonical(options), rule(options, recipe).identity]
            for config in recipe.validate_.rules
            for rule, options in [recipe.plugin("rules", config)]
        ]
    files = contract.pop("contracts")
    if files:
        contract["contracts"] = [
            [config.engine, file_digest(_contract_file(recipe, config))]
            for config in recipe.validate_.contracts
        ]
    return contract


def valid_tables(recipe: Recipe) -> dict[str, str]:
    """Source name -> the name of its table of valid rows.

    Named by what decides whether a row is in it, so ``max_bad_rows`` is left
    out: tolerating more failures does not change which rows fail.
    """
    contract = _canonical(recipe)
    contract.pop("max_bad_rows")
    return {
        name: f"valid-{name}-{digest_of([raw, recipe.sources[name].columns, contract])[:8]}"
        for name, raw in raw_tables(recipe).items()
    }


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    columns = {name: dict(config.columns) for name, config in recipe.sources.items()}
    settings = {"validate": _canonical(recipe), "columns": columns}
    return settings | ({"released": pinned.released} if pinned.released else {})


def _run(job: Job) -> dict[str, Any]:
    increments = [_increment(job, name) for name in job.recipe.sources]
    checks = _checks(_with_base_at_hand(job))
    findings = {one.source: _check(job, checks, one) for one in increments if one.num_rows}
    for check in checks:
        check.contract.write_report(job.folder / check.report)
    for one in increments:
        _quarantine(job, one, findings.get(one.source, []))
    decided = decided_upto(job.store, job.recipe, job.pinned.decisions)
    _refuse_if_too_bad(job, increments, findings, decided)
    quarantined = 0
    for one in increments:
        failing = _failing_ids(findings.get(one.source, []))
        quarantined += len(failing)
        _pass_on(one, failing)
    return _summary(job, increments, quarantined, decided)


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
        read = None if columns is None else [self.columns.get(name, name) for name in columns]
        return renamed(self.raw.scan(self.after, self.upto, read), self.columns)

    def schema(self) -> pa.Schema:
        """All columns, under our names."""
        theirs = {theirs: ours for ours, theirs in self.columns.items()}
        raw = self.raw.schema()
        return pa.schema([raw.field(name).with_name(theirs.get(name, name)) for name in raw.names])


def renamed(
    batches: Iterable[pa.RecordBatch], columns: Mapping[str, str]
) -> Iterator[pa.RecordBatch]:
    """Batches of a raw table under our column names."""
    theirs = {theirs: ours for ours, theirs in columns.items()}
    for batch in batches:
        yield batch.rename_columns([theirs.get(name, name) for name in batch.schema.names])


def valid_table(store: Store, recipe: Recipe, source: str) -> Table:
    """Where a source's rows are that met the contract."""
    return store.table(recipe.name, valid_tables(recipe)[source])


def decided_upto(store: Store, recipe: Recipe, upto: int) -> dict[str, Decision]:
    """What people had decided by one version of the decisions; -1 is before the first."""
    if upto < 0:
        return {}
    contracts = list(valid_tables(recipe).values())
    return decisions.standing(decisions.table(store, recipe), contracts, upto)


def _increment(job: Job, source: str) -> _Increment:
    raw = job.store.table(job.recipe.name, raw_tables(job.recipe)[source])
    valid = valid_table(job.store, job.recipe, source)
    valid.sweep()
    upto = job.inputs["ingest"].summary["tables"][raw.key]
    columns = job.recipe.sources[source].columns
    _check_mapping(source, columns, raw.schema().names)
    after = job.before().get("covered", {}).get(valid.key, -1)
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


def _check(job: Job, checks: Sequence[_Check], one: _Increment) -> list[Finding]:
    for check in checks:
        _require_columns(one, check)
    findings: list[Finding] = []
    with job.progress.track(f"validate {one.source}", one.num_rows * len(checks)) as advance:
        for check in checks:
            columns = None if check.columns is None else [ROW_ID, *check.columns]
            findings += check.contract.check(one.source, _pieces(one.rows(columns), advance))
    return findings


def _pieces(batches: Iterable[pa.RecordBatch], advance: Advance) -> Iterator[pa.Table]:
    for batch in batches:
        yield pa.Table.from_batches([batch])
        advance(batch.num_rows)


def _require_columns(one: _Increment, check: _Check) -> None:
    have = one.schema().names
    for column in sorted(set(check.columns or ()) - set(have)):
        own = [name for name in have if not name.startswith("_")]
        raise ValidationFailed(
            f"The rows of source {one.source!r} have no column {column!r}. They have: "
            f"{', '.join(own)}.",
            f"Name it under sources.{one.source}.columns, or take the rule about {column!r} "
            "out of `validate`.",
        )


def _refuse_if_too_bad(
    job: Job,
    increments: list[_Increment],
    findings: Mapping[str, list[Finding]],
    decided: Mapping[str, Decision],
) -> None:
    total = sum(one.num_rows for one in increments)
    # A row that somebody has decided about is no surprise any more.
    bad = sum(len(_failing_ids(some).keys() - decided.keys()) for some in findings.values())
    allowed = job.recipe.validate_.max_bad_rows
    unmet = [(source, f) for source, some in findings.items() for f in some if not f.is_met]
    # A rule about a whole column has no rows to tolerate.
    columns_unmet = [pair for pair in unmet if not pair[1].failing]
    if not unmet or (not columns_unmet and bad <= allowed * total):
        return
    reports = " and ".join(_kept_reports(job))
    lines = [f"Data validation failed: {_counted(len(unmet), 'expectation')} not met"]
    lines += [f"  {source}: {_finding_text(finding)}" for source, finding in unmet]
    lines.append(f"{bad:,} of {total:,} new rows fail ({bad / max(1, total):.2%}).")
    raise ValidationFailed(
        "\n".join(lines),
        f"See {reports}. The rows have been ingested. Decide about them (penstock quarantine list, "
        f"release, drop), or leave them in quarantine and go on: allow a share of bad rows once, "
        f"as in --set validate.max_bad_rows={_above(bad / max(1, total))} (now {allowed}).",
    )


def _kept_reports(job: Job) -> Iterator[str]:
    """Copy the pages to where they outlive a run that fails."""
    folder = job.store.root / "reports"
    for page in sorted(job.folder.glob("*.html")):
        kept = folder / f"validation-{job.fingerprint[:12]}-{page.name}"
        with store_errors(kept):
            folder.mkdir(exist_ok=True)
            shutil.copyfile(page, kept)
        yield str(kept)


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
    table = job.store.table(job.recipe.name, QUARANTINE)
    table.sweep()
    stream = one.valid.name
    seen = table.position(stream)

    def rows(version: int) -> Iterator[pa.RecordBatch]:
        wanted = pa.array(list(failing), pa.string())
        bad = (b.filter(pc.is_in(b[ROW_ID], wanted)) for b in one.rows())
        new = (b.filter(pc.greater(b[VERSION], seen)) for b in bad)
        held = (_quarantine_batch(b, failing, stream) for b in new)
        return numbered(held, version, _QUARANTINE_SCHEMA)

    table.append_once(Position(stream, one.upto), _QUARANTINE_SCHEMA, rows)


def _quarantine_batch(
    batch: pa.RecordBatch, failing: Mapping[str, Finding], contract: str
) -> pa.RecordBatch:
    ids = batch[ROW_ID].to_pylist()
    content = batch.drop_columns([ROW_ID, SOURCE, ORIGIN, VERSION, ROW]).to_pylist()
    columns = {
        ROW_ID: ids,
        SOURCE: batch[SOURCE].to_pylist(),
        ORIGIN: batch[ORIGIN].to_pylist(),
        "contract": [contract] * batch.num_rows,
        "rule": [str(failing[row_id].rule) for row_id in ids],
        "value": [failing[row_id].failing[row_id] for row_id in ids],
        "row": [json.dumps(row, default=str, ensure_ascii=False) for row in content],
    }
    return pa.RecordBatch.from_pydict(columns, schema=pa.schema(list(_QUARANTINE_SCHEMA)[:7]))


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


def _released(one: _Increment, decided: Mapping[str, Decision]) -> int:
    """How many of a source's rows up to here people have let through."""
    wanted = pa.array(decisions.released(decided, one.source), pa.string())
    if not len(wanted):
        return 0
    ids = one.raw.scan(upto=one.upto, columns=[ROW_ID, VERSION])
    return sum(pc.sum(pc.is_in(batch[ROW_ID], wanted)).as_py() or 0 for batch in ids)


def _summary(
    job: Job, increments: list[_Increment], quarantined: int, decided: Mapping[str, Decision]
) -> dict[str, Any]:
    raw = raw_tables(job.recipe)
    released = {one.source: _released(one, decided) for one in increments}
    passed = {one.valid.key: one.valid.count_rows() + released[one.source] for one in increments}
    before = {one.valid.key: one.valid for one in increments}
    num_in = sum(one.num_rows for one in increments)
    return {
        "tables": {path: table.version() for path, table in before.items()},
        "valid_rows": passed,
        "released": released,
        "decisions": job.pinned.decisions,
        "covered": {one.valid.key: one.upto for one in increments},
        # Which raw version the valid rows reach to: the data version people see.
        "data": {one.source: one.upto for one in increments},
        "reached": {raw[one.source]: one.upto for one in increments},
        "rows": {"in": num_in, "quarantined": quarantined, "out": num_in - quarantined},
    }
