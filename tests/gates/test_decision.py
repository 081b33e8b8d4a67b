import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_evaluations import answers, evaluation, metric, scores

from penstock.errors import EvaluationError, RecipeError
from penstock.gates import (
    Decision,
    EvalResults,
    GatePolicy,
    Judgement,
    MetricResult,
    Verdict,
    decide,
    gate_results,
)

OUTPUT = Path(__file__).parent / "lm_eval_output"


def sides(**tasks: tuple[MetricResult, ...]) -> tuple[EvalResults, EvalResults]:
    """Candidate and baseline out of (candidate, baseline) per task."""
    candidate = evaluation({name: pair[0] for name, pair in tasks.items()})
    return candidate, evaluation({name: pair[1] for name, pair in tasks.items()})


def bits(n: int, shift: float, seed: int = 0, spread: float = 0.02) -> tuple[MetricResult, ...]:
    """Bits per byte; the candidate's are higher, hence worse, by ``shift``."""
    random = np.random.default_rng(seed)
    weights = random.integers(50, 300, size=n).astype(float)
    baseline = weights * random.gamma(20, 1 / 20, size=n)
    candidate = baseline + weights * random.normal(shift, spread, size=n)
    return tuple(
        metric(scores(totals, weights), "bits_per_byte", higher_is_better=False)
        for totals in (candidate, baseline)
    )


def without_items(result: MetricResult) -> MetricResult:
    return replace(result, items=None, why_no_items="evaluation did not log its samples")


# The first model


def test_the_first_model_passes_when_its_floors_hold() -> None:
    candidate, _ = sides(arc=answers(100, 60))
    decision = decide(candidate, None, GatePolicy(min={"arc": 0.6}))
    assert decision.verdict is Verdict.PASS
    assert decision.reasons == ("1 floor checked, all hold.",)
    assert decision.baseline is None


def test_the_first_model_is_blocked_when_a_floor_fails() -> None:
    candidate, _ = sides(arc=answers(100, 60))
    decision = decide(candidate, None, GatePolicy(min={"arc": 0.61}))
    assert decision.verdict is Verdict.BLOCK
    assert decision.reasons == ("arc/acc is 0.6, below its floor of 0.61.",)


def test_the_first_model_without_any_floor_is_an_error() -> None:
    candidate, _ = sides(arc=answers(100, 60))
    with pytest.raises(RecipeError, match="nothing could stop any model") as caught:
        decide(candidate, None, GatePolicy(on_inconclusive="point_estimate"))
    assert "at least one floor" in caught.value.hint


def test_a_ceiling_bounds_a_metric_of_which_less_is_better() -> None:
    candidate, _ = sides(text=bits(50, 0.0))
    passed = decide(candidate, None, GatePolicy(max={"text": 2.0}))
    blocked = decide(candidate, None, GatePolicy(max={"text/bits_per_byte": 0.5}))
    assert passed.verdict is Verdict.PASS
    assert blocked.verdict is Verdict.BLOCK
    assert "above its ceiling of 0.5" in blocked.reasons[0]


def test_a_floor_on_the_wrong_side_is_an_error() -> None:
    candidate, _ = sides(text=bits(50, 0.0), arc=answers(100, 60))
    with pytest.raises(RecipeError, match="lower is better"):
        decide(candidate, None, GatePolicy(min={"text": 0.5}))
    with pytest.raises(RecipeError, match="higher is better"):
        decide(candidate, None, GatePolicy(max={"arc": 0.5}))


@pytest.mark.parametrize("policy", [{"min": {"arcc": 0.5}}, {"max_regression": {"arcc": 0.1}}])
def test_a_policy_that_names_an_unknown_task_is_an_error(policy: dict[str, object]) -> None:
    candidate, baseline = sides(arc=answers(100, 60), boolq=answers(100, 60))
    with pytest.raises(RecipeError, match=r"'arcc'.*Did you mean 'arc'.*Valid: arc, boolq"):
        decide(candidate, baseline, GatePolicy(**policy))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "policy",
    [
        {"alpha": 0.0},
        {"alpha": 0.5},
        {"max_regression": -0.1},
        {"max_regression": {"arc": float("nan")}},
        {"min": {"arc": float("inf")}},
        {"on_inconclusive": "pass"},
    ],
)
def test_a_policy_out_of_range_is_an_error(policy: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        GatePolicy(**policy)  # type: ignore[arg-type]


# One task against a baseline


def test_a_failed_floor_blocks_even_a_better_model() -> None:
    candidate, baseline = sides(arc=answers(2000, 1000, better=300))
    decision = decide(candidate, baseline, GatePolicy(min={"arc": 0.8}))
    assert decision.verdict is Verdict.BLOCK
    assert "below its floor" in decision.reasons[0]


def test_an_equal_model_passes_with_enough_items() -> None:
    candidate, baseline = sides(arc=answers(3000, 1500, better=75, worse=75))
    decision = decide(candidate, baseline, GatePolicy())
    assert decision.verdict is Verdict.PASS
    assert decision.macro is None  # one task is its own macro mean
    assert decision.comparisons[0].judgement is Judgement.NON_INFERIOR
    assert "arc/acc: not worse by more than 0.02" in decision.reasons[0]


def test_an_equal_model_is_inconclusive_with_few_items_and_says_how_many_would_do() -> None:
    candidate, baseline = sides(arc=answers(300, 150, better=15, worse=15))
    decision = decide(candidate, baseline, GatePolicy())
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.comparisons[0].items_needed == 1546
    assert "about 1,546 would" in decision.reasons[0]


def test_a_clearly_worse_model_is_blocked() -> None:
    candidate, baseline = sides(arc=answers(1000, 500, better=20, worse=80))
    assert decide(candidate, baseline, GatePolicy()).verdict is Verdict.BLOCK


def test_a_significant_loss_blocks_before_inferiority_is_certain() -> None:
    candidate, baseline = sides(arc=answers(485, 240, better=36, worse=60))
    decision = decide(candidate, baseline, GatePolicy())
    (row,) = decision.comparisons
    assert row.upper is not None
    assert row.upper > -0.02
    assert decision.verdict is Verdict.BLOCK
    assert row.judgement is Judgement.HARMED


@pytest.mark.slow
def test_a_significant_loss_within_the_margin_passes_and_is_noted() -> None:
    candidate, baseline = sides(arc=answers(50_000, 25_000, better=1000, worse=1200))
    decision = decide(candidate, baseline, GatePolicy())
    assert decision.verdict is Verdict.PASS
    assert "significantly worse (-0.0040), but shown to be within" in decision.notes[0]


def test_a_loss_beyond_the_margin_that_may_be_chance_is_inconclusive() -> None:
    candidate, baseline = sides(arc=answers(100, 50, better=10, worse=13))
    assert decide(candidate, baseline, GatePolicy()).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("count", "verdict"), [(132, "INCONCLUSIVE"), (133, "PASS")])
def test_equal_answers_pass_from_133_items_on(count: int, verdict: str) -> None:
    candidate, baseline = sides(arc=answers(count, count // 2))
    assert decide(candidate, baseline, GatePolicy()).verdict.value == verdict


def test_a_single_item_is_inconclusive() -> None:
    candidate, baseline = sides(arc=answers(1, 1, worse=1))
    assert decide(candidate, baseline, GatePolicy()).verdict is Verdict.INCONCLUSIVE


# Several tasks


def test_equal_models_pass_on_the_macro_mean_where_no_task_could_alone() -> None:
    tasks = {name: answers(700, 350, better=25, worse=25) for name in "abcd"}
    decision = decide(*sides(**tasks), GatePolicy())
    assert decision.verdict is Verdict.PASS
    assert decision.macro is not None
    assert decision.macro.judgement is Judgement.NON_INFERIOR
    assert {row.judgement for row in decision.comparisons} == {Judgement.NO_HARM_SHOWN}
    assert decision.reasons[0].startswith("macro mean over 4 tasks: not worse")


def test_harm_in_one_task_blocks_though_the_macro_mean_gains() -> None:
    tasks = {name: answers(1000, 500, better=80, worse=20) for name in "abc"}
    decision = decide(*sides(**tasks, d=answers(1000, 500, better=20, worse=60)), GatePolicy())
    assert decision.verdict is Verdict.BLOCK
    assert len(decision.reasons) == 1
    assert decision.reasons[0].startswith("d/acc: the candidate is significantly worse: -0.0400")
    assert "max_regression.d" in decision.reasons[0]


def test_a_margin_of_its_own_lets_a_task_lose_that_much() -> None:
    tasks = {name: answers(1000, 500, better=80, worse=20) for name in "abc"}
    both = sides(**tasks, d=answers(1000, 500, better=20, worse=60))
    decision = decide(*both, GatePolicy(max_regression={"d": 0.08}))
    assert decision.verdict is Verdict.PASS
    assert any("shown to be within its margin of 0.08" in note for note in decision.notes)


def test_a_margin_of_its_own_must_be_shown() -> None:
    tasks = {name: answers(2000, 1000, better=50, worse=50) for name in "abcd"}
    passed = decide(*sides(**tasks), GatePolicy())
    strict = decide(*sides(**tasks), GatePolicy(max_regression={"a": 0.005}))
    assert passed.verdict is Verdict.PASS
    assert strict.verdict is Verdict.INCONCLUSIVE
    assert strict.reasons[0].startswith("a/acc: 2,000 items cannot decide on a margin of 0.005")


def test_the_macro_margin_has_its_own_key() -> None:
    tasks = {name: answers(300, 150, better=20, worse=20) for name in "ab"}
    assert decide(*sides(**tasks), GatePolicy()).verdict is Verdict.INCONCLUSIVE
    relaxed = decide(*sides(**tasks), GatePolicy(max_regression={"macro": 0.05}))
    assert relaxed.verdict is Verdict.PASS
    assert relaxed.macro is not None
    assert relaxed.macro.margin == 0.05


def test_one_bad_task_of_eight_is_corrected_for_by_holm() -> None:
    # p is about 0.02: significant alone, not among eight.
    tasks = {name: answers(1000, 500, better=20, worse=20) for name in "abcdefg"}
    suspicious = answers(1000, 500, better=20, worse=36)
    alone = decide(*sides(h=suspicious), GatePolicy())
    among = decide(*sides(**tasks, h=suspicious), GatePolicy())
    assert alone.verdict is Verdict.BLOCK
    assert among.verdict is Verdict.PASS


def test_a_task_that_only_the_candidate_has_is_noted() -> None:
    candidate, baseline = sides(arc=answers(3000, 1500, better=75, worse=75))
    new = answers(100, 50)[0]
    wider = evaluation({"arc": candidate.tasks["arc"].metrics["acc,none"], "new": new})
    decision = decide(wider, baseline, GatePolicy())
    assert decision.verdict is Verdict.PASS
    assert decision.notes[0].startswith("Task new is new")


def test_a_task_that_the_candidate_lacks_is_an_error() -> None:
    candidate, _ = sides(arc=answers(100, 50))
    _, baseline = sides(arc=answers(100, 50), boolq=answers(100, 50))
    with pytest.raises(EvaluationError, match="boolq, the candidate was not"):
        decide(candidate, baseline, GatePolicy())


def test_nothing_in_common_is_an_error() -> None:
    candidate, _ = sides(arc=answers(100, 50))
    _, baseline = sides(boolq=answers(100, 50))
    with pytest.raises(EvaluationError):
        decide(candidate, baseline, GatePolicy())


def test_acc_is_primary_unless_the_policy_names_another_metric() -> None:
    def side(index: int) -> EvalResults:
        acc, norm = answers(3000, 1500)[index], answers(3000, 1600)[index]
        return evaluation({"arc": [replace(norm, name="acc_norm"), acc]})

    by_default = decide(side(0), side(1), GatePolicy())
    asked = decide(side(0), side(1), GatePolicy(min={"arc/acc_norm": 0.1}))
    assert [row.metric for row in by_default.comparisons] == ["acc"]
    assert [row.metric for row in asked.comparisons] == ["acc_norm"]


# Clusters


def test_items_that_share_a_passage_count_for_less() -> None:
    random = np.random.default_rng(1)
    passages = random.permutation(np.repeat([1.0, -1.0, *[0.0] * 18], 15))
    baseline = np.where(np.repeat(passages, 10) < 0, 1.0, 0.0)
    candidate = np.where(np.repeat(passages, 10) > 0, 1.0, 0.0)
    names = [f"passage {index // 10}" for index in range(3000)]
    alone = sides(race=(metric(scores(candidate)), metric(scores(baseline))))
    shared = sides(
        race=(metric(scores(candidate, clusters=names)), metric(scores(baseline, clusters=names)))
    )
    plain, clustered = decide(*alone, GatePolicy()), decide(*shared, GatePolicy())
    assert plain.verdict is Verdict.PASS
    assert clustered.verdict is Verdict.INCONCLUSIVE
    assert clustered.comparisons[0].num_clusters == 300


def test_one_single_cluster_decides_nothing() -> None:
    candidate, baseline = (
        metric(replace(side.items, clusters=("passage",) * 3000))
        for side in answers(3000, 1500, better=300)
        if side.items is not None
    )
    decision = decide(*sides(race=(candidate, baseline)), GatePolicy())
    assert decision.verdict is Verdict.INCONCLUSIVE


# Real-valued metrics


def test_a_real_valued_metric_has_a_margin_relative_to_the_baseline() -> None:
    candidate, baseline = sides(text=bits(200, 0.002))
    decision = decide(candidate, baseline, GatePolicy())
    (row,) = decision.comparisons
    assert row.margin == pytest.approx(0.02 * row.baseline)
    assert row.difference == pytest.approx(row.baseline - row.candidate)
    assert decision.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-0.05, "PASS"), (0.0, "PASS"), (0.03, "BLOCK"), (0.1, "BLOCK")]
)
def test_a_real_valued_metric_is_judged_in_its_own_direction(shift: float, verdict: str) -> None:
    candidate, baseline = sides(text=bits(200, shift))
    assert decide(candidate, baseline, GatePolicy()).verdict.value == verdict


def test_a_named_margin_of_a_real_valued_metric_is_in_its_own_unit() -> None:
    candidate, baseline = sides(text=bits(200, 0.03))
    decision = decide(candidate, baseline, GatePolicy(max_regression={"text": 0.05}))
    assert decision.comparisons[0].margin == 0.05
    assert decision.verdict is Verdict.PASS


def test_a_real_valued_metric_beside_the_macro_mean_must_hold_by_itself() -> None:
    tasks = {name: answers(3000, 1500, better=60, worse=60) for name in "ab"}
    decision = decide(*sides(**tasks, text=bits(15, 0.0)), GatePolicy())
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.reasons[0].startswith("text/bits_per_byte: 15 items cannot decide")


def test_an_identical_model_passes_on_a_real_valued_metric() -> None:
    side = bits(40, 0.0)[0]
    decision = decide(*sides(text=(side, side)), GatePolicy())
    assert decision.verdict is Verdict.PASS
    assert decision.comparisons[0].difference == 0


def test_a_score_between_0_and_1_enters_the_macro_mean() -> None:
    random = np.random.default_rng(2)
    baseline = random.uniform(0.3, 0.7, size=500)
    candidate = baseline + random.normal(0, 0.05, size=500)
    f1 = tuple(metric(scores(values), "f1") for values in (candidate, baseline))
    decision = decide(*sides(f1=f1, arc=answers(3000, 1500, better=60, worse=60)), GatePolicy())
    assert decision.macro is not None
    assert [row.in_macro for row in decision.comparisons] == [True, True]
    assert decision.verdict is Verdict.PASS


def test_a_rate_of_errors_is_a_proportion_judged_by_itself() -> None:
    error = tuple(
        replace(side, name="toxic", higher_is_better=False)
        for side in answers(3000, 100, better=20, worse=20)
    )
    decision = decide(*sides(toxic=error, arc=answers(3000, 1500)), GatePolicy())
    toxic = decision.comparisons[0]
    assert (toxic.in_macro, toxic.margin) == (False, 0.02)
    assert (toxic.better, toxic.worse) == (20, 20)


def test_a_metric_of_unknown_direction_is_an_error() -> None:
    both = tuple(replace(side, higher_is_better=None) for side in answers(100, 50))
    with pytest.raises(EvaluationError, match="whether higher is better"):
        decide(*sides(arc=both), GatePolicy())


# Without samples, and by point estimate


def test_without_samples_floors_are_checked_and_regression_is_inconclusive() -> None:
    candidate, baseline = answers(3000, 1500, better=75, worse=75)
    both = sides(arc=(candidate, without_items(baseline)))
    decision = decide(*both, GatePolicy(min={"arc": 0.4}))
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "the baseline's evaluation did not log its samples" in decision.reasons[0]
    assert decide(*both, GatePolicy(min={"arc": 0.9})).verdict is Verdict.BLOCK


@pytest.mark.parametrize(("worse", "verdict"), [(70, "PASS"), (90, "BLOCK")])
def test_the_point_estimate_decides_only_if_the_policy_says_so(worse: int, verdict: str) -> None:
    both = sides(arc=answers(1000, 500, better=60, worse=worse + 5))
    policy = GatePolicy(on_inconclusive="point_estimate", alpha=0.001)
    assert decide(*both, replace(policy, on_inconclusive="block")).verdict is Verdict.INCONCLUSIVE
    decision = decide(*both, policy)
    assert decision.verdict.value == verdict
    assert decision.resolved_by == "point_estimate"
    assert "by point estimate only" in decision.reasons[0]
    assert "about half of all regressions" in decision.notes[-1]


def test_the_point_estimate_without_samples_looks_at_every_task() -> None:
    def bare(right: int, of: int = 1000) -> MetricResult:
        return without_items(answers(of, right)[0])

    policy = GatePolicy(on_inconclusive="point_estimate")
    gains = {"a": (bare(600), bare(500)), "b": (bare(600), bare(500))}
    assert decide(*sides(**gains), policy).verdict is Verdict.PASS
    decision = decide(*sides(**gains, c=(bare(450), bare(500))), policy)
    assert decision.verdict is Verdict.BLOCK
    assert decision.reasons[0].startswith("c/acc")


def test_a_conclusive_test_is_never_overruled_by_the_point_estimate() -> None:
    both = sides(arc=answers(1000, 500, better=20, worse=80))
    decision = decide(*both, GatePolicy(on_inconclusive="point_estimate"))
    assert (decision.verdict, decision.resolved_by) == (Verdict.BLOCK, "test")


# Invariants

evaluations = st.lists(
    st.tuples(st.integers(1, 600), st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=4
)


def from_counts(tasks: list[tuple[int, int, int]]) -> tuple[EvalResults, EvalResults]:
    return sides(
        **{
            f"task{index}": answers(
                count + better + worse, worse + count // 2, better=better, worse=worse
            )
            for index, (count, better, worse) in enumerate(tasks)
        }
    )


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(evaluations, st.floats(0.001, 0.2), st.floats(0.001, 0.2))
def test_a_wider_margin_never_turns_a_pass_into_something_else(
    tasks: list[tuple[int, int, int]], first: float, second: float
) -> None:
    narrow, wide = sorted([first, second])
    if decide(*from_counts(tasks), GatePolicy(max_regression=narrow)).verdict is Verdict.PASS:
        relaxed = decide(*from_counts(tasks), GatePolicy(max_regression=wide))
        assert relaxed.verdict is Verdict.PASS


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(evaluations)
def test_a_model_and_its_rival_never_both_harm_each_other(
    tasks: list[tuple[int, int, int]],
) -> None:
    candidate, baseline = from_counts(tasks)
    there, back = (
        decide(*pair, GatePolicy()) for pair in ((candidate, baseline), (baseline, candidate))
    )
    for row, mirrored in zip(there.rows, back.rows, strict=True):
        assert row.difference == pytest.approx(-mirrored.difference)
        assert row.lower == pytest.approx(-(mirrored.upper or 0.0))
        assert (row.better, row.worse) == (mirrored.worse, mirrored.better)
        assert Judgement.HARMED not in {row.judgement} & {mirrored.judgement}


@settings(max_examples=25, deadline=None)
@given(evaluations, st.sampled_from(["block", "point_estimate"]))
def test_a_decision_survives_json(tasks: list[tuple[int, int, int]], resolve: str) -> None:
    policy = GatePolicy(
        min={"task0": 0.3}, max_regression={"task0": 0.1, "macro": 0.03}, on_inconclusive=resolve
    )
    decision = decide(*from_counts(tasks), policy)
    assert Decision.from_json(decision.to_json()) == decision


def test_infinite_limits_are_null_in_json() -> None:
    candidate, baseline = sides(text=bits(10, 0.0))
    text = decide(candidate, baseline, GatePolicy()).to_json()
    assert json.loads(text)["comparisons"][0]["lower"] is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"verdict": "MAYBE"}'])
def test_what_is_not_a_decision_is_refused(text: str) -> None:
    with pytest.raises(EvaluationError, match="not a gate's decision"):
        Decision.from_json(text)


def test_exit_codes_tell_the_verdicts_apart() -> None:
    assert [verdict.exit_code for verdict in Verdict] == [0, 3, 4]


@pytest.mark.slow
def test_one_true_regression_in_twenty_passes_the_whole_gate() -> None:
    random = np.random.default_rng(7)
    passed = []
    for _ in range(500):
        tasks = {}
        for name in "abc":
            better, worse, _ = random.multinomial(1000, [0.03, 0.05, 0.92])
            tasks[name] = answers(1000, 500, better=int(better), worse=int(worse))
        passed.append(decide(*sides(**tasks), GatePolicy()).verdict is Verdict.PASS)
    assert np.mean(passed) <= 0.075


# Real lm-eval output, end to end


def test_real_output_is_judged_from_files() -> None:
    policy = GatePolicy(min={"sums": 0.5}, max={"prose/bits_per_byte": 2.0})
    first = gate_results(OUTPUT / "baseline", None, policy)
    second = gate_results(OUTPUT / "candidate", OUTPUT / "baseline", policy)
    assert first.verdict is Verdict.PASS
    assert second.verdict is Verdict.INCONCLUSIVE
    assert [row.name for row in second.rows] == [
        "macro mean over 3 tasks",
        "sums/acc",
        "prose/bits_per_byte",
        "echo/exact_match,strict",
        "colours/acc",
    ]
    assert second.baseline is not None
    assert second.baseline.digest == first.candidate.digest


def test_the_gate_loads_no_heavy_library() -> None:
    code = (
        "import sys, penstock.gates; "
        "heavy = {'pandas', 'torch', 'lm_eval', 'pyarrow', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
