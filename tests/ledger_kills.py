"""Programs whose children work on a ledger and are killed at a chosen write to it.

Such a program reads orders as JSON lines and answers each with one. It has no threads
itself, so that it may fork.
"""

import itertools
import json
import os
import signal
import sys
from contextlib import contextmanager

from penstock.ledger.database import Database


def obey(work):
    """Have a child do each order, and die in its write of the number ``kill``, if there is one."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _do(work, order)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": killed, "status": status}), flush=True)


def _do(work, order):
    code = 1
    try:
        if order["kill"] is not None:
            _kill_at(order["kill"])
        work(order)
        code = 0
    finally:
        os._exit(code)


def _kill_at(number):
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
