"""One worker of a launcher: ``python -m penstock.launchers.worker MAILBOX``.

What started it has set RANK, WORLD_SIZE and the address of the first worker, as
torchrun, DeepSpeed's launcher and Ray Train all do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from penstock.errors import PenstockError
from penstock.launchers.mailbox import Mailbox


def work(mailbox: Mailbox) -> None:
    """Train what is in the mailbox, and put in what it came to.

    Raises:
        PenstockError: After it is put in, so that other workers do not wait.
    """
    if mailbox.has_failure():
        return  # started again after an error that would only come again
    mailbox.end_with_the_launcher()
    from penstock.launchers.loop import train

    try:
        trained = train(mailbox.training(), mailbox.report)
    except PenstockError as error:
        mailbox.fail(error)
        raise
    if int(os.environ.get("RANK", "0")) == 0:
        mailbox.deliver(trained)


def main(folder: str) -> int:
    """Work; an error of ours is in the mailbox, and needs no traceback."""
    try:
        work(Mailbox(Path(folder)))
    except PenstockError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
