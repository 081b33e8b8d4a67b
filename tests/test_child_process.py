"""A child knows by its pipes that it is over."""

import socket
import subprocess
import sys

import pytest

from penstock.child_process import end_child, free_port, running, start

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


def ended(program, path, **settings):
    """A command that has run to its end, and its log."""
    with path.open("w+b") as log:
        child = start([sys.executable, "-I", "-c", program], log, **settings)
        child.process.wait()
        yield child


def test_last_words_are_the_end_of_what_was_said_and_reading_them_loses_nothing(tmp_path):
    program = (
        "import sys; [print('word', i, file=sys.stderr) for i in range(1000)]; sys.exit('end')"
    )
    for child in ended(program, tmp_path / "log"):
        assert child.last_words(10).endswith("end")
        assert len(child.last_words(10)) <= 10
        assert "word 999\nend" in child.last_words()
        assert "word 0\n" not in child.last_words()
    assert (tmp_path / "log").read_text().startswith("word 0\n")


def test_a_child_is_given_the_environment_that_was_asked_for(tmp_path):
    program = "import os; print(os.environ.get('A'), os.environ.get('B'))"
    for child in ended(program, tmp_path / "log", environment={"A": "1"}):
        assert child.last_words() == "1 None"


def test_a_child_lives_as_long_as_the_block():
    with running([sys.executable, "-I", "-c", IS_DEAF], answers=True) as child:
        assert child.process.stdout.readline() == "up\n"
        assert child.process.poll() is None
    assert child.process.poll() is not None


def test_a_free_port_can_be_listened_on():
    with socket.create_server(("127.0.0.1", free_port())):
        pass
