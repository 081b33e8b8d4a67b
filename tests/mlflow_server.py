"""A real MLflow server of the tests' own, that can be stopped and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_S = 120


class Server:
    """``mlflow server`` in a process group of its own.

    Args:
        folder: For uploaded files and the server's log.
        database: A SQLAlchemy URL; what it holds outlives ``stop``.
    """

    def __init__(self, folder, database):
        self.folder = Path(folder)
        self.database = database
        self.port = _free_port()
        self.process = None

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.database]
        command += ["--artifacts-destination", str(self.folder / "files")]
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._wait()
        return self

    def stop(self):
        if self.process is None:
            return
        # Its workers are children: the whole group must go.
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, kind)
            except ProcessLookupError:
                break
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                continue
        self.process = None

    def client(self):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.uri, self.uri)

    def register(self, name, folder, tags=None):
        """Upload a folder and register it, as any training script would; returns the version."""
        from mlflow.exceptions import MlflowException

        client = self.client()
        experiment = client.get_experiment_by_name("models")
        made = experiment.experiment_id if experiment else client.create_experiment("models")
        run = client.create_run(made)
        client.log_artifacts(run.info.run_id, str(folder), "model")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{run.info.artifact_uri}/model"
        version = client.create_model_version(name, source, run.info.run_id, tags=tags)
        return int(version.version)

    def files_of(self, name, version):
        """Where the server keeps a version's files on this disk."""
        source = self.client().get_model_version(name, str(version)).source
        return self.folder / "files" / source.removeprefix("mlflow-artifacts:/")

    def _wait(self):
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self._log()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(self._log())

    def _log(self):
        return (self.folder / "server.log").read_text(errors="replace")[-2000:]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
