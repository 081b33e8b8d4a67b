"""The exported workflow as text: valid, pinned, least rights, no input in a script."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import PenstockError, RecipeError
from penstock.exported import check_file, write_file
from penstock.orchestrators.github import WorkflowOptions, workflow

HOME = Path(__file__).parents[2]
ACTIONLINT = HOME / ".venvs" / "actionlint" / "bin" / "actionlint"
PINNED = "penstock[registry,postgres] @ git+https://github.com/x/penstock@v0.1.0"
OTHERS = [
    {},
    {"tasks": ("which",), "min": {"which": 0.5}, "task_dir": "evaluation/tasks"},
    {"backend": "hf", "model_args": "", "labels": ("self-hosted",), "model_name": "a.b.c"},
    {"min": {}, "max_regression": 0, "penstock": PINNED},
]


def parsed(**options):
    return yaml.safe_load(workflow(WorkflowOptions.checked(**options)))


def steps(**options):
    return parsed(**options)["jobs"]["evaluate"]["steps"]


@pytest.fixture(scope="module")
def actionlint():
    made = subprocess.run(
        [HOME / "scripts" / "make-env.sh", "actionlint"], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"actionlint cannot be installed: {made.stderr.strip()[-300:]}")
    return ACTIONLINT


def lint(actionlint, path):
    return subprocess.run(
        [actionlint, "-no-color", path], capture_output=True, text=True, cwd=path.parent
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", OTHERS, ids=["default", "own task", "hf", "no floors"])
def test_actionlint_passes(actionlint, tmp_path, options):
    path = tmp_path / "workflow.yml"
    path.write_text(workflow(WorkflowOptions.checked(**options)))
    done = lint(actionlint, path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_actionlint_can_fail(actionlint, tmp_path):
    path = tmp_path / "workflow.yml"
    text = workflow(WorkflowOptions())
    path.write_text(text.replace("timeout-minutes: 720", "time-out: 720"))
    assert lint(actionlint, path).returncode == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("options", OTHERS, ids=["default", "own task", "hf", "no floors"])
def test_shellcheck_has_nothing_against_the_scripts(tmp_path, options):
    for number, step in enumerate(steps(**options)):
        if "run" in step:
            path = tmp_path / f"{number}.sh"
            path.write_text(step["run"])
            done = subprocess.run(
                ["shellcheck", "--shell=bash", path], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("options", OTHERS)
def test_no_expression_stands_in_a_script(options):
    scripts = [step["run"] for step in steps(**options) if "run" in step]
    assert len(scripts) == 9
    assert not any("${{" in script for script in scripts)


def test_actions_are_pinned_by_commit():
    used = re.findall(r"uses: (.+)", workflow(WorkflowOptions()))
    assert len(used) == 3
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one) for one in used)


def test_the_job_can_read_the_repository_and_nothing_else():
    found = parsed()
    assert found["permissions"] == {"contents": "read"}
    assert "permissions" not in found["jobs"]["evaluate"]
    (checkout,) = [step for step in steps() if "checkout" in step.get("uses", "")]
    assert checkout["with"] == {"persist-credentials": False}


def test_only_a_person_starts_it_and_one_model_is_evaluated_once_at_a_time():
    found = parsed(model_name="a.b.c")
    on = found[True]  # YAML 1.1 reads "on" as a boolean
    assert list(on) == ["workflow_dispatch"]
    inputs = on["workflow_dispatch"]["inputs"]
    assert set(inputs) == {"model_version", "model_name"}
    assert inputs["model_name"]["default"] == "a.b.c"
    assert "inputs.model_name" in found["concurrency"]["group"]
    assert found["concurrency"]["cancel-in-progress"] is False


def test_secrets_are_given_to_the_steps_that_need_them_only():
    job = parsed()["jobs"]["evaluate"]
    assert "secrets." not in str(job["env"])
    holders = {step["name"] for step in job["steps"] if "PENSTOCK_LEDGER" in str(step.get("env"))}
    assert holders == {"Ask what serves now", "Promote"}
    with_password = {
        step["name"] for step in job["steps"] if "TRACKING_PASSWORD" in str(step.get("env"))
    }
    assert not any(name.startswith(("Evaluate", "Install", "Gate")) for name in with_password)


def test_every_step_that_may_hang_has_a_limit():
    job = parsed()["jobs"]["evaluate"]
    assert job["timeout-minutes"] == 720
    unlimited = {step["name"] for step in job["steps"] if "timeout-minutes" not in step}
    # How long an evaluation takes is the team's to say: the job's limit holds.
    assert unlimited == {"Evaluate the candidate", "Evaluate what serves"}


def test_what_is_evaluated_and_demanded_is_what_was_asked_for():
    job = parsed()["jobs"]["evaluate"]
    assert job["env"]["TASKS"] == "mmlu,hellaswag,truthfulqa"
    assert "'vllm'" in job["env"]["EVAL_BACKEND"]
    (gate,) = [step["run"] for step in job["steps"] if step["name"] == "Gate"]
    assert "--min mmlu=0.65 --min hellaswag=0.75 --max-regression 0.02" in gate


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.text(max_size=30))
def test_no_option_can_break_out_of_its_place(text):
    """Whatever is accepted, the file keeps its shape, and its scripts stay free of expressions."""
    shape = [step["name"] for step in steps()]
    for option in ("model_name", "stage", "backend", "model_args", "task_dir", "penstock"):
        try:
            options = WorkflowOptions.checked(**{option: text})
        except RecipeError:
            continue
        found = yaml.safe_load(workflow(options))["jobs"]["evaluate"]["steps"]
        assert [step["name"] for step in found] == shape
        assert not any("${{" in step["run"] for step in found if "run" in step)


@pytest.mark.parametrize(
    "options",
    [
        {"tasks": ("mmlu; rm -rf /",)},
        {"min": {"mmlu$(id)": 0.5}},
        {"model_args": "dtype=auto' || 'x"},
        {"task_dir": "../outside"},
        {"task_dir": "/etc"},
        {"penstock": "penstock; curl evil"},
        {"penstock": f"{PINNED} --index-url http://evil"},
        {"labels": ("gpu'",)},
        {"max_regression": -1},
        {"min": {"mmlu": float("nan")}},
    ],
)
def test_a_value_that_is_more_than_a_word_is_refused(options):
    with pytest.raises(RecipeError):
        WorkflowOptions.checked(**options)


@pytest.mark.parametrize("without", ["penstock", "git+https://github.com/x/penstock@v0.1.0"])
def test_a_penstock_that_cannot_talk_to_a_registry_is_refused(without):
    with pytest.raises(RecipeError, match="nothing that talks to MLflow") as refused:
        WorkflowOptions.checked(penstock=without)
    assert "penstock[registry,postgres] @ git+https://" in refused.value.hint
    for enough in (PINNED, PINNED.replace(" ", ""), "penstock[registry]==0.1.0"):
        (install,) = (step for step in steps(penstock=enough) if step["name"] == "Install")
        assert install["env"]["PENSTOCK"] == enough


def test_an_older_export_is_replaced_and_an_edited_one_is_not(tmp_path):
    path = tmp_path / ".github" / "workflows" / "model-evaluation.yml"
    assert write_file(path, workflow(WorkflowOptions()))
    assert not write_file(path, workflow(WorkflowOptions()))
    stricter = workflow(WorkflowOptions(max_regression=0.01))
    with pytest.raises(PenstockError, match="would be written otherwise"):
        check_file(path, stricter, "x")
    assert write_file(path, stricter)
    check_file(path, stricter, "x")
    path.write_text(path.read_text().replace("--max-regression 0.01", "--max-regression 0.5"))
    for attempt in (lambda: check_file(path, stricter, "x"), lambda: write_file(path, stricter)):
        with pytest.raises(PenstockError, match="was changed by hand"):
            attempt()
    assert "--max-regression 0.5" in path.read_text()
    assert write_file(path, stricter, force=True)
    check_file(path, stricter, "x")
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_file_of_somebody_elses_is_never_overwritten(tmp_path):
    path = tmp_path / "workflow.yml"
    path.write_text("name: theirs\n")
    with pytest.raises(PenstockError, match="was changed by hand"):
        write_file(path, workflow(WorkflowOptions()))
    assert path.read_text() == "name: theirs\n"


def test_the_command_line_writes_checks_and_complains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["export", "github", "--min", "mmlu=0.7", "--labels", "self-hosted,a100"]
    options += ["--python", "3.12"]
    missing = CliRunner().invoke(app, [*options, "--check"])
    assert isinstance(missing.exception, PenstockError)
    assert CliRunner().invoke(app, options).exit_code == 0
    path = tmp_path / ".github" / "workflows" / "model-evaluation.yml"
    assert "--min mmlu=0.7 " in path.read_text()
    assert "hellaswag=" not in path.read_text()
    assert '["self-hosted", "a100"]' in path.read_text()
    assert 'python-version: "3.12"' in path.read_text()
    assert CliRunner().invoke(app, [*options, "--check"]).exit_code == 0
    wrong = CliRunner().invoke(app, [*options, "--stage", "Pro duction"])
    assert isinstance(wrong.exception, RecipeError)
    assert "--stage" in wrong.exception.message
