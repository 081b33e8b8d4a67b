"""Runs controllers in forked children that are killed at a chosen write to the ledger.

All that a child needs is imported before.
"""

import threading
from pathlib import Path

import penstock.rollout_evidence  # noqa: F401  # the children have it then
from ledger_kills import obey
from penstock.ledger import Ledger
from penstock.ledger.rollouts import Rollouts
from penstock.promotion import Production
from penstock.rollout_control import conduct
from rollout_world import Registry


def control(order):
    ledger = Ledger(order["ledger"])
    registry = Registry(Path(order["folder"]))
    conduct(
        ledger,
        Rollouts(ledger.database).find(order["rollout"]),
        lambda name, alias: Production(ledger, registry, name, alias),
        threading.Event(),
        poll_s=0,
    )


if __name__ == "__main__":
    obey(control)
