"""A recipe as tasks: read without what the stages need, and what exit codes mean."""

import subprocess
import sys

import pytest

from penstock import walk
from penstock.errors import RecipeError
from penstock.orchestrate_section import STAGES
from penstock.orchestrators.base import (
    Outcome,
    TaskFailed,
    TaskResult,
    checked_key,
    outcome,
    read_flow,
    run_task,
)


def write(folder, text):
    path = folder / "recipe.yaml"
    path.write_text("name: support\nstore: ${NOT_SET}\n" + text)
    return path


def test_the_stages_are_those_of_the_loop():
    assert STAGES == walk.NAMES


def test_a_flow_is_every_stage_after_the_one_before(tmp_path):
    flow = read_flow(write(tmp_path, ""))
    assert [task.stage for task in flow.tasks] == list(STAGES)
    assert [task.after for task in flow.tasks] == [(), *((one,) for one in STAGES[:-1])]


@pytest.mark.slow
def test_a_flow_is_read_without_the_libraries_of_the_stages(tmp_path):
    path = write(tmp_path, "")
    code = (
        "import sys; from penstock.orchestrators.base import read_flow; "
        f"print(read_flow({str(path)!r}).name); "
        "heavy = {'pyarrow', 'sqlalchemy', 'deltalake', 'pandas', 'numpy', 'torch'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "support\n", done.stderr


def test_a_command_names_the_key_and_where_the_recipe_is_for_that_task(tmp_path):
    path = write(
        tmp_path,
        "orchestrate:\n  executors:\n    train: {type: kubernetes, image: a/b:1, recipe: /r.yaml}\n"
        "    evaluate: {type: virtualenv, python: /venv/bin/python}\n",
    )
    flow = read_flow(path)
    assert flow.command("train", "k") == [
        *("step", "train", "--task", "--key", "k", "--recipe", "/r.yaml")
    ]
    assert flow.command("due", "k") == ["due", "--key", "k", "--recipe", str(path)]
    assert flow.program("evaluate") == ["/venv/bin/python", "-m", "penstock.cli"]


def test_only_what_the_recipe_allows_can_be_set_for_one_run(tmp_path):
    flow = read_flow(write(tmp_path, ""))
    command = flow.command("ingest", "k", {"ingest.min_new_examples": 5})
    assert command[-2:] == ["--set", "ingest.min_new_examples=5"]
    with pytest.raises(RecipeError, match=r"'sources\.rows\.type' may not be set"):
        flow.command("ingest", "k", {"sources.rows.type": "evil:Object"})


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("{schedule: weekly}", "neither five fields of cron"),
        ("{schedule: '* * *'}", "neither five fields of cron"),
        ("{retries: -1}", "orchestrate.retries"),
        ("{executors: {trian: {type: here}}}", "trian"),
        ("{executors: {gate: {type: kubernetes, image: a}}}", "kubernetes is for train, evaluate"),
        ("{executors: {train: {type: databricks, job_id: 1}}}", "databricks is for validate, prep"),
        ("{executors: {train: {type: kubernetes, image: 'a b'}}}", "image"),
        ("{executors: {train: {type: mesos}}}", "mesos"),
        ("{notify: {webhooks: ['https://hooks.example/secret']}}", "webhooks"),
        ("{airflow: {url: 'http://admin:pw@host'}}", "set them in the environment"),
    ],
)
def test_a_mistake_in_the_section_is_refused_with_its_line(tmp_path, section, says):
    with pytest.raises(RecipeError) as error:
        read_flow(write(tmp_path, f"orchestrate: {section}\n"))
    assert says in error.value.message
    assert "line 3, orchestrate" in error.value.message
    assert "admin:pw" not in error.value.message.replace("received 'http://admin:pw@host'", "")


def test_a_mistake_names_a_variable_and_not_what_it_stands_for(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_URL", "http://admin:s3cr3t@host")
    with pytest.raises(RecipeError) as error:
        read_flow(write(tmp_path, "orchestrate: {airflow: {url: '${AIRFLOW_URL}'}}\n"))
    assert "received '${AIRFLOW_URL}'" in error.value.message
    assert "s3cr3t" not in f"{error.value.message} {error.value.hint}"


@pytest.mark.parametrize("key", ["", "two words", "x" * 301, "tab\t", "ü"])
def test_what_is_no_name_for_a_run_is_refused(key):
    with pytest.raises(RecipeError):
        checked_key(key)


def test_exit_codes_say_whether_to_go_on_to_retry_or_to_give_up():
    meant = {code: outcome(code) for code in (0, 1, 2, 3, 4, 5, 130, -9)}
    assert [code for code, one in meant.items() if one is Outcome.GO_ON] == [0, 3, 4, 5]
    assert [code for code, one in meant.items() if one is Outcome.RETRY] == [1, 130, -9]
    assert meant[2] is Outcome.FAIL


def python(code):
    return [sys.executable, "-c", code]


def test_a_task_tells_what_its_command_says_and_reads_its_last_line():
    said = []
    code = (
        "import sys; print('loading', file=sys.stderr); print('noise'); "
        """print('{"run_id": "r", "status": "RUNNING", "goes_on": true, "later": 1}')"""
    )
    result = run_task(python(code), said.append)
    assert result == TaskResult("r", "RUNNING", True)
    assert said[-1] == "loading"


@pytest.mark.parametrize(("code", "transient"), [(1, True), (2, False), (130, True)])
def test_a_failed_task_says_why_and_whether_to_try_again(code, transient):
    script = f"import sys; print('Error: no such thing', file=sys.stderr); sys.exit({code})"
    with pytest.raises(TaskFailed, match="no such thing") as error:
        run_task(python(script), lambda line: None)
    assert error.value.transient is transient


def test_a_command_that_is_not_there_is_not_tried_again():
    with pytest.raises(TaskFailed, match="cannot be started") as error:
        run_task(["/no/such/penstock"], lambda line: None)
    assert not error.value.transient


def test_a_task_that_prints_no_result_is_tried_again():
    with pytest.raises(TaskFailed, match="printed no result") as error:
        run_task(python("print('Killed')"), lambda line: None)
    assert error.value.transient
