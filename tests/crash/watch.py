"""Stops a process before any one of its durable operations, whatever library makes it.

The kernel tells about every system call that changes a file (seccomp's user
notification), so Python, Rust and C++ writers, SQLite and a stage that does not
exist yet are all seen without a hook in any of them. The watching process
either lets a call happen or kills the caller while it waits: the call then
never happened. Linux only; needs no rights, no compiler and no tracer.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import re
import select
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Name -> number, and which arguments are paths: ("fd", i), ("path", i) below the
# working directory, or ("at", i): a directory's descriptor and a path below it.
_X86_64 = {
    "write": (1, ("fd", 0)),
    "pwrite64": (18, ("fd", 0)),
    "writev": (20, ("fd", 0)),
    "pwritev": (296, ("fd", 0)),
    "fsync": (74, ("fd", 0)),
    "fdatasync": (75, ("fd", 0)),
    "ftruncate": (77, ("fd", 0)),
    "fallocate": (285, ("fd", 0)),
    "sendfile": (40, ("fd", 0)),
    "copy_file_range": (326, ("fd", 2)),
    "open": (2, ("path", 0)),
    "truncate": (76, ("path", 0)),
    "rename": (82, ("path", 1)),
    "mkdir": (83, ("path", 0)),
    "rmdir": (84, ("path", 0)),
    "creat": (85, ("path", 0)),
    "link": (86, ("path", 1)),
    "unlink": (87, ("path", 0)),
    "symlink": (88, ("path", 1)),
    "openat": (257, ("at", 0)),
    "mkdirat": (258, ("at", 0)),
    "unlinkat": (263, ("at", 0)),
    "renameat": (264, ("at", 2)),
    "linkat": (265, ("at", 2)),
    "symlinkat": (266, ("at", 1)),
    "renameat2": (316, ("at", 2)),
}
_AARCH64_NUMBERS = {
    "write": 64, "pwrite64": 68, "writev": 66, "pwritev": 70, "fsync": 82, "fdatasync": 83,
    "ftruncate": 46, "fallocate": 47, "sendfile": 71, "copy_file_range": 285, "truncate": 45,
    "openat": 56, "mkdirat": 34, "unlinkat": 35, "renameat": 38, "linkat": 37, "symlinkat": 36,
    "renameat2": 276,
}  # fmt: skip
if platform.machine() == "aarch64":
    _CALLS = {name: (nr, _X86_64[name][1]) for name, nr in _AARCH64_NUMBERS.items()}
    _SECCOMP = 277
else:
    _CALLS, _SECCOMP = _X86_64, 317
_BY_NUMBER = {nr: (name, where) for name, (nr, where) in _CALLS.items()}
_OPEN_FLAGS = {"open": 1, "openat": 2}  # which argument says whether it is opened for writing
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_SET_FILTER, _NEW_LISTENER = 1, 1 << 3
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE = struct.Struct("=QIIiIQ6Q")
_CONTINUE = struct.Struct("=QqiI")
_AT_FDCWD = -100

# What differs from run to run in a name, and says nothing.
_RANDOM = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(?<=/tmp)[a-z0-9_]{8}"
    r"|(?<=[0-9a-f]{20}\.)[0-9a-f]{8}|(?<=\.probe-)\d+|(?<=\.tmp)\w{6}$|\b[0-9a-f]{32,64}\b"
    r"|(?<=\.converting-)[^/]+"  # names the process
)


@dataclass(frozen=True)
class Point:
    """The moment before one durable operation.

    Attributes:
        call: The system call.
        path: Below the watched folder, without what is random in it.
        nth: Counts calls with the same name and path, from 1.
    """

    call: str
    path: str
    nth: int

    def __str__(self) -> str:
        return f"{self.call} {self.path} #{self.nth}"


@dataclass
class Outcome:
    """How a watched process ended.

    Attributes:
        points: What it did, or was about to do, in order.
        killed_at: Where it was killed; None when it came to its end.
        status: ``os.waitstatus_to_exitcode``.
        leftover: Processes it started that outlived it.
    """

    points: list[Point] = field(default_factory=list)
    killed_at: Point | None = None
    status: int = 0
    leftover: list[str] = field(default_factory=list)


def is_possible() -> bool:
    """Whether this kernel lets a process watch its children."""
    try:
        outcome = watched(Path("/"), lambda: None)
    except OSError:
        return False
    return outcome.status == 0


def watched(
    folder: Path, work: Callable[[], None], stop: Callable[[Point, int], bool] | None = None
) -> Outcome:
    """Run ``work`` in a forked child, watched.

    Args:
        folder: Only what happens below it counts.
        work: Called in the child, which ends when it returns.
        stop: Given a point and its place in the order, says whether the child dies there.

    Raises:
        OSError: The kernel does not allow it.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _be_watched(theirs, work)
    theirs.close()
    listener = _listener(ours)
    if listener is None:
        os.waitpid(child, 0)
        raise OSError("this kernel does not tell about a child's system calls")
    outcome = _Watch(folder.resolve(), child, listener).follow(stop or (lambda *_: False))
    outcome.leftover = _of_session(child)
    return outcome


def _be_watched(connection: socket.socket, work: Callable[[], None]) -> None:
    """The child: ask to be watched, work, end. Never returns."""
    code = 99
    try:
        os.setsid()
        listener = _install_filter()
        socket.send_fds(connection, [b"x" if listener >= 0 else b"-"], [max(listener, 0)])
        connection.close()
        if listener >= 0:
            os.close(listener)
            work()
            code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    finally:
        os._exit(code)


def _install_filter() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    program = _filter()
    buffer = ctypes.create_string_buffer(program)

    class Program(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    header = Program(len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        return -1
    return int(libc.syscall(_SECCOMP, _SET_FILTER, _NEW_LISTENER, ctypes.byref(header)))


def _filter() -> bytes:
    """Classic BPF: notify about the calls above, allow all others."""

    def load(offset: int) -> bytes:
        return struct.pack("HBBI", 0x20, 0, 0, offset)

    def give(value: int) -> bytes:
        return struct.pack("HBBI", 0x06, 0, 0, value)

    def unless_equal(value: int, skip: int) -> bytes:
        return struct.pack("HBBI", 0x15, 0, skip, value)

    program = load(0)
    for name, (number, _) in _CALLS.items():
        if name in _OPEN_FLAGS:
            program += unless_equal(number, 4) + load(16 + 8 * _OPEN_FLAGS[name])
            program += struct.pack("HBBI", 0x45, 0, 1, _WRITING)  # any of these bits?
            program += give(_NOTIFY) + give(_ALLOW)
        else:
            program += unless_equal(number, 1) + give(_NOTIFY)
    return program + give(_ALLOW)


def _listener(connection: socket.socket) -> int | None:
    with connection:
        word, descriptors, *_ = socket.recv_fds(connection, 1, 1)
    if word == b"x":
        return descriptors[0]
    for descriptor in descriptors:
        os.close(descriptor)
    return None


class _Watch:
    """Answers the kernel for one child."""

    def __init__(self, folder: Path, child: int, listener: int) -> None:
        self.prefix = f"{folder}/" if str(folder) != "/" else "/"
        self.child = child
        self.listener = listener
        self.seen: Counter[tuple[str, str]] = Counter()
        self.outcome = Outcome()

    def follow(self, stop: Callable[[Point, int], bool]) -> Outcome:
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        while True:
            (_, event), *_ = poll.poll()
            if not event & select.POLLIN:
                break  # nobody with this filter is left
            notice = self._receive()
            if notice is None:
                continue
            point = self._point(notice)
            if point is not None:
                self.outcome.points.append(point)
                if stop(point, len(self.outcome.points)):
                    self.outcome.killed_at = point
                    os.kill(self.child, signal.SIGKILL)
                    break
            self._allow(notice[0])
        _, status = os.waitpid(self.child, 0)
        os.close(self.listener)
        self.outcome.status = os.waitstatus_to_exitcode(status)
        return self.outcome

    def _receive(self) -> tuple[int, ...] | None:
        buffer = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, buffer)
        except OSError:  # the caller ended meanwhile
            return None
        return _NOTICE.unpack(buffer)

    def _allow(self, identity: int) -> None:
        try:
            fcntl.ioctl(self.listener, _SEND, bytearray(_CONTINUE.pack(identity, 0, 0, 1)))
        except OSError:
            return

    def _point(self, notice: tuple[int, ...]) -> Point | None:
        _, pid, _, number, _, _, *arguments = notice
        name, (kind, index) = _BY_NUMBER[number]
        path = self._path(pid, kind, arguments, index)
        if path is None or not path.startswith(self.prefix) or path.endswith(" (deleted)"):
            return None
        path = _RANDOM.sub("*", path[len(self.prefix) :])
        self.seen[name, path] += 1
        return Point(name, path, self.seen[name, path])

    def _path(self, pid: int, kind: str, arguments: list[int], index: int) -> str | None:
        try:
            if kind == "fd":
                return os.readlink(f"/proc/{pid}/fd/{_signed(arguments[index])}")
            folder = _signed(arguments[index]) if kind == "at" else _AT_FDCWD
            text = _text(pid, arguments[index + (kind == "at")])
            if text.startswith("/"):
                return os.path.normpath(text)
            link = "cwd" if folder == _AT_FDCWD else f"fd/{folder}"
            return os.path.normpath(os.path.join(os.readlink(f"/proc/{pid}/{link}"), text))
        except OSError:
            return None


def _signed(value: int) -> int:
    return ctypes.c_int(value & 0xFFFFFFFF).value


def _text(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        out = b""
        while b"\0" not in out and len(out) < 4096:
            # Up to the end of the page: the next one may not be there.
            memory.seek(address + len(out))
            out += memory.read(4096 - (address + len(out)) % 4096)
    return os.fsdecode(out.partition(b"\0")[0])


def _of_session(leader: int) -> list[str]:
    """Processes, other than its leader, of the session that a child opened."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                _, _, rest = (entry / "stat").read_text().rpartition(")")
                if int(rest.split()[3]) == leader:
                    found.append(f"{entry.name} {(entry / 'cmdline').read_text()}")
            except OSError:
                continue
    return found
