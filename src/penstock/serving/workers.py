"""Several gateway processes behind one port.

The parent opens the port and starts the workers, who all accept on it: a connection
that is waiting is lost with no worker. A worker that dies is started again; SIGTERM is
passed on, and every worker finishes its answers. Workers follow the same pointers, each
in its own time; an answer is of one version, whoever gives it. The parent's metrics page
shows all workers' metrics, with a label that tells them apart.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

from penstock.child_process import die_with_parent
from penstock.errors import PenstockError
from penstock.monitoring.merged_metrics import MergedMetrics
from penstock.monitoring.metrics import MetricsServer
from penstock.serve_section import Serve
from penstock.serving.server import Listening, listen

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# A worker that has run so long has started well: the next pause is a short one again.
_WELL_AFTER_S = 60.0
# Longer than workers drain: what they say while they end is still to be heard.
_PATIENCE_S = 5.0
_LOOK_EVERY_S = 0.1


@dataclass
class _Worker:
    """One process.

    Attributes:
        number: Its label in metrics.
        process: None while it waits to be started again.
        serves: It has said that it does.
        metrics_url: Where its own metrics are, if it has any.
        started_s: On the monotonic clock.
        start_at_s: When to start it again.
        pause_s: How long the next pause will be.
    """

    number: int
    process: subprocess.Popen[str] | None = None
    serves: bool = False
    metrics_url: str | None = None
    started_s: float = 0.0
    start_at_s: float = 0.0
    pause_s: float = field(default=_FIRST_PAUSE_S)


class Workers:
    """The parent.

    Args:
        config: Says where to listen, and how many workers there are.
        command: Starts a worker; gets ``--worker N --socket FD`` at its end, and says what
            ``Listening`` says as a line of JSON when it accepts requests.
    """

    def __init__(self, config: Serve, command: Sequence[str]) -> None:
        self._config = config
        self._command = list(command)
        self._workers = [_Worker(number) for number in range(config.workers)]
        self._stopping = threading.Event()
        self._failed: str | None = None

    def run(self, announce: Callable[[Listening], None]) -> None:
        """Serve until a signal comes, and until all workers have ended.

        Args:
            announce: Called once the first worker accepts requests; until then they wait.

        Raises:
            PenstockError: A port is taken, or no worker could start at all.
        """
        self._socket = listen(self._config.host, self._config.port)
        self._socket.set_inheritable(True)
        metrics = self._metrics()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        port = self._socket.getsockname()[1]
        listening = Listening.at(self._config.host, port, metrics.url if metrics else None)
        announced = False
        try:
            while not self._stopping.is_set():
                self._look()
                if not announced and any(one.serves for one in self._workers):
                    announced = True
                    announce(listening)
                self._stopping.wait(_LOOK_EVERY_S)
        finally:
            self._end()
            if metrics is not None:
                metrics.close()
            self._socket.close()
        if self._failed is not None:
            raise PenstockError(f"The workers cannot start: {self._failed}")

    def _metrics(self) -> MetricsServer | None:
        if self._config.metrics_port is None:
            return None
        merged = MergedMetrics(
            lambda: {str(one.number): one.metrics_url for one in self._workers if one.metrics_url}
        )
        try:
            return MetricsServer(merged, self._config.host, self._config.metrics_port)
        except PenstockError:
            self._socket.close()
            raise

    def _look(self) -> None:
        """Start whoever has ended, after a pause that grows."""
        now_s = time.monotonic()
        for worker in self._workers:
            if worker.process is None:
                if now_s >= worker.start_at_s:
                    self._start(worker)
            elif worker.process.poll() is not None:
                self._note_end(worker, now_s)

    def _start(self, worker: _Worker) -> None:
        command = [*self._command, "--worker", str(worker.number)]
        worker.process = subprocess.Popen(  # noqa: S603  # our own program, no shell
            [*command, "--socket", str(self._socket.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[self._socket.fileno()],
            preexec_fn=die_with_parent,
        )
        worker.started_s = time.monotonic()
        threading.Thread(target=self._hear, args=(worker, worker.process), daemon=True).start()

    def _hear(self, worker: _Worker, process: subprocess.Popen[str]) -> None:
        """What a worker says: where its metrics are, and perhaps why it ends."""
        for line in process.stdout or ():
            try:
                worker.metrics_url = json.loads(line)["metrics_url"]
                worker.serves = True
            except (ValueError, KeyError, TypeError):
                logger.info("Worker %d: %s", worker.number, line.rstrip())

    def _note_end(self, worker: _Worker, now_s: float) -> None:
        code = worker.process.returncode if worker.process else 0
        started_well = worker.serves
        worker.process, worker.metrics_url, worker.serves = None, None, False
        if not started_well and not any(one.process for one in self._workers):
            self._failed = f"worker {worker.number} ended with {code} before it could serve."
            self._stopping.set()
            return
        if now_s - worker.started_s > _WELL_AFTER_S:
            worker.pause_s = _FIRST_PAUSE_S
        logger.error(
            "Worker %d ended with %s; a new one starts in %.1f s",
            worker.number,
            code,
            worker.pause_s,
        )
        worker.start_at_s = now_s + worker.pause_s
        worker.pause_s = min(2 * worker.pause_s, _LONGEST_PAUSE_S)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopping.is_set():
            for worker in self._workers:
                if worker.process is not None:
                    worker.process.kill()
            os._exit(128 + number)
        self._stopping.set()

    def _end(self) -> None:
        """Let all workers finish their answers, and wait for them."""
        running = [one.process for one in self._workers if one.process is not None]
        for process in running:
            process.terminate()
        deadline_s = time.monotonic() + self._config.drain_timeout_s + _PATIENCE_S
        for process in running:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def inherited(fd: int) -> socket.socket:
    """The port that a worker got from its parent."""
    return socket.socket(fileno=fd)
