"""The loop with vLLM as what evaluates: a real one, on CPU, in its own environment."""

import pytest
import yaml

import tiny_project
import vllm_environment
from penstock.pipeline import open_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def write_project(folder):
    path = tiny_project.write_project(folder)
    recipe = yaml.safe_load(path.read_text())
    # vLLM knows no heads narrower than 32 on CPUs.
    recipe["train"]["model"] |= {"hidden_size": 64, "intermediate_size": 64}
    recipe["evaluate"]["backend"] = {
        "type": "vllm",
        "python": str(vllm_environment.PYTHON),
        "max_length": 256,
        "gpu_memory_utilization": 0.2,
        # Compiling a model of a thousand parameters costs more than it can save.
        "model_args": {"enforce_eager": True},
    }
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_candidate_and_baseline_are_measured_by_vllm_and_gated(tmp_path):
    if vllm_environment.why_not():
        pytest.skip(vllm_environment.why_not())
    path = write_project(tmp_path / "project")
    first = open_pipeline(path).run()
    assert first.status == "SUCCEEDED"
    tiny_project.write_rows(path.parent / "data" / "second.jsonl", 40, seed=2)
    second = open_pipeline(path).run()
    # Eight items decide nothing, but both sides were measured, on the same items.
    gate = second.artifacts["gate"]
    assert gate.summary["baseline_version"] == 1
    for side in ("evaluate", "baseline"):
        measured = second.artifacts[side]
        assert measured.summary["num_items"] == {"which": 8}
        assert measured.settings["backend"]["type"] == "vllm"
    # The second evaluation of the first model is the first run's.
    (baseline,) = [one for one in second.stages if one.stage == "baseline"]
    assert baseline.outcome == "hit"
