"""Versions that came without a recipe, in a recipe's loop: only MLflow has their files."""

import os
import shutil

import pytest
from typer.testing import CliRunner

import tiny_project
from penstock import models
from penstock.artifacts import MANIFEST
from penstock.cli import app
from penstock.errors import LedgerError, RegistryError, StoreError
from penstock.ledger import Pointer
from penstock.lineage import trace
from penstock.model_files import content_digest
from penstock.pipeline import open_pipeline
from penstock.serving.loading import Loader
from penstock.serving.production import served
from penstock.serving.response_id import new_response_id

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def quiet():
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "GX_ANALYTICS_ENABLED": "false"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model as any training leaves it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    pipeline = open_pipeline(tiny_project.write_project(folder / "project"), {"seed": 99})
    report = pipeline.run(until="train")
    found = pipeline.store.folder(report.artifacts["train"]) / "model"
    pipeline.ledger.close()
    return shutil.copytree(found, folder / "model", ignore=shutil.ignore_patterns(MANIFEST))


@pytest.fixture
def theirs(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "theirs")


@pytest.fixture
def pipeline(tmp_path):
    opened = open_pipeline(tiny_project.write_project(tmp_path / "project"))
    yield opened
    opened.ledger.close()


@pytest.fixture
def serving(pipeline, theirs, tmp_path, monkeypatch):
    """The pipeline, while a version serves that was promoted without its recipe."""
    register(pipeline, "tiny", theirs)
    store = pipeline.store.root
    monkeypatch.chdir(tmp_path)
    options = ("--store", store, "--tracking", f"sqlite:///{store / 'mlflow.db'}")
    done = penstock("promote", "--model-name", "tiny", "--version", 1, *options)
    assert done.exit_code == 0, done.output
    return pipeline


def register(pipeline, name, folder):
    client = models.production(pipeline).registry.client
    client.create_registered_model(name)
    client.create_model_version(name, folder.as_uri())


def penstock(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_serves_is_continued_and_compared_with_by_its_own_files(serving, theirs):
    digest = serving.ledger.model("tiny", 1).digest
    assert digest == content_digest(theirs)
    report = serving.run()
    assert report.status == "SUCCEEDED"
    assert report.artifacts["train"].summary["base"] == "tiny version 1"
    assert report.artifacts["baseline"].summary["model_digest"] == digest
    assert report.artifacts["evaluate"].summary["model_digest"] != digest
    assert report.artifacts["gate"].summary["baseline_version"] == 1
    assert serving.ledger.pointer("tiny") == Pointer(2, 2)
    back = models.production(serving).rollback("test")
    assert back == Pointer(1, 3)


def test_a_plan_fetches_nothing(serving):
    assert {one.node: one.action for one in serving.plan()}["baseline"] == "run"
    assert not (serving.store.root / "admitted").exists()


@pytest.mark.parametrize("continues", [True, False], ids=["as base", "as baseline"])
def test_files_that_changed_in_mlflow_are_not_taken(serving, theirs, continues):
    flip_a_byte(theirs / "model.safetensors")
    pipeline = open_pipeline(serving.path, {"train.continue_from_production": continues})
    with pytest.raises(StoreError, match="tiny version 1 have the digest"):
        pipeline.run()
    assert serving.ledger.pointer("tiny") == Pointer(1, 1)


def test_the_gateway_fetches_and_loads_it(serving, theirs):
    config, around = served(serving.recipe, serving.store, serving.ledger)
    version = around.pointers.targets("tiny").champion
    assert not version.folder.exists()
    loader = Loader("tiny", config.models["tiny"], config, around.cache_dir)
    loader.version(version).backend.close()
    assert content_digest(version.folder) == version.digest
    shutil.rmtree(theirs)
    loader.version(version).backend.close()


def test_a_response_of_it_has_no_training_to_be_traced_to(serving):
    digest = serving.ledger.model("tiny", 1).digest
    with pytest.raises(LedgerError, match="tiny version 1 was promoted without a recipe"):
        trace(new_response_id("cmpl", digest), serving.ledger, serving.store)


class TestBase:
    """``train.base: models:/NAME/VERSION`` of a version that the ledger does not know."""

    @pytest.fixture
    def project(self, pipeline, theirs):
        register(pipeline, "theirs", theirs)
        return pipeline.path

    def test_a_training_starts_from_it_and_it_may_not_serve_for_that(self, project, theirs):
        pipeline = open_pipeline(project, {"train.base": "models:/theirs/1"})
        report = pipeline.run(until="train")
        trained = report.artifacts["train"]
        assert trained.summary["base"] == "theirs version 1"
        assert trained.settings["base"] == content_digest(theirs)
        assert pipeline.ledger.models("theirs") == []
        with pytest.raises(LedgerError, match="no version 1 of model 'theirs'"):
            models.production(pipeline, "theirs").promote(1, "test")

    def test_it_is_held_to_what_it_was_when_it_was_first_seen(self, project, theirs):
        pipeline = open_pipeline(project, {"train.base": "models:/theirs/1"})
        pipeline.run(until="validate")
        pipeline.plan()
        flip_a_byte(theirs / "model.safetensors")
        with pytest.raises(StoreError, match="theirs version 1 have the digest"):
            pipeline.run(until="prepare")

    def test_one_that_mlflow_does_not_know_either_is_said_with_those_it_knows(self, project):
        pipeline = open_pipeline(project, {"train.base": "models:/theirs/2"})
        with pytest.raises(RegistryError, match=r"no version 2 of model 'theirs'. It has: 1\."):
            pipeline.run(until="prepare")
