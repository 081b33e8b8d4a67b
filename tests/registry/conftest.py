import os
import uuid

import pytest

import mlflow_server
from penstock.artifacts import write_manifest

# Tests of a server that is down would wait for its retries.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"


@pytest.fixture(scope="session")
def mlflow(postgres_server, tmp_path_factory):
    """One MLflow server over PostgreSQL for each test process."""
    server = mlflow_server.Server(tmp_path_factory.mktemp("mlflow"), postgres_server.new_database())
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def ledger_url(postgres_server):
    """A ledger on PostgreSQL, as several hosts share one; SQLite's own tests are elsewhere."""
    return postgres_server.new_schema()


@pytest.fixture
def name():
    """A three-level name that no other test has."""
    return f"ml_catalog.llm_models.llama_{uuid.uuid4().hex[:8]}"


@pytest.fixture
def make_model(tmp_path):
    """Writes a model's folder; with ``manifest``, as a training of ours leaves it."""

    def make(seed, manifest=False):
        folder = tmp_path / f"made-{seed}"
        (folder / "tokenizer").mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_bytes(bytes([seed]) * 1000)
        (folder / "tokenizer" / "vocab.json").write_text("{}")
        digest = write_manifest(folder) if manifest else None
        return folder, digest

    return make
