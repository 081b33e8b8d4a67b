"""Alarms as the pages show them: what each has led to, or why to nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from penstock.gates.retrain_policy import RetrainPolicy, Waiting, counts
from penstock.ledger.alarms import AlarmEvent, AlarmRecord, Alarms, AlarmState
from penstock.ledger.retrain_log import DECIDED, Line, Logged, RetrainLog
from penstock.ledger.run_keys import named_runs
from penstock.pipeline import Pipeline
from penstock.printing import clock


@dataclass(frozen=True)
class AlarmView:
    """An alarm, and what became of it.

    Attributes:
        record: The alarm.
        last: Its last change.
        led_to: What it led to, or why to nothing.
        run_id: The run that answers it, once that was opened.
    """

    record: AlarmRecord
    last: AlarmEvent
    led_to: str
    run_id: str | None = None


@dataclass(frozen=True)
class LoopView:
    """Whether alarms start runs now.

    Attributes:
        policy: What the recipe says of that; None if it says nothing.
        is_watched: Whether somebody is deciding.
        pause: The line in which a person has halted the loop; None if it goes on.
        decision: What was decided last.
    """

    policy: RetrainPolicy | None
    is_watched: bool
    pause: Logged | None
    decision: Logged | None

    @property
    def decided(self) -> str:
        """The last decision in words."""
        if self.decision is None:
            return ""
        until_s = self.decision.evidence["decision"]["until_s"]
        until = "" if until_s is None else f", until {clock(until_s)} UTC"
        return f"{self.decision.action}: {self.decision.reason}{until}"

    def why_none(self, record: AlarmRecord) -> str:
        """Why an open alarm has started nothing."""
        if self.policy is None:
            return "nothing yet: without observe.retrain only who asks `penstock news` starts a run"
        alarm = record.alarm
        waiting = Waiting(record.number, alarm.kind, alarm.severity, record.received_s)
        if not counts(waiting, self.policy):
            return (
                f"nothing: {alarm.kind} alarms of severity {alarm.severity} start no run "
                "(observe.retrain.alarms)"
            )
        if self.pause is not None:
            return f"nothing yet: the loop is paused: {self.pause.reason}"
        if self.decision is not None and self.decision.action in (Line.WAIT, Line.REFUSE):
            return f"nothing yet: {self.decided}"
        return f"nothing yet{'' if self.is_watched else ': nobody watches'}"


class AlarmDesk:
    """A project's alarms, and the loop that they drive.

    Args:
        pipeline: The project.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._ledger = pipeline.ledger
        self._recipe = pipeline.recipe.name
        self._section = pipeline.recipe.observe.retrain
        self.alarms = Alarms(pipeline.ledger)
        self.log = RetrainLog(pipeline.ledger, self._recipe)

    def loop(self) -> LoopView:
        """Whether alarms start runs now."""
        policy = None if self._section is None else self._section.policy()
        watched = f"watch/{self._recipe}" in self._ledger.live_claims()
        said = next(iter(self.log.newest(1, (Line.PAUSE, Line.RESUME))), None)
        pause = said if said is not None and said.action is Line.PAUSE else None
        return LoopView(policy, watched, pause, next(iter(self.log.newest(1, DECIDED)), None))

    def find(self, number: int) -> AlarmRecord:
        """One alarm.

        Raises:
            LedgerError: There is none of this recipe.
        """
        return self.alarms.find(number, self._recipe)

    def newest(self, is_open: bool, limit: int, before: int | None = None) -> list[AlarmRecord]:
        """Alarms that may still start a run, or those that may not, newest first."""
        return self.alarms.newest(self._recipe, is_open, limit, before)

    def num_open(self) -> int:
        """How many alarms may still start a run."""
        return self.alarms.num_open(self._recipe)

    def views(self, records: Sequence[AlarmRecord], loop: LoopView) -> list[AlarmView]:
        """What has become of some alarms."""
        last = self.alarms.last_events([one.number for one in records])
        keys = {one.start_key for one in records if one.start_key is not None}
        runs = self._runs(keys)
        return [self._view(one, last[one.number], loop, runs) for one in records]

    def _view(
        self,
        record: AlarmRecord,
        last: AlarmEvent,
        loop: LoopView,
        runs: Mapping[str, tuple[str, str | None]],
    ) -> AlarmView:
        if record.start_key is not None:
            return AlarmView(record, last, *runs[record.start_key])
        if record.is_open:
            return AlarmView(record, last, loop.why_none(record))
        verb = "a person forbids it" if record.state is AlarmState.VETOED else "it is over"
        return AlarmView(record, last, f"nothing: {verb}: {last.reason}")

    def _runs(self, keys: Collection[str]) -> dict[str, tuple[str, str | None]]:
        """Of starts by name: what became of them, and the run's id if there is one."""
        if not keys:
            return {}
        said: dict[str, Logged] = {}
        names = {key: key for key in keys}
        for line in self.log.about(keys, (Line.STARTED, Line.TROUBLE, Line.ENDED)):
            key = str(line.start_key)
            said[key] = line
            if line.action is Line.STARTED:
                names[key] = str(line.evidence["key"])
        ids = named_runs(self._ledger.database, self._recipe, names.values())
        return {
            key: (self._became(said.get(key), ids.get(name)), ids.get(name))
            for key, name in names.items()
        }

    def _became(self, line: Logged | None, run_id: str | None) -> str:
        if line is not None and line.action is Line.ENDED:
            return f"a run, {line.reason}"
        if line is not None and line.action is Line.TROUBLE:
            return f"a run that has trouble to start, and is tried again: {line.reason}"
        if run_id is None:
            return "a run, which has not begun"
        run = self._ledger.run(run_id)
        return f"a run, {run.status}: {run.message}" if run.message else f"a run, {run.status}"
