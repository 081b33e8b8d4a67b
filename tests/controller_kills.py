"""Runs controllers in forked children that are killed at a chosen write to the ledger.

As a program it reads orders as JSON lines and answers each with one. It has no threads
itself, so that it may fork; all that a child needs is imported before.
"""

import itertools
import json
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import penstock.rollout_evidence  # noqa: F401  # the children have it then
from penstock.ledger import Ledger
from penstock.ledger.database import Database
from penstock.ledger.rollouts import Rollouts
from penstock.promotion import Production
from penstock.rollout_control import conduct
from rollout_world import Registry


def main():
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(order)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": killed, "status": status}), flush=True)


def _run(order):
    code = 1
    try:
        if order["kill"] is not None:
            kill_at(order["kill"])
        ledger = Ledger(order["ledger"])
        registry = Registry(Path(order["folder"]))
        conduct(
            ledger,
            Rollouts(ledger.database).find(order["rollout"]),
            lambda name, alias: Production(ledger, registry, name, alias),
            threading.Event(),
            poll_s=0,
        )
        code = 0
    finally:
        os._exit(code)


def kill_at(number):
    """Die in this write transaction, after everything else and before it is committed."""
    writes, original = itertools.count(1), Database.write

    @contextmanager
    def write(self):
        is_mine = next(writes) == number
        with original(self) as connection:
            yield connection
            if is_mine:
                os.kill(os.getpid(), signal.SIGKILL)

    Database.write = write


if __name__ == "__main__":
    main()
