"""The loop closes by itself: users change, an alarm, one retraining, a trial, a better model.

``python -m benchmarks.closed_loop`` plays it once, with times; ``--seeds 20`` repeats it with
other users, and ``--null`` is the same without a change, in which nothing may be retrained.

Everything is real but the users and the clock: a gateway that answers, a request log, the
drift checks, ``penstock watch``'s decisions, training, lm-eval, the gate, and a trial on live
requests. Users ask where things lie. They know, score each answer, and correct wrong ones. At a
known window they begin to ask about other things. Windows are an hour of a clock that is moved
by hand, so that a day takes seconds. At the end some raters send wrong corrections, and the
gate keeps out what was learned from them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.closed_loop_world import NEW, OLD, SHARE_OF_NEW, Clock, Users, write_project
from benchmarks.machine import machine
from penstock.gates.retrain_policy import Move, RetrainDecision
from penstock.ledger.alarms import Alarm
from penstock.ledger.rollouts import Rollouts
from penstock.pipeline import Pipeline, open_pipeline
from penstock.retrain import Limits, Loop, Watch
from penstock.serving.server import BackgroundServer

# Wrong corrections, by so many raters: more than there are rows about the same things.
POISON, BAD_RATERS = 800, 40


@dataclass
class Told:
    """What came of one run of the simulation; times in windows of an hour, or in seconds."""

    seed: int
    shifted: bool
    windows_before: int = 0
    windows_to_alarm: int | None = None
    alarms: int = 0
    runs: list[str] = field(default_factory=list)
    quality_before: float = 0.0
    quality_after: float = 0.0
    quality_old_after: float = 0.0
    serves: int = 1
    poisoned: str = ""
    serves_after_poison: int = 1
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def recovered(self) -> bool:
        """One retraining, of which users have what they asked for."""
        better = self.quality_after >= 0.9 > 0.5 > self.quality_before
        return self.runs == ["PROMOTED"] and better and self.serves == 2


class InProcess:
    """Runs the loop in this process: what is imported for one run is there for the next."""

    is_here = True

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def carry_on(self, key: str, conf: Mapping[str, Any]) -> str | None:
        """Run it to its end."""
        self._pipeline.run_named(key)
        return None

    def close(self) -> None:
        """There is nothing to leave."""


class Play:
    """One project, its users and its watcher.

    Args:
        path: The recipe.
        seed: Of everything.
        clock: In force.
        say: Shows what happens.
        embedding: What drift is looked for in; None is the recipe's.
    """

    def __init__(self, path: Path, seed: int, clock: Clock, say: Any, embedding: Any) -> None:
        self.pipeline = open_pipeline(path)
        self.clock = clock
        self._say = say
        self._embedding = embedding
        section = self.pipeline.recipe.observe.retrain
        assert section is not None
        self.loop = Loop(self.pipeline.recipe, self.pipeline.ledger, section.policy())
        limits = Limits(section.lost_after_s, section.max_run_s)
        self.watch = Watch(self.loop, InProcess(self.pipeline), [self], limits)
        self.rollouts = Rollouts(self.pipeline.ledger.database)
        self._seed = seed
        self._looks_for_drift = False

    def look(self) -> None:
        """The drift check, at the time that this clock shows."""
        if self._looks_for_drift:
            from penstock.monitoring.drift import DriftWatch

            watch = DriftWatch(
                self.pipeline.recipe, self.pipeline.store, self.pipeline.ledger, self._embedding
            )
            self._embedding = watch.embedding  # loaded once
            watch.check()
            self._looks_for_drift = False

    @contextlib.contextmanager
    def serving(self) -> Iterator[Users]:
        """A gateway, and users before it."""
        from penstock.serving.production import served
        from penstock.serving.rollouts import rolling_out

        pipeline = self.pipeline
        config, around = served(pipeline.recipe, pipeline.store, pipeline.ledger)
        with contextlib.ExitStack() as stack:
            around = stack.enter_context(
                rolling_out(pipeline.recipe, pipeline.store, pipeline.ledger, config, around)
            )
            server = stack.enter_context(BackgroundServer(config, around))
            server.wait_ready()
            users = Users(server, self._seed)
            stack.callback(users.close)
            yield users

    def first_run(self) -> None:
        """A person starts the first run."""
        record = Alarm("boxes", "person", "first", time.time(), "info", {"reason": "the first"})
        self.loop.alarms.raise_(record)
        self.settle()
        assert self.serves == 1, self.loop.log.lines()[-1]

    def hour(self, users: Users, count: int, share_of_new: float) -> RetrainDecision:
        """Users talk for a window; then the watcher looks."""
        users.talk(count, share_of_new)
        time.sleep(0.4)  # the log is written every fifth of a second
        self.clock.to_next_window()
        self.clock.ahead_s += 130  # rows of a window may come two minutes late
        self._looks_for_drift = True
        return self.watch.tick()

    def settle(self, users: Users | None = None, share_of_new: float = 0.0) -> None:
        """Let what is due happen, while users go on."""
        for _ in range(400):
            decision = self.watch.tick()
            if decision.move is Move.IDLE and self.loop.story().on is None:
                return
            if decision.until_s is not None:
                self.clock.ahead_s += max(0.0, decision.until_s - time.time() + 1)
            if users is not None and self.trial:
                users.talk(24, share_of_new)
        raise RuntimeError(f"it does not settle: {decision}")

    @property
    def trial(self) -> bool:
        """Whether a version is on trial."""
        return self.rollouts.open("boxes", "production") is not None

    @property
    def serves(self) -> int:
        """The version that serves."""
        pointer = self.pipeline.ledger.pointer("boxes")
        return 0 if pointer is None else pointer.version

    @property
    def outcomes(self) -> list[str]:
        """Of all runs but the first."""
        return [start.outcome or "on" for start in self.loop.story().starts][1:]

    def drift_alarms(self) -> int:
        """How many there were."""
        return sum(one.alarm.kind == "drift" for one in self.loop.alarms.of("boxes", 1000))


def play(
    folder: Path,
    seed: int,
    shifted: bool = True,
    early: int = 24,
    late: int = 24,
    count: int = 30,
    poison: bool = True,
    say: Any = lambda text: None,
    embedding: Any = None,
) -> Told:
    """Play the loop once.

    Args:
        folder: Made.
        seed: Of users, rows and training.
        shifted: Whether users change.
        early: Windows before the change.
        late: Windows after it, at most; all of them where there is none.
        count: Requests in a window.
        poison: Whether wrong corrections come at the end.
        say: Shows what happens.
        embedding: What drift is looked for in; None is the recipe's.
    """
    told, began_s = Told(seed, shifted, early), time.monotonic()

    def done(what: str) -> None:
        told.seconds[what] = round(time.monotonic() - began_s, 1)
        say(f"{told.seconds[what]:6.1f} s  {what}")

    with Clock() as clock:
        made = Play(write_project(folder, seed), seed, clock, say, embedding)
        made.first_run()
        done("version 1 serves")
        with made.serving() as users:
            clock.to_next_window()
            for _ in range(early):
                made.hour(users, count, 0.0)
            done(f"{early} hours of old questions, {made.drift_alarms()} alarms")
            share = SHARE_OF_NEW if shifted else 0.0
            for window in range(late):
                decision = made.hour(users, count, share)
                if made.drift_alarms():
                    told.windows_to_alarm = window + 1
                    done(f"an alarm, {window + 1} hours after the change")
                    break
            while decision.why == "debounce":  # they go on asking and correcting
                decision = made.hour(users, count, share)
            told.quality_before = _share_right(users, NEW)
            made.settle(users, share)
            done(f"runs {made.outcomes}, version {made.serves} serves")
            users.wait_for(made.serves)
            told.quality_after, told.quality_old_after = users.quality(NEW), users.quality(OLD)
            told.alarms, told.runs, told.serves = made.drift_alarms(), made.outcomes, made.serves
            done(
                f"right answers to new questions: {told.quality_before:.0%} before, "
                f"{told.quality_after:.0%} after; to old ones {told.quality_old_after:.0%}"
            )
            if poison:
                _poison(made, users, told, done)
    made.pipeline.ledger.close()
    return told


def _share_right(users: Users, things: Sequence[str]) -> float:
    """Of the answers so far: questions of ours would be seen as drift themselves."""
    right = [was for thing, was in users.rated if thing in things]
    return statistics.fmean(right) if right else 0.0


def _poison(made: Play, users: Users, told: Told, done: Any) -> None:
    """Wrong corrections by many raters: enough for a run, whose model the gate keeps out."""
    users.poison(POISON, BAD_RATERS)
    done(f"{POISON} wrong corrections by {BAD_RATERS} raters")
    time.sleep(0.4)
    evidence = {"reason": "users correct nearly every answer"}
    made.loop.alarms.raise_(Alarm("boxes", "quality", "scores", time.time(), evidence=evidence))
    made.settle(users)
    told.poisoned = ", ".join(made.outcomes[len(told.runs) :])
    told.serves_after_poison = made.serves
    done(f"poisoned run: {told.poisoned}; version {made.serves} serves")


def main() -> None:
    """Play it for some seeds, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--null", action="store_true", help="users do not change")
    parser.add_argument("--json", type=Path, help="write what came of each seed there")
    chosen = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "GX_ANALYTICS_ENABLED": "false"}
    print(machine(), flush=True)
    found = []
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        with tempfile.TemporaryDirectory(prefix="penstock-closed-loop-") as folder:
            print(f"seed {seed}", flush=True)
            told = play(
                Path(folder) / "project",
                seed,
                shifted=not chosen.null,
                poison=not chosen.null,
                say=lambda text: print(text, flush=True),
            )
        found.append(told)
        if chosen.json is not None:
            chosen.json.write_text(json.dumps([asdict(one) for one in found], indent=2))
    _sum_up(found, chosen.null)


def _sum_up(found: Sequence[Told], null: bool) -> None:
    if null:
        runs = sum(len(one.runs) for one in found)
        print(f"{runs} retrainings in {len(found)} streams without a change")
        return
    delays = [one.windows_to_alarm for one in found if one.windows_to_alarm is not None]
    print(f"{sum(one.recovered for one in found)} of {len(found)} recovered by one retraining")
    print(f"hours to the alarm: {delays}; median {statistics.median(delays) if delays else '-'}")
    after = sorted(one.quality_after for one in found)
    print(f"right answers afterwards: median {statistics.median(after):.0%}, least {after[0]:.0%}")
    kept = sum(one.serves_after_poison == one.serves for one in found)
    print(f"{kept} of {len(found)} poisoned retrainings kept out")


if __name__ == "__main__":
    main()
