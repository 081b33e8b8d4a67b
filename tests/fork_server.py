"""Runs ``penstock`` commands in forks of one process, in which all libraries are imported.

A command's own process spends most of its time on imports: up to ten seconds for one that
trains. Tests that run dozens of commands ask for them here instead. Each is still a process
of its own, with its own folder, environment and files, that can be killed. It differs from a
real one in that every library is imported already: an import that is missing would not show
here, but does where commands are started for themselves, as in tests/end_to_end.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

# Nothing here may start a thread: a fork of a process with threads can wait for ever.
HEAVY = (
    "datasets", "deltalake", "great_expectations", "lm_eval", "lm_eval.models.huggingface",
    "mlflow.tracking", "penstock.pipeline", "penstock.models", "polars", "torch", "trl",
    "trl.trainer.sft_trainer",
)  # fmt: skip
_OF_COMMANDS = (
    "ctranslate2.converters.transformers",
    "great_expectations.data_context.data_context.abstract_data_context",
    "great_expectations.expectations.core",
    "mlflow.genai",
    "mlflow.store.tracking.sqlalchemy_store",
    "penstock.cli",
    "transformers.models.llama.modeling_llama",
)
_CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
order = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(order).to_bytes(4, "big")], [0, 1, 2])
server.sendall(order)
answer = server.makefile()
pid = int(answer.readline())
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda number, _: os.kill(pid, number))
code = int(answer.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class ForkServer:
    """A server for one test process, and the program that asks it for a command.

    Args:
        folder: An empty one with a short path, for the socket.

    Attributes:
        penstock: The program; to its callers it is the command.
    """

    def __init__(self, folder: Path) -> None:
        address = folder / "commands"
        self.penstock = folder / "penstock"
        self.penstock.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
        self.penstock.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """End it; commands that are on go on."""
        self._process.communicate()


def serve(address: str) -> None:
    """Fork for each order, until standard input ends."""
    for name in (*HEAVY, *_OF_COMMANDS):
        importlib.import_module(name)
    with selectors.DefaultSelector() as waiting, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        waiting.register(listener, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is listener:
                    command = _begin(listener)
                    waiting.register(command.handle, selectors.EVENT_READ, command)
                    waiting.register(command.client, selectors.EVENT_READ, command)
                elif key.fileobj is key.data.client:  # whoever asked is gone
                    if key.data.client.fileno() >= 0:  # else it has ended at the same moment
                        waiting.unregister(key.fileobj)
                        os.kill(key.data.pid, signal.SIGKILL)
                else:
                    waiting.unregister(key.fileobj)
                    with contextlib.suppress(KeyError):
                        waiting.unregister(key.data.client)
                    _end(key.data)


class _Command(NamedTuple):
    pid: int
    handle: int
    client: socket.socket


def _begin(listener: socket.socket) -> _Command:
    client, _ = listener.accept()
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as order:
        arguments, folder, environment = json.loads(order.read(int.from_bytes(size, "big")))
    pid = os.fork()
    if pid == 0:
        _be(arguments, folder, environment, files)
    for file in files:
        os.close(file)
    with contextlib.suppress(BrokenPipeError):  # who asked may have been killed
        client.sendall(b"%d\n" % pid)
    return _Command(pid, os.pidfd_open(pid), client)


def _end(command: _Command) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(command.pid, 0)[1])
    os.close(command.handle)
    with command.client, contextlib.suppress(BrokenPipeError):
        command.client.sendall(b"%d\n" % code)


def _be(
    arguments: list[str], folder: str, environment: dict[str, str], files: list[int]
) -> NoReturn:
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 1024)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["penstock", *arguments]
    code = 1
    try:
        importlib.import_module("penstock.cli").main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
