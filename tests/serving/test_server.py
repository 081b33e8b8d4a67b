"""The server as a process: ports, signals, exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from doubles import Pointer, free_port, model, wait_until

from penstock.errors import PenstockError
from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.server import serve

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from doubles import Pointer, model, served
from fake_backend import ByteTokenizer
from penstock.errors import PenstockError
from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.model_text import ModelText
from penstock.serving.server import serve
# Importing transformers for its tokenizer would take most of the test's time.
ModelText.load = lambda folder: ModelText(ByteTokenizer(), 64, 256, frozenset())
config = Serve(models={{"penny": model()}}, metrics_port=None, **json.loads(sys.argv[2]))
around = Surroundings(Pointer(served(sys.argv[1], 1)))
try:
    serve(config, around, lambda at: print(at.url, flush=True))
except PenstockError as error:
    sys.exit(f"{{error.message}} {{error.hint}}")
print("drained", flush=True)
"""


@pytest.fixture
def process(fake_folders):
    started = []

    def start(**settings):
        settings = {"port": 0, **settings}
        program = PROGRAM.format(here=str(Path(__file__).parent))
        one = subprocess.Popen(
            [sys.executable, "-c", program, str(fake_folders[1]), json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(one)
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()


def ready(process):
    url = process.stdout.readline().strip()

    def is_ready():
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(is_ready, 60)
    return url


def stream(url, prompt):
    body = {"model": "penny", "prompt": prompt, "max_tokens": 9, "stream": True}
    return httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_finish_and_exits_with_0(process, number):
    one = process()
    url = ready(one)
    with stream(url, "count 60") as answer:
        lines = answer.iter_lines()
        next(lines)
        one.send_signal(number)
        time.sleep(0.1)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz")
        text = "\n".join(lines)
    assert "v1 59" in text
    assert "[DONE]" in text
    assert one.wait(10) == 0
    assert "drained" in one.stdout.read()


def test_an_answer_that_never_ends_is_cut_off_after_the_drain_timeout(process):
    one = process(drain_timeout_s=1)
    with stream(ready(one), "hang") as answer:
        lines = answer.iter_lines()
        next(lines)
        one.terminate()
        started_s = time.monotonic()
        assert "shutting down" in "".join(lines)
        assert one.wait(15) == 0
        assert 0.8 < time.monotonic() - started_s < 8
    assert "Traceback" not in one.stderr.read()


def test_a_second_signal_ends_the_process_at_once(process):
    one = process()
    with stream(ready(one), "hang") as answer:
        lines = answer.iter_lines()  # kept: dropping it would close the connection
        next(lines)
        one.terminate()
        time.sleep(0.3)
        assert one.poll() is None
        one.terminate()
        assert one.wait(2) == 128 + signal.SIGTERM


def test_a_taken_port_is_named_with_what_to_do(process):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one = process(port=port)
        _, said = one.communicate(timeout=60)
    assert one.returncode == 1
    assert f"127.0.0.1:{port}" in said
    assert "serve.port" in said
    assert "Traceback" not in said


def test_a_taken_metrics_port_frees_the_other_again():
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = Serve(models={"m": model()}, port=port, metrics_port=taken.getsockname()[1])
        with pytest.raises(PenstockError, match="Metrics cannot listen"):
            serve(config, Surroundings(Pointer()))
    socket.create_server(("127.0.0.1", port)).close()


def test_only_loopback_can_reach_the_gateway(process):
    port = int(ready(process()).rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=2)


def test_nothing_is_left_of_a_killed_server(process):
    one = process()
    url = ready(one)
    os.kill(one.pid, signal.SIGKILL)
    one.wait(5)
    again = process(port=int(url.rsplit(":", 1)[1]))
    assert ready(again) == url
