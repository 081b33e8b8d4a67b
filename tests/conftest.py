import functools
import re
import socketserver
import sys
import tempfile
from pathlib import Path

import httpx._transports.default as httpx_transports
import pytest
import typer.main
import typer.testing

# Modules that stand beside the tests and are shared by them.
sys.path.insert(0, str(Path(__file__).parent))

import postgres
from fork_server import ForkServer
from penstock.ledger import Ledger

# Built once in a test process: seventy commands take a tenth of a second, at each of many calls.
typer.main.get_command = typer.testing._get_command = functools.cache(typer.main.get_command)

# So are the certificates, which each of a thousand clients would read and parse.
httpx_transports.create_ssl_context = functools.cache(httpx_transports.create_ssl_context)

# Servers of the standard library look twice a second whether they shall stop; here many stop.
socketserver.BaseServer.serve_forever.__defaults__ = (0.02,)

_ALL_SLOW = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.slow\b", re.MULTILINE)


# What takes longest begins first, so that no worker is left with it at the end.
_FIRST = (
    "end_to_end/test_demo.py",
    "orchestrators/test_airflow_loop.py",
    "orchestrators/test_dagster.py",
    "registry/test_github_workflow.py",
    "end_to_end/test_closed_loop.py",
    "orchestrators/test_prefect.py",
    "conformance/test_launchers.py",
    "engines/test_spark_and_ray.py",
    "test_pipeline.py",
    "conformance/test_engines.py",
    "stages/test_prepare_rows.py",
    "stages/test_tested_bytes.py",
    "launchers/test_deepspeed.py",
    "end_to_end/test_cli_bad_input.py",
    "crash/test_crash.py",
    "sources/test_kafka_kills.py",
    "conformance/test_evaluators.py",
    "conformance/test_backends.py",
    "conformance/test_transforms.py",
    "sources/test_sql.py",
    "conformance/test_sources.py",
    "test_ledger.py",
    "test_follow.py",
    "stages/test_ingest.py",
)


def pytest_collection_modifyitems(items):
    rank = {Path(__file__).parent / name: i for i, name in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_ignore_collect(collection_path, config):
    """Without slow tests, leave out files of nothing else: many import torch, each worker all."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return bool(_ALL_SLOW.search(collection_path.read_text(encoding="utf-8"))) or None


@pytest.fixture(scope="session")
def postgres_server():
    """One server for each test process; tests get databases of their own in it."""
    server = postgres.running()
    try:
        running = server.__enter__()
    except postgres.Unavailable as reason:
        pytest.skip(f"PostgreSQL: {reason}")
    try:
        yield running
    finally:
        server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def penstock_program():
    """A program that is `penstock` without the seconds of its imports."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:  # a socket's path is short
        server = ForkServer(Path(folder))
        try:
            yield server.penstock
        finally:
            server.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def ledger_url(request, tmp_path):
    """The address of an empty database of each kind a ledger may live in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_server").new_schema()


@pytest.fixture
def ledger(ledger_url):
    opened = Ledger(ledger_url)
    yield opened
    opened.close()
