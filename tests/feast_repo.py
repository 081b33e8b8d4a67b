"""A real Feast repository: two entities, their features over time, a feature server."""

import contextlib
import datetime
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HOME = Path(__file__).parent.parent
PYTHON = HOME / ".venvs" / "feast" / "bin" / "python"

_STORE = """
project: support
registry: registry.db
provider: local
offline_store: {{type: dask}}
online_store: {online}
entity_key_serialization_version: 3
"""
_DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Int64, String

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
profile = FeatureView(
    name="profile",
    entities=[user],
    ttl=timedelta(days=3650),
    schema=[Field(name="plan", dtype=String), Field(name="tickets", dtype=Int64)],
    source=FileSource(path="profile.parquet", timestamp_field="changed_at"),
)
"""


def environment():
    """Make Feast's environment if need be; returns why it cannot be, or nothing."""
    made = subprocess.run(
        [HOME / "scripts" / "make-env.sh", "feast"], capture_output=True, text=True
    )
    return made.stderr.strip() if made.returncode else ""


def day(text):
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)


# user a was free in January with 1 ticket, and is pro since March with 2.
KNOWN = [
    {"user_id": "a", "plan": "free", "tickets": 1, "changed_at": day("2026-01-01")},
    {"user_id": "a", "plan": "pro", "tickets": 2, "changed_at": day("2026-03-01")},
    {"user_id": "b", "plan": "free", "tickets": 3, "changed_at": day("2026-01-01")},
]


def write(folder, online="{type: sqlite, path: online.db}"):
    """Write a repository, apply it, and fill its online store."""
    folder.mkdir(parents=True)
    (folder / "feature_store.yaml").write_text(_STORE.format(online=online))
    (folder / "definitions.py").write_text(_DEFINITIONS)
    pq.write_table(pa.Table.from_pylist(KNOWN), folder / "profile.parquet")
    feast = PYTHON.with_name("feast")
    for arguments in (["apply"], ["materialize-incremental", "2026-06-01T00:00:00"]):
        subprocess.run([feast, *arguments], cwd=folder, check=True, capture_output=True)


@contextlib.contextmanager
def serving(folder):
    """Run the feature server; yields its address."""
    port = free_port()
    command = [PYTHON.with_name("feast"), "serve", "-h", "127.0.0.1", "-p", str(port)]
    with _running(command, folder):
        url = f"http://127.0.0.1:{port}"
        _wait(lambda: urllib.request.urlopen(f"{url}/health", timeout=1).close())
        yield url


@contextlib.contextmanager
def redis(folder):
    """Run a Redis on a port of its own; yields ``online_store`` for feature_store.yaml."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with _running(command, folder):
        client = ["redis-cli", "-p", str(port), "ping"]
        _wait(lambda: subprocess.run(client, check=True, capture_output=True))
        yield f'{{type: redis, connection_string: "127.0.0.1:{port}"}}'


def has_redis():
    return shutil.which("redis-server") is not None


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextlib.contextmanager
def _running(command, folder):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, **quiet)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait(ready, timeout_s=60.0):
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return ready()
        except (OSError, subprocess.CalledProcessError):
            assert time.monotonic() < deadline_s, "waited in vain"
            time.sleep(0.1)
