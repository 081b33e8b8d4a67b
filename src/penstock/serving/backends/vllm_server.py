"""A ``vllm serve`` of our own: started, watched, started again, and gone with us."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from penstock.child_process import Running, free_port, start
from penstock.errors import ServingError

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LAST_PAUSE_S = 60.0
# One that ran for so long had a reason of its own to end.
_SOUND_S = 300.0
_LOOK_INTERVAL_S = 0.2


class VllmServer:
    """Keeps one server process running.

    Args:
        command: Starts it, but for the port.
        name: For the log.
        log: Where what it says is kept; the last one's beside it, with ``.1``.
        start_timeout_s: Until it has loaded the model.
        is_up: Asked with its address, whether it has.

    Attributes:
        key: What it accepts, so that no other user of this host can ask it.
        url: Of its API; None while it is not up.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        log: Path,
        start_timeout_s: float,
        is_up: Callable[[str], bool],
    ) -> None:
        self.key = secrets.token_urlsafe(32)
        self.url: str | None = None
        self._command = command
        self._name = name
        self._log = log
        self._start_timeout_s = start_timeout_s
        self._is_up = is_up
        self._ended = threading.Event()
        self._child: Running | None = None
        self._watching = threading.Thread(target=self._watch, name=f"vllm {name}", daemon=True)

    def start(self) -> None:
        """Start it, and wait until it can answer; blocking.

        Raises:
            ServingError: It ended, or took too long.
        """
        try:
            self._start_once()
        except ServingError:
            self.close()
            raise
        self._watching.start()

    def close(self) -> None:
        """End it."""
        self._ended.set()
        self.url = None
        if self._child is not None:
            self._child.end()
        if self._watching.ident is not None:
            self._watching.join()
        if self._child is not None:
            self._child.log.close()

    def _start_once(self) -> None:
        port = free_port()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            self._log.replace(self._log.with_name(f"{self._log.name}.1"))
        if self._child is not None:
            self._child.log.close()
        self._child = start(
            [*self._command, "--port", str(port)],
            self._log.open("w+b"),
            environment=os.environ
            | {
                "VLLM_API_KEY": self.key,
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
                "PYTHONUNBUFFERED": "1",
            },
        )
        url = f"http://127.0.0.1:{port}/v1"
        self._wait_until_up(self._child, url)
        self.url = url

    def _wait_until_up(self, child: Running, url: str) -> None:
        deadline_s = time.monotonic() + self._start_timeout_s
        while not self._is_up(url):
            ended = child.process.poll() is not None
            if ended or time.monotonic() > deadline_s or self._ended.is_set():
                child.end()
                how = "ended" if ended else f"was not up after {self._start_timeout_s:g} s"
                raise ServingError(
                    f"vLLM for {self._name} {how}. Its last words: {child.last_words()}",
                    f"All it said is in {self._log}.",
                )
            self._ended.wait(_LOOK_INTERVAL_S)

    def _watch(self) -> None:
        """Start it again whenever it ends."""
        pause_s = _FIRST_PAUSE_S
        while not self._ended.is_set():
            started_s = time.monotonic()
            self._wait_for_end()
            if time.monotonic() - started_s > _SOUND_S:
                pause_s = _FIRST_PAUSE_S
            if self._ended.wait(pause_s):
                return
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
            try:
                self._start_once()
                logger.info("vLLM for %s is up again", self._name)
            except (ServingError, OSError) as error:
                logger.error("vLLM for %s cannot be started again: %s", self._name, error)

    def _wait_for_end(self) -> None:
        child = self._child
        if child is None:
            return
        code = child.process.wait()
        was_up, self.url = self.url is not None, None
        if was_up and not self._ended.is_set():
            logger.error("vLLM for %s ended with %d: %s", self._name, code, child.last_words())
