"""What stands between the gate and production: the same bytes, and a backend that runs them."""

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import openai_server
import tiny_project
from penstock.artifacts import MANIFEST, damaged_files, write_manifest
from penstock.cli import app
from penstock.errors import EvaluationError, LedgerError, RecipeError, ServingError, StoreError
from penstock.pipeline import open_pipeline
from penstock.recipe_file import load_recipe
from penstock.stages.base import Pinned
from penstock.stages.evaluate import STAGE as EVALUATE

pytestmark = pytest.mark.slow

_BROKEN = """
from penstock.errors import ServingError

class Broken:
    capabilities = frozenset({"generate"})
    def __init__(self, files): pass
    def load(self): raise ServingError("this machine has no turbine")
    def close(self): pass

class Silent(Broken):
    def load(self): pass
    async def generate(self, request):
        return
        yield

class Slow(Silent):
    async def generate(self, request):
        import asyncio
        await asyncio.sleep(99)
        yield

class Crashing(Silent):
    async def generate(self, request):
        raise RuntimeError("illegal instruction")
        yield

class Embedding(Broken):
    capabilities = frozenset({"embed"})
"""


@pytest.fixture(scope="module", autouse=True)
def quiet():
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "GX_ANALYTICS_ENABLED": "false"}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A project whose first model has passed the gate and is not registered yet."""
    folder = tmp_path_factory.mktemp("judged") / "project"
    tiny_project.write_project(folder)
    run(folder, until="gate")
    return folder


@pytest.fixture
def project(judged, tmp_path, monkeypatch):
    (tmp_path / "turbines_of_this_test.py").write_text(_BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    return Path(shutil.copytree(judged, tmp_path / "project"))


def opened(folder, settings=None):
    overrides = {"ingest.min_new_examples": 0, **(settings or {})}
    return open_pipeline(folder / "recipe.yaml", overrides)


def run(folder, settings=None, **how):
    pipeline = opened(folder, settings)
    try:
        return {record.stage: record.outcome for record in pipeline.run(**how).stages}
    finally:
        pipeline.ledger.close()


def penstock(folder, *arguments):
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, [*words, "--recipe", str(folder / "recipe.yaml")])


def versions(folder):
    return [model.version for model in opened(folder).ledger.models("tiny")]


def serving(folder):
    pointer = opened(folder).ledger.pointer("tiny")
    return pointer and pointer.version


def model_folder(folder):
    (found,) = (folder / "store" / "artifacts" / "train").glob("*/model")
    return found


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def served_by(backend):
    return {"serve.models": {"tiny": {"backend": f"turbines_of_this_test:{backend}"}}}


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        ("Broken", "this machine has no turbine"),
        ("Silent", "ended its answer without saying why"),
        ("Slow", "TimeoutError"),
        ("Crashing", "RuntimeError: illegal instruction"),
    ],
)
def test_a_model_that_the_serving_backend_cannot_run_is_not_registered(project, backend, why):
    settings = {
        **served_by(backend),
        "serve.request_timeout_s": 0.5 if backend == "Slow" else 60,
    }
    with pytest.raises(ServingError, match=rf"passed the gate, but .*{backend} cannot.*{why}"):
        run(project, settings)
    assert versions(project) == []
    assert serving(project) is None


def test_once_the_backend_is_mended_only_the_promotion_is_left_to_do(project):
    with pytest.raises(ServingError):
        run(project, served_by("Broken"))
    came = run(project)
    assert {stage: outcome for stage, outcome in came.items() if outcome == "ran"} == {
        "register": "ran",
        "deploy": "ran",
    }
    assert (versions(project), serving(project)) == ([1], 1)


def test_what_serves_keeps_serving_when_its_successor_cannot_be_loaded(project):
    run(project)
    tiny_project.write_rows(project / "data" / "second.jsonl", 40, seed=2)
    with pytest.raises(ServingError, match="no turbine"):
        run(project, served_by("Broken"))
    assert (versions(project), serving(project)) == ([1], 1)


def test_a_backend_that_only_embeds_is_a_mistake(project):
    with pytest.raises(RecipeError, match="backend cannot generate"):
        run(project, served_by("Embedding"))


def test_trying_the_backend_can_be_left_out_where_it_is_not_installed(project):
    off = {**served_by("Broken"), "serve.try_before_promotion": False}
    run(project, off)
    assert serving(project) == 1


def test_the_trial_leaves_the_converted_model_where_the_gateway_looks(project):
    run(project)
    digest = opened(project).ledger.model("tiny", 1).digest
    assert any((project / "store" / "serving" / digest).rglob("model.bin"))


def test_bytes_that_changed_since_the_evaluation_are_not_registered(project):
    flip_a_byte(model_folder(project) / "model.safetensors")
    with pytest.raises(StoreError, match=r"damaged: model.safetensors"):
        run(project)
    assert versions(project) == []


def test_a_manifest_that_was_rewritten_with_the_bytes_is_found_out(project):
    model = model_folder(project)
    flip_a_byte(model / "model.safetensors")
    write_manifest(model)
    assert damaged_files(model) == []
    with pytest.raises(StoreError, match=rf"damaged: {MANIFEST}"):
        run(project)
    assert versions(project) == []


def test_bytes_that_changed_between_registration_and_promotion_are_not_promoted(project):
    run(project, until="register")
    flip_a_byte(model_folder(project) / "model.safetensors")
    with pytest.raises(StoreError, match=r"damaged: model.safetensors"):
        run(project)
    assert (versions(project), serving(project)) == ([1], None)


def test_bytes_that_changed_are_not_promoted_by_hand_either(project):
    run(project, until="register")
    flip_a_byte(model_folder(project) / "model.safetensors")
    done = penstock(project, "promote", "--version", 1)
    assert isinstance(done.exception, StoreError)
    assert "damaged: model.safetensors" in done.exception.message
    assert serving(project) is None


def test_bytes_that_changed_are_rolled_back_to_only_if_somebody_insists(project):
    run(project)
    tiny_project.write_rows(project / "data" / "second.jsonl", 40, seed=2)
    run(project)
    first = project / "store" / opened(project).ledger.model("tiny", 1).path
    flip_a_byte(first / "model.safetensors")
    refused = penstock(project, "model", "rollback")
    assert isinstance(refused.exception, StoreError)
    assert "damaged: model.safetensors" in refused.exception.message
    assert "penstock model rollback --unchecked" in refused.exception.hint
    assert serving(project) == 2
    assert penstock(project, "model", "rollback", "--unchecked").exit_code == 0
    assert serving(project) == 1


def test_a_verdict_about_another_model_promotes_nothing(project):
    run(project, until="register")
    pipeline = opened(project)
    newest = pipeline.ledger.latest("tiny", "evaluate")
    plain = pipeline.ledger.find

    def find(print_):
        found = plain(print_)
        if print_ == newest.fingerprint:
            found.summary["model_digest"] = "77" * 32
        return found

    pipeline.ledger.find = find
    with pytest.raises(LedgerError, match=r"but the gate judged 7777"):
        pipeline.run()
    pipeline.ledger.close()
    assert serving(project) is None


class TestBackend:
    """The evaluation's own backend, in the loop."""

    @pytest.fixture
    def server(self):
        """Options that start the tests' own server on whatever model is to be measured."""
        import sys

        command = [sys.executable, openai_server.__file__, "{folder}", "{port}", "{name}"]
        url = "http://127.0.0.1:{port}/v1"
        return {"type": "endpoint", "base_url": url, "command": command}

    def test_the_default_enters_no_fingerprint_however_it_is_written(self, project):
        def settings(overrides):
            recipe = load_recipe(project / "recipe.yaml", overrides)
            return EVALUATE.settings(recipe, Pinned())

        plain = settings({})
        assert plain.keys() == {
            *("tasks", "num_fewshot", "limit", "batch_size", "apply_chat_template"),
            *("tasks_digest", "seed"),
        }
        assert settings({"evaluate.backend": "hf"}) == plain
        assert settings({"evaluate.backend": {"type": "hf"}}) == plain

    def test_another_backend_enters_it_with_its_options_and_versions(self, project):
        def backend(**options):
            overrides = {"evaluate.backend": {"type": "endpoint", **options}}
            recipe = load_recipe(project / "recipe.yaml", overrides)
            return EVALUATE.settings(recipe, Pinned())["backend"]

        plain = backend()
        assert plain["type"] == "endpoint"
        assert plain["options"] == {"api": "completions", "identity": "checked"}
        assert plain["versions"]["lm_eval"]
        assert backend(base_url="http://elsewhere/v1", num_concurrent=9) == plain
        assert backend(identity="assumed") != plain

    def test_candidate_and_baseline_are_measured_in_the_same_backend(self, project, server):
        run(project)
        tiny_project.write_rows(project / "data" / "second.jsonl", 40, seed=2)
        came = run(project, {"evaluate.backend": server})
        assert (came["evaluate"], came["baseline"]) == ("ran", "ran")
        assert serving(project) == 2
        ledger = opened(project).ledger
        moved = {**server, "num_concurrent": 1}
        assert run(project, {"evaluate.backend": moved})["evaluate"] == "hit"
        newest = ledger.latest("tiny", "evaluate")
        assert newest.settings["backend"]["type"] == "endpoint"

    def test_a_server_gives_the_same_metrics_as_this_process(self, project, server):
        here = dict(opened(project).ledger.latest("tiny", "evaluate").summary)
        run(project, {"evaluate.backend": server}, until="evaluate")
        there = dict(opened(project).ledger.latest("tiny", "evaluate").summary)
        assert here.pop("versions").keys() > there.pop("versions").keys()
        assert there == here

    def test_a_server_that_fails_leaves_no_result_behind(self, project, server):
        before = sorted((project / "store" / "artifacts" / "evaluate").iterdir())
        broken = {**server, "command": ["nowhere/server"]}
        with pytest.raises(EvaluationError, match="nowhere/server cannot be started"):
            run(project, {"evaluate.backend": broken})
        assert sorted((project / "store" / "artifacts" / "evaluate").iterdir()) == before
        assert run(project, {"evaluate.backend": server}, until="evaluate")["evaluate"] == "ran"

    def test_unknown_backends_and_options_are_mistakes_with_a_line(self, project):
        for backend, said in (
            ("hff", r"line \d+, evaluate.backend.*Did you mean 'hf'"),
            ({"endpoint": {"base_ulr": "x"}}, r"base_ulr: unknown key. Did you mean 'base_url'"),
            ({"vllm": {"dtype": "int3"}}, r"dtype: received 'int3'"),
        ):
            with pytest.raises(RecipeError, match=said):
                opened(project, {"evaluate.backend": backend})

    def test_a_python_without_vllm_is_named_before_anything_runs(self, project):
        with pytest.raises(EvaluationError, match="has no vllm") as caught:
            run(project, {"evaluate.backend": "vllm"})
        assert "evaluate.backend.python" in caught.value.hint
        with pytest.raises(EvaluationError, match="nowhere/python cannot be started"):
            run(project, {"evaluate.backend": {"vllm": {"python": "nowhere/python"}}})


def test_a_task_that_does_not_exist_is_named_with_the_nearest_spelling(project):
    with pytest.raises(
        EvaluationError, match=r"'truthfulqaa_mc1' is not a task. Did you mean 'tru"
    ):
        run(project, {"evaluate.tasks": ["which", "truthfulqaa_mc1"]})


@pytest.mark.parametrize("task", ["mmlu_anatomy", "hellaswag", "truthfulqa_mc1"])
def test_a_task_from_the_hub_without_a_network_says_so(project, task, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(EvaluationError, match=f"could not run {task}: Couldn't reach") as caught:
        run(project, {"evaluate.tasks": [task]})
    assert "Hugging Face hub, which cannot be reached from here" in caught.value.hint


def test_a_baseline_with_other_items_is_not_compared(project, tmp_path):
    """Another task under the same name: nothing in the loop makes this, and hands do."""
    run(project)
    tiny_project.write_rows(project / "data" / "second.jsonl", 40, seed=2)
    run(project, until="baseline")
    pipeline = opened(project)
    served = pipeline.ledger.model("tiny", 1).digest
    for folder in (project / "store" / "artifacts" / "evaluate").iterdir():
        results = json.loads((folder / "results_0.json").read_text())
        if results["model_name"] == served:
            path = folder / "samples_which_0.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                row["doc_hash"] = row["doc_hash"][::-1]
            path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    with pytest.raises(EvaluationError, match="only 0 of the candidate's 8 and the baseline's 8"):
        pipeline.run()
    pipeline.ledger.close()
    assert serving(project) == 1
