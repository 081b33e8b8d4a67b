"""Asking a judge over HTTP: what is asked, kept, paid for, and what goes wrong."""

import json
import multiprocessing
import os
import threading

import pytest

from judge_world import BAD, GOOD, World, completion, fair, judging, said
from penstock.errors import EvaluationError, RecipeError
from penstock.judged import judged_scores
from penstock.ledger.judge_budget import JudgeBudget
from penstock.monitoring.judge import Judge
from penstock.monitoring.judge_questions import is_sampled
from penstock.project import open_project

USAGE = {"prompt_tokens": 100, "completion_tokens": 20}


@pytest.fixture(scope="module")
def running():
    with judging() as server:
        yield server


@pytest.fixture
def server(running):
    running.fail = fair
    running.seen.clear()
    yield running
    running.fail = fair


@pytest.fixture
def build(tmp_path, server):
    """Makes worlds with one served version."""
    made = []

    def build(**settings):
        world = World(tmp_path / f"project{len(made)}", server.url, **settings)
        made.append(world)
        world.serve(1)
        return world

    yield build
    for world in made:
        world.close()


@pytest.fixture
def world(build):
    return build()


def bodies(server):
    return [body for _, _, body in server.seen]


# -- marks -------------------------------------------------------------------


def test_each_answer_gets_a_row_with_its_score_and_the_reason(world, server):
    good, bad = world.answer([GOOD, BAD])
    outcome = world.run()
    assert (outcome.judged, outcome.no_verdict, outcome.left) == (2, 0, 0)
    rows = {row["response_id"]: row for row in world.rows()}
    assert {name: row["score"] for name, row in rows.items()} == {good: 1.0, bad: 0.0}
    assert rows[good]["reason"] == "as it is"
    assert rows[good]["judge_model"] == "the-judge"
    assert (rows[good]["version"], rows[good]["tenant"], rows[good]["kind"]) == (1, None, "mark")
    assert (rows[good]["prompt_tokens"], rows[good]["completion_tokens"]) == (100, 20)


@pytest.mark.slow
def test_scores_are_read_from_where_a_reader_left_off(world):
    (first,) = world.answer([GOOD])
    world.run()
    table = world.judge().traffic.judged
    (one,) = judged_scores(table)
    assert one[:3] == (first, 1.0, "the-judge")
    (second,) = world.answer([BAD])
    world.run()
    assert [score[:2] for score in judged_scores(table, since=one.version)] == [(second, 0.0)]
    assert list(judged_scores(table, judge="another")) == []


@pytest.mark.slow
def test_nothing_is_asked_twice(world, server):
    world.answer([GOOD, BAD])
    world.run()
    server.seen.clear()
    assert world.run().judged == 0
    assert server.seen == []
    assert len(world.rows()) == 2


@pytest.mark.slow
def test_the_same_question_of_two_users_is_paid_once_and_counts_twice(world, server):
    first = world.answer([GOOD])
    world.num_written = 0  # the next one asks the same
    second = world.answer([GOOD])
    outcome = world.run()
    assert (outcome.judged, outcome.cached, len(server.seen)) == (2, 1, 1)
    assert {row["response_id"] for row in world.rows()} == {*first, *second}
    assert sorted(row["num_asked"] for row in world.rows()) == [0, 1]
    world.num_written = 0
    world.answer([GOOD])
    assert world.run().cached == 1
    assert len(server.seen) == 1


@pytest.mark.slow
def test_only_the_versions_own_answers_that_clients_saw_are_judged(world, server):
    world.answer([GOOD], shadow=True)
    world.answer([GOOD], status=500)
    world.answer([GOOD], version=9)
    world.answer([GOOD], minutes_ago=0)  # its row may not be written yet
    world.answer([GOOD], minutes_ago=60 * 24 * 40)
    assert world.run().judged == 0
    assert server.seen == []


def test_the_sample_goes_by_the_id_and_has_its_share():
    names = [f"chatcmpl-{'ab' * 8}-{i:032x}" for i in range(4_000)]
    few, many = ({name for name in names if is_sampled(name, share)} for share in (0.05, 0.2))
    assert few < many
    assert 150 < len(few) < 250
    assert all(is_sampled(name, 1.0) for name in names)


@pytest.mark.slow
def test_what_people_have_scored_is_judged_whatever_the_sample_says(build):
    world = build(sample=1e-9)
    first, *_ = world.answer([GOOD, BAD])
    world.say([first], 1.0)
    assert world.run().judged == 1
    (row,) = world.rows()
    assert (row["response_id"], row["sampled"]) == (first, False)


def test_what_is_scored_long_after_it_was_passed_by_is_judged_too(build):
    world = build(sample=1e-9)
    (name,) = world.answer([GOOD], minutes_ago=60 * 24 * 3)
    assert world.run().judged == 0
    world.say([name], 0.0)
    assert world.run().judged == 1


@pytest.mark.slow
def test_a_larger_sample_takes_what_a_smaller_one_has_passed_by(build):
    world = build(sample=1e-9)
    world.answer([GOOD] * 3, minutes_ago=60 * 24 * 3)
    world.answer([GOOD] * 3, minutes_ago=60 * 24 * 2)
    assert world.run().judged == 0
    world.open(sample=1.0)
    assert world.run().judged == 6


@pytest.mark.slow
def test_the_newest_go_first_where_the_budget_is_short(build):
    world = build(max_questions_per_day=2, num_concurrent=1)
    world.answer([GOOD], minutes_ago=60 * 24 * 3)
    newest = world.answer([GOOD, GOOD], minutes_ago=5)
    world.answer([GOOD], minutes_ago=60 * 24)
    assert world.run().left == 2
    assert {row["response_id"] for row in world.rows()} == set(newest)
    world.open(max_questions_per_day=10)
    assert world.run().judged == 2


@pytest.mark.slow
def test_people_s_scores_do_not_take_the_whole_budget(build):
    world = build(max_questions_per_day=10, num_concurrent=1)
    world.say(world.answer([GOOD] * 20, minutes_ago=5), 1.0)
    others = world.answer([GOOD] * 20, minutes_ago=60)
    world.run()
    assert len({row["response_id"] for row in world.rows()} & set(others)) == 5


@pytest.mark.slow
def test_other_criteria_ask_again(world, server):
    world.answer([GOOD])
    world.run()
    world.open(criteria="Short.")
    assert world.run().judged == 1
    assert [body["messages"][0]["content"].count("Short.") for body in bodies(server)] == [0, 1]


@pytest.mark.slow
def test_what_is_asked_holds_criteria_question_and_answer(world, server):
    world.answer([GOOD])
    world.run()
    (body,) = bodies(server)
    rules, asked = (one["content"] for one in body["messages"])
    assert "It says what to do." in rules
    assert "Question 1: how do I reset it?" in asked
    assert GOOD in asked
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("the-judge", 0, 512)


def test_a_model_that_takes_no_temperature_and_another_limit_is_asked_so(build, server):
    world = build(temperature=None, reply_limit="max_completion_tokens", max_reply_tokens=64)
    world.answer([GOOD])
    assert world.run().judged == 1
    (body,) = bodies(server)
    assert body["max_completion_tokens"] == 64
    assert not {"temperature", "max_tokens"} & set(body)


def test_a_long_answer_is_left_out_and_counted(build, server):
    world = build(max_characters=200)
    world.answer([GOOD, "word " * 100])
    outcome = world.run()
    assert (outcome.judged, outcome.too_long) == (1, 1)


def test_reasons_are_kept_without_personal_data(world, server):
    server.fail = lambda path, body: said(score=4, reason="It names ann@example.com.")
    world.answer([GOOD])
    world.run()
    assert world.rows()[0]["reason"] == "It names [EMAIL]."


# -- pairs -------------------------------------------------------------------


@pytest.mark.slow
def test_a_pair_is_asked_in_both_orders_and_a_version_that_wins_both_is_better(world, server):
    ids = world.answer([GOOD, BAD, GOOD])
    world.shadow(ids, [BAD, GOOD, GOOD])
    outcome = world.run(in_pairs=True)
    # Two that are alike are the same question in both orders.
    assert (outcome.judged, len(server.seen)) == (6, 5)
    by_id = {name: set() for name in ids}
    for row in world.rows():
        by_id[row["response_id"]].add((row["swapped"], row["score"]))
    assert [by_id[name] for name in ids] == [
        {(False, 1.0), (True, 1.0)},
        {(False, 0.0), (True, 0.0)},
        {(False, 0.5), (True, 0.5)},
    ]
    assert {row["other_version"] for row in world.rows()} == {2}
    assert world.run(in_pairs=True).judged == 0


@pytest.mark.slow
def test_a_judge_that_prefers_the_first_prefers_nobody(world, server):
    from penstock.monitoring.judge_standing import preferences

    server.fail = lambda path, body: said(better="first", reason="it came first")
    ids = world.answer([GOOD] * 4)
    world.shadow(ids, [BAD] * 4)
    world.run(in_pairs=True)
    (found,) = preferences(world.judge()).values()
    assert (found.wins, found.losses, found.ties) == (0, 0, 4)


@pytest.mark.slow
def test_pairs_are_asked_about_one_request_and_not_about_two_under_one_id(world, server):
    ids = world.answer([GOOD])
    world.num_written = 0
    world.answer([GOOD])  # a client that uses an id of its own twice
    world.shadow(ids, [BAD])
    assert world.run(in_pairs=True).judged == 0
    assert server.seen == []


@pytest.mark.slow
def test_a_shadow_that_was_asked_something_else_is_no_pair(world, server):
    world.shadow(world.answer([GOOD]), [BAD], prompt="Why?")
    outcome = world.run(in_pairs=True)
    assert (outcome.judged, outcome.no_text) == (0, 1)
    assert server.seen == []


@pytest.mark.slow
def test_half_a_pair_is_gone_on_with(build, server):
    world = build(max_questions_per_day=1, num_concurrent=1)
    ids = world.answer([GOOD])
    world.shadow(ids, [BAD])
    outcome = world.run(in_pairs=True)
    assert (outcome.judged, outcome.left) == (1, 1)
    world.open(max_questions_per_day=2)
    assert world.run(in_pairs=True).judged == 1
    assert len(server.seen) == 2
    assert {row["swapped"] for row in world.rows()} == {False, True}


# -- budget ------------------------------------------------------------------


@pytest.mark.slow
def test_no_more_is_asked_than_a_day_allows(build, server):
    world = build(max_questions_per_day=3, num_concurrent=2)
    world.answer([GOOD] * 5)
    outcome = world.run()
    assert (outcome.judged, outcome.left) == (3, 2)
    assert world.run().left == 2
    assert len(server.seen) == 3


@pytest.mark.slow
def test_a_budget_of_money_counts_what_questions_cost(build, server):
    price = {"prompt_per_million": 1_000.0, "completion_per_million": 1_000.0}
    world = build(price=price, usd_per_day=4.0, num_concurrent=1, max_reply_tokens=100)
    world.answer([GOOD] * 30)
    outcome = world.run()
    # One costs 0.12 dollars, and may cost some 2: the last ones have too little left for that.
    spent = world.judge().budget.today()
    assert spent.nanousd == outcome.judged * 120_000_000 <= 4 * 10**9
    assert 10 < outcome.judged < 30
    assert outcome.left == 30 - outcome.judged
    assert sum(row["nanousd"] for row in world.rows()) == spent.nanousd


def test_a_server_that_does_not_say_what_it_used_costs_what_it_may_at_most(build, server):
    server.fail = lambda path, body: completion('{"score": 4, "reason": ""}', usage=None)
    world = build(price={"prompt_per_million": 1.0, "completion_per_million": 1.0})
    world.answer([GOOD])
    world.run()
    assert world.rows()[0]["nanousd"] == world.judge().budget.today().nanousd > 512_000


def test_a_recipe_with_a_budget_of_money_needs_a_price(build):
    with pytest.raises(RecipeError, match="set price"):
        build(usd_per_day=1.0)


# -- what goes wrong ---------------------------------------------------------


@pytest.mark.slow
def test_nonsense_is_asked_again_once_and_then_there_is_no_verdict(world, server):
    server.fail = lambda path, body: completion("A solid 5 out of 5!")
    world.answer([GOOD])
    outcome = world.run()
    assert (outcome.judged, outcome.no_verdict) == (0, 1)
    first, second = bodies(server)
    assert second["messages"][1]["content"] != first["messages"][1]["content"]
    (row,) = world.rows()
    assert (row["score"], row["num_asked"]) == (None, 2)
    assert row["note"] == "the reply is not the JSON that was asked for"
    world.run()
    assert len(server.seen) == 2  # it is known to be of no use


def test_a_judge_that_comes_to_its_senses_has_given_a_verdict(world, server):
    replies = iter([completion("Let me think."), said(score=2, reason="thin")])
    server.fail = lambda path, body: next(replies)
    world.answer([GOOD])
    assert world.run().judged == 1
    assert world.rows()[0]["score"] == 0.25
    assert world.judge().budget.today().questions == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "note"),
    [
        (completion(""), "no text"),
        (completion(None), "no text"),
        ((200, json.dumps({"choices": [{"message": {"content": "{"}, "finish_reason": "length"}]})),
         "max_reply_tokens"),
        ((200, json.dumps({"choices": ["what"]})), "no text"),
    ],
)  # fmt: skip
def test_why_there_is_no_verdict_is_written_down(world, server, reply, note):
    server.fail = lambda path, body: reply
    world.answer([GOOD])
    world.run()
    assert note in world.rows()[0]["note"]


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_judge_that_fails_is_asked_again_another_time(build, server, status):
    world = build(num_concurrent=2)
    server.fail = lambda path, body: (
        status,
        '{"error": {"message": "not now"}}',
        {"Retry-After": "0"},
    )
    world.answer([GOOD] * 6)
    with pytest.raises(EvaluationError, match=f"answered HTTP {status}: .*not now") as caught:
        world.run()
    assert "observe.judge.num_concurrent" in caught.value.hint
    assert len(server.seen) < 6
    assert world.rows() == []
    assert world.judge().budget.today().questions == 0
    server.fail = fair
    assert world.run().judged == 6


@pytest.mark.slow
def test_one_question_that_fails_stops_nobody(build, server):
    world = build(num_concurrent=1)
    world.answer([GOOD, "the poisoned one", GOOD])
    server.fail = lambda path, body: (
        (500, "{}") if "poisoned" in body["messages"][1]["content"] else fair(path, body)
    )
    outcome = world.run()
    assert (outcome.judged, outcome.failed) == (2, 1)
    assert "HTTP 500" in outcome.trouble
    server.fail = fair
    assert world.run().judged == 1


def test_a_failure_before_the_budget_ends_is_told_and_is_no_error(build, server):
    world = build(num_concurrent=1, max_questions_per_day=2)
    world.answer([GOOD] * 4)
    replies = iter([(500, "{}"), None, None])
    server.fail = lambda path, body: next(replies) or fair(path, body)
    outcome = world.run()
    assert (outcome.judged, outcome.failed, outcome.left) == (2, 1, 1)


@pytest.mark.slow
def test_what_came_before_an_outage_is_kept(build, server):
    world = build(num_concurrent=1)
    world.answer([GOOD] * 8)
    server.fail = lambda path, body: fair(path, body) if len(server.seen) <= 3 else (503, "{}")
    with pytest.raises(EvaluationError) as caught:
        world.run()
    assert "3 verdicts of this run are kept" in caught.value.hint
    assert len(world.rows()) == 3


@pytest.mark.slow
def test_a_slow_judge_is_waited_for_so_long_and_may_have_cost_something(build, server):
    slow = threading.Event()

    def answer_late(path, body):
        slow.wait(5)
        return fair(path, body)

    server.fail = answer_late
    world = build(timeout_s=0.2)
    world.answer([GOOD])
    try:
        with pytest.raises(EvaluationError, match="no answer within"):
            world.run()
    finally:
        slow.set()
    assert world.judge().budget.today().questions == 1
    assert world.rows() == []


@pytest.mark.slow
def test_a_judge_that_is_down_is_said_to_be(build):
    world = build()
    world.answer([GOOD])
    world.open(base_url="http://127.0.0.1:9/v1")
    with pytest.raises(EvaluationError, match=r"does not answer: .* cannot be reached"):
        world.run()
    assert world.judge().budget.today().questions == 0


def test_a_wrong_key_is_refused_without_being_shown(build, server, monkeypatch):
    server.fail = lambda path, body: (401, '{"error": "no such key sk-secret"}')
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    world = build(api_key_env="JUDGE_KEY")
    world.answer([GOOD])
    with pytest.raises(EvaluationError, match="HTTP 401") as caught:
        world.run()
    assert "observe.judge.api_key_env" in caught.value.hint
    assert "sk-secret" not in caught.value.message + caught.value.hint
    assert server.seen[0][1]["Authorization"] == "Bearer sk-secret"


def test_a_key_that_is_not_there_is_named(build, server):
    world = build(api_key_env="NO_SUCH_VARIABLE")
    with pytest.raises(RecipeError, match="NO_SUCH_VARIABLE"):
        world.run()


def test_a_key_has_no_place_in_the_address(build):
    with pytest.raises(RecipeError, match="a key has no place here"):
        build(base_url="http://me:secret@127.0.0.1:1/v1")


@pytest.mark.slow
def test_an_unknown_model_is_said_to_be_one(world, server):
    server.fail = None
    world.open(model="another")
    world.answer([GOOD])
    with pytest.raises(EvaluationError, match="does not know the model 'another'"):
        world.run()


@pytest.mark.slow
def test_what_was_paid_for_is_written_before_a_ledger_that_fails_is_told(world, monkeypatch):
    from penstock.errors import LedgerError

    taken, take = [], JudgeBudget.take

    def fails_once(self, nanousd):
        taken.append(nanousd)
        if len(taken) == 2:
            raise LedgerError("The ledger cannot be written.")
        return take(self, nanousd)

    monkeypatch.setattr(JudgeBudget, "take", fails_once)
    world.answer([GOOD] * 3)
    with pytest.raises(LedgerError):
        world.run()
    assert len(world.rows()) == 2
    assert world.run().judged == 1


def test_an_empty_log_is_no_failure(world, server):
    assert world.run().judged == 0


@pytest.mark.parametrize(
    ("log", "hint"), [({"content": False}, "serve.log.content: true"), ({}, "serve.log.content")]
)
def test_a_log_without_texts_names_the_setting(build, log, hint):
    world = build(log=log)
    with pytest.raises(RecipeError, match="no texts") as caught:
        world.run()
    assert hint in caught.value.hint


def test_answers_that_were_logged_without_texts_are_counted(world, server):
    world.answer([None])
    outcome = world.run()
    assert (outcome.judged, outcome.no_text) == (0, 1)
    assert server.seen == []


def test_a_recipe_without_a_judge_says_what_to_set(world):
    world.recipe = world.recipe.model_copy(
        update={"observe": world.recipe.observe.model_copy(update={"judge": None})}
    )
    with pytest.raises(RecipeError, match="names no judge"):
        world.run()


# -- several, and kills ------------------------------------------------------


def test_while_one_judges_another_gives_way(world, server):
    world.answer([GOOD])
    with world.ledger.try_claim(f"judge/{world.judge().digest}"):
        assert world.run().busy
    assert server.seen == []
    assert world.run().judged == 1


def _die_at(path, num_asked):
    from penstock.monitoring import judge_work

    project = open_project(path)
    written = judge_work.RowWriter.append

    def append(self, number, rows):
        if number == num_asked:
            os._exit(9)
        written(self, number, rows)

    judge_work.RowWriter.append = append
    Judge(*project).run()


@pytest.mark.slow
def test_a_killed_run_is_gone_on_with_and_pays_again_only_for_what_was_under_way(build, server):
    world = build(num_concurrent=1)
    world.answer([GOOD] * 6)
    process = multiprocessing.get_context("spawn").Process(target=_die_at, args=(world.path, 3))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert len(world.rows()) == 3
    assert world.judge().budget.today().questions == 4
    assert world.run().judged == 3
    assert len(server.seen) == 7
    assert len({row["response_id"] for row in world.rows()}) == len(world.rows()) == 6


@pytest.mark.slow
def test_the_judge_may_stand_behind_a_gateway(world, server, tmp_path):
    from penstock.serve_section import ModelConfig, Serve
    from penstock.serving.gateway import Surroundings
    from penstock.serving.server import BackgroundServer

    backend = {"type": "openai", "url": server.url}
    models = {"judge": ModelConfig(source="the-judge", backend=backend)}
    config = Serve(port=0, metrics_port=None, models=models)
    world.answer([GOOD, BAD])
    with BackgroundServer(config, Surroundings(None, tmp_path / "cache")) as gateway:
        gateway.wait_ready(60)
        world.open(base_url=f"{gateway.url}/v1", model="judge")
        assert world.run().judged == 2
    assert sorted(row["score"] for row in world.rows()) == [0.0, 1.0]
