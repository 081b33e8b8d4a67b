"""A ledger with versions to put on trial, and gateways' observations that are made up."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

from penstock.ledger import ModelVersion
from penstock.ledger.rollout_records import Observed
from penstock.ledger.rollouts import Rollouts
from penstock.promotion import Production
from penstock.rollout import Opening
from penstock.rollout_control import start
from penstock.rollout_section import RolloutSection

MODEL, ALIAS = "penny", "production"


class Registry:
    """A registry of aliases in a file, so that it outlives whoever writes it."""

    identity = "in a file"

    def __init__(self, folder):
        self.path = Path(folder) / "aliases.json"
        self.error = None

    def alias(self, name, alias):
        if self.error is not None:
            raise self.error
        return self._read().get(f"{name}@{alias}")

    def version(self, name, version):
        return SimpleNamespace(digest=None)

    def set_alias(self, name, alias, version):
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps({**self._read(), f"{name}@{alias}": version}))
        written.replace(self.path)

    def _read(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}


class World:
    """A model with three versions, of which the first serves."""

    def __init__(self, ledger, folder):
        self.ledger = ledger
        self.rollouts = Rollouts(ledger.database)
        self.registry = Registry(folder)
        self.production = Production(ledger, self.registry, MODEL, ALIAS)
        self._sequence = 0
        for number in (1, 2, 3):
            ledger.add_model(version(number))
        self.production.promote(1, "first")

    def promoters(self, name, alias):
        return Production(self.ledger, self.registry, name, alias)

    @property
    def serving(self):
        return self.ledger.pointer(MODEL, ALIAS).version

    def opening(self, challenger=2, champion=None, steps=(10, 50, 100), **settings):
        section = terms(**settings)
        champion = self.serving if champion is None else champion
        return Opening(MODEL, ALIAS, champion, challenger, section.terms(), steps)

    def start(self, challenger=2, **settings):
        return start(self.rollouts, self.opening(challenger, **settings), self.production)

    def observe(self, rollout, observed, worker="gateway"):
        self._sequence += 1
        return self.rollouts.observe(rollout.id, worker, self._sequence, observed)

    def feed(self, rollout, step=0, count=200, failing=0.0, size=20, seed=1):
        """Requests of one step, of which the challenger fails some, in batches."""
        share = rollout.steps[step]
        made = requests(share, step, count, failing, seed)
        for begin in range(0, count, size):
            self.observe(rollout, made[begin : begin + size])

    def feed_good(self, rollout):
        for step in range(len(rollout.steps)):
            self.feed(rollout, step, size=100, seed=step)

    def actions(self, rollout):
        return [event.action.value for event in self.rollouts.events(rollout.id)]


def terms(**settings):
    """Wide margins, so that a hundred requests decide."""
    margins = {"errors": 0.3, "latency": None} | settings.pop("margins", {})
    return RolloutSection(**{"min_requests": 5, "margins": margins, **settings})


def version(number, name=MODEL):
    return ModelVersion(
        name=name,
        version=number,
        train_fingerprint=f"{number:064x}",
        digest=f"{number:02x}" * 32,
        path=f"artifacts/train/{number}",
        run_id=f"run-{number}",
        data_version=f"data-{number}",
    )


def requests(share, step, count, failing=0.0, seed=1):
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        arm = "challenger" if chance.random() < share else "champion"
        fails = arm == "challenger" and chance.random() < failing
        latency_s = None if fails else 0.1 + chance.random() / 100
        made.append(Observed(arm, share, step, fails, None, latency_s, latency_s))
    return made
