"""Several gateway processes behind one port, in front of the fake backend."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest
from doubles import wait_until
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow

HERE = str(Path(__file__).parent)
WORKER = """
import json, sys
sys.path.insert(0, {here!r})
from doubles import Pointer, model, served
from fake_backend import ByteTokenizer
from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.model_text import ModelText
from penstock.serving.server import serve
from penstock.serving.workers import inherited
ModelText.load = lambda folder: ModelText(ByteTokenizer(), 256, 256, frozenset())
config = Serve(models={{"penny": model()}}, port=0, metrics_port=0, drain_timeout_s=10)
around = Surroundings(Pointer(served({folder!r}, 1)))
fd = int(sys.argv[sys.argv.index("--socket") + 1])
if {broken!r}:
    sys.exit(3)
serve(config, around, lambda at: print(json.dumps(at._asdict()), flush=True), inherited(fd))
"""
PARENT = """
import json, sys
from penstock.errors import PenstockError
from penstock.serve_section import Serve
from penstock.serving.workers import Workers
config = Serve(workers=2, port=0, drain_timeout_s=10, metrics_port=json.loads(sys.argv[2]))
try:
    Workers(config, [sys.executable, "-c", sys.argv[1]]).run(
        lambda at: print(json.dumps(at._asdict()), flush=True))
except PenstockError as error:
    sys.exit(f"{error.message} {error.hint}")
print("drained", flush=True)
"""


class Started:
    def __init__(self, folder, broken=False, metrics_port=0):
        worker = WORKER.format(here=HERE, folder=str(folder), broken=broken)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, worker, json.dumps(metrics_port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not broken:
            said = json.loads(self.process.stdout.readline())
            self.url, self.metrics_url = said["url"], said["metrics_url"]

    def children(self):
        return psutil.Process(self.process.pid).children()

    def samples(self, name):
        text = httpx.get(self.metrics_url).text
        return {
            sample.labels["worker"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }

    def wait_ready(self):
        shown = "penstock_served_version_info"
        wait_until(lambda: set(self.samples(shown)) == {"0", "1"}, timeout_s=60)


@pytest.fixture
def started(fake_folders):
    servers = []

    def start(**how):
        servers.append(Started(fake_folders[1], **how))
        return servers[-1]

    yield start
    for one in servers:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def ask(url, prompt="say hello"):
    body = {"model": "penny", "prompt": prompt}
    # A connection of its own for each request, so that all workers get some.
    return httpx.post(f"{url}/v1/completions", json=body, timeout=30)


def test_all_workers_answer_and_one_page_shows_what_each_has_done(started):
    server = started()
    server.wait_ready()
    name = "llm_requests_total"

    def ask_on():
        assert ask(server.url).json()["choices"][0]["text"] == "hello"
        return set(server.samples(name)) == {"0", "1"}

    wait_until(ask_on)
    before = sum(server.samples(name).values())
    for _ in range(10):
        assert ask(server.url).status_code == 200
    wait_until(lambda: sum(server.samples(name).values()) == before + 10)


def test_nothing_is_announced_before_a_worker_accepts(tmp_path):
    go = tmp_path / "go"
    worker = (
        "import json, pathlib, time\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)\n"
        "print(json.dumps({'metrics_url': None}), flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", PARENT, worker, "null"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        wait_until(lambda: len(psutil.Process(parent.pid).children()) == 2, timeout_s=60)
        assert select.select([parent.stdout], [], [], 0.5)[0] == []
        go.touch()
        assert json.loads(parent.stdout.readline())["url"].startswith("http://127.0.0.1:")
        parent.terminate()


def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(started):
    server = started()
    server.wait_ready()
    victim, other = server.children()
    victim.send_signal(signal.SIGKILL)
    for _ in range(20):
        assert ask(server.url).status_code == 200
    wait_until(lambda: len(server.children()) == 2 and victim not in server.children())
    assert other in server.children()
    server.wait_ready()


def test_sigterm_lets_all_answers_end(started):
    server = started()
    server.wait_ready()
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(server.url, "count 200")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(server.samples("llm_active_requests").values()) == 6)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert [answer.json()["choices"][0]["text"].count("\n") for answer in answers] == [200] * 6
    assert server.process.wait(20) == 0
    assert server.process.stdout.read().strip() == "drained"


def test_nothing_is_left_of_a_killed_parent(started):
    server = started()
    server.wait_ready()
    children = server.children()
    os.kill(server.process.pid, signal.SIGKILL)
    wait_until(lambda: not any(one.is_running() for one in children))
    with pytest.raises(httpx.ConnectError):
        ask(server.url)


@pytest.mark.parametrize("metrics_port", [0, None])
def test_workers_that_cannot_start_end_the_parent_with_a_reason(started, metrics_port):
    server = started(broken=True, metrics_port=metrics_port)
    announced, said = server.process.communicate(timeout=30)
    assert announced == ""  # nobody was told of a port that nobody answers on
    assert server.process.returncode == 1
    assert "ended with 3 before it could serve" in said
    assert "Traceback" not in said
