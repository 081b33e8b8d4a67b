"""The gate: may this model replace the one that serves now?

Numbers in, a decision out; nothing here reads a recipe or the ledger.
"""

from penstock.gates.comparison import Comparison, Judgement
from penstock.gates.decision import Decision, FloorCheck, Side, Verdict, decide, gate_results
from penstock.gates.lm_eval_results import read_results, results_from_dict
from penstock.gates.page import to_html
from penstock.gates.policy import GatePolicy
from penstock.gates.report import (
    comparison_rows,
    error_to_markdown,
    floor_rows,
    summary_rows,
    to_markdown,
)
from penstock.gates.results import EvalResults, ItemKey, ItemScores, MetricResult, TaskResult

__all__ = [
    "Comparison",
    "Decision",
    "EvalResults",
    "FloorCheck",
    "GatePolicy",
    "ItemKey",
    "ItemScores",
    "Judgement",
    "MetricResult",
    "Side",
    "TaskResult",
    "Verdict",
    "comparison_rows",
    "decide",
    "error_to_markdown",
    "floor_rows",
    "gate_results",
    "read_results",
    "results_from_dict",
    "summary_rows",
    "to_html",
    "to_markdown",
]
