import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_lm_eval_output import evaluate, save, write_tasks

from penstock.errors import EvaluationError, RecipeError
from penstock.gates import GatePolicy, Verdict, decide, read_results, results_from_dict
from penstock.gates.resampling import Link
from penstock.gates.results import pair

OUTPUT = Path(__file__).parent / "lm_eval_output"


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    """A copy of lm-eval's own output that a test may damage."""
    return Path(shutil.copytree(OUTPUT / "baseline", tmp_path / "baseline"))


def aggregated(folder: Path) -> Path:
    return next(folder.rglob("results_*.json"))


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_dict(folder: Path) -> dict[str, Any]:
    """What ``simple_evaluate`` would have returned for the files in ``folder``."""
    results: dict[str, Any] = json.loads(aggregated(folder).read_text())
    results["samples"] = {
        path.name.split("_")[1]: [json.loads(line) for line in path.read_text().splitlines()]
        for path in folder.rglob("samples_*.jsonl")
    }
    return results


def test_every_task_metric_and_group_is_read() -> None:
    results = read_results(OUTPUT / "baseline")
    found = {name: list(task.metrics) for name, task in results.tasks.items()}
    assert found == {
        "sums": ["acc,none", "acc_norm,none"],
        "car": ["acc,none", "acc_norm,none"],
        "door": ["acc,none", "acc_norm,none"],
        "colours": ["acc,none"],
        "prose": ["word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"],
        "echo": ["exact_match,strict", "exact_match,flexible"],
    }
    assert results.model == "toy-baseline"


def test_items_reproduce_every_reported_number() -> None:
    for task in read_results(OUTPUT / "candidate").tasks.values():
        for metric in task.metrics.values():
            assert metric.items is not None
            ratio = metric.items.totals.sum() / metric.items.weights.sum()
            assert float(metric.items.link.of(ratio)) == pytest.approx(metric.mean)


def test_weighted_metrics_become_ratios_in_their_own_unit() -> None:
    prose = read_results(OUTPUT / "baseline").tasks["prose"].metrics
    bits, words = prose["bits_per_byte,none"].items, prose["word_perplexity,none"].items
    assert bits is not None
    assert words is not None
    assert (bits.link, words.link) == (Link.IDENTITY, Link.EXP)
    assert bits.weights.max() == 104  # bytes
    assert words.weights.max() == 21  # words


def test_a_document_that_appears_twice_is_two_items() -> None:
    items = read_results(OUTPUT / "baseline").tasks["prose"].metrics["bits_per_byte,none"].items
    assert items is not None
    assert len(set(items.keys)) == 12
    assert max(key.occurrence for key in items.keys) > 0


def test_the_cluster_field_of_documents_is_read_under_any_name() -> None:
    def clusters(field: str) -> int | None:
        results = read_results(OUTPUT / "baseline", cluster_field=field)
        items = results.tasks["sums"].metrics["acc,none"].items
        assert items is not None
        return None if items.clusters is None else len(set(items.clusters))

    assert clusters("cluster") == 10
    assert clusters("question") == 30
    assert clusters("passage") is None


def test_a_group_stands_for_its_tasks_where_it_is_the_mean_over_their_items() -> None:
    results = read_results(OUTPUT / "baseline")
    assert sorted(results.judged()) == ["colours", "echo", "prose", "sums"]
    items = results.tasks["colours"].metrics["acc,none"].items
    assert items is not None
    assert {key.task for key in items.keys} == {"car", "door"}


def test_a_group_that_weighs_its_tasks_otherwise_leaves_them_to_be_judged(baseline: Path) -> None:
    raw = json.loads(aggregated(baseline).read_text())
    raw["results"]["colours"]["acc,none"] = 0.61
    change(aggregated(baseline), results=raw["results"])
    results = read_results(baseline)
    assert sorted(results.judged()) == ["car", "door", "echo", "prose", "sums"]
    assert results.tasks["colours"].metrics["acc,none"].mean == 0.61


def test_the_dict_and_the_files_of_one_evaluation_are_the_same() -> None:
    files = read_results(OUTPUT / "baseline")
    returned = results_from_dict(as_dict(OUTPUT / "baseline"))
    assert returned.digest == files.digest
    assert returned.digest != read_results(OUTPUT / "candidate").digest


def test_the_digest_does_not_depend_on_the_place_or_the_order_of_lines(baseline: Path) -> None:
    samples = next(baseline.rglob("samples_sums_*"))
    samples.write_text("".join(reversed(samples.read_text().splitlines(keepends=True))))
    assert read_results(baseline).digest == read_results(OUTPUT / "baseline").digest


def test_the_order_of_items_does_not_change_a_decision() -> None:
    random = np.random.default_rng(0)
    policy = GatePolicy(min={"sums": 0.5}, max_regression={"prose/bits_per_byte": 0.1})
    decisions = []
    for shuffle in (False, True):
        sides = [as_dict(OUTPUT / side) for side in ("candidate", "baseline")]
        for side in sides if shuffle else ():
            for samples in side["samples"].values():
                random.shuffle(samples)
        decisions.append(decide(*(results_from_dict(side) for side in sides), policy))
    assert decisions[0] == decisions[1]


def test_an_aggregated_file_can_be_named_directly() -> None:
    file = aggregated(OUTPUT / "baseline")
    assert read_results(file).digest == read_results(OUTPUT / "baseline").digest


def test_the_newest_result_of_a_task_counts(baseline: Path) -> None:
    old = aggregated(baseline)
    raw = json.loads(old.read_text())
    raw["results"] = {"sums": raw["results"]["sums"] | {"acc,none": 0.9}}
    raw["group_subtasks"] = {}
    old.with_name("results_2999-01-01T00-00-00.000000.json").write_text(json.dumps(raw))
    sums = read_results(baseline).tasks["sums"].metrics["acc,none"]
    assert sums.mean == 0.9
    assert sums.items is None  # the older samples do not belong to it
    assert "echo" in read_results(baseline).tasks


def test_results_of_two_models_in_one_place_are_refused() -> None:
    with pytest.raises(EvaluationError, match="2 models: toy-baseline, toy-candidate") as caught:
        read_results(OUTPUT)
    assert "toy-baseline" in caught.value.hint


def test_results_without_samples_say_so(baseline: Path) -> None:
    for samples in baseline.rglob("samples_*"):
        samples.unlink()
    metric = read_results(baseline).tasks["sums"].metrics["acc,none"]
    assert metric.items is None
    assert "did not log its samples" in metric.why_no_items


def test_values_that_do_not_make_the_reported_number_are_not_believed(baseline: Path) -> None:
    samples = next(baseline.rglob("samples_sums_*"))
    samples.write_text(samples.read_text().replace('"acc": 1.0', '"acc": 0.0'))
    metrics = read_results(baseline).tasks["sums"].metrics
    assert metrics["acc,none"].items is None
    assert "do not add up" in metrics["acc,none"].why_no_items
    assert metrics["acc_norm,none"].items is not None


def test_an_empty_directory_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="need a results_") as caught:
        read_results(tmp_path)
    assert "--log_samples" in caught.value.hint


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="does not exist"):
        read_results(tmp_path / "nowhere")


@pytest.mark.parametrize("pattern", ["results_*.json", "samples_sums_*"])
def test_a_damaged_file_is_named(baseline: Path, pattern: str) -> None:
    path = next(baseline.rglob(pattern))
    path.write_text(path.read_text()[:-40])
    with pytest.raises(EvaluationError, match=rf"{path.name}.* is not JSON"):
        read_results(baseline)


def test_a_file_that_is_not_text_is_an_error(baseline: Path) -> None:
    aggregated(baseline).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvaluationError, match="is not JSON"):
        read_results(baseline)


def test_a_samples_file_that_was_cut_short_is_an_error(baseline: Path) -> None:
    path = next(baseline.rglob("samples_sums_*"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-5]))
    with pytest.raises(EvaluationError, match="evaluated on 30 items, but 25 samples"):
        read_results(baseline)


@pytest.mark.parametrize("content", ["[]", "{}", '{"results": []}', '{"results": {"a": 1}}', "3"])
def test_json_that_is_not_an_evaluation_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "results_1.json").write_text(content)
    with pytest.raises(EvaluationError):
        read_results(tmp_path)


def test_samples_without_hashes_are_an_error() -> None:
    raw = as_dict(OUTPUT / "baseline")
    del raw["samples"]["sums"][0]["prompt_hash"]
    with pytest.raises(EvaluationError, match="without doc_hash, prompt_hash") as caught:
        results_from_dict(raw)
    assert "0.4.13" in caught.value.hint


def test_a_value_that_is_not_a_number_is_refused_only_where_it_is_used(baseline: Path) -> None:
    raw = json.loads(aggregated(baseline).read_text())
    raw["results"]["sums"]["acc_norm,none"] = math.nan
    change(aggregated(baseline), results=raw["results"])
    results = read_results(baseline)
    assert decide(results, None, GatePolicy(min={"sums": 0.1})).verdict is Verdict.PASS
    with pytest.raises(EvaluationError, match=r"sums/acc_norm.*nan"):
        decide(results, None, GatePolicy(min={"sums/acc_norm": 0.1}))


def test_other_prompts_are_a_mismatch_that_is_explained(baseline: Path) -> None:
    path = next(baseline.rglob("samples_sums_*"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[:7]:
        line["prompt_hash"] = "another"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = read_results(OUTPUT / "candidate").tasks["sums"].metrics["acc,none"].items
    other = read_results(baseline).tasks["sums"].metrics["acc,none"].items
    assert items is not None
    assert other is not None
    with pytest.raises(EvaluationError, match=r"only 23 of .* 30 and .* 30 items match") as caught:
        pair(items, other, "sums/acc")
    assert "30 documents are shared" in caught.value.message
    assert "Evaluate the baseline again" in caught.value.hint


def test_a_metric_scored_after_several_filters_must_be_named_with_one() -> None:
    results = read_results(OUTPUT / "baseline")
    assert results.find("echo/exact_match,flexible")[1] is not None
    with pytest.raises(RecipeError, match="several filters") as caught:
        results.find("echo/exact_match")
    assert "echo/exact_match,strict" in caught.value.hint


def test_an_unknown_task_or_metric_lists_the_valid_ones() -> None:
    results = read_results(OUTPUT / "baseline")
    with pytest.raises(RecipeError, match=r"'summs'.*Did you mean 'sums'.*car, colours, door"):
        results.find("summs")
    with pytest.raises(RecipeError, match=r"no metric 'accnorm'.*Did you mean 'acc_norm'"):
        results.find("sums/accnorm")


@pytest.mark.slow
def test_what_lm_eval_writes_today_is_read_like_the_fixtures(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    results = evaluate(tmp_path, seed=1, skill=1.0)
    returned = results_from_dict(results)
    save(results, "toy-baseline", tmp_path / "out")
    written = read_results(tmp_path / "out")
    assert returned.digest == written.digest == read_results(OUTPUT / "baseline").digest
