"""The gateway's own description of itself, and whether it keeps to it."""

import subprocess
import sys

import httpx
import pytest
from doubles import model

from penstock.serving.openapi import ENDPOINTS


@pytest.fixture
def server(gateway, fake_folders):
    return gateway(
        more={
            "rank": model(task="rerank", source=str(fake_folders[2])),
            "intent": model(task="classify", source=str(fake_folders[3]), labels=["a", "b"]),
        },
        request_timeout_s=5.0,
    )


def test_every_endpoint_is_described(server):
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert set(described["paths"]) == {one.path for one in ENDPOINTS}
    chat = described["components"]["schemas"]["ChatRequest"]
    assert chat["properties"]["model"] == {"enum": ["penny", "vectors", "rank", "intent"]}
    assert chat["additionalProperties"] is False
    assert chat["properties"]["n"] == {"enum": [1, None]}


@pytest.mark.slow
def test_whatever_is_asked_the_answer_is_one_that_is_described(server):
    """Requests that fit the description and requests that do not, as schemathesis makes them."""
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_headers_conformance,response_schema_conformance,negative_data_rejection"
    )
    # Its phase "coverage" overflows the stack of Python 3.11's parser on fields of any type.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--checks", checks, "--max-examples", "15", "--generation-deterministic"),
            *("--phases", "fuzzing", "--workers", "2", "--no-color"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6_000:]
    assert httpx.get(f"{server.url}/readyz").status_code == 200
