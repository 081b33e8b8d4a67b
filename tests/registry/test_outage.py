"""A real MLflow server that goes down after the pointer has moved and before the alias follows."""

import os

import pytest
from typer.testing import CliRunner

import mlflow_server
import tiny_project
from penstock import models
from penstock.cli import app
from penstock.errors import MirrorBehind, RegistryError
from penstock.ledger import Ledger, Pointer
from penstock.pipeline import open_pipeline

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def quiet():
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "GX_ANALYTICS_ENABLED": "false"}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outage")
    server = mlflow_server.Server(folder, f"sqlite:///{folder / 'mlflow.db'}").start()
    yield server
    server.stop()


@pytest.fixture
def server(started):
    """The server, up again if the test before has ended it."""
    return started if started.process else started.start()


@pytest.fixture
def goes_down(server, monkeypatch):
    """Ends the server as soon as the pointer has moved, once."""
    move = Ledger.move_pointer

    def moves(self, *arguments, **named):
        moved = move(self, *arguments, **named)
        server.stop()
        return moved

    monkeypatch.setattr(Ledger, "move_pointer", moves)


def alias(server, name):
    return server.client().get_registered_model(name).aliases.get("production")


def penstock(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_promotion_by_hand_says_that_it_stands_and_the_same_command_ends_well(
    server, goes_down, name, make_model, tmp_path
):
    server.register(name, make_model(1)[0])
    command = ("promote", "--model-name", name, "--version", 1, "--store", tmp_path / "state",
               "--tracking", server.uri)  # fmt: skip
    done = penstock(*command)
    assert isinstance(done.exception, MirrorBehind)
    assert f"{name}@production is version 1 now (epoch 1), but" in done.exception.message
    ledger = Ledger(f"sqlite:///{tmp_path / 'state' / 'ledger.db'}")
    assert ledger.pointer(name) == Pointer(1, 1)
    server.start()
    assert alias(server, name) is None
    assert penstock(*command).exit_code == 0
    assert alias(server, name) == "1"
    assert len(ledger.history(name)) == 1
    ledger.close()


def test_a_rollback_needs_no_mlflow_if_somebody_insists(server, name, make_model, tmp_path):
    options = ("--model-name", name, "--store", tmp_path / "state", "--tracking", server.uri)
    for seed in (1, 2):
        server.register(name, make_model(seed)[0])
        assert penstock("promote", "--version", seed, *options).exit_code == 0
    server.stop()
    refused = penstock("model", "rollback", *options)
    assert isinstance(refused.exception, RegistryError)
    assert "penstock model rollback --unchecked" in refused.exception.hint
    ledger = Ledger(f"sqlite:///{tmp_path / 'state' / 'ledger.db'}")
    assert ledger.pointer(name) == Pointer(2, 2)
    done = penstock("model", "rollback", "--unchecked", *options)
    assert isinstance(done.exception, MirrorBehind)
    assert "is version 1 now (epoch 3)" in done.exception.message
    assert "settle --take ledger" in done.exception.hint, "a second rollback would go further back"
    assert ledger.pointer(name) == Pointer(1, 3)
    ledger.close()
    server.start()
    assert penstock("model", "settle", "--take", "ledger", *options).exit_code == 0
    assert alias(server, name) == "1"


def test_a_recipes_deploy_says_that_it_stands_and_the_next_run_mends_the_alias(
    server, goes_down, tmp_path
):
    path = tiny_project.write_project(tmp_path / "project")
    model = f"tiny_{os.getpid()}"
    changed = {
        "tracking": server.uri,
        "register.model": model,
        "ingest.min_new_examples": 0,
        "serve.try_before_promotion": False,
    }
    pipeline = open_pipeline(path, changed)
    now = f"{model}@production is version 1 now (epoch 1), but MLflow's alias has not followed"
    for _ in ("moved by this run", "moved by the run before"):
        with pytest.raises(MirrorBehind) as behind:
            pipeline.run()
        assert now in behind.value.message
        (newest, *_) = pipeline.ledger.runs("tiny")
        assert newest.status == "FAILED"
        assert newest.message == behind.value.message
        assert pipeline.ledger.pointer(model) == Pointer(1, 1)
    server.start()
    assert alias(server, model) is None
    assert pipeline.run().status == "SUCCEEDED"
    assert alias(server, model) == "1"
    server.stop()
    # The alias has followed, so that nobody can look at it is all there is to say.
    with pytest.raises(RegistryError, match="does not answer"):
        models.production(pipeline).reconcile()
    pipeline.ledger.close()
