"""What would start a run now, for a tool that asks from time to time.

Each start has a key, which names the run. A tool that starts one run for each key it is
told starts one for each event, however often it asks and whenever it is killed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.ledger.alarms import AlarmRecord, Alarms, AlarmState, settle
from penstock.ledger.run_keys import named_run

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline

_DIGITS = 32


@dataclass(frozen=True)
class News:
    """What would start a run.

    Attributes:
        starts: Key of a run -> why it is due.
    """

    starts: dict[str, str] = field(default_factory=dict)


def news_of(pipeline: Pipeline) -> News:
    """Look for an open alarm, and for something new in the sources.

    One alarm is named at a time, the oldest. The run that it starts answers all that came
    before that run was opened, so that a thousand alarms at once are one run. With
    ``observe.retrain`` in the recipe ``penstock watch`` decides instead, and nothing is said.
    """
    if pipeline.recipe.observe.retrain is not None:
        return News()
    starts = dict(_oldest_alarm(pipeline))
    planned = pipeline.plan()[0]
    if planned.action == "run" and planned.fingerprint is not None:
        starts[f"data:{planned.fingerprint[:_DIGITS]}"] = planned.reason
    return News(starts)


def _oldest_alarm(pipeline: Pipeline) -> list[tuple[str, str]]:
    """The oldest alarm that no run answers, after noting which are answered."""
    alarms = Alarms(pipeline.ledger)
    waiting = alarms.open(pipeline.recipe.name)
    while waiting:
        key = key_of(waiting[0])
        run_id = named_run(pipeline.ledger.database, pipeline.recipe.name, key)
        if run_id is None:
            alarm = waiting[0].alarm
            return [(key, f"{alarm.severity} alarm {waiting[0].number}: {alarm.kind} {alarm.key}")]
        waiting = _answer(pipeline, waiting, run_id, key)
    return []


def _answer(
    pipeline: Pipeline, waiting: Sequence[AlarmRecord], run_id: str, key: str
) -> list[AlarmRecord]:
    """Note that a run answers its own alarm and those before it; the others wait on."""
    began_s = pipeline.ledger.run(run_id).started_s
    answered = [one for one in waiting if one is waiting[0] or one.received_s <= began_s]
    numbers = [one.number for one in answered]
    with pipeline.ledger.database.write() as connection:
        settle(connection, numbers, AlarmState.ANSWERED, f"run {run_id}", start_key=key)
    settled = set(numbers)
    return [one for one in waiting if one.number not in settled]


def key_of(record: AlarmRecord) -> str:
    """The name of the run that an alarm starts: the same in every ledger."""
    alarm = record.alarm
    digest = hashlib.sha256(f"{alarm.recipe}\n{alarm.kind}\n{alarm.key}".encode()).hexdigest()
    return f"alarm:{alarm.kind}:{digest[:_DIGITS]}"
