"""Runs watchers in forked children that are killed at a chosen write to the ledger."""

from ledger_kills import obey
from penstock.ledger import Ledger
from retrain_world import Runs, Tasks, World


def watch(order):
    ledger = Ledger(order["ledger"])
    starter = Runs(ledger) if order["through"] == "here" else Tasks(ledger)
    looks = iter([False, False, True])
    World(ledger, starter=starter).watch.run(lambda wait_s: next(looks, True))


if __name__ == "__main__":
    obey(watch)
