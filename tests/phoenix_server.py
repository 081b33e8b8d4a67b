"""A real Phoenix, in its own environment, with its database in a folder of the tests'.

Everything it might say to the world goes to a proxy that is not there.
"""

import functools
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

HOME = Path(__file__).parents[1]
PYTHON = HOME / ".venvs" / "phoenix" / "bin" / "python"
START_S = 180
# Phoenix takes what was posted at once, and writes it down a little later.
INGEST_S = 60
# An administrator's secret is an API key too; 32 characters with a digit are asked for.
KEY = "penstock-tests-0-key-of-nobody-at-all"


@functools.lru_cache
def missing():
    """Make the environment if need be; returns why it cannot be, or nothing."""
    made = subprocess.run(
        [HOME / "scripts" / "make-env.sh", "phoenix"], capture_output=True, text=True
    )
    return made.stderr.strip()[-500:] if made.returncode else ""


class Phoenix:
    """``phoenix serve`` in a process group of its own; it asks for a key.

    Args:
        folder: For its database and its log.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.port, self._grpc_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = None

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        nowhere = "http://127.0.0.1:9"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(self.port),
            "PHOENIX_GRPC_PORT": str(self._grpc_port),
            "PHOENIX_WORKING_DIR": str(self.folder),
            "PHOENIX_SQL_DATABASE_URL": f"sqlite:///{self.folder / 'phoenix.db'}",
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
            "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
            "PHOENIX_ENABLE_AUTH": "true",
            "PHOENIX_SECRET": "another-secret-of-the-tests-0123456789",
            "PHOENIX_ADMIN_SECRET": KEY,
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nowhere),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        with (self.folder / "phoenix.log").open("ab") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-m", "phoenix.server.main", "serve"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                cwd=self.folder,
            )
        self._wait()
        return self

    def stop(self):
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, kind)
                self._process.wait(15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def spans(self, project, num_spans):
        """The spans of a project by Phoenix's own API, once so many are there."""
        end_s = time.monotonic() + INGEST_S
        while time.monotonic() < end_s:
            found = self.get(f"/v1/projects/{project}/spans?limit=1000").get("data", [])
            if len(found) >= num_spans:
                return found
            time.sleep(0.2)
        raise AssertionError(f"no {num_spans} spans: {self._log()}")

    def get(self, path):
        request = urllib.request.Request(
            self.url + path, headers={"authorization": f"Bearer {KEY}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code == 404:  # no such project yet
                return {}
            raise

    def _wait(self):
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            assert self._process.poll() is None, self._log()
            try:
                with urllib.request.urlopen(f"{self.url}/healthz", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(self._log())

    def _log(self):
        return (self.folder / "phoenix.log").read_text(errors="replace")[-2000:]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
