import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

import tiny_project
from penstock import models
from penstock.artifacts import damaged_files
from penstock.errors import (
    EvaluationError,
    LedgerError,
    RecipeError,
    RegistryError,
    SourceError,
    StoreError,
    TrainingError,
)
from penstock.evaluators.hf import HfEvaluator
from penstock.launchers import loop
from penstock.ledger import Pointer
from penstock.pipeline import NAMES, open_pipeline
from penstock.stages.base import Silent
from penstock.tokenizer import CHAT_TEMPLATE
from penstock.tracking import Tracker

pytestmark = pytest.mark.slow
ALWAYS = {"ingest.min_new_examples": 0}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.fixture(scope="module")
def one_version(tmp_path_factory, run_alone):
    """A project whose first model serves. Not to be changed: take a copy."""
    folder = tmp_path_factory.mktemp("one") / "project"
    tiny_project.write_project(folder)
    run_alone(folder)
    return folder


@pytest.fixture(scope="module")
def two_versions(one_version, tmp_path_factory):
    """The same after a second run: version 2 serves, version 1 did."""
    folder = tmp_path_factory.mktemp("two") / "project"
    shutil.copytree(one_version, folder)
    tiny_project.write_rows(folder / "data" / "second.jsonl", 40, seed=2)
    report, _ = run(folder)
    assert report.status == "SUCCEEDED"
    return folder


@pytest.fixture
def project(one_version, tmp_path):
    return Path(shutil.copytree(one_version, tmp_path / "project"))


@pytest.fixture
def second(two_versions, tmp_path):
    return Path(shutil.copytree(two_versions, tmp_path / "project"))


def opened(folder, progress=None, **overrides):
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return open_pipeline(folder / "recipe.yaml", dotted, progress)


def run(folder, until=None, start=None, force=(), progress=None, **overrides):
    """Run the loop; returns the report, and what each stage came to."""
    pipeline = opened(folder, progress, **overrides)
    try:
        report = pipeline.run(until=until, start=start, force=force)
    finally:
        pipeline.ledger.close()
    return report, came_to(report)


def came_to(report):
    return {record.stage: record.outcome for record in report.stages}


@pytest.fixture(scope="module")
def penstock(penstock_program):
    """Starts the command line in a process of its own."""

    def start(folder, *arguments):
        return subprocess.Popen(
            [penstock_program, *arguments, "--recipe", "recipe.yaml"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def run_alone(penstock):
    """Runs as users do, where no other test's OpenMP decides the last bit of a sum."""

    def run(folder, *arguments):
        process = penstock(folder, "run", *arguments)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        pipeline = opened(folder)
        return pipeline.report(pipeline.ledger.runs("tiny")[0].id)

    return run


def outcomes(**changed):
    """Every stage a hit, except for those named."""
    return dict.fromkeys(NAMES, "hit") | {"baseline": "skipped"} | changed


def pointer(folder):
    return opened(folder).ledger.pointer("tiny")


def versions(folder):
    return [model.version for model in opened(folder).ledger.models("tiny")]


def first_report(folder):
    pipeline = opened(folder)
    return pipeline.report(pipeline.ledger.runs("tiny")[-1].id)


def alias_in_mlflow(folder):
    with sqlite3.connect(folder / "store" / "mlflow.db") as connection:
        return connection.execute("SELECT version FROM registered_model_aliases").fetchall()


def test_an_unchanged_rerun_is_skipped_and_makes_no_new_model(project):
    report, _ = run(project)
    assert report.status == "SKIPPED"
    assert report.message.startswith("0 new examples")
    assert report.exit_code == 0
    assert versions(project) == [1]


def test_an_unchanged_rerun_that_need_not_wait_for_rows_is_all_hits(project):
    report, came = run(project, ingest__min_new_examples=0)
    assert came == outcomes()
    assert report.status == "SUCCEEDED"
    assert versions(project) == [1]
    assert pointer(project) == Pointer(1, 1)


def test_a_store_that_was_moved_keeps_its_hits(one_version, tmp_path):
    moved = Path(shutil.copytree(one_version, tmp_path / "elsewhere"))
    shutil.move(moved / "store", tmp_path / "another-disk")
    place = {"store": str(tmp_path / "another-disk"), "ingest__min_new_examples": 0}
    assert {one.node: one.action for one in opened(moved, **place).plan()} == {
        name: "skip" if name == "baseline" else "hit" for name in NAMES
    }
    _, came = run(moved, **place)
    assert came == outcomes()


def test_a_changed_learning_rate_reruns_the_training_and_what_comes_after(project):
    planned = {one.node: one for one in opened(project, train__learning_rate=0.02).plan()}
    assert [planned[name].action for name in NAMES[:4]] == ["hit", "hit", "hit", "run"]
    assert planned["train"].reason == "learning_rate changed"
    assert planned["evaluate"].reason == "depends on train, which has to run"
    report, came = run(project, train__learning_rate=0.02)
    assert [came[name] for name in NAMES[:4]] == ["hit", "hit", "hit", "ran"]
    assert report.status == "SUCCEEDED"
    assert versions(project) == [1, 2]


def test_a_changed_floor_reruns_the_gate_alone(project):
    floor = {"gate__min": {"which": 0.125}}
    planned = {one.node: one for one in opened(project, **floor).plan()}
    assert planned["gate"].reason.startswith("min")
    report, came = run(project, **floor)
    assert [came[name] for name in NAMES[:7]] == ["hit"] * 5 + ["skipped", "ran"]
    assert report.status == "SUCCEEDED"
    assert versions(project) == [1]
    assert pointer(project) == Pointer(1, 1)


def test_too_few_new_rows_wait_until_there_are_enough(project):
    tiny_project.write_rows(project / "data" / "few.jsonl", 5, seed=2)
    for _ in range(2):
        report, came = run(project)
        assert report.status == "SKIPPED"
        assert "5 new examples" in report.message
        assert "20 needed" in report.message
        assert came["train"] == "skipped"
    tiny_project.write_rows(project / "data" / "more.jsonl", 15, seed=3)
    report, came = run(project)
    assert report.status == "SUCCEEDED"
    assert (came["ingest"], came["train"]) == ("ran", "ran")
    assert versions(project) == [1, 2]
    report, _ = run(project)
    assert report.message.startswith("0 new examples")


class Stops(Silent):
    """Ctrl-C when a stage begins."""

    def __init__(self, label):
        self.label = label

    def track(self, label, total=None):
        if label == self.label:
            raise KeyboardInterrupt
        return super().track(label, total)


def test_a_stopped_run_is_continued_although_there_are_no_newer_rows(project):
    tiny_project.write_rows(project / "data" / "second.jsonl", 40, seed=2)
    with pytest.raises(KeyboardInterrupt):
        run(project, progress=Stops("evaluate which"))
    assert opened(project).ledger.runs("tiny")[0].status == "INTERRUPTED"
    report, came = run(project)
    assert report.status == "SUCCEEDED"
    assert (came["train"], came["evaluate"]) == ("hit", "ran")
    assert pointer(project) == Pointer(2, 2)


def test_a_run_may_stop_after_a_stage(project):
    tiny_project.write_rows(project / "data" / "second.jsonl", 40, seed=2)
    report, came = run(project, until="prepare")
    assert came == {"ingest": "ran", "validate": "ran", "prepare": "ran"}
    assert report.message == "stopped after prepare, as asked"
    # It trained nothing, so its rows still count as new.
    assert run(project, until="train")[1]["train"] == "ran"


def test_a_run_may_start_from_what_the_ledger_has(project):
    # New rows are not looked at.
    tiny_project.write_rows(project / "data" / "second.jsonl", 40, seed=2)
    _, came = run(project, start="gate", force=["gate"])
    assert came == outcomes(gate="ran")


def test_a_run_cannot_start_after_a_stage_without_a_result(project):
    with pytest.raises(LedgerError, match="--from starts after train"):
        run(project, start="evaluate", train__learning_rate=0.02)


def test_a_forced_stage_runs_again_and_changes_nothing(project, run_alone):
    before = pointer(project)
    report = run_alone(project, "--force", "train")
    assert came_to(report) == outcomes(train="ran")
    assert versions(project) == [1]
    assert pointer(project) == before


def trains_otherwise(monkeypatch):
    """As on a GPU, or on another machine: the same fingerprint, other weights."""
    model_of = loop.starting_model

    def perturbed(*arguments):
        model = model_of(*arguments)
        next(model.parameters()).data += 0.001
        return model

    monkeypatch.setattr(loop, "starting_model", perturbed)


def test_a_training_that_comes_out_otherwise_is_a_candidate_like_any_other(project, monkeypatch):
    before = opened(project).ledger.model("tiny", 1)
    trains_otherwise(monkeypatch)
    loosely = {"gate__max_regression": 1.0, "gate__min": {"which": 0.0}}
    report, came = run(project, force=["train"], **loosely)
    assert (came["evaluate"], came["baseline"]) == ("ran", "hit"), "each model has its own"
    assert report.status == "SUCCEEDED"
    assert pointer(project) == Pointer(2, 2)
    first, second = (opened(project).ledger.model("tiny", number) for number in (1, 2))
    assert first == before
    assert second.train_fingerprint == first.train_fingerprint
    assert second.digest != first.digest
    assert damaged_files(project / "store" / first.path) == []


def test_a_damaged_model_that_serves_does_not_bar_its_successor(project, monkeypatch):
    (weights,) = (project / "store" / "artifacts" / "train").glob("*/model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-7])
    trains_otherwise(monkeypatch)
    loosely = {"gate__max_regression": 1.0, "gate__min": {"which": 0.0}}
    run(project, ingest__min_new_examples=0, **loosely)
    assert pointer(project) == Pointer(2, 2)


def test_a_damaged_model_is_not_evaluated(project):
    (weights,) = (project / "store" / "artifacts" / "train").glob("*/model/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged: model\.safetensors"):
        run(project, force=["evaluate"])


def upgraded(monkeypatch, version):
    """Another version of the library that computes, as after ``pip install``."""
    monkeypatch.setattr(HfEvaluator, "versions", lambda self: {"transformers": version})


def versions_measured_by(report):
    return [report.artifacts[name].summary["versions"] for name in ("evaluate", "baseline")]


def test_an_upgrade_measures_the_baseline_again_and_only_with_the_next_candidate(
    second, monkeypatch
):
    upgraded(monkeypatch, "99.0")
    assert run(second, **ALWAYS)[1] == outcomes(baseline="hit")
    tiny_project.write_rows(second / "data" / "third.jsonl", 40, seed=3)
    planned = {one.node: one for one in opened(second).plan()}
    assert planned["evaluate"].action == "run"
    report, came = run(second)
    assert (came["evaluate"], came["baseline"]) == ("ran", "ran")
    assert versions_measured_by(report) == [{"transformers": "99.0"}] * 2
    assert report.artifacts["gate"].summary["baseline_version"] == 2


def test_a_candidate_from_before_an_upgrade_is_measured_again_with_its_baseline(
    project, monkeypatch
):
    tiny_project.write_rows(project / "data" / "second.jsonl", 40, seed=2)
    run(project, until="evaluate", evaluate__limit=7)
    upgraded(monkeypatch, "99.0")
    report, came = run(project, evaluate__limit=7)
    assert (came["evaluate"], came["baseline"]) == ("ran", "ran")
    assert versions_measured_by(report) == [{"transformers": "99.0"}] * 2
    assert pointer(project) == Pointer(2, 2)


def test_a_run_removes_old_conversions_but_not_those_of_what_serves_or_served(second):
    ledger = opened(second).ledger
    place = second / "store" / "serving"
    (place / "unwanted").mkdir(parents=True)
    for folder in place.iterdir():
        os.utime(folder, (0, 0))
    (place / "of a trial").mkdir()
    run(second)
    digests = {ledger.model("tiny", number).digest for number in (1, 2)}
    assert {folder.name for folder in place.iterdir()} == {*digests, "of a trial"}


def test_a_block_is_a_result_and_leaves_what_serves(project):
    report, came = run(project, gate__min={"which": 0.999})
    assert report.status == "BLOCKED"
    assert report.exit_code == 3
    assert (came["register"], came["deploy"]) == ("skipped", "skipped")
    notes = {record.stage: record.note for record in report.stages}
    assert notes["deploy"] == "the gate said BLOCK"
    assert pointer(project) == Pointer(1, 1)
    # The same rows are not judged again until there are new ones.
    assert run(project, gate__min={"which": 0.999})[0].status == "SKIPPED"


def test_too_few_items_are_inconclusive(project):
    strict = {"gate__on_inconclusive": "block", "gate__max_regression": 0.01}
    report, came = run(project, train__learning_rate=0.02, **strict)
    assert report.status == "INCONCLUSIVE"
    assert report.exit_code == 4
    assert came["deploy"] == "skipped"
    assert pointer(project) == Pointer(1, 1)


def test_a_candidate_is_compared_again_when_another_version_serves_by_now(second, monkeypatch):
    pipeline = opened(second)
    models.production(pipeline).rollback("for the test")
    tiny_project.write_rows(second / "data" / "third.jsonl", 40, seed=3)
    register = Tracker.register

    def meanwhile(self, *args):
        """Somebody promotes version 2 while version 3 is being registered."""
        if pointer(second).version == 1:
            models.production(opened(second)).promote(2, "by somebody else")
        return register(self, *args)

    monkeypatch.setattr(Tracker, "register", meanwhile)
    report, _ = run(second)
    assert report.status == "SUCCEEDED"
    moves = opened(second).ledger.history("tiny")
    assert [(m.action, m.from_version, m.to_version) for m in moves] == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("rollback", 2, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
    ]
    assert report.artifacts["gate"].summary["baseline_version"] == 2


def test_an_alias_moved_by_hand_stops_the_next_deploy_until_it_is_settled(second):
    production = models.production(opened(second))
    production.registry.set_alias("tiny", "production", 1)
    with pytest.raises(LedgerError, match="was moved by hand: it is version 1"):
        run(second, ingest__min_new_examples=0)
    with pytest.raises(LedgerError, match="was moved by hand"):
        production.rollback("for the test")
    assert pointer(second) == Pointer(2, 2)
    assert alias_in_mlflow(second) == [(1,)]
    production.settle("ledger", "for the test")
    assert alias_in_mlflow(second) == [(2,)]
    assert run(second, ingest__min_new_examples=0)[0].status == "SUCCEEDED"


def test_a_mirror_that_was_lost_in_a_crash_is_mended_by_the_next_deploy(second):
    pipeline = opened(second)
    # Killed after the pointer had moved and before MLflow heard of it.
    pipeline.ledger.move_pointer("tiny", "production", 1, Pointer(2, 2), "rollback", "for the test")
    assert alias_in_mlflow(second) == [(2,)]
    run(second, ingest__min_new_examples=0)
    assert alias_in_mlflow(second) == [(1,)]


@pytest.mark.parametrize("needed", [20, 0])
def test_a_rolled_back_version_is_not_promoted_again_by_an_unchanged_rerun(second, needed):
    models.production(opened(second)).rollback("users complained")
    report, came = run(second, ingest__min_new_examples=needed)
    assert report.status == ("SKIPPED" if needed else "SUCCEEDED")
    assert "ran" not in came.values()
    assert pointer(second) == Pointer(1, 3)
    assert alias_in_mlflow(second) == [(1,)]


@pytest.mark.parametrize(
    ("stage", "name", "damage"),
    [
        ("train", "model/model.safetensors", "truncated"),
        ("prepare", "examples.parquet", "deleted"),
        ("evaluate", "results_0.json", "truncated"),
        ("gate", "manifest.json", "deleted"),
    ],
)
def test_a_damaged_result_is_made_again(project, stage, name, damage, run_alone):
    (path,) = (project / "store" / "artifacts" / stage).glob(f"*/{name}")
    content = path.read_bytes()
    path.unlink() if damage == "deleted" else path.write_bytes(content[:-7])
    planned = {one.node: one for one in opened(project, ingest__min_new_examples=0).plan()}
    assert planned[stage].reason == "its result is gone or damaged"
    report = run_alone(project, "--set", "ingest.min_new_examples=0")
    assert came_to(report) == outcomes(**{stage: "ran"})
    assert report.status == "SUCCEEDED"
    assert path.read_bytes() == content
    assert versions(project) == [1]
    assert pointer(project) == Pointer(1, 1)


def test_the_same_seed_makes_the_same_model_in_another_store_and_another_seed_does_not(
    one_version, tmp_path, run_alone
):
    tiny_project.write_project(tmp_path / "again")
    wanted = first_report(one_version)
    report = run_alone(tmp_path / "again", "--until", "train")
    for name in ("ingest", "prepare", "train"):
        assert report.artifacts[name].digest == wanted.artifacts[name].digest
        assert report.artifacts[name].fingerprint == wanted.artifacts[name].fingerprint
    other = run_alone(tmp_path / "again", "--until", "train", "--set", "seed=18")
    assert (
        other.artifacts["train"].summary["model_digest"]
        != (wanted.artifacts["train"].summary["model_digest"])
    )


def test_two_runs_at_once_make_one_result(tmp_path, penstock):
    tiny_project.write_project(tmp_path / "project")
    both = [penstock(tmp_path / "project", "run") for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    ledger = opened(tmp_path / "project").ledger
    # On a busy machine one may begin when the other has ended, and find nothing to do.
    statuses = sorted(run.status for run in ledger.runs("tiny"))
    assert statuses in (["SUCCEEDED", "SUCCEEDED"], ["SKIPPED", "SUCCEEDED"])
    made = [s.stage for r in ledger.runs("tiny") for s in ledger.stages(r.id) if s.outcome == "ran"]
    assert sorted(made) == sorted(set(NAMES) - {"baseline"})
    assert versions(tmp_path / "project") == [1]
    assert pointer(tmp_path / "project") == Pointer(1, 1)
    assert not list((tmp_path / "project" / "store" / "staging").iterdir())


def test_steps_in_processes_of_their_own_come_to_what_a_run_does(one_version, tmp_path, penstock):
    folder = tmp_path / "project"
    tiny_project.write_project(folder, tasks=one_version / "tasks")
    run_id = opened(folder).start().id
    for name in NAMES:
        process = penstock(folder, "step", name, "--run", run_id)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    wanted = first_report(one_version)
    report = opened(folder).report(run_id)
    assert (report.status, report.message) == (wanted.status, wanted.message)
    assert report.artifacts.keys() == wanted.artifacts.keys()
    digests = {name: made.digest for name, made in report.artifacts.items()}
    wanted_digests = {name: made.digest for name, made in wanted.artifacts.items()}
    del digests["validate"], wanted_digests["validate"]  # its report shows the time
    assert digests == wanted_digests
    assert pointer(folder) == Pointer(1, 1)


def test_a_version_that_serves_is_continued_with_lora(project):
    tiny_project.write_rows(project / "data" / "second.jsonl", 40, seed=2)
    lora = {"rank": 2, "target_modules": ["q_proj"]}
    report, _ = run(project, train__lora=lora)
    assert report.status == "SUCCEEDED"
    trained = report.artifacts["train"].summary
    assert trained["base"] == "tiny version 1"
    assert trained["num_trained_parameters"] == 2 * (16 + 16)
    assert pointer(project) == Pointer(2, 2)


def test_a_recipe_starts_from_a_registered_version(second):
    chosen = {"train__base": "models:/tiny/1", "train__continue_from_production": False}
    report, _ = run(second, until="train", **ALWAYS, **chosen)
    trained = report.artifacts["train"]
    assert trained.summary["base"] == "tiny version 1"
    assert trained.settings["base"] == opened(second).ledger.model("tiny", 1).digest
    assert "rows" not in trained.settings, "a start like any other"


def test_a_registered_version_that_is_not_there_is_said_with_those_that_are(project):
    chosen = {"train__base": "models:/tiny/7", "train__continue_from_production": False}
    with pytest.raises(RegistryError, match=r"no version 7 of model 'tiny'. It has: 1\."):
        run(project, until="train", **ALWAYS, **chosen)


def test_a_base_without_a_chat_template_needs_one_in_the_recipe(project):
    model = opened(project).ledger.model("tiny", 1)
    shutil.copytree(project / "store" / model.path, project / "base")
    (project / "base" / "chat_template.jinja").unlink()
    chosen = {"train__base": "base", "train__continue_from_production": False}
    with pytest.raises(RecipeError, match="no chat template") as refused:
        run(project, until="train", **ALWAYS, **chosen)
    assert "prepare.chat_template" in refused.value.hint
    template = CHAT_TEMPLATE
    report, _ = run(project, until="train", prepare__chat_template=template, **ALWAYS, **chosen)
    assert report.artifacts["train"].summary["base"] == "base"


def test_a_damaged_tokenizer_of_a_base_is_an_error_of_the_base(project):
    model = opened(project).ledger.model("tiny", 1)
    shutil.copytree(project / "store" / model.path, project / "base")
    (project / "base" / "tokenizer.json").write_text('{"version": "1.0"')
    chosen = {"train__base": "base", "train__continue_from_production": False}
    with pytest.raises(RecipeError, match="No tokenizer can be loaded"):
        run(project, until="train", **ALWAYS, **chosen)


def test_a_preparation_that_leaves_nothing_to_train_on_says_so(project):
    everything = [{"filter": {"min_characters": {"response": 100_000}}}]
    with pytest.raises(SourceError, match="No row is left to train on") as refused:
        run(project, until="train", prepare__transforms=everything, **ALWAYS)
    assert "penstock show RUN" in refused.value.hint


def test_a_validation_split_that_holds_no_row_out_says_so(project):
    tiny = {"prepare__transforms": [{"split": {"validation": 1e-6}}]}
    with pytest.raises(EvaluationError, match="needs a validation split, and no row") as refused:
        run(project, until="evaluate", evaluate__tasks=["held_out"], **tiny, **ALWAYS)
    assert "Raise `validation`" in refused.value.hint


def test_a_training_on_new_rows_alone_needs_some(project):
    # Valid, and known: dedupe keeps those that came first.
    lines = (project / "data" / "first.jsonl").read_text().splitlines(keepends=True)
    (project / "data" / "again.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(TrainingError, match="no new rows") as refused:
        run(project, until="train", train__rows="new", train__replay=0, **ALWAYS)
    assert "train.rows: all" in refused.value.hint


@pytest.mark.parametrize(
    ("revision", "said"),
    [(None, "without a pinned commit"), ("main", "'main' is not a commit")],
)
def test_a_hub_model_needs_a_commit(project, revision, said):
    chosen = {"train__base": "team/base", "train__base_revision": revision}
    with pytest.raises(RecipeError, match=said):
        run(project, until="train", train__continue_from_production=False, **ALWAYS, **chosen)
