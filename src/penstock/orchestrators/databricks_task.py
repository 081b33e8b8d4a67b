"""What a Databricks job's task calls: the command line, in a process that must not exit.

A task that leaves by ``sys.exit`` may be taken for a failed one, whatever the code. So
this returns when all is well and raises when not. The bundle's files are in the
workspace, which is no place for gigabytes: the recipe's folder is copied to the driver's
own disk first, and what the run works on stays there.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from penstock.errors import PenstockError

# Databricks' own folder, whose files come over the network.
_WORKSPACE = "/Workspace/"


class DatabricksTaskFailed(PenstockError):
    """The command ended with another code than 0, 3 or 4."""


def main(words: Sequence[str] | None = None) -> None:
    """Run ``penstock`` with a task's parameters.

    BLOCK and INCONCLUSIVE (codes 3 and 4) are verdicts: the task has done its work.

    Args:
        words: The command line; None takes the process's own.

    Raises:
        DatabricksTaskFailed: The command failed; what it said stands in the task's output.
    """
    from penstock.cli import main as command_line

    given = list(sys.argv[1:] if words is None else words)
    before = sys.argv
    sys.argv = ["penstock", *_on_local_disk(given)]
    try:
        command_line()
    except SystemExit as end:
        if end.code not in (None, 0, 3, 4):
            raise DatabricksTaskFailed(f"penstock ended with code {end.code}.") from None
    finally:
        sys.argv = before


def _on_local_disk(words: list[str]) -> list[str]:
    """The command line with its recipe on the local disk, if it is in the workspace."""
    if "--recipe" not in words[:-1]:
        return words
    at = words.index("--recipe") + 1
    recipe = Path(words[at])
    if not words[at].startswith(_WORKSPACE):
        return words
    folder = Path(tempfile.mkdtemp(prefix="penstock-"))
    shutil.copytree(recipe.parent, folder, dirs_exist_ok=True)
    return [*words[:at], str(folder / recipe.name), *words[at + 1 :]]
