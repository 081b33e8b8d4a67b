"""``penstock judge``: what is printed, for people and for machines, and what comes of mistakes."""

import json
import math

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from judge_world import BAD, GOOD, World, fair, judging
from penstock.cli import app
from penstock.errors import EvaluationError, PenstockError, RecipeError


@pytest.fixture(scope="module")
def server():
    with judging() as running:
        running.fail = fair
        yield running


@pytest.fixture
def world(tmp_path, server):
    made = World(tmp_path / "project", server.url)
    made.serve(1)
    yield made
    made.close()


@pytest.fixture
def penstock(world):
    def call(*words):
        done = CliRunner().invoke(app, ["judge", *words, "--recipe", str(world.path)])
        if isinstance(done.exception, PenstockError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


@pytest.mark.slow
def test_a_run_says_what_it_came_to_and_a_status_what_it_is_worth(world, penstock):
    world.answer([GOOD, GOOD, BAD])
    assert "3 verdicts." in penstock("run")
    assert "0 verdicts." in penstock("run")
    told = penstock("status")
    assert "the-judge has judged 3 answers." in told
    assert "It does not count yet" in told
    assert "66.7%" in told
    assert "Today: 3 of 500 questions." in told


@pytest.mark.slow
def test_machines_get_json(world, penstock):
    world.answer([GOOD])
    assert json.loads(penstock("run", "--json"))["judged"] == 1
    status = json.loads(penstock("status", "--json"))
    assert status["quality"]["1"]["judged"] == 1
    assert status["calibration"]["standing"] == "too few labels"
    pairs = json.loads(penstock("pairs", "--json"))
    assert (pairs["run"]["judged"], pairs["pairs"]) == (0, [])


@pytest.mark.slow
def test_pairs_are_shown_with_who_won(world, penstock):
    ids = world.answer([GOOD] * 3)
    world.shadow(ids, [BAD] * 3)
    told = penstock("pairs")
    assert "penny version 1" in told
    assert "small version 2" in told
    assert "6 verdicts" in told
    (pair,) = json.loads(penstock("pairs", "--json"))["pairs"]
    assert (pair["wins"], pair["losses"], pair["ties"]) == (3, 0, 0)


def test_without_pairs_that_is_said(world, penstock):
    assert "There are no pairs" in penstock("pairs")


def test_a_judge_that_is_down_is_an_error_and_not_a_traceback(world, penstock):
    world.answer([GOOD])
    with pytest.raises(EvaluationError, match="cannot be reached"):
        penstock("run", "--set", "observe.judge.base_url=http://127.0.0.1:9/v1")


def test_what_needs_a_run_that_ends_or_goes_on_says_so(penstock):
    with pytest.raises(RecipeError, match="--json"):
        penstock("run", "--json", "--every-s", "5")
    with pytest.raises(RecipeError, match="--metrics-port"):
        penstock("run", "--metrics-port", "9091")


def test_a_recipe_without_a_judge_says_what_to_set(penstock):
    with pytest.raises(RecipeError, match="names no judge"):
        penstock("status", "--set", "observe.judge=null")


@pytest.mark.slow
def test_a_run_that_goes_on_waits_out_an_outage(world, server, monkeypatch):
    from penstock.cli import judge as commands

    told = []
    monkeypatch.setattr("penstock.printing.note", told.append)
    world.answer([GOOD])
    states = iter([lambda path, body: (503, "{}"), fair, fair])

    def sleep(seconds):
        server.fail = next(states, None)
        if server.fail is None:
            raise KeyboardInterrupt

    sleep(0)
    monkeypatch.setattr(commands.time, "sleep", sleep)
    try:
        with pytest.raises(KeyboardInterrupt):
            commands.judge_run(every_s=1, recipe=world.path)
    finally:
        server.fail = fair
    assert told[0].startswith("Not judged: The judge does not answer")
    assert told[1] == "1 verdicts."


@pytest.mark.slow
def test_a_run_that_goes_on_shows_prometheus_the_share_of_good_answers(world, monkeypatch):
    from penstock.cli import judge as commands

    told, seen = [], []
    monkeypatch.setattr("penstock.printing.note", told.append)
    world.answer([GOOD, GOOD, GOOD, BAD])

    def sleep(seconds):
        page = httpx.get(told[0].removeprefix("Metrics: ")).text
        for family in text_string_to_metric_families(page):
            seen.extend((one.name, one.labels, one.value) for one in family.samples)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        commands.judge_run(every_s=1, metrics_port=0, recipe=world.path)
    assert ("penstock_judge_good_ratio", {"version": "1"}, 0.75) in seen
    assert ("penstock_judge_answers", {"version": "1"}, 4.0) in seen
    assert ("penstock_judge_questions_today", {}, 4.0) in seen
    assert ("penstock_judge_counts", {}, 0.0) in seen
    (kappa,) = [value for name, _, value in seen if name == "penstock_judge_kappa"]
    assert math.isnan(kappa)  # nobody has scored an answer
