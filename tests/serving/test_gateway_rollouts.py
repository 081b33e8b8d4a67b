"""Trials and promotions with gateways under load, on a ledger."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fake_backend
import httpx
import pytest
from doubles import model, served, wait_until

from penstock.errors import ServingError
from penstock.ledger.rollout_records import State
from penstock.ledger.rollouts import Rollouts
from penstock.monitoring.metrics import ServingMetrics
from penstock.rollout import Opening
from penstock.rollout_control import Controller, start, stop
from penstock.rollout_replay import replay
from penstock.serving.response_id import parse_response_id
from penstock.serving.routes import Targets
from penstock.serving.trials import Trials
from rollout_world import ALIAS, MODEL, World, terms

pytestmark = pytest.mark.slow


class LedgerTargets:
    """The ledger's pointer and trial, with the folders that the fake backend can load."""

    def __init__(self, ledger, folders):
        self._rollouts = Rollouts(ledger.database)
        self._folders = folders

    def targets(self, name):
        pointer, trial = self._rollouts.serving(MODEL, ALIAS)
        champion = self._served(pointer.version, pointer.epoch)
        if trial is None or trial.champion != pointer.version:
            return Targets(champion)
        challenger = self._served(trial.challenger, pointer.epoch)
        return Targets(champion, challenger, trial.share, trial.id, trial.step)

    def _served(self, number, epoch):
        return served(self._folders[number], number, epoch=epoch)


@pytest.fixture
def ledger_url():
    """In memory where that is possible: these tests wait for the disk most of the time."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield f"sqlite:///{folder}/ledger.db"


@pytest.fixture
def world(ledger, tmp_path):
    return World(ledger, tmp_path)


@pytest.fixture
def start_gateway(gateway, world, fake_folders):
    """Gateways that follow the ledger and observe trials."""
    observing = []

    def begin(**settings):
        trials = Trials(world.rollouts, settings.pop("formats", {}), ServingMetrics(), 0.05)
        observing.append(trials.__enter__())
        pointer = LedgerTargets(world.ledger, fake_folders)
        return gateway(pointer=pointer, observers=(trials,), **settings)

    yield begin
    for trials in observing:
        trials.__exit__()


class Clients:
    """Ask without a pause, and read every answer to its end."""

    def __init__(self, servers, prompt="count 6", num=6, pause_s=0.0):
        self.answers, self.failures = [], []
        self._prompt = prompt
        self._pause_s = pause_s
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(servers[i % len(servers)], i % 2 == 0))
            for i in range(num)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, server, stream):
        body = {"model": "penny", "prompt": self._prompt, "stream": stream}
        with httpx.Client(timeout=30) as client:
            while not self._stopped.wait(self._pause_s):
                try:
                    answer = client.post(f"{server.url}/v1/completions", json=body)
                    self.answers.append(_read(answer, stream))
                except Exception as error:
                    self.failures.append(error)

    def check(self, num_tokens):
        """No answer failed, was cut short or came of two versions."""
        assert self.failures == []
        for version, text, prefixes in self.answers:
            assert text == "".join(f"v{version} {i}\n" for i in range(num_tokens))
            assert prefixes == {f"0{version}" * 8}


def _read(answer, stream):
    assert answer.status_code == 200, answer.text
    if stream:
        *events, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert done == "[DONE]"
        bodies = [json.loads(event) for event in events]
    else:
        bodies = [answer.json()]
    text = "".join(body["choices"][0]["text"] for body in bodies)
    prefixes = {parse_response_id(body["id"]).digest_prefix for body in bodies}
    return answer.headers["x-penstock-model-version"], text, prefixes


@pytest.fixture
def broken_v2(monkeypatch):
    """Version 2 loads, is healthy, and fails whatever it is asked."""
    original = fake_backend.FakeBackend.generate

    async def generate(self, request):
        if self._name == "v2":
            raise ServingError("v2 does not work.")
        async for chunk in original(self, request):
            yield chunk

    monkeypatch.setattr(fake_backend.FakeBackend, "generate", generate)


def sample(server, name, **labels):
    return server.gateway.metrics.registry.get_sample_value(name, labels)


def test_a_challenger_that_fails_is_taken_back_and_no_client_sees_it(
    start_gateway, world, broken_v2
):
    server = start_gateway()
    table = server.gateway.models["penny"].table
    with Controller(world.ledger, world.promoters), Clients([server], num=3) as clients:
        begun = world.start(steps=(50, 100))
        wait_until(lambda: not world.rollouts.find(begun.id).is_open)
        wait_until(lambda: table.challenger is None)
    ended = world.rollouts.find(begun.id)
    assert ended.state is State.ROLLED_BACK
    assert "worse in errors" in ended.reason
    assert world.serving == 1
    clients.check(6)
    assert {version for version, _, _ in clients.answers} == {"1"}
    assert sample(server, "penstock_retries_total", model="penny", kind="same_model") > 0
    assert sample(server, "penstock_rollout_share", model="penny") == 0
    # Decided soon: the first evidence of harm was written less than a second before.
    last = world.rollouts.events(begun.id)[-1]
    assert last.evidence["arms"]["challenger"]["error_rate"] == 1
    assert all(one.same for one in replay(world.rollouts, ended))


def test_two_gateways_and_one_controller_promote_a_good_challenger_step_by_step(
    start_gateway, world, events
):
    servers = [start_gateway(), start_gateway()]
    told = []
    with (
        Controller(world.ledger, world.promoters, None, lambda *said: told.append("one")),
        Controller(world.ledger, world.promoters, None, lambda *said: told.append("two")),
        Clients(servers, "count 2") as clients,
    ):
        begun = world.start(steps=(30, 60, 100), margins={"errors": 0.5})
        wait_until(lambda: not world.rollouts.find(begun.id).is_open, 30)
        for server in servers:
            table = server.gateway.models["penny"].table
            wait_until(lambda table=table: table.current.served.version == 2)
            assert table.challenger is None
    ended = world.rollouts.find(begun.id)
    assert (ended.state, world.serving) == (State.PROMOTED, 2)
    assert world.actions(begun) == ["start", "step", "promote", "promoted"]
    assert len(told) == 3
    assert len(set(told)) == 1
    assert events["load v2"] == 2  # once in each gateway: the promotion loads nothing
    clients.check(2)
    requests = world.rollouts.events(begun.id)[-1].evidence["requests"]
    assert min(requests.values()) >= 5
    assert all(one.same for one in replay(world.rollouts, ended))


def test_answers_without_the_form_take_it_back(start_gateway, world, fake_folders, gateway):
    """The fake backend answers with its folder's name: v1, v2."""
    from penstock.answer_format import AnswerFormat

    server = start_gateway(
        formats={"penny": AnswerFormat("v1")}, more={"penny": model(format="v1")}
    )
    with Controller(world.ledger, world.promoters), Clients([server], "hi"):
        begun = world.start(steps=(50, 100))
        wait_until(lambda: not world.rollouts.find(begun.id).is_open)
    assert "worse in format" in world.rollouts.find(begun.id).reason


class TestPromotions:
    """Two hundred versions on trial and promoted, under load."""

    NUM = 200

    def test_no_answer_fails_ends_early_or_mixes_versions(self, start_gateway, world, events):
        server = start_gateway(poll_interval_s=0.005)
        table = server.gateway.models["penny"].table
        with Clients([server], "count 40", num=4) as clients:
            for number in range(self.NUM):
                champion, challenger = 1 + number % 2, 1 + (number + 1) % 2
                opening = Opening(MODEL, ALIAS, champion, challenger, terms().terms(), (50, 100))
                begun = start(world.rollouts, opening, world.production)
                wait_until(lambda: table.challenger is not None and table.share == 0.5)
                world.rollouts.find(begun.id)
                _promote(world, begun)
                wait_until(lambda challenger=challenger: table.current.served.version == challenger)
        clients.check(40)
        assert len(clients.answers) > self.NUM / 4
        assert {version for version, _, _ in clients.answers} == {"1", "2"}
        assert len(world.ledger.history(MODEL)) == self.NUM + 1
        wait_until(lambda: events["open"] == 2)  # one version, and the embedding model


def _promote(world, begun):
    from penstock.rollout_control import promote_now

    assert promote_now(world.rollouts, begun, world.production, "next").state is State.PROMOTED


class Controllers:
    """The program that runs controllers in children and kills them."""

    def __init__(self, url, folder):
        self._order = {"ledger": url, "folder": str(folder)}
        tests = Path(__file__).parent.parent
        self._process = subprocess.Popen(
            [sys.executable, tests / "controller_kills.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, rollout, kill=None):
        """Whether it was killed; it ends when the rollout does."""
        order = {**self._order, "rollout": rollout.id, "kill": kill}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["killed"] or answer["status"] == 0, answer
        return answer["killed"]

    def close(self):
        self._process.communicate()


@pytest.fixture
def controllers(tmp_path, ledger_url, ledger):
    running = Controllers(ledger_url, tmp_path)
    yield running
    running.close()


def test_a_controller_may_be_killed_at_every_write(start_gateway, world, controllers):
    """Traffic goes on, the next controller ends what was begun, and one version serves."""
    server = start_gateway()
    table = server.gateway.models["penny"].table
    with Clients([server], "count 3", num=2, pause_s=0.05) as clients:
        for number in range(1, 100):
            killed = _killed_and_continued(world, controllers, number)
            wait_until(lambda: table.current.served.version == world.serving)
            if not killed:
                break
    # claim, step, promote, move, claim of the mirror, its watermark, that given back,
    # promoted, claim given back
    assert number > 9
    clients.check(3)


def _killed_and_continued(world, controllers, number):
    champion = world.serving
    begun = world.start(2 if champion == 1 else 1, steps=(10, 50, 100))
    world.feed_good(begun)
    moves = len(world.ledger.history(MODEL))
    killed = controllers.run(begun, number)
    now = world.rollouts.find(begun.id)
    assert world.serving in (champion, begun.challenger)
    if now.state is State.PROMOTED:
        assert world.serving == begun.challenger
    controllers.run(begun)
    ended = world.rollouts.find(begun.id)
    assert ended.state is State.PROMOTED
    assert world.serving == begun.challenger
    assert len(world.ledger.history(MODEL)) == moves + 1
    assert world.rollouts.open(MODEL, ALIAS) is None
    assert world.actions(begun) == ["start", "step", "promote", "promoted"]
    assert all(one.same for one in replay(world.rollouts, ended))
    return killed


def test_a_trial_that_is_stopped_and_begun_anew_gives_its_share_to_the_right_version(
    start_gateway, world, fake_folders
):
    server = start_gateway()
    table = server.gateway.models["penny"].table
    begun = world.start(2, steps=(50, 100))
    wait_until(lambda: table.share == 0.5)
    fake_backend.LOAD_DELAY_S["v3"] = 0.3
    try:
        stop(world.rollouts, begun, "another one")
        world.start(3, steps=(50, 100))
        shares = set()
        while table.challenger is None or table.challenger.served.version != 3:
            if table.challenger is not None and table.rollout != begun.id:
                shares.add(table.share)
            time.sleep(0.002)
        assert shares <= {0.0}
        wait_until(lambda: table.share == 0.5)
    finally:
        fake_backend.LOAD_DELAY_S.clear()
