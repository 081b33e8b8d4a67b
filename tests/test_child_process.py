"""A child knows by its pipes that it is over."""

import subprocess
import sys

import pytest

from penstock.child_process import end_child

LISTENS = "import sys; sys.stdin.read(); sys.exit(7)"
IS_DEAF = "import time; print('up', flush=True); time.sleep(600)"


def started(program):
    return subprocess.Popen(
        [sys.executable, "-I", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_child_that_listens_ends_by_itself():
    child = started(LISTENS)
    end_child(child, 60)
    assert child.returncode == 7


def test_a_child_that_does_not_is_killed():
    child = started(IS_DEAF)
    assert child.stdout.readline() == "up\n"
    end_child(child, 0.01)
    assert child.returncode == -9


@pytest.mark.parametrize("said", ["", "never read\n"])
def test_a_child_that_is_gone_already_is_no_error(said):
    child = started("import sys; sys.exit(3)")
    child.wait()
    child.stdin.write(said)
    end_child(child, 60)
    assert child.returncode == 3
