"""The watcher: alarms come in, exactly one run goes out for each event.

Every step is written down before it is taken, and can be taken again: a start is one line
of the log with the alarms that it answers, and bears the name of the run, under which there
is one run however often it is begun. So the watcher may be killed anywhere, and two of
them may look at the same moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.errors import LedgerError, PenstockError
from penstock.gates.retrain_policy import (
    MONTH_S,
    Move,
    RetrainDecision,
    RetrainPolicy,
    Situation,
    Start,
    Waiting,
    decide,
)
from penstock.ledger import Ledger, RunRecord
from penstock.ledger.alarms import AlarmRecord, Alarms
from penstock.ledger.retrain_log import DECIDED, Entry, Line, Logged, RetrainLog
from penstock.ledger.rollout_records import State
from penstock.ledger.rollouts import Rollouts
from penstock.recipe import Recipe

logger = logging.getLogger(__name__)

POLL_S = 2.0
# As for rollouts: short, because nothing else decides while a dead host's lease lasts.
_LEASE_S = 10.0
# So often may the process of a run be ended from outside before the run has failed.
_MAX_ENDS = 3
# Of a loop's starts, those a decision is shown: all of the last 30 days, and at least so many.
_MOST_STARTS = 20
_OF_ROLLOUT = {
    State.PROMOTED: "PROMOTED",
    State.ROLLED_BACK: "ROLLED_BACK",
    State.STOPPED: "STOPPED",
}


class Starter(Protocol):
    """Runs the loop under a name, or has an orchestrator run it."""

    is_here: bool
    """Whether runs are processes of this watcher, and end with it."""

    def carry_on(self, key: str, conf: Mapping[str, Any]) -> str | None:
        """See that the run of this name begins, or goes on; asked again and again.

        Returns:
            Here: why it has ended without coming to its end, or None. Of an orchestrator:
            the key under which its tasks open the run.

        Raises:
            PenstockError: It cannot be started now.
        """
        ...

    def close(self) -> None:
        """Leave what runs here in a state to go on from."""
        ...


class Sensor(Protocol):
    """Something that raises alarms."""

    def look(self) -> None:
        """Look, if it is time, and raise what is to be raised.

        Raises:
            PenstockError: It cannot look now.
        """
        ...


@dataclass(frozen=True)
class Story:
    """What the log says.

    Attributes:
        epoch: The number of its last line.
        starts: What was started, oldest first.
        paused: Why the loop is halted; None if it is not.
        approved_up_to: The last alarm for which a start is agreed to.
        resumed_s: When a person last resumed the loop.
        gist: Of the last decision.
        told: Names of runs that an orchestrator has -> when it was told, and what its tasks
            call the run.
        troubles: Name of a run -> what kept it from starting, in order.
    """

    epoch: int
    starts: tuple[Start, ...]
    paused: str | None
    approved_up_to: int
    resumed_s: float
    gist: tuple[str, str, int | None] | None
    told: Mapping[str, tuple[float, str]]
    troubles: Mapping[str, Sequence[str]]

    @property
    def on(self) -> Start | None:
        """The run that is on."""
        return next((one for one in reversed(self.starts) if one.is_on), None)


def read(lines: Iterable[Logged]) -> Story:
    """Sum up a log."""
    starts: dict[str, Start] = {}
    paused, approved, resumed_s, gist, epoch = None, 0, 0.0, None, 0
    told: dict[str, tuple[float, str]] = {}
    troubles: dict[str, list[str]] = {}
    for line in lines:
        epoch, key = line.epoch, line.start_key or ""
        match line.action:
            case Line.START:
                starts[key] = Start(key, line.at_s)
            case Line.ENDED:
                known = line.evidence
                starts[key] = Start(
                    key, starts[key].at_s, known["outcome"], line.at_s, known["duration_s"]
                )
            case Line.STARTED:
                told[key] = line.at_s, str(line.evidence["key"])
            case Line.TROUBLE:
                troubles.setdefault(key, []).append(line.reason)
            case Line.PAUSE:
                paused = line.reason
            case Line.RESUME:
                paused, resumed_s = None, line.at_s
            case Line.APPROVE:
                approved = max(approved, line.evidence["up_to"])
        if line.action in DECIDED:
            gist = RetrainDecision(**_tuples(line.evidence["decision"])).gist
    return Story(epoch, tuple(starts.values()), paused, approved, resumed_s, gist, told, troubles)


def situation_of(
    story: Story, waiting: Iterable[AlarmRecord], trial: str | None, now_s: float
) -> Situation:
    """What a decision rests on."""
    alarms = tuple(
        Waiting(one.number, one.alarm.kind, one.alarm.severity, one.received_s) for one in waiting
    )
    recent = story.starts[-_MOST_STARTS:]
    old = [one for one in story.starts[:-_MOST_STARTS] if one.at_s > now_s - MONTH_S]
    return Situation(
        now_s,
        alarms,
        (*old, *recent),
        story.paused,
        trial,
        story.approved_up_to,
        story.resumed_s,
    )


def recomputed(line: Logged) -> bool | None:
    """Whether a decision of the log comes out the same again; None if the line is none."""
    if line.action not in DECIDED:
        return None
    known = line.evidence
    again = decide(Situation.from_dict(known["situation"]), RetrainPolicy(**known["policy"]))
    return again == RetrainDecision(**_tuples(known["decision"]))


def _tuples(decision: Mapping[str, Any]) -> dict[str, Any]:
    return {**decision, "move": Move(decision["move"]), "alarms": tuple(decision["alarms"])}


@dataclass(frozen=True)
class Limits:
    """When an orchestrator's run counts as lost, and when as endless; seconds."""

    lost_after_s: float
    max_run_s: float


class Loop:
    """A recipe's loop as the ledger has it: what is decided, and what was done.

    Args:
        recipe: Whose.
        ledger: Holds it.
        policy: What decisions go by.
    """

    def __init__(self, recipe: Recipe, ledger: Ledger, policy: RetrainPolicy) -> None:
        self.recipe = recipe
        self.ledger = ledger
        self.policy = policy
        self.alarms = Alarms(ledger)
        self.log = RetrainLog(ledger, recipe.name)
        self._rollouts = Rollouts(ledger.database)

    def story(self) -> Story:
        """What the log says now."""
        return read(self.log.lines())

    def situation(self, story: Story) -> Situation:
        """What a decision rests on now."""
        trial = self._rollouts.open(self.recipe.model_name, self.recipe.deploy.alias)
        open_ = self.alarms.open(self.recipe.name)
        return situation_of(story, open_, trial.id if trial else None, self.log.now_s())

    def record(self, decision: RetrainDecision, situation: Situation, story: Story) -> bool:
        """Write a decision down; returns whether it stands, or was decided by somebody else."""
        evidence = {
            "decision": decision.to_dict(),
            "situation": situation.to_dict(),
            "policy": vars(self.policy) | {"on": dict(self.policy.on)},
        }
        answers = decision.alarms if decision.move in (Move.START, Move.JOIN) else ()
        line = Line(decision.move.value)
        return self.log.append(
            Entry(line, decision.reason, evidence, decision.key, answers), story.epoch
        )

    def run_of(self, key: str) -> RunRecord | None:
        """The run of this name, if it was opened."""
        run_id = self.log.run_id(key)
        return None if run_id is None else self.ledger.run(run_id)

    def outcome(self, run: RunRecord) -> str | None:
        """What a run that has come to its end, its trial included, came to; None before that."""
        if run.status in ("BLOCKED", "INCONCLUSIVE", "SKIPPED"):
            return run.status
        if run.status != "SUCCEEDED":
            return None
        trial = self._rollouts.started_in(run.id)
        if trial is None:
            return "PROMOTED"
        return _OF_ROLLOUT.get(trial.state)


class Watch:
    """Looks, decides and starts, until it is stopped.

    Args:
        loop: Whose.
        starter: What runs it.
        sensors: What raises alarms here.
        limits: For runs of an orchestrator.
    """

    def __init__(
        self, loop: Loop, starter: Starter, sensors: Sequence[Sensor], limits: Limits
    ) -> None:
        self._loop = loop
        self._starter = starter
        self._sensors = sensors
        self._limits = limits
        self._complaints: dict[str, str] = {}

    def run(self, wait: Callable[[float], bool], poll_s: float = POLL_S) -> None:
        """Watch, whenever nobody else does, until ``wait`` says that it is over.

        Args:
            wait: Waits so many seconds; returns whether to end.
            poll_s: Between two looks.
        """
        try:
            while True:
                try:
                    self._while_mine(wait, poll_s)
                except LedgerError as error:
                    self._complain("ledger", error)
                if wait(poll_s):
                    return
        finally:
            self._starter.close()

    def once(self, is_over: Callable[[], bool]) -> RetrainDecision | None:
        """Look once, and then again until it is over.

        Args:
            is_over: Says so, or waits a while and says no.

        Returns:
            What was decided first; None if another watcher is at it.

        Raises:
            LedgerError: The ledger cannot be used now.
        """
        claim = self._loop.ledger.try_claim(f"watch/{self._loop.recipe.name}", _LEASE_S)
        if claim is None:
            return None
        try:
            with claim:
                first = self.tick()
                while not is_over():
                    self.tick()
        finally:
            self._starter.close()
        return first

    def _while_mine(self, wait: Callable[[float], bool], poll_s: float) -> None:
        ledger, key = self._loop.ledger, f"watch/{self._loop.recipe.name}"
        claim = ledger.try_claim(key, _LEASE_S)
        if claim is None:
            return
        with claim:
            while ledger.holder(key) == claim.holder:  # or this process slept through its lease
                self.tick()
                if wait(poll_s):
                    return

    def tick(self) -> RetrainDecision:
        """Look once, and do what is due.

        Returns:
            What was decided.

        Raises:
            LedgerError: The ledger cannot be used now.
        """
        for sensor in self._sensors:
            try:
                sensor.look()
                self._complaints.pop(type(sensor).__name__, None)
            except PenstockError as error:
                self._complain(type(sensor).__name__, error)
        story = self._follow(self._loop.story())
        situation = self._loop.situation(story)
        decision = decide(situation, self._loop.policy)
        if decision.move is Move.IDLE or (
            decision.move in (Move.WAIT, Move.REFUSE) and decision.gist == story.gist
        ):
            return decision
        if self._loop.record(decision, situation, story):
            self._say(decision)
            if decision.move is Move.START:
                self._follow(self._loop.story())
        return decision

    def _follow(self, story: Story) -> Story:
        """See to the run that is on; returns what the log says after that."""
        on = story.on
        if on is None:
            return story
        _, name = story.told.get(on.key, (0.0, on.key))
        run = self._loop.run_of(name)
        outcome = None if run is None else self._loop.outcome(run)
        if outcome is not None and run is not None:
            return self._end(on.key, outcome, run.message, run)
        if self._starter.is_here:
            self._carry_on_here(on.key, run, story)
        else:
            self._carry_on_there(on, run, story)
        return self._loop.story()

    def _carry_on_here(self, key: str, run: RunRecord | None, story: Story) -> None:
        if run is not None and run.status == "SUCCEEDED":
            return  # its version is on trial
        if run is not None and run.status == "FAILED":
            self._end(key, "FAILED", run.message, run)
            return
        words = self._starter.carry_on(key, self._conf(key))
        if words is None:
            return
        run = self._loop.run_of(key)
        if run is not None and run.status not in ("RUNNING", "INTERRUPTED"):
            return  # it has ended well since the look at it; the next look sees that
        if run is None or len(story.troubles.get(key, ())) + 1 >= _MAX_ENDS:
            self._end(key, "FAILED", words, run)
        else:
            self._loop.log.add(Entry(Line.TROUBLE, words, start_key=key))

    def _carry_on_there(self, on: Start, run: RunRecord | None, story: Story) -> None:
        now_s = self._loop.log.now_s()
        if on.key not in story.told:
            self._ask(on.key, story)
            return
        limits = self._limits
        if run is None:
            if now_s - story.told[on.key][0] > limits.lost_after_s:
                reason = f"the orchestrator was told {limits.lost_after_s:.0f} s ago, nothing began"
                self._end(on.key, "UNKNOWN", reason, None)
        elif run.status in ("FAILED", "INTERRUPTED"):
            # Its task may be tried again; nobody here knows whether.
            if time.time() - (run.ended_s or run.started_s) > limits.lost_after_s:
                self._end(on.key, "FAILED", run.message, run)
        elif run.status == "RUNNING" and time.time() - run.started_s > limits.max_run_s:
            reason = f"it has not ended in {limits.max_run_s:.0f} s"
            self._end(on.key, "UNKNOWN", reason, run)

    def _ask(self, key: str, story: Story) -> None:
        """Tell the orchestrator; under the same name it may be told again."""
        try:
            name = self._starter.carry_on(key, self._conf(key))
        except PenstockError as error:
            words = f"{error.message} {error.hint}".strip()
            if words not in story.troubles.get(key, ())[-1:]:
                self._loop.log.add(Entry(Line.TROUBLE, words, start_key=key))
            self._complain(key, error)
        else:
            evidence = {"key": name or key}
            self._loop.log.add(
                Entry(Line.STARTED, f"the orchestrator has it as {name}", evidence, key)
            )

    def _end(self, key: str, outcome: str, reason: str, run: RunRecord | None) -> Story:
        took_s = None if run is None or run.ended_s is None else run.ended_s - run.started_s
        evidence = {
            "outcome": outcome,
            "duration_s": took_s,
            "run_id": None if run is None else run.id,
        }
        story = self._loop.story()
        if story.on is not None and story.on.key == key:
            entry = Entry(Line.ENDED, f"{outcome}: {reason}", evidence, key)
            if self._loop.log.append(entry, story.epoch):
                logger.info("Run %s: %s, %s", key, outcome, reason)
        return self._loop.story()

    def _conf(self, key: str) -> dict[str, Any]:
        """What a run is told of why it runs."""
        answered = self._loop.alarms.answered_by(self._loop.recipe.name, key)
        return {"alarms": [one.number for one in answered][:100], "key": key}

    def _say(self, decision: RetrainDecision) -> None:
        level = logging.ERROR if decision.why == "stopped" else logging.INFO
        logger.log(level, "%s: %s", decision.move.value, decision.reason)

    def _complain(self, what: str, error: PenstockError) -> None:
        """Say each trouble once, until it is another one."""
        words = f"{error.message} {error.hint}".strip()
        if self._complaints.get(what) != words:
            logger.warning("%s: %s", what, words)
        self._complaints[what] = words
