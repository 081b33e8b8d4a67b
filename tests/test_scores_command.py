"""``penstock scores``: what is typed, what is said, and what a kill leaves behind."""

import json
import signal
import subprocess
import sys
import threading

import pytest
import yaml
from typer.testing import CliRunner

from penstock.cli import app, main
from penstock.cli import scores as command
from penstock.monitoring import score_calls
from penstock.monitoring.score_calls import ScoresNotSent
from score_tools import KEYS, ScoreTools
from traffic_rows import Writers, opinion, response_id

RECIPE = {
    "name": "support",
    "store": "store",
    "sources": {"rows": {"type": "files", "paths": ["rows.jsonl"]}},
    "evaluate": {"tasks": ["held_out"]},
    "gate": {"max": {"held_out": 8.0}},
}


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.setattr(score_calls, "_PAUSES_S", (0.0,))
    with ScoreTools() as running:
        yield running


@pytest.fixture
def writers(tmp_path, tools, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    traces = {"to": "langfuse", "endpoint": tools.url}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"serve": {"traces": traces}}))
    (tmp_path / "store").mkdir()
    return Writers(tmp_path / "store")


def penstock(*words):
    done = CliRunner().invoke(app, ["scores", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_people_are_told_in_a_sentence_and_machines_in_json(writers):
    writers.say(opinion(response_id()))
    assert "1 score is attached to traces in Langfuse." in penstock()
    report = json.loads(penstock("--json"))
    assert report == {
        "to": "langfuse",
        "sent": 0,
        "waiting_responses": 0,
        "untraced": 0,
        "given_up": {},
    }


def test_a_receiver_that_is_down_is_an_error(writers, tools):
    writers.say(opinion(response_id()))
    tools.answer = lambda number: 503
    with pytest.raises(ScoresNotSent, match="busy or broken"):
        penstock()


def test_a_wrong_key_ends_the_process_with_words_and_without_the_key(
    writers, tools, monkeypatch, capsys
):
    writers.say(opinion(response_id()))
    monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk-lf-not-a-key")
    monkeypatch.setattr(sys, "argv", ["penstock", "scores"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    said = capsys.readouterr()
    assert "LANGFUSE_SECRET_KEY" in said.err
    assert "sk-lf-not-a-key" not in said.out + said.err


@pytest.mark.slow
def test_a_process_that_is_killed_in_the_middle_loses_nothing_and_doubles_nothing(writers, tools):
    names = [response_id(number=number) for number in range(6)]
    for name in names:
        writers.say(opinion(name))
    reached = threading.Event()

    def answer(number):
        if number == 3:
            reached.set()
            threading.Event().wait(10)

    tools.answer = answer
    process = subprocess.Popen([sys.executable, "-m", "penstock.cli", "scores"])
    try:
        assert reached.wait(60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    tools.answer = lambda number: None
    assert "6 scores are attached" in penstock()
    assert sorted(one["traceId"] for one in tools.scores.values()) == [name[-32:] for name in names]


@pytest.mark.slow
def test_going_on_waits_an_outage_out_and_sends_what_comes(writers, tools, monkeypatch):
    class Enough(Exception):
        pass

    turns = []

    def sleep(seconds):
        turns.append(seconds)
        if len(turns) == 1:
            tools.answer = lambda number: None
            writers.say(opinion(response_id(number=1)))
        if len(turns) == 2:
            writers.say(opinion(response_id(number=2)))
        if len(turns) == 3:
            raise Enough

    writers.say(opinion(response_id()))
    tools.answer = lambda number: 503
    monkeypatch.setattr(command.time, "sleep", sleep)
    monkeypatch.setattr(score_calls, "_PAUSES_S", ())
    with pytest.raises(Enough):
        penstock("--every-s", "7")
    assert turns == [7, 7, 7]
    assert len(tools.scores) == 3


def test_going_on_ends_with_a_wrong_key(writers, tools, monkeypatch):
    monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk-lf-not-a-key")
    writers.say(opinion(response_id()))
    with pytest.raises(ScoresNotSent, match="does not let us in"):
        penstock("--every-s", "1")
