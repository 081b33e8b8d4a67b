"""``penstock doctor``: on projects that are well, and on projects in each state that is not."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from penstock.cli import app
from penstock.doctor import diagnose, environment, examination
from penstock.ledger import Ledger, ModelVersion, schema
from penstock.promotion import Production
from rollout_world import Registry

RECIPE = """
name: demo
store: store
sources: {files: {type: files, paths: data.jsonl}}
evaluate: {tasks: [word_order]}
gate: {min: {word_order: 0.6}}
serve: {port: PORT, metrics_port: null}
"""


class Project:
    """A recipe in a folder, with a ledger that tests write into."""

    def __init__(self, folder, port=0, more=""):
        self.path = folder / "recipe.yaml"
        self.path.write_text(RECIPE.replace("PORT", str(port)) + more)
        self.database = folder / "store" / "ledger.db"

    def ledger(self):
        self.database.parent.mkdir(exist_ok=True)
        return Ledger(f"sqlite:///{self.database}")

    def found(self, **options):
        return {one.check: one for one in diagnose(self.path, **options)}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(autouse=True)
def registry(tmp_path, monkeypatch):
    """In place of MLflow's, whose database takes seconds to make."""
    made = Registry(tmp_path)
    monkeypatch.setattr(
        "penstock.stages.deploy.Tracker", lambda recipe, store: SimpleNamespace(registry=made)
    )
    return made


@contextmanager
def answering(status, body):
    """A server that answers every GET alike; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def promoted(ledger, version=1):
    ledger.add_model(
        ModelVersion("demo", version, "f", f"d{version}", "models/1", "run", "files@1")
    )
    ledger.move_pointer("demo", "production", version, None, "promote", "first")


@pytest.mark.slow
def test_without_a_recipe_this_host_is_looked_at(tmp_path):
    found = {one.check: one for one in diagnose(tmp_path / "recipe.yaml")}
    assert found["python"].state == "ok"
    assert found["recipe"].state == "warn"
    assert "penstock init" in found["recipe"].todo
    assert {"disk", "memory", "torch", "packages for the core"} <= found.keys()
    assert "ledger" not in found


def test_looking_makes_nothing(project):
    before = sorted(project.path.parent.iterdir())
    found = project.found()
    assert found["ledger"].found.endswith("which the first run makes")
    assert found["store"].state == "ok"
    assert sorted(project.path.parent.iterdir()) == before


def test_a_recipe_that_is_wrong_is_a_finding_and_no_traceback(project):
    project.path.write_text("name: [")
    done = CliRunner().invoke(app, ["doctor", "--recipe", str(project.path), "--json"])
    assert done.exit_code == 1
    (recipe,) = [one for one in json.loads(done.stdout) if one["check"] == "recipe"]
    assert recipe["state"] == "fail"
    assert "not YAML" in recipe["found"]


@pytest.mark.slow
def test_a_variable_is_named_and_its_value_never_shown(tmp_path, monkeypatch):
    project = Project(tmp_path, more="ledger: ${DOCTOR_LEDGER}\n")
    monkeypatch.delenv("DOCTOR_LEDGER", raising=False)
    assert project.found()["credentials"].found == "not set: DOCTOR_LEDGER"
    monkeypatch.setenv("DOCTOR_LEDGER", "postgresql://me:hunter2@127.0.0.1:1/none")
    found = project.found()
    assert found["credentials"].found == "set: DOCTOR_LEDGER"
    assert found["ledger"].state == "fail"
    assert "hunter2" not in str(found)


@pytest.mark.slow
def test_variables_that_options_name_are_looked_for(tmp_path, monkeypatch):
    models = "{far: {source: m, backend: {type: openai, url: 'http://h.test/v1'}}}"
    project = Project(tmp_path)
    text = project.path.read_text()
    project.path.write_text(text + f"# models: {models}\n# api_key_env: IGNORED\n")
    assert "IGNORED" not in project.found()["credentials"].found
    project.path.write_text(text + "extra:\n  api_key_env: FAR_KEY\n")
    assert "FAR_KEY" in project.found()["credentials"].found


@pytest.mark.slow
def test_a_ledger_of_another_version_fails(project):
    project.ledger().close()
    engine = sa.create_engine(f"sqlite:///{project.database}")
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE runs DROP COLUMN holder"))
    found = project.found()
    assert found["ledger"].state == "fail"
    assert "runs.holder" in found["ledger"].found
    assert "runs" not in found


@pytest.mark.slow
def test_a_table_that_is_missing_is_not_made(project):
    project.ledger().close()
    engine = sa.create_engine(f"sqlite:///{project.database}")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE spending"))
    assert project.found()["ledger"].state == "warn"
    assert "spending" not in sa.inspect(engine).get_table_names()


@pytest.mark.slow
def test_a_file_that_is_no_database_fails(project):
    project.database.parent.mkdir()
    project.database.write_text("this is no database, only a text that is long enough" * 20)
    assert project.found()["ledger"].state == "fail"


@pytest.mark.slow
def test_a_store_that_cannot_be_a_folder_fails(project):
    project.database.parent.write_text("in the way")
    assert "is a file" in project.found()["store"].found


def dead_process():
    return "{}:{}:{}".format(__import__("socket").gethostname(), 2**22 + 7, 1)


@pytest.mark.slow
def test_a_run_whose_process_died_is_found_and_left_as_it_is(project):
    ledger = project.ledger()
    run = ledger.start_run("demo", "", "", {})
    with ledger.database.write() as connection:
        connection.execute(sa.update(schema.runs).values(holder=dead_process()))
        connection.execute(
            sa.insert(schema.claims).values(key="k", holder=f"{dead_process()}/1", until_s=9e9)
        )
    found = project.found()
    assert found["runs"].state == found["claims"].state == "warn"
    assert run.id in found["runs"].found
    assert ledger.run(run.id).status == "RUNNING"
    assert ledger.holder("k") is not None
    ledger.end_run(run.id, "INTERRUPTED", "stopped")
    assert "INTERRUPTED" in project.found()["runs"].found
    ledger.close()


def test_a_clock_behind_the_last_run_is_noticed(project):
    ledger = project.ledger()
    ledger.start_run("demo", "", "", {})
    with ledger.database.write() as connection:
        connection.execute(sa.update(schema.runs).values(started_s=9e9))
    ledger.close()
    assert project.found()["clock"].state == "warn"


@pytest.mark.slow
def test_an_alias_moved_by_hand_fails_and_settling_it_is_named(project, registry):
    ledger = project.ledger()
    ledger.add_model(ModelVersion("demo", 1, "f", "d1", "models/1", "run", ""))
    Production(ledger, registry, "demo", "production").promote(1, "first")
    ledger.close()
    assert project.found()["alias"].state == "ok"
    registry.set_alias("demo", "production", 7)
    found = project.found()["alias"]
    assert found.state == "fail"
    assert "penstock model settle" in found.todo


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "state"), [(1, "ok"), (None, "warn")], ids=["the promoted one", "none yet"]
)
def test_what_the_gateway_serves_is_compared_with_the_pointer(tmp_path, version, state):
    ready = {"models": {"demo": {"ready": True, "version": version}}}
    with answering(200, json.dumps(ready)) as port:
        project = Project(tmp_path, port)
        ledger = project.ledger()
        promoted(ledger)
        ledger.close()
        found = project.found()
    assert found["gateway"].state == "ok"
    assert found["serving"].state == state


@pytest.mark.slow
def test_a_promoted_version_that_nobody_serves_is_noticed(project):
    ledger = project.ledger()
    promoted(ledger)
    ledger.close()
    assert "nobody serves it" in project.found()["serving"].found


@pytest.mark.slow
def test_something_else_on_the_gateways_port_fails(tmp_path):
    with answering(404, "<html>nginx</html>") as port:
        assert Project(tmp_path, port).found()["gateway"].state == "fail"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "state", "said"),
    [(200, "ok", "answers"), (401, "fail", "refuses the credentials"), (500, "fail", "")],
)
def test_mlflow_is_asked_how_it_is(tmp_path, status, state, said):
    with answering(status, "OK") as port:
        project = Project(tmp_path, more=f"tracking: http://user:hunter2@127.0.0.1:{port}\n")
        found = project.found()
    assert found["MLflow"].state == state
    assert said in found["MLflow"].found
    assert "hunter2" not in str(found)


@pytest.mark.slow
def test_an_mlflow_that_is_down_fails(tmp_path):
    project = Project(tmp_path, more="tracking: http://127.0.0.1:9\n")
    assert project.found()["MLflow"].state == "fail"


@pytest.mark.slow
def test_who_receives_traces_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("LANGSMITH_API_KEY", raising=False)
    project = Project(tmp_path)
    text = project.path.read_text()
    traces = "traces: {to: otlp, endpoint: 'http://127.0.0.1:9'}"
    project.path.write_text(text.replace("metrics_port: null", f"metrics_port: null, {traces}"))
    assert project.found()["traces"].state == "warn"
    project.path.write_text(
        text.replace("metrics_port: null", "metrics_port: null, traces: {to: langsmith}")
    )
    assert "LANGSMITH_API_KEY" in project.found()["traces"].found


def test_what_does_not_answer_is_not_waited_for():
    waiting = threading.Event()
    (found,) = examination._within("slow", 0.05, lambda: [waiting.wait()])
    waiting.set()
    assert (found.state, found.check) == ("fail", "slow")


def test_a_check_that_breaks_is_a_finding():
    (found,) = examination._within("broken", 5, lambda: [1 / 0])
    assert "ZeroDivisionError" in found.found


def test_extras_are_those_that_the_recipe_needs(tmp_path):
    from penstock.recipe_file import load_recipe

    project = Project(tmp_path)
    assert "postgres" not in environment.extras(load_recipe(project.path))
    project = Project(tmp_path, more="ledger: postgresql://h/d\n")
    assert environment.extras(load_recipe(project.path))["postgres"] == "ledger"


def test_contracts_and_the_orchestrators_that_are_asked_have_extras_too(tmp_path):
    from penstock.recipe_file import load_recipe

    def extras_of(more):
        return environment.extras(load_recipe(Project(tmp_path, more=more).path))

    plain = extras_of("")
    assert plain["contracts"] == "validate"
    assert not {"airflow", "dagster", "prefect"} & set(plain)
    told = extras_of("observe: {retrain: {through: prefect}}\n")
    assert told["prefect"] == "observe.retrain.through"
    assert extras_of("orchestrate: {airflow: {}}\n")["airflow"] == "orchestrate.airflow"
    assert "airflow" not in extras_of("orchestrate: {retries: 3}\n")
    nothing = "validate: {not_null: [], length: {}, range: {}}\n"
    assert "contracts" not in extras_of(nothing)


def test_what_one_command_needs_is_said_and_is_no_failure(tmp_path, monkeypatch):
    from penstock.recipe_file import load_recipe

    recipe = load_recipe(Project(tmp_path).path)
    demands = ["nosuchsdk>=1; extra == 'grafana'"]
    monkeypatch.setattr(environment, "requires", lambda name: demands)
    found = {one.check: one for one in environment.packages(recipe)}
    said = found["packages for penstock export grafana"]
    assert said.state == "ok"
    assert said.found.startswith("nosuchsdk is not installed; for that command: pip install")


def test_a_package_that_is_missing_or_old_says_what_to_install(monkeypatch):
    demands = ["pandas>=99", "nosuchpackage>=1", "torch==1; extra == 'train'"]
    monkeypatch.setattr(environment, "requires", lambda name: demands)
    (found,) = environment.packages(None)
    assert found.state == "fail"
    assert "pandas is" in found.found
    assert "nosuchpackage is not installed" in found.found
    assert "torch" not in found.found


def test_versions_are_compared_with_those_tested(tmp_path):
    have = __import__("pandas").__version__
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(f"pandas=={have}\nnosuch==1.0  # not installed\n")
    assert next(environment.versions(constraints)).state == "ok"
    constraints.write_text("Pandas==0.1\n")
    found = next(environment.versions(constraints))
    assert found.state == "warn"
    assert "(tested: 0.1)" in found.found


@pytest.mark.parametrize(("free", "state"), [(2**28, "fail"), (2**31, "warn"), (2**40, "ok")])
def test_little_disk_is_told_from_none(monkeypatch, free, state):
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr("penstock.doctor.environment.shutil.disk_usage", lambda path: usage)
    assert next(environment.disk(Path("/nowhere/at/all"))).state == state


@pytest.mark.slow
def test_the_command_says_what_to_do_and_ends_with_1_on_failure(project):
    done = CliRunner().invoke(app, ["doctor", "--recipe", str(project.path)])
    assert "ok    recipe: demo" in done.output
    project.database.parent.write_text("in the way")
    done = CliRunner().invoke(app, ["doctor", "--recipe", str(project.path)])
    assert "To do: Change its owner" in done.output
    assert done.exit_code == 1
