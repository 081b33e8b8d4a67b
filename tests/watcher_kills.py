"""Runs watchers in forked children that are killed at a chosen write to the ledger.

As a program it reads orders as JSON lines and answers each with one. It has no threads
itself, so that it may fork.
"""

import json
import os
import signal
import sys

from controller_kills import kill_at
from penstock.ledger import Ledger
from retrain_world import Runs, Tasks, World


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
        kill_at(order["kill"])
        ledger = Ledger(order["ledger"])
        starter = Runs(ledger) if order["through"] == "here" else Tasks(ledger)
        looks = iter([False, False, True])
        World(ledger, starter=starter).watch.run(lambda wait_s: next(looks, True))
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
