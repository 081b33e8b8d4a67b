"""What gateways observe of trials, and who answers when a challenger does not."""

import asyncio
import contextlib
import time

import httpx
import pytest
from doubles import Pointer, model, served, wait_until

from penstock.answer_format import AnswerFormat
from penstock.errors import (
    ContextExceeded,
    InvalidRequest,
    LedgerError,
    NotReady,
    Overloaded,
    ServingError,
    Timeout,
)
from penstock.ledger.rollout_records import Observed
from penstock.monitoring.metrics import ServingMetrics
from penstock.serving.facts import Facts
from penstock.serving.routes import Draw, Route, RouteTable
from penstock.serving.trials import Trials, observed
from penstock.serving.tries import first_answer


class FakeModel:
    """A model with a champion and a challenger, each of which answers or fails."""

    name = "penny"

    def __init__(self, challenger=None, champion=None, retries=1, share=1.0):
        self.config = model(retries=retries)
        self.errors = {"challenger": challenger, "champion": champion}
        self.table = RouteTable()
        self.table.swap(Route(served("v1", 1), None, None))
        self.table.swap(Route(served("v2", 2), None, None), "challenger")
        self.table.share, self.table.rollout, self.table.step = share, "ro-1", 2
        self.asked = []

    async def answer(self, one, facts):
        route, arm = self.table.route(facts.conversation, one.again, facts.draws)
        facts.model, facts.served, facts.arm = self.name, route.served, arm
        facts.rollout = self.table.rollout
        self.asked.append(arm)
        if self.errors[arm] is not None:
            raise self.errors[arm]
        return arm


def ask(*models):
    """One request to models in turn; its facts, and what came of it."""
    facts = Facts("r", "/", status=200)

    async def play():
        def one_of(one):
            return next(m for m in models if m is one.model).answer(one, facts)

        return await first_answer(models, facts, ServingMetrics(), one_of)

    try:
        return facts, asyncio.run(play())
    except ServingError as error:
        facts.status, facts.error = error.status, error.code
        return facts, error


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize(
    "error", [ServingError("broken"), NotReady("down"), Timeout("slow"), ContextExceeded("long")]
)
def test_what_a_challenger_fails_the_champion_answers(error, retries):
    penny = FakeModel(challenger=error, retries=retries)
    facts, answer = ask(penny)
    assert answer == "champion"
    assert penny.asked == ["challenger", "champion"]
    assert [(one.arm, one.version, one.error) for one in facts.failed_tries] == [
        ("challenger", 2, error.code)
    ]
    assert facts.trial is None  # this answer came about otherwise
    (draw,) = facts.draws
    seen = observed(draw, facts, is_last=True)
    assert (seen.arm, seen.step, seen.error, seen.answer_s) == ("challenger", 2, True, None)


def test_a_wrong_request_is_not_asked_again_and_nobodys_fault():
    penny = FakeModel(challenger=InvalidRequest("nonsense"))
    facts, error = ask(penny)
    assert penny.asked == ["challenger"]
    assert isinstance(error, InvalidRequest)
    seen = observed(facts.draws[0], facts, is_last=True)
    assert (seen.error, seen.answer_s) == (False, None)


def test_a_full_queue_says_nothing_about_the_challenger():
    penny = FakeModel(challenger=Overloaded("full"))
    facts, _ = ask(penny)
    assert penny.asked == ["challenger"]
    assert observed(facts.draws[0], facts, is_last=True).error is False


def test_a_champions_failed_first_try_counts_like_a_challengers():
    penny = FakeModel(champion=ServingError("broken"), share=1e-9)
    facts, _ = ask(penny)
    assert penny.asked == ["champion", "champion"]
    assert [one.arm for one in facts.draws] == ["champion"]
    assert observed(facts.draws[0], facts, is_last=True).error is True


def test_with_retries_off_a_champion_is_asked_once():
    penny = FakeModel(champion=ServingError("broken"), share=1e-9, retries=0)
    ask(penny)
    assert penny.asked == ["champion"]


def test_a_challenger_that_is_left_alone_fails_those_it_should_have_answered():
    penny = FakeModel()
    penny.table.challenger.breaker.probed(healthy=False)
    facts, answer = ask(penny)
    assert answer == "champion"
    (draw,) = facts.draws
    assert (draw.arm, draw.error) == ("challenger", "not_ready")
    assert observed(draw, facts, is_last=True).error is True


def test_a_fallback_is_drawn_in_its_own_trial():
    penny, other = FakeModel(ServingError("a"), ServingError("b"), retries=0), FakeModel()
    facts, answer = ask(penny, other)
    assert answer == "challenger"
    assert [draw.error for draw in facts.draws] == ["internal_error", None]
    assert facts.trial is facts.draws[1]


def test_without_a_trial_nothing_is_drawn():
    penny = FakeModel(share=0.0)
    facts, _ = ask(penny)
    assert facts.draws == []
    assert facts.trial is None


def test_a_conversation_is_named_by_a_digest():
    draw = Draw("ro-1", 0, 0.5, "champion", conversation="a person's name")
    seen = observed(draw, Facts("r", "/", status=200), is_last=True)
    assert len(seen.conversation) == 16
    int(seen.conversation, 16)


def facts_of(**fields):
    facts = Facts("r", "/", status=200)
    for name, value in fields.items():
        setattr(facts, name, value)
    return facts


def test_times_are_counted_from_the_draw():
    draw = Draw("ro-1", 0, 0.5, "champion", at_s=100.0)
    streamed = facts_of(stream=True, first_token_s=100.5, ended_s=103.0)
    seen = observed(draw, streamed, is_last=True)
    assert (seen.first_token_s, seen.answer_s) == (0.5, 3.0)
    whole = facts_of(first_token_s=100.5, ended_s=103.0)
    assert observed(draw, whole, is_last=True).first_token_s == 3.0


def test_an_answer_nobody_waited_for_took_at_least_so_long():
    draw = Draw("ro-1", 0, 0.5, "champion", at_s=time.monotonic() - 5)
    seen = observed(draw, facts_of(status=499), is_last=True)
    assert seen.error is False
    assert seen.answer_s >= 5


@pytest.mark.parametrize("status", [500, 503, 504])
def test_an_answer_that_broke_off_is_a_failure(status):
    draw = Draw("ro-1", 0, 0.5, "challenger")
    assert observed(draw, facts_of(status=status, stream=True), is_last=True).error is True


# -- writing -----------------------------------------------------------------------


class Rollouts:
    """A ledger that can be away, and may take a batch without saying so."""

    def __init__(self):
        self.batches = {}
        self.error = None
        self.loses_its_answer = False

    def observe(self, rollout, worker, sequence, seen):
        if self.error is not None:
            raise self.error
        self.batches.setdefault((worker, sequence), (rollout, list(seen)))
        if self.loses_its_answer:
            raise LedgerError("the connection broke")
        return True

    @property
    def seen(self):
        return [one for _, seen in self.batches.values() for one in seen]


def ended(rollout="ro-1", answer=None, arm="champion"):
    facts = facts_of(ended_s=time.monotonic(), answer=answer, model="penny")
    facts.draws.append(Draw(rollout, 0, 0.5, arm))
    return facts


def test_batches_are_written_by_rollout_in_the_order_of_the_answers():
    rollouts = Rollouts()
    trials = Trials(rollouts, {}, ServingMetrics())
    for rollout, arm in (("a", "champion"), ("b", "champion"), ("a", "challenger")):
        trials.observe(ended(rollout, arm=arm))
    trials.flush()
    trials.flush()
    written = {rollout: [one.arm for one in seen] for rollout, seen in rollouts.batches.values()}
    assert written == {"a": ["champion", "challenger"], "b": ["champion"]}


def test_a_copy_that_nobody_waits_for_is_not_observed():
    rollouts = Rollouts()
    trials = Trials(rollouts, {}, ServingMetrics())
    copied = ended()
    copied.shadow = True
    trials.observe(copied)
    trials.flush()
    assert rollouts.seen == []


def test_what_the_ledger_did_not_take_is_written_later_and_once():
    rollouts = Rollouts()
    trials = Trials(rollouts, {}, ServingMetrics())
    trials.observe(ended())
    rollouts.error = LedgerError("away")
    trials.flush()
    assert rollouts.seen == []
    trials.observe(ended())
    rollouts.error, rollouts.loses_its_answer = None, True
    trials.flush()
    rollouts.loses_its_answer = False
    trials.flush()
    assert len(rollouts.seen) == 2


def test_what_is_too_much_to_keep_is_counted_as_lost(monkeypatch):
    monkeypatch.setattr("penstock.serving.trials._MAX_PENDING", 3)
    rollouts, metrics = Rollouts(), ServingMetrics()
    trials = Trials(rollouts, {}, metrics)
    rollouts.error = LedgerError("away")
    for _ in range(5):
        trials.observe(ended())
        trials.flush()
    lost = metrics.registry.get_sample_value("penstock_rollout_observations_lost_total")
    rollouts.error = None
    trials.flush()
    assert lost == 2
    assert len(rollouts.seen) == 3


def test_the_form_is_judged_of_the_answer_that_was_drawn_and_of_no_other():
    rollouts = Rollouts()
    trials = Trials(rollouts, {"penny": AnswerFormat("json")}, ServingMetrics())
    failed = ended(answer="{}")
    failed.draws[0].error = "internal_error"
    for facts in (ended(answer="{}"), ended(answer="{"), ended(), failed):
        trials.observe(facts)
    trials.flush()
    assert [one.valid for one in rollouts.seen] == [True, False, None, None]


def test_what_was_seen_last_is_written_when_the_gateway_stops():
    rollouts = Rollouts()
    with Trials(rollouts, {}, ServingMetrics(), flush_s=60) as trials:
        trials.observe(ended())
    assert [type(one) for one in rollouts.seen] == [Observed]


@pytest.mark.slow
def test_an_answer_in_a_trial_is_observed_by_the_gateway(gateway, fake_folders):
    rollouts = Rollouts()
    pointer = Pointer(served(fake_folders[1], 1))
    with contextlib.ExitStack() as stack:
        trials = stack.enter_context(Trials(rollouts, {}, ServingMetrics(), flush_s=0.01))
        server = gateway(pointer=pointer, observers=(trials,))
        pointer.challenger = served(fake_folders[2], 2)
        pointer.share, pointer.rollout = 0.5, "ro-1"
        table = server.gateway.models["penny"].table
        wait_until(lambda: table.share == 0.5)
        for _ in range(20):
            body = {"model": "penny", "prompt": "x"}
            assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
        wait_until(lambda: len(rollouts.seen) == 20)
    assert {one.arm for one in rollouts.seen} == {"champion", "challenger"}
    assert {(one.share, one.step, one.error) for one in rollouts.seen} == {(0.5, 0, False)}
