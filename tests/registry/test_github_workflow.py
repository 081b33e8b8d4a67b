"""The exported workflow's own steps, one by one, against a real MLflow server and lm-eval."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from penstock.orchestrators.github import WorkflowOptions, workflow
from serving import tiny_llama

pytestmark = pytest.mark.slow
HOME = Path(__file__).parents[2]
# As many as show that equal models are not worse by more than 0.02.
NUM_ITEMS = 140
# What setup-python and pip would leave: an environment whose programs are those of the tests.
PYTHON = """#!/bin/bash
set -e
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
  printf '#!/bin/bash\\nexec {penstock} "$@"\\n' >"$3/bin/penstock"
  chmod +x "$3/bin/penstock"
elif [ "$1 $2" = "-m pip" ]; then
  echo "$*" >>"$RUNNER_TEMP/pip.txt"
else
  exec {python} "$@"
fi
"""


class Runner:
    """As much of a GitHub runner as the exported workflow needs."""

    def __init__(self, folder, text, inputs, variables, secrets, lm_eval, penstock):
        self.job = yaml.safe_load(text)["jobs"]["evaluate"]
        self.folder = folder
        self.lm_eval = lm_eval
        self.temp = folder / "temp"
        self.summary = folder / "summary.md"
        self.output = folder / "output.txt"
        self.known = {
            "inputs": inputs,
            "vars": variables,
            "secrets": secrets,
            "runner": {"temp": str(self.temp)},
            "steps": {},
        }
        self.outcomes = {}
        self.said = {}
        (folder / "bin").mkdir(parents=True)
        self.temp.mkdir()
        program = PYTHON.format(python=sys.executable, penstock=penstock)
        (folder / "bin" / "python").write_text(program)
        (folder / "bin" / "python").chmod(0o755)

    def run(self):
        """Every step in order, as its condition says; True if all that ran succeeded."""
        succeeded = True
        for step in self.job["steps"]:
            name = step["name"]
            condition = step.get("if", "")
            if (not succeeded and condition != "always()") or not self._holds(condition):
                self.outcomes[name] = "skipped"
                continue
            code = self._shell(step) if "run" in step else self._action(step)
            self.outcomes[name] = "success" if code == 0 else f"failure {code}"
            succeeded = succeeded and code == 0
        return succeeded

    def _holds(self, condition):
        if condition in ("", "always()"):
            return True
        path, _, literal = condition.partition(" != ")
        assert literal == "''", condition
        return self._look_up(path) != ""

    def _action(self, step):
        if "upload-artifact" in step["uses"]:
            report = Path(self._fill(step["with"]["path"]))
            if report.exists():
                shutil.copytree(report, self.folder / "artifact")
        return 0

    def _shell(self, step):
        self.output.write_text("")
        environment = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "PYTHONPATH": f"{self.lm_eval}:{HOME / 'src'}",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "RUNNER_TEMP": str(self.temp),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_RUN_ID": "4711",
            "GITHUB_ACTOR": "octocat",
        }
        for values in (self.job["env"], step.get("env", {})):
            environment |= {name: self._fill(value) for name, value in values.items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.folder / "workspace",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said[step["name"]] = done.stdout
        if "id" in step:
            lines = self.output.read_text().splitlines()
            self.known["steps"][step["id"]] = {
                "outputs": dict(line.split("=", 1) for line in lines)
            }
        return done.returncode

    def _fill(self, value):
        return re.sub(r"\$\{\{ (.+?) \}\}", lambda found: self._value(found[1]), str(value))

    def _value(self, expression):
        for term in expression.split(" || "):
            value = term[1:-1] if term.startswith("'") else self._look_up(term)
            if value:
                return value
        return ""

    def _look_up(self, path):
        found = self.known
        for part in path.split("."):
            found = found.get(part, {})
        return found if isinstance(found, str) else ""


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory):
    """Where an lm-eval is without its 14,000 tasks, which it reads for 20 s each time."""
    (real,) = map(Path, importlib.util.find_spec("lm_eval").submodule_search_locations)
    folder = tmp_path_factory.mktemp("lm_eval")
    (folder / "lm_eval" / "tasks").mkdir(parents=True)
    kept = (path for path in real.iterdir() if path.name != "tasks")
    for path in (*kept, *(real / "tasks").glob("*.py")):
        (folder / "lm_eval" / path.relative_to(real)).symlink_to(path)
    return folder


@pytest.fixture
def workspace(tmp_path):
    """A checked-out repository with a task of its own."""
    folder = tmp_path / "workspace"
    tasks = folder / "evaluation" / "tasks"
    tasks.mkdir(parents=True)
    words = ["fox", "dog", "water", "turbine", "penstock", "main", "argument", "lazy"]
    items = [
        {
            "question": f"{words[i % 8]} {words[i // 8 % 8]} {i}",
            "choices": [words[(i + 1) % 8], words[(i + 3) % 8]],
            "answer": i % 2,
        }
        for i in range(NUM_ITEMS)
    ]
    data = tasks / "which.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {
        "task": "which",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    (tasks / "which.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return folder


@pytest.fixture
def evaluate(mlflow, ledger_url, workspace, lm_eval, penstock_program, tmp_path):
    """Runs the workflow for a version of a model."""
    text = workflow(
        WorkflowOptions(tasks=("which",), min={"which": 0.1}, task_dir="evaluation/tasks")
    )

    def run(name, version, floor="0.1"):
        folder = tmp_path / f"runner-{version}-{floor}"
        folder.mkdir()
        (folder / "workspace").symlink_to(workspace)
        runner = Runner(
            folder,
            text.replace("which=0.1", f"which={floor}"),
            {"model_name": name, "model_version": str(version)},
            {
                "MLFLOW_TRACKING_URI": mlflow.uri,
                "EVAL_BACKEND": "hf",
                "EVAL_MODEL_ARGS": "dtype=float32",
            },
            {"PENSTOCK_LEDGER": ledger_url},
            lm_eval,
            penstock_program,
        )
        return runner.run(), runner

    return run


def test_the_steps_evaluate_gate_and_promote_or_stop_with_a_report(
    evaluate, mlflow, name, ledger, tmp_path
):
    tiny_llama.save_llama(tmp_path / "one", seed=1)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "README.md").write_text("The same weights, so not worse.\n")
    tiny_llama.save_llama(tmp_path / "three", seed=3)
    for folder in ("one", "two", "three"):
        mlflow.register(name, tmp_path / folder)

    # The first model: floors only, nothing to compare with.
    passed, first = evaluate(name, 1)
    assert passed, (first.outcomes, first.said)
    assert first.outcomes["Evaluate what serves"] == "skipped"
    assert "penstock[registry,postgres]" in (first.temp / "pip.txt").read_text()
    assert ledger.pointer(name).version == 1

    # As good as what serves: compared item by item, and promoted.
    passed, second = evaluate(name, 2)
    assert passed, (second.outcomes, second.said)
    assert set(second.outcomes.values()) == {"success"}
    assert "## Gate: PASS" in second.summary.read_text()
    assert "Against the baseline" in second.summary.read_text()
    assert (second.folder / "artifact" / "gate.html").exists()
    assert list((second.folder / "artifact" / "results").rglob("samples_which_*.jsonl"))
    assert mlflow.client().get_model_version_by_alias(name, "production").version == "2"

    # Other weights: these items cannot show that it is not worse.
    passed, third = evaluate(name, 3)
    assert not passed
    assert third.outcomes["Gate"] in ("failure 3", "failure 4"), third.said
    assert third.outcomes["Promote"] == "skipped"
    assert third.outcomes["Keep the report"] == "success"
    assert "## Gate:" in third.summary.read_text()
    assert (third.folder / "artifact" / "decision.json").exists()

    # What serves already is not evaluated again.
    passed, again = evaluate(name, 2, floor="0.2")
    assert not passed
    assert again.outcomes["Ask what serves now"] == "failure 1"
    assert "serves already" in again.said["Ask what serves now"]

    assert [move.to_version for move in ledger.history(name)] == [1, 2]
    assert "GitHub run 4711 of octocat; gate PASS" in ledger.history(name)[1].reason


@pytest.mark.parametrize(
    ("model_name", "version"),
    [
        ('m"; touch pwned; echo "', "1"),
        ("$(touch pwned)", "1"),
        ("m", "1; touch pwned"),
        ("m", "`touch pwned`"),
        ("m", "-1"),
        ("--help", "1"),
        ("m\ntouch pwned", "1"),
        ("", "1"),
    ],
)
def test_what_is_typed_into_the_form_is_never_run(evaluate, workspace, model_name, version):
    passed, runner = evaluate(model_name, version.replace("/", ""))
    assert not passed
    assert runner.outcomes["Check the inputs"] == "failure 1"
    assert runner.outcomes["Install"] == "skipped"
    assert list(workspace.rglob("pwned")) == []


def test_a_missing_secret_is_named_and_nothing_is_promoted(
    evaluate, mlflow, name, tmp_path, monkeypatch
):
    tiny_llama.save_llama(tmp_path / "one", seed=1)
    mlflow.register(name, tmp_path / "one")
    monkeypatch.setattr(Runner, "_look_up", _without_secrets(Runner._look_up))
    passed, runner = evaluate(name, 1)
    assert not passed
    assert "Set the secret PENSTOCK_LEDGER" in runner.said["Ask what serves now"]
    assert runner.outcomes["Promote"] == "skipped"


def _without_secrets(look_up):
    return lambda self, path: "" if path.startswith("secrets.") else look_up(self, path)
