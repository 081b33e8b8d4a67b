"""An alarm, the recipe's watchers, and an orchestrator that runs what they ask for."""

import threading
import time

from penstock.ledger.alarms import Alarm, Alarms
from penstock.pipeline import open_pipeline
from penstock.watching import watch_of

DEADLINE_S = 300
ALARM = "window of a watcher"


def opened(recipe, through):
    settings = {"through": through, "debounce_s": 0, "cooldown_s": 0}
    pipeline = open_pipeline(recipe, {"observe.retrain": settings})
    return pipeline, pipeline.recipe.observe.retrain


def start_for_an_alarm(recipe, through):
    """Raise one alarm before two watchers; returns the run's key once it was asked for."""
    pipeline, section = opened(recipe, through)
    Alarms(pipeline.ledger).raise_(
        Alarm(pipeline.recipe.name, "drift", ALARM, time.time(), "warning")
    )
    deadline_s = time.monotonic() + DEADLINE_S
    loop = watch_of(pipeline, section)[1]
    while not loop.story().told:
        assert time.monotonic() < deadline_s, loop.story()
        looks = [threading.Thread(target=look, args=(recipe, through)) for _ in range(2)]
        for one in looks:
            one.start()
        for one in looks:
            one.join()
    (start,) = loop.story().starts
    return start.key


def starts(recipe):
    """What the recipe's watchers have started."""
    pipeline, section = opened(recipe, "here")
    return watch_of(pipeline, section)[1].story().starts


def look(recipe, through):
    pipeline, section = opened(recipe, through)
    return watch_of(pipeline, section)[0].once(lambda: True)


def outcome_of_the_run(recipe, through):
    """What the watcher writes down of the only run that it started."""
    pipeline, section = opened(recipe, through)
    loop = watch_of(pipeline, section)[1]
    deadline_s = time.monotonic() + DEADLINE_S
    while loop.story().on is not None:
        assert time.monotonic() < deadline_s, loop.story()
        look(recipe, through)
    (start,) = loop.story().starts
    alarms = Alarms(pipeline.ledger).of(loop.recipe.name)
    assert [one.start_key for one in alarms if one.alarm.key == ALARM] == [start.key]
    return start.outcome
