"""The Databricks bundle: nothing lost in the SDK's own classes, and its jobs run by its client."""

import copy
import json
import re
import tomllib
from datetime import timedelta
from pathlib import Path

import jsonschema
import pytest
import typer.main
import yaml

from cluster_recipes import LEAST, loaded
from databricks_server import serving
from penstock.cli import app
from penstock.errors import RecipeError
from penstock.orchestrators import databricks_task
from penstock.orchestrators.databricks import (
    ENTRY_POINT,
    PACKAGE,
    DatabricksOptions,
    databricks_bundle,
    secret_names,
)

# The SDK is imported where it is used: every test process collects this file, one runs it.
HOME = Path(__file__).parents[2]
RECIPE = LEAST.replace(
    "sources: {rows: {type: files, paths: [rows.jsonl]}}",
    """sources:
  live:
    type: kafka
    bootstrap_servers: kafka.example.org:9093
    topics: [replies]
    security: {protocol: sasl_ssl, username: penstock, password_env: KAFKA_PASSWORD}
""",
)
TINY = """\
name: support
sources: {rows: {type: files, paths: [ROWS]}}
evaluate: {tasks: [held_out]}
gate: {max: {held_out: 8.0}}
ingest: {min_new_examples: 1}
"""
# What databricks.yml may hold, by https://docs.databricks.com/dev-tools/bundles/reference;
# what the jobs in it may hold, the SDK's classes know.
_TEXT = {"type": "string"}


def _strict(fields, *required):
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


_WORKSPACE = _strict({"host": _TEXT, "root_path": _TEXT, "file_path": _TEXT, "profile": _TEXT})
_RUN_AS = _strict({"service_principal_name": _TEXT, "user_name": _TEXT})
_TARGET = _strict(
    {
        "mode": {"enum": ["development", "production"]},
        "default": {"type": "boolean"},
        "workspace": _WORKSPACE,
        "run_as": _RUN_AS,
        "variables": {"type": "object"},
        "permissions": {"type": "array"},
        "presets": {"type": "object"},
    }
)
BUNDLE = _strict(
    {
        "bundle": _strict({"name": _TEXT, "databricks_cli_version": _TEXT}, "name"),
        "include": {"type": "array", "items": _TEXT},
        "variables": {
            "type": "object",
            "additionalProperties": _strict({"description": _TEXT, "default": {}}),
        },
        "targets": {"type": "object", "additionalProperties": _TARGET},
        "resources": {"type": "object"},
        "sync": {"type": "object"},
    },
    "bundle",
)
_LEVELS = {"enum": ["CAN_MANAGE", "CAN_MANAGE_RUN", "CAN_VIEW", "IS_OWNER"]}
PERMISSION = _strict(
    {
        "level": _LEVELS,
        "group_name": _TEXT,
        "user_name": _TEXT,
        "service_principal_name": _TEXT,
    },
    "level",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    recipe = loaded(tmp_path_factory.mktemp("bundle"), RECIPE, "ingest.min_new_examples=5")
    return databricks_bundle(recipe, DatabricksOptions.checked("support"))


@pytest.fixture(scope="module")
def jobs(files):
    return yaml.safe_load(files["resources/jobs.yml"])["resources"]["jobs"]


def settings_of(job):
    return {key: value for key, value in job.items() if key != "permissions"}


def lost(job):
    """What the SDK's classes do not know of a job."""
    from databricks.sdk.service.jobs import JobSettings

    return diff(settings_of(job), JobSettings.from_dict(settings_of(job)).as_dict())


def diff(before, after, path=""):
    if isinstance(before, dict) and isinstance(after, dict):
        return [one for key in before for one in diff(before[key], after.get(key), f"{path}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = zip(before, after, strict=True)
        return [one for i, (a, b) in enumerate(pairs) for one in diff(a, b, f"{path}[{i}]")]
    return [] if before == after else [path]


def test_the_bundle_is_valid_by_a_strict_schema_and_an_unknown_key_is_not(files):
    tree = yaml.safe_load(files["databricks.yml"])
    jsonschema.validate(tree, BUNDLE)
    for wrong in ({**tree, "misspelt": 1}, {**tree, "targets": {"dev": {"misspelt": 1}}}):
        with pytest.raises(jsonschema.ValidationError, match="misspelt"):
            jsonschema.validate(wrong, BUNDLE)


@pytest.mark.slow
def test_nothing_of_a_job_is_lost_in_the_sdks_own_classes(jobs):
    assert list(jobs) == ["support-stages", "support-stage", "support-data"]
    for job in jobs.values():
        assert lost(job) == []
        for permission in job["permissions"]:
            jsonschema.validate(permission, PERMISSION)


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("tasks", 0),
        ("tasks", 0, "python_wheel_task"),
        ("job_clusters", 0, "new_cluster"),
        ("schedule",),
    ],
)
def test_a_field_that_the_sdk_does_not_know_is_found(jobs, path):
    job = copy.deepcopy(jobs["support-data"])
    here = job
    for key in path:
        here = here[key]
    here["misspelt"] = "x"
    assert lost(job)[0].endswith(".misspelt")


def test_a_value_that_the_sdk_does_not_know_is_found(jobs):
    job = copy.deepcopy(jobs["support-data"])
    job["schedule"]["pause_status"] = "SLEEPING"
    assert lost(job) == [".schedule.pause_status"]


def test_penstock_understands_every_command_line(jobs):
    penstock = typer.main.get_command(app)
    for job in jobs.values():
        for task in job["tasks"]:
            command, *line = task["python_wheel_task"]["parameters"]
            penstock.commands[command].make_context(command, line)


def test_the_schedule_is_paused_and_two_runs_of_it_never_meet(jobs):
    job = jobs["support-data"]
    assert job["schedule"]["pause_status"] == "PAUSED"
    assert job["max_concurrent_runs"] == 1
    assert all("schedule" not in jobs[name] for name in ("support-stage", "support-stages"))


def test_every_task_is_tried_again_and_calls_an_entry_point_that_is_in_the_wheel(jobs):
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    assert project["name"] == PACKAGE
    module, _, function = project["scripts"][ENTRY_POINT].partition(":")
    assert module == databricks_task.__name__
    assert getattr(databricks_task, function) is databricks_task.main
    for job in jobs.values():
        for task in job["tasks"]:
            assert task["python_wheel_task"]["entry_point"] == ENTRY_POINT
            assert task["max_retries"] == 2
            assert task["min_retry_interval_millis"] == 600_000


def test_secrets_are_references_into_the_scope(jobs):
    for job in jobs.values():
        (cluster,) = job["job_clusters"]
        variables = cluster["new_cluster"]["spark_env_vars"]
        assert {"PENSTOCK_LEDGER", "KAFKA_PASSWORD", "AWS_SECRET_ACCESS_KEY"} <= set(variables)
        for name, value in variables.items():
            assert value == f"{{{{secrets/support/{name}}}}}"


def test_the_files_do_not_depend_on_the_environment(tmp_path, monkeypatch):
    options = DatabricksOptions.checked("support")
    before = databricks_bundle(loaded(tmp_path, RECIPE), options)
    for name in secret_names(loaded(tmp_path, RECIPE)):
        monkeypatch.setenv(name, "hunter2")
    after = databricks_bundle(loaded(tmp_path, RECIPE), options)
    assert after == before
    assert "hunter2" not in json.dumps(after)
    assert after["recipe.yaml"] == RECIPE


def test_a_wheel_in_a_volume_is_installed_as_one(tmp_path):
    wheel = "/Volumes/main/ml/wheels/penstock-0.1.0-py3-none-any.whl"
    options = DatabricksOptions.checked("support", penstock=wheel, workers=3)
    found = databricks_bundle(loaded(tmp_path, LEAST), options)["resources/jobs.yml"]
    job = yaml.safe_load(found)["resources"]["jobs"]["support-data"]
    assert job["tasks"][0]["libraries"] == [{"whl": wheel}]
    cluster = job["job_clusters"][0]["new_cluster"]
    assert cluster["num_workers"] == 3
    assert "spark_conf" not in cluster
    assert lost(job) == []


@pytest.mark.parametrize(
    ("change", "override", "says"),
    [
        (("s3://models/support", "/mnt/penstock"), (), "is a folder, and a job's cluster is gone"),
        (("ledger: ${PENSTOCK_LEDGER}", "ledger: sqlite:///l.db"), (), "SQLite is for one host"),
        (("", ""), ("tracking=http://${MLFLOW}:5000",), "would put a value of its own"),
        (("", ""), ("tracking=http://{{job.id}}",), "--set tracking"),
    ],
)
def test_a_recipe_that_a_cluster_cannot_run_is_refused(tmp_path, change, override, says):
    text = LEAST.replace(*change) if change[0] else LEAST
    with pytest.raises(RecipeError, match=re.escape(says)):
        databricks_bundle(loaded(tmp_path, text, *override), DatabricksOptions.checked("support"))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "a b"},
        {"scope": "1x"},
        {"schedule": "@weekly"},
        {"penstock": "x; rm"},
        {"retries": -1},
    ],
)
def test_a_wrong_option_is_named(options):
    (name,) = options
    with pytest.raises(RecipeError, match=f"--{name}: received"):
        DatabricksOptions.checked("support", **options)


@pytest.fixture
def ran():
    """Command lines of tasks; each may be made to raise."""
    return []


@pytest.fixture
def workspace(ran):
    def run_task(package, entry_point, words):
        assert (package, entry_point) == (PACKAGE, ENTRY_POINT)
        ran.append(words)

    with serving(run_task) as found:
        yield found


@pytest.fixture
def client(workspace, monkeypatch):
    from databricks.sdk import WorkspaceClient

    monkeypatch.setattr("time.sleep", lambda s: None)  # the client's pauses
    return WorkspaceClient(host=workspace.url, token="local")


def deployed(client, job, folder="/files"):
    """What ``databricks bundle deploy`` does: variables put in, and the job made."""
    from databricks.sdk.service.jobs import JobSettings

    text = json.dumps(settings_of(job)).replace("${workspace.file_path}", str(folder))
    assert "${" not in text
    settings = JobSettings.from_dict(json.loads(text))
    return client.jobs.create(
        name=settings.name,
        parameters=settings.parameters,
        tasks=settings.tasks,
        job_clusters=settings.job_clusters,
        queue=settings.queue,
        max_concurrent_runs=settings.max_concurrent_runs,
    ).job_id


def test_a_run_of_both_stages_gets_the_run_it_is_about(client, jobs, ran):
    from databricks.sdk.service.jobs import RunResultState

    job = deployed(client, jobs["support-stages"])
    waiter = client.jobs.run_now(job, job_parameters={"run": "20261128-1"}, idempotency_token="k1")
    done = waiter.result(timeout=timedelta(minutes=1))
    assert done.state.result_state is RunResultState.SUCCESS
    common = ["--recipe", "/files/recipe.yaml", "--set", "ingest.min_new_examples=5"]
    assert ran == [
        ["step", "validate", "--run", "20261128-1", *common],
        ["step", "prepare", "--run", "20261128-1", *common],
    ]


def test_a_token_that_was_used_starts_nothing_again(client, workspace, jobs, ran):
    job = deployed(client, jobs["support-data"])
    first = client.jobs.run_now(job, idempotency_token="run-7")
    second = client.jobs.run_now(job, idempotency_token="run-7")
    assert first.run_id == second.run_id
    second.result(timeout=timedelta(minutes=1))
    assert len(workspace.started) == 1
    assert [words[:3] for words in ran] == [["run", "--until", "prepare"]]


def test_a_run_whose_start_was_answered_by_an_error_is_started_once(client, workspace, jobs):
    job = deployed(client, jobs["support-data"])
    workspace.faults = [503]
    # The client itself asks again; the token makes that harmless.
    client.jobs.run_now(job, idempotency_token="run-8")
    assert len(workspace.started) == 1


def test_an_orchestrators_command_line_replaces_that_of_the_single_stage(client, jobs, ran):
    from databricks.sdk.errors import BadRequest

    job = deployed(client, jobs["support-stage"])
    line = ["step", "prepare", "--run", "r1", "--recipe", "/files/recipe.yaml"]
    client.jobs.run_now(job, python_params=line).result(timeout=timedelta(minutes=1))
    client.jobs.run_now(job).result(timeout=timedelta(minutes=1))
    assert ran[0] == line
    assert ran[1][0] == "plan"
    both = deployed(client, jobs["support-stages"])
    with pytest.raises(BadRequest, match="job parameters"):
        client.jobs.run_now(both, python_params=line)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["INTERNAL_ERROR", "BEYOND_THIS_SDK"])
def test_a_run_that_databricks_lost_is_no_success(client, workspace, jobs, state):
    from databricks.sdk.errors import OperationFailed

    job = deployed(client, jobs["support-data"])
    lost_it = {"life_cycle_state": state, "state_message": "Cluster terminated"}
    workspace.ends = [lost_it] * 1_000
    waiter = client.jobs.run_now(job)
    error = OperationFailed if state == "INTERNAL_ERROR" else TimeoutError
    with pytest.raises(error, match="Cluster terminated"):
        waiter.result(timeout=timedelta(seconds=1))


@pytest.fixture
def tiny(tmp_path):
    """A recipe in a folder, with rows."""
    rows = tmp_path / "rows.jsonl"
    row = {"instruction": "How is a device reset?", "response": "Hold the key.", "quality_score": 1}
    rows.write_text(json.dumps(row) + "\n")
    recipe = tmp_path / "files" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text(TINY.replace("ROWS", str(rows)))
    return recipe


def test_a_task_runs_the_command_and_returns_instead_of_leaving(tiny, capsys):
    databricks_task.main(["step", "ingest", "--run", "new", "--json", "--recipe", str(tiny)])
    assert json.loads(capsys.readouterr().out)["stages"][0]["stage"] == "ingest"


def test_a_command_that_fails_raises_with_its_code(tiny, capsys):
    with pytest.raises(databricks_task.DatabricksTaskFailed, match="code 2"):
        databricks_task.main(["plan", "--recipe", str(tiny.with_name("none.yaml"))])
    assert "There is no recipe" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "fails"), [(0, False), (3, False), (4, False), (1, True)])
def test_a_verdict_is_no_failure_of_the_task(monkeypatch, code, fails):
    def leaves():
        raise SystemExit(code)

    monkeypatch.setattr("penstock.cli.main", leaves)
    if not fails:
        databricks_task.main(["run"])
        return
    with pytest.raises(databricks_task.DatabricksTaskFailed):
        databricks_task.main(["run"])


def test_a_recipe_in_the_workspace_is_worked_on_beside_it_on_the_local_disk(tiny, monkeypatch):
    monkeypatch.setattr(databricks_task, "_WORKSPACE", f"{tiny.parent}/")
    seen = []
    monkeypatch.setattr("penstock.cli.main", lambda: seen.extend(databricks_task.sys.argv))
    databricks_task.main(["plan", "--recipe", str(tiny), "--json"])
    moved = Path(seen[seen.index("--recipe") + 1])
    assert moved.parent != tiny.parent
    assert moved.read_bytes() == tiny.read_bytes()
    assert seen[-1] == "--json"
