"""A loop on a ledger with runs that cost nothing: opened and closed under their names."""

import dataclasses
import time

from penstock.errors import SourceUnavailable
from penstock.gates.retrain_policy import RetrainPolicy
from penstock.ledger.alarms import Alarm
from penstock.recipe import Recipe
from penstock.retrain import Limits, Loop, Watch

RECIPE = Recipe.model_validate(
    {
        "name": "support",
        "sources": {"rows": {"type": "files", "paths": ["none"]}},
        "evaluate": {"tasks": ["which"]},
        "gate": {"min": {"which": 0.0}},
    }
)
POLICY = RetrainPolicy(
    on={"drift": "warning", "feedback": "info", "alert": "critical"},
    debounce_s=0,
    cooldown_s=0,
    max_runs_per_week=1_000,
    max_failures=1_000,
)


class Runs:
    """Runs a loop, as a process here would: opens the run by its name, and ends it."""

    is_here = True

    def __init__(self, ledger, status="BLOCKED", looks=1):
        self.ledger = ledger
        self.status = status
        self.looks = looks
        self.asked = []

    def carry_on(self, key, conf):
        self.asked.append(key)
        run = self.ledger.start_run(RECIPE.name, "", "", {}, attended=False, key=key)
        self.looks -= 1
        if self.looks <= 0 and run.status == "RUNNING" and self.status != "RUNNING":
            self.ledger.end_run(run.id, self.status, "as the test says")

    def close(self):
        pass


class Orchestrator:
    """Takes runs, and leaves them to the test; away while ``away`` is set."""

    is_here = False

    def __init__(self):
        self.away = False
        self.asked = []

    def carry_on(self, key, conf):
        if self.away:
            raise SourceUnavailable("Airflow does not answer.", "Start it.")
        self.asked.append((key, conf))
        return f"airflow:{key}"

    def close(self):
        pass


class Tasks(Orchestrator):
    """An orchestrator whose tasks run at once: twice, and under the key they were given."""

    def __init__(self, ledger):
        super().__init__()
        self.ledger = ledger

    def carry_on(self, key, conf):
        super().carry_on(key, conf)
        for _ in range(2):
            name = f"airflow:{key}"
            run = self.ledger.start_run(RECIPE.name, "", "", {}, attended=False, key=name)
            if run.status == "RUNNING":
                self.ledger.end_run(run.id, "BLOCKED", "as the test says")
        return name


class World:
    """One recipe's loop, and those who watch it."""

    def __init__(self, ledger, policy=POLICY, starter=None, **limits):
        self.ledger = ledger
        self.starter = starter or Runs(ledger)
        self.limits = Limits(**({"lost_after_s": 3600, "max_run_s": 7200} | limits))
        self.set(policy)

    def set(self, policy=POLICY, **values):
        """Go on with another policy."""
        self.loop = Loop(RECIPE, self.ledger, dataclasses.replace(policy, **values))
        self.watch = Watch(self.loop, self.starter, [], self.limits)

    def another(self):
        """A second watcher."""
        return Watch(self.loop, self.starter, [], self.limits)

    def alarm(self, key="1", kind="drift", severity="warning"):
        alarm = Alarm(RECIPE.name, kind, key, time.time(), severity)
        return self.loop.alarms.raise_(alarm)

    def ticks(self, count=4):
        """Look so often; returns the last decision."""
        for _ in range(count):
            decision = self.watch.tick()
        return decision

    @property
    def runs(self):
        return self.ledger.runs(RECIPE.name)

    @property
    def said(self):
        return [str(line.action) for line in self.loop.log.lines()]

    @property
    def outcomes(self):
        return [start.outcome for start in self.loop.story().starts]
