"""Gate: the candidate against its floors and against what serves now."""

from __future__ import annotations

from typing import Any

from penstock.gates import GatePolicy, decide, read_results, to_html, to_markdown
from penstock.recipe import Recipe, canonical
from penstock.stages.base import Job, Pinned, Stage


def policy(recipe: Recipe) -> GatePolicy:
    """The recipe's gate section as the statistics take it."""
    section = recipe.gate
    return GatePolicy(
        min=section.min,
        max=section.max,
        max_regression=section.max_regression,
        alpha=section.alpha,
        on_inconclusive=section.on_inconclusive,
        seed=recipe.seed,
    )


def _settings(recipe: Recipe, pinned: Pinned) -> dict[str, Any]:
    return canonical(recipe.gate) | {"seed": recipe.seed}


def _run(job: Job) -> dict[str, Any]:
    name = job.recipe.model_name
    candidate = read_results(job.input_folder("evaluate"), f"{name} candidate")
    serving = _baseline_version(job)
    baseline = None
    if serving is not None:
        baseline = read_results(job.input_folder("baseline"), f"{name} version {serving}")
    decision = decide(candidate, baseline, policy(job.recipe))
    (job.folder / "decision.json").write_text(decision.to_json(), encoding="utf-8")
    (job.folder / "decision.md").write_text(to_markdown(decision), encoding="utf-8")
    (job.folder / "decision.html").write_text(to_html(decision), encoding="utf-8")
    return {
        "verdict": decision.verdict.value,
        "reason": " ".join(decision.reasons),
        "baseline_version": serving,
    }


STAGE = Stage("gate", 1, ("evaluate", "baseline"), _settings, _run)


def _baseline_version(job: Job) -> int | None:
    """The version that was evaluated as the baseline; None for the first model."""
    if "baseline" not in job.inputs:
        return None
    digest = job.inputs["baseline"].summary["model_digest"]
    model = job.ledger.model_with_digest(job.recipe.model_name, digest)
    return None if model is None else model.version
