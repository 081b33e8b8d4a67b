"""When a judge's marks count: beside people's scores, in a rollout, and in an alarm."""

import pytest

from judge_world import BAD, GOOD, World, completion, fair, judging, said
from penstock.gates.agreement import Standing
from penstock.judge_section import JudgeSection
from penstock.ledger.rollout_records import Observed, Rollout
from penstock.ledger.rollouts import Rollouts
from penstock.monitoring import judge_standing as standing
from penstock.monitoring.judge_report import rater_words, standing_words, status_of, summary
from penstock.monitoring.judge_standing import Raters
from penstock.recipe import canonical
from penstock.recipe_file import load_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running():
    with judging() as server:
        yield server


@pytest.fixture
def server(running):
    running.fail = fair
    running.seen.clear()
    return running


@pytest.fixture
def build(tmp_path, server):
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
    return build(max_labels_per_rater=1_000)


def label(world, num=12, right=True):
    """Answers half of which people call good; with the judge, or against it."""
    good, bad = world.answer([GOOD] * num), world.answer([BAD] * num)
    world.say(good, 1.0 if right else 0.0)
    world.say(bad, 0.0 if right else 1.0)


def calibrated(world):
    judge = world.judge()
    rows = standing.marked(judge)
    return standing.calibration(judge, rows, standing.labels(judge, rows))


# -- calibration -------------------------------------------------------------


def test_a_judge_without_labels_does_not_count(world):
    world.answer([GOOD] * 30)
    world.settle()
    assert calibrated(world).standing is Standing.TOO_FEW_LABELS
    status = status_of(world.judge())
    assert "people have scored 0 of the answers" in standing_words(world.judge(), status)


def test_a_judge_that_agrees_with_people_counts(world):
    label(world)
    world.settle()
    found = calibrated(world)
    assert found.standing is Standing.COUNTS
    assert found.kappa.num_items == 24
    assert found.kappa.value == 1
    assert "It counts" in standing_words(world.judge(), status_of(world.judge()))


def test_a_judge_that_says_the_opposite_does_not_count(world):
    label(world, right=False)
    world.settle()
    assert calibrated(world).standing is Standing.DISAGREES
    words = standing_words(world.judge(), status_of(world.judge()))
    assert "the lower end must reach 0.4" in words


def test_a_judge_that_calls_everything_good_does_not_count(world, server):
    server.fail = lambda path, body: said(score=5, reason="lovely")
    label(world)
    world.settle()
    assert calibrated(world).standing is Standing.DISAGREES


def test_one_rater_cannot_calibrate_a_judge_alone(build):
    world = build(max_labels_per_rater=5)
    label(world)
    world.settle()
    found = standing.labels(world.judge(), standing.marked(world.judge()))
    assert (len(found.scores), found.left_out) == (5, 19)
    assert calibrated(world).standing is Standing.TOO_FEW_LABELS


def test_feedback_of_another_tenant_is_no_label_unless_it_reviews(build):
    world = build()
    (name,) = world.answer([GOOD], tenant="acme")
    world.say([name], 1.0, tenant="stranger")
    world.settle()
    judge = world.judge()
    assert standing.labels(judge, standing.marked(judge)).scores == {}
    world.open(reviewers=["stranger"])
    assert standing.labels(world.judge(), standing.marked(judge)).scores == {name: 1.0}


def test_labels_that_come_later_count_too(world):
    names = world.answer([GOOD] * 12) + world.answer([BAD] * 12)
    world.settle()
    world.say(names[:12], 1.0)
    world.say(names[12:], 0.0)
    assert calibrated(world).standing is Standing.COUNTS


# -- where marks count -------------------------------------------------------


def open_rollout(world):
    rollouts = Rollouts(world.ledger.database)
    rollouts.start(Rollout("ro-1", "penny", "production", 1, 2, (0.5,), {}), None)
    return rollouts


def on_trial(world, rollouts, texts, **more):
    names = world.answer(texts, rollout="ro-1", **more)
    drawn = [Observed("champion", 0.5, 0, False, response=name[-32:]) for name in names]
    rollouts.observe("ro-1", "gateway", len(names) + world.num_written, drawn)


def scores(rollouts):
    seen = [one for batch in rollouts.batches("ro-1", limit=1_000) for one in batch.observed]
    return [one.score for one in seen if one.score is not None]


def test_marks_enter_a_rollout_once_and_only_when_the_judge_counts(world):
    rollouts = open_rollout(world)
    on_trial(world, rollouts, [GOOD, BAD])
    assert world.settle().counted == 0
    assert scores(rollouts) == []
    label(world)
    assert world.settle().counted == 2
    assert sorted(scores(rollouts)) == [0.0, 1.0]
    assert world.settle().counted == 0
    assert len(scores(rollouts)) == 2


def test_marks_of_a_judge_that_disagrees_enter_no_rollout(world):
    rollouts = open_rollout(world)
    on_trial(world, rollouts, [GOOD, BAD])
    label(world, right=False)
    assert world.settle().counted == 0
    assert scores(rollouts) == []


def test_answers_that_were_judged_for_their_labels_enter_no_rollout(build):
    world = build(sample=1e-9, max_labels_per_rater=1_000)
    rollouts = open_rollout(world)
    on_trial(world, rollouts, [GOOD])
    label(world)
    assert world.settle().judged == 24
    assert scores(rollouts) == []


def test_what_was_judged_before_an_outage_counts_all_the_same(build, server):
    world = build(num_concurrent=1, max_labels_per_rater=1_000)
    rollouts = open_rollout(world)
    label(world)
    world.settle()
    on_trial(world, rollouts, [GOOD] * 6, minutes_ago=5)
    server.seen.clear()
    server.fail = lambda path, body: fair(path, body) if len(server.seen) < 3 else (503, "{}")
    with pytest.raises(Exception, match="does not answer"):
        world.settle()
    assert scores(rollouts) == [1.0, 1.0]


# -- alarms ------------------------------------------------------------------


def promoted(world, before, after, minutes_ago=30):
    """Answers of version 1, a promotion, and answers of version 2; all judged."""
    import sqlalchemy as sa

    from penstock.ledger import schema

    world.answer(before, version=1, minutes_ago=60, conversation=None)
    world.serve(2)
    with world.ledger.database.write() as connection:
        moved = sa.update(schema.audit).where(schema.audit.c.to_version == 2)
        connection.execute(moved.values(at_s=schema.audit.c.at_s - 60 * minutes_ago))
    world.answer(after, version=2, minutes_ago=10, conversation=None)


def test_fewer_good_answers_since_the_promotion_raise_one_alarm(world):
    label(world)
    promoted(world, [GOOD] * 60, [GOOD, BAD] * 30)
    world.settle()
    world.settle()
    (alarm,) = world.alarms()
    assert alarm.alarm.kind == "quality"
    assert alarm.alarm.key.startswith("version 2, move 2, after 50 answers")
    assert alarm.alarm.evidence["p"] <= alarm.alarm.evidence["level"] == 0.025
    assert status_of(world.judge()).alarm == alarm.number


def test_quality_that_stays_raises_none(world):
    label(world)
    promoted(world, [GOOD] * 55 + [BAD] * 5, [GOOD] * 55 + [BAD] * 5)
    world.settle()
    assert world.alarms() == []
    shares = standing.quality(world.judge(), standing.marked(world.judge()))
    assert (shares[2].good, shares[2].num) == (55, 60)


@pytest.mark.parametrize("right", [None, False])
def test_a_judge_that_does_not_count_raises_no_alarm(world, right):
    if right is not None:
        label(world, right=right)
    promoted(world, [GOOD] * 60, [BAD] * 60)
    world.settle()
    assert world.alarms() == []


def test_a_look_stands_though_more_of_the_past_is_judged_later(world):
    label(world)
    promoted(world, [GOOD] * 55, [GOOD] * 47 + [BAD] * 3)
    world.settle()
    world.answer([GOOD] * 100, version=1, minutes_ago=50, conversation=None)
    world.settle()
    assert world.alarms() == []


def test_turns_of_one_conversation_count_once(world):
    world.answer([GOOD] * 5, conversation="c")
    world.answer([BAD] * 2, conversation=None)
    world.settle()
    (found,) = standing.quality(world.judge(), standing.marked(world.judge())).values()
    assert (found.good, found.num) == (1, 3)


# -- people ------------------------------------------------------------------


def test_raters_who_agree_are_told_from_those_who_do_not(world):
    names = world.answer([GOOD] * 10)
    for nth, name in enumerate(names):
        world.say([name], float(nth % 2), rater="ann")
        world.say([name], float(nth % 2), rater="bob")
    found = standing.raters(world.judge())
    assert (found.alpha, found.num_answers, found.num_raters) == (1.0, 10, 2)
    for nth, name in enumerate(names):
        world.say([name], float(nth < 5), rater="bob")  # the last word counts
    assert standing.raters(world.judge()).alpha < 0.5


def test_answers_that_one_person_has_scored_tell_nothing_of_agreement(world):
    world.say(world.answer([GOOD, BAD]), 1.0)
    assert standing.raters(world.judge()) == Raters(None, 0, 0)


@pytest.mark.parametrize(
    ("alpha", "words"),
    [(0.9, "people agree on"), (0.7, "roughly"), (0.2, "do not agree"), (None, "unknown")],
)
def test_what_an_alpha_means_is_said(alpha, words):
    assert words in rater_words(Raters(alpha, 10, 3))


def test_a_status_is_plain_json_and_holds_no_texts(world, server):
    server.fail = lambda path, body: (
        completion("what?") if BAD in body["messages"][1]["content"] else fair(path, body)
    )
    world.answer([GOOD, BAD])
    world.settle()
    told = summary(world.judge(), status_of(world.judge()))
    assert (told["judged"], told["no_verdict"]) == (1, 1)
    assert told["calibration"]["standing"] == "too few labels"
    assert told["today"] == {"questions": 3, "max_questions": 500, "usd": "0.00", "max_usd": None}
    assert GOOD not in str(told)


def test_no_key_of_the_judge_makes_a_stage_run_again(world):
    fields = JudgeSection.model_fields
    assert {"model", "criteria", "sample"} <= set(fields)
    other = load_recipe(world.path, {"observe.judge.sample": 0.5, "observe.judge.model": "n"})
    assert canonical(other) == canonical(world.recipe)
