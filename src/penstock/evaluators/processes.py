"""Processes of evaluators: started under ``child.py``, gone with us, and quotable."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from penstock.child_process import end_child

_CHILD = Path(__file__).with_name("child.py")
_PATIENCE_S = 15
_QUOTED_CHARS = 1_000


@dataclass(frozen=True)
class Running:
    """A command under way.

    Attributes:
        process: ``child.py``, which runs it.
        log: Where what it says on its standard error goes.
    """

    process: subprocess.Popen[str]
    log: IO[bytes]

    def last_words(self) -> str:
        """The end of what it has said, to show in an error."""
        self.log.seek(0)
        text = self.log.read().decode(errors="replace").strip()
        return text[-_QUOTED_CHARS:] or "it said nothing"


@contextmanager
def running(command: Sequence[str], answers: bool = False) -> Iterator[Running]:
    """Run a command until the block ends.

    Args:
        command: Program and arguments.
        answers: Its standard output is read here; otherwise it joins the log.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603  # what the recipe names
            [sys.executable, "-I", str(_CHILD), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else log,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for us; it ends with our end of the pipe
        )
        try:
            yield Running(process, log)
        finally:
            end_child(process, _PATIENCE_S)
