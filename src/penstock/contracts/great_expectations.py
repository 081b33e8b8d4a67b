"""Great Expectations as the contract engine.

Rules about single rows run piece by piece, so memory does not grow with the
increment. Rules about a whole column (a mean, a uniqueness) need it all at once
and get it, with only the columns they name.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.contracts.base import Finding, Rule
from penstock.errors import RecipeError
from penstock.registry import did_you_mean, require
from penstock.transforms.base import ROW_ID

_PIECE_ROWS = 100_000
_EXAMPLES = 20
_RANGE = "expect_column_values_to_be_between"
_PLACE = "penstock_rule"  # where a rule stands in the contract, in GX's metadata


class GreatExpectationsContract:
    """Checks rows with expectations from the GX library.

    Raises:
        MissingExtra: great_expectations is not installed.
        RecipeError: A rule does not exist or its arguments do not fit it.
    """

    def __init__(self, rules: list[Rule]) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        self._gx = require("great_expectations", "contracts")
        self._expectations = [_expectation(self._gx, rule) for rule in rules]
        for i, expectation in enumerate(self._expectations):
            expectation.meta = {_PLACE: i}
        self._rules = rules
        self._merged: list[Any] = []
        context = self._gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
        self._whole = asset.add_batch_definition_whole_dataframe("rows")

    def check(self, source: str, rows: Iterable[pa.Table]) -> list[Finding]:
        """Check one source's rows; see ``Contract``."""
        by_row = [i for i, one in enumerate(self._expectations) if _is_about_rows(one)]
        by_column = [i for i in range(len(self._rules)) if i not in by_row]
        findings = [Finding(rule) for rule in self._rules]
        held: list[pa.Table] = []
        for piece in _pieces(rows):
            self._check_piece(source, piece, by_row, findings)
            if by_column:
                held.append(piece)
        if held:
            self._check_piece(source, pa.concat_tables(held), by_column, findings)
        return findings

    def write_report(self, path: Path) -> None:
        """Write GX's Data Docs page, made to open without the network."""
        from great_expectations.core import ExpectationSuiteValidationResult
        from great_expectations.render.renderer import ValidationResultsPageRenderer
        from great_expectations.render.view import DefaultJinjaPageView

        met = sum(result.success for result in self._merged)
        whole = ExpectationSuiteValidationResult(
            success=met == len(self._merged),
            results=self._merged,
            suite_name="recipe contract",
            statistics={
                "evaluated_expectations": len(self._merged),
                "successful_expectations": met,
                "unsuccessful_expectations": len(self._merged) - met,
                "success_percent": 100.0 * met / max(1, len(self._merged)),
            },
            meta={"great_expectations_version": self._gx.__version__},
        )
        page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(whole))
        path.write_text(_offline(page), encoding="utf-8")

    def _check_piece(
        self, source: str, piece: pa.Table, chosen: list[int], findings: list[Finding]
    ) -> None:
        if not chosen:
            return
        suite = self._gx.ExpectationSuite(
            name="contract", expectations=[self._expectations[i] for i in chosen]
        )
        batch = self._whole.get_batch(batch_parameters={"dataframe": piece.to_pandas()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = batch.validate(
                suite,
                result_format={
                    "result_format": "COMPLETE",
                    "unexpected_index_column_names": [ROW_ID],
                },
            )
        # GX answers in an order of its own: column by column.
        for result in outcome.results:
            i = result.expectation_config.meta[_PLACE]
            _add(findings[i], result, piece.num_rows)
            _add_nan(findings[i], piece)
            self._merge(source, self._rules[i], findings[i], result)

    def _merge(self, source: str, rule: Rule, finding: Finding, result: Any) -> None:
        """Keep one result per source and rule for the page, with totals and examples."""
        key = f"{source}: {rule}"
        for i, kept in enumerate(self._merged):
            if kept.meta.get("key") == key:
                self._merged[i] = _page_result(result, finding, key)
                return
        self._merged.append(_page_result(result, finding, key))


def _expectation(gx: Any, rule: Rule) -> Any:
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )

    known = list_registered_expectation_implementations()
    if rule.name not in known:
        raise RecipeError(
            f"validate.expectations: {rule.name!r} is not an expectation."
            f"{did_you_mean(rule.name, sorted(known))}"
        )
    try:
        return get_expectation_impl(rule.name)(**rule.kwargs)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise RecipeError(
            f"validate.expectations: {rule} does not fit: {' '.join(lines)[:400]}"
        ) from None


def _is_about_rows(expectation: Any) -> bool:
    """Whether each row can be judged by itself."""
    from great_expectations.expectations.expectation import (
        ColumnMapExpectation,
        ColumnPairMapExpectation,
        MulticolumnMapExpectation,
    )

    kinds = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
    # "unique" is a map expectation by class, but a row is judged by the others.
    return isinstance(expectation, kinds) and "unique" not in expectation.expectation_type


def _pieces(rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables up to the size at which GX's fixed cost stops mattering."""
    held: list[pa.Table] = []
    for table in rows:
        held.append(table)
        if sum(one.num_rows for one in held) >= _PIECE_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _add(finding: Finding, result: Any, num_rows: int) -> None:
    raised = result.exception_info
    if isinstance(raised, dict) and "raised_exception" not in raised:
        raised = next(iter(raised.values()), {})  # GX nests it by metric when one failed
    if raised.get("raised_exception"):
        raise RecipeError(
            f"validate: {finding.rule} cannot be checked: {raised['exception_message']}"
        )
    finding.num_rows += num_rows
    finding.is_met = finding.is_met and bool(result.success)
    if "observed_value" in result.result:
        finding.observed = str(result.result["observed_value"])
    for row in result.result.get("unexpected_index_list") or ():
        value = {key: item for key, item in row.items() if key != ROW_ID}
        shown = next(iter(value.values())) if len(value) == 1 else value
        finding.failing[str(row[ROW_ID])] = _text(shown)


def _add_nan(finding: Finding, piece: pa.Table) -> None:
    """NaN lies in no range; pandas, and so GX, takes it for a null, which it passes over."""
    rule = finding.rule
    # Under a condition only GX knows which rows are meant.
    if rule.name != _RANGE or "row_condition" in rule.kwargs:
        return
    column = piece[rule.column]
    if not pa.types.is_floating(column.type):
        return
    rows = piece[ROW_ID].filter(pc.is_nan(column))
    finding.failing |= dict.fromkeys(rows.to_pylist(), "nan")
    share = 1 - len(finding.failing) / max(1, finding.num_rows)
    finding.is_met = finding.is_met and share >= rule.kwargs.get("mostly", 1.0)


def _text(value: Any) -> str:
    """A failing value for people: GX gives numpy scalars, and NaN for a null."""
    if value is None or (not hasattr(value, "__len__") and bool(value != value)):
        return "null"
    if hasattr(value, "tolist"):
        value = value.tolist()  # a list of lists comes as an array, a number as numpy's
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _page_result(result: Any, finding: Finding, key: str) -> Any:
    """GX's own result object, with the totals of all pieces in place of one piece's."""
    result.meta = {"key": key}
    result.success = finding.is_met
    examples = list(finding.failing.values())[:_EXAMPLES]
    if "unexpected_count" in result.result:
        count = len(finding.failing)
        result.result = {
            "element_count": finding.num_rows,
            "unexpected_count": count,
            "unexpected_percent": 100.0 * count / max(1, finding.num_rows),
            "partial_unexpected_list": examples,
        }
    else:
        result.result = {"observed_value": finding.observed}
    return result


_EXTERNAL = re.compile(
    r"<script[^>]*\bsrc=[\"']https?:[^>]*>\s*</script>|<link[^>]*\bhref=[\"']https?:[^>]*/?>"
    r"|<img[^>]*\bsrc=[\"']https?:[^>]*>",
    re.I,
)
_STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%}td,th{border:1px solid #ccc;padding:.4rem .6rem;
text-align:left;vertical-align:top}@media(prefers-color-scheme:dark){body{background:#161616;
color:#eee}td,th{border-color:#444}}</style>"""


def _offline(page: str) -> str:
    """GX's page refers to CDNs; this one opens, styled, without telling anyone."""
    return _EXTERNAL.sub("", page).replace("</head>", f"{_STYLE}</head>", 1)
