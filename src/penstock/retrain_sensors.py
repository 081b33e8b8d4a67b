"""What the watcher looks at itself: new data, what was said of answers, and drift."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict

from penstock.artifacts import digest_of
from penstock.drift_section import DriftSection
from penstock.ledger.alarms import Alarm, Alarms
from penstock.pipeline import Pipeline
from penstock.retrain import Sensor
from penstock.retrain_section import NewData, NewFeedback, RetrainSection
from penstock.stages import ingest
from penstock.traffic import Traffic

# A window's rows are written within two minutes of its end.
_DRIFT_EVERY_S = 300.0


class Every:
    """Says when it is time again."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next_s = 0.0

    def is_due(self) -> bool:
        """Whether so much time has passed since it last was; the first time it has."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._every_s
        return True


class NewDataSensor:
    """Raises an alarm when the sources have something that was not ingested.

    Its key is a digest of what they have, so the same data are one event.
    """

    def __init__(self, pipeline: Pipeline, section: NewData) -> None:
        self._pipeline = pipeline
        self._every = Every(section.every_s)

    def look(self) -> None:
        """Ask the sources, if it is time."""
        if not self._every.is_due():
            return
        recipe, ledger = self._pipeline.recipe, self._pipeline.ledger
        seen = ledger.latest(recipe.name, "ingest")
        units = {
            name: [
                asdict(one)
                for one in ingest.snapshot(recipe, self._pipeline.store, name, source, seen)
            ]
            for name, source in ingest.sources(recipe).items()
        }
        if seen is not None and units == seen.summary["units"]:
            return
        changed = [
            name
            for name, some in units.items()
            if seen is None or some != seen.summary["units"].get(name)
        ]
        key = f"data {digest_of(units)[:16]}"
        alarm = Alarm(recipe.name, "schedule", key, time.time(), "info", {"sources": changed})
        Alarms(ledger).raise_(alarm)


class NewFeedbackSensor:
    """Raises an alarm when enough was said since the last one.

    Of one rater only so much is counted: who says much must not decide alone.
    """

    def __init__(self, pipeline: Pipeline, section: NewFeedback) -> None:
        self._recipe = pipeline.recipe.name
        self._alarms = Alarms(pipeline.ledger)
        self._feedback = Traffic.of(pipeline.store).feedback
        self._section = section
        self._every = Every(section.every_s)

    def look(self) -> None:
        """Count, if it is time."""
        if not self._every.is_due():
            return
        standing = self._feedback.standing()
        if standing is None:
            return
        table, upto = standing
        last = self._alarms.last(self._recipe, "feedback")
        known = {} if last is None else last.alarm.evidence
        since = int(known["version"]) if known.get("table") == table else -1
        if upto <= since:
            return
        said: Counter[tuple[str, str]] = Counter()
        for batch in self._feedback.scan(since, upto, columns=["tenant", "rater"]):
            said.update((row["tenant"] or "", row["rater"] or "") for row in batch.to_pylist())
        counted = sum(min(many, self._section.max_per_rater) for many in said.values())
        if counted < self._section.min_new:
            return
        evidence = {
            "table": table,
            "version": upto,
            "opinions": said.total(),
            "counted": counted,
            "raters": len(said),
        }
        key = f"feedback {table} up to {upto}"
        self._alarms.raise_(Alarm(self._recipe, "feedback", key, time.time(), "info", evidence))


class DriftSensor:
    """Looks at the windows of the request log that are over; the check raises the alarms."""

    def __init__(self, pipeline: Pipeline, section: DriftSection) -> None:
        self._pipeline = pipeline
        self._every = Every(min(section.window_s / 4, _DRIFT_EVERY_S))

    def look(self) -> None:
        """Check, if it is time and something serves."""
        recipe, ledger = self._pipeline.recipe, self._pipeline.ledger
        if not self._every.is_due() or not ledger.pointer(recipe.model_name, recipe.deploy.alias):
            return
        from penstock.monitoring.drift import DriftWatch

        DriftWatch(recipe, self._pipeline.store, ledger).check()


def sensors(pipeline: Pipeline, section: RetrainSection) -> list[Sensor]:
    """What a recipe wants to be looked at."""
    found: list[Sensor] = []
    if pipeline.recipe.observe.drift is not None:
        found.append(DriftSensor(pipeline, pipeline.recipe.observe.drift))
    if section.new_data is not None:
        found.append(NewDataSensor(pipeline, section.new_data))
    if section.new_feedback is not None:
        found.append(NewFeedbackSensor(pipeline, section.new_feedback))
    return found
