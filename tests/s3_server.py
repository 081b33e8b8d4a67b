"""A store that speaks S3's protocol, moto's, in a process of its own.

Delta's Rust client holds Python's lock while it waits for an answer, so a server in a
thread of the same process could never give it one.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from unittest.mock import patch

START_S = 60
# What a machine may have set, and would send its clients elsewhere or as somebody else.
_FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP")


@contextmanager
def running():
    """The server's address; while the block runs, the environment leads every client there."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log, patch.dict(os.environ, _environment(url)):
        for name in _FOREIGN:
            os.environ.pop(name, None)
        process = _start(port, log)
        try:
            _wait(process, url, log)
            yield url
        finally:
            _kill(process)


def _environment(url):
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "hush-hush",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }


def _start(port, log):
    return subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # A group of its own, so that it goes as a whole.
        start_new_session=True,
    )


def _wait(process, url, log):
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    log.seek(0)
    raise AssertionError(f"moto did not start: {log.read().decode(errors='replace')[-2000:]}")


def _kill(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
