"""A `penstock` that does commands twice at once, and is killed in the middle, when told to."""

import stat
import sys
from pathlib import Path

_SCRIPT = """\
#!{python}
import os, pathlib, signal, subprocess, sys, time
here = pathlib.Path(__file__).parent
name = sys.argv[2] if sys.argv[1] == "step" else sys.argv[1]
with open(here / "calls", "a") as calls:
    calls.write(name + "\\n")
command = [{penstock!r}, *sys.argv[1:]]
if (here / f"kill-{{name}}").exists():
    (here / f"kill-{{name}}").unlink()
    subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)
times = 2 if (here / "twice").exists() else 1
both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(times)]
answers = [one.communicate()[0] for one in both]
sys.stdout.write(answers[-1])
sys.exit(max(one.returncode for one in both))
"""


class Twice:
    """The command, and what was asked of it.

    Args:
        folder: Where it is put.
        penstock: The program that does what it is asked for.
    """

    def __init__(self, folder: Path, penstock: Path):
        self.folder = folder
        self.path = folder / "penstock"
        self.path.write_text(_SCRIPT.format(python=sys.executable, penstock=str(penstock)))
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def double(self, on: bool) -> None:
        """Whether each command is run twice at once."""
        if on:
            (self.folder / "twice").touch()
        else:
            (self.folder / "twice").unlink()

    def kill_once(self, stage: str) -> None:
        """The next time a stage is run, its command is killed."""
        (self.folder / f"kill-{stage}").touch()

    def take_calls(self) -> list[str]:
        """What was run since this was asked before."""
        path = self.folder / "calls"
        calls = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return calls
