"""The Ray cluster that this process's models run on: joined once, watched, its leases renewed."""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar

from penstock.errors import MissingExtra, Overloaded, PenstockError, ReplicaLost, ServingError
from penstock.ray_process import JoinedRay
from penstock.serving.backends import ray_applications

_NAMESPACE = "penstock"
_ACTOR = "penstock-applications"
_LOOK_S = 0.4
_ASK_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 20.0
_HINT = "Check the backend's `address` and RAY_ADDRESS, or leave both out to start Ray here."

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Use:
    """One loaded model of this process.

    Attributes:
        user: Names it among those of all gateways.
        name: Of its application.
        missing: Called when the application, which was there, is not.
    """

    user: str
    name: str
    missing: Callable[[], None]


class Cluster:
    """One for all models of this process; see ``joined``.

    Args:
        address: Of a running cluster; None is RAY_ADDRESS, or a Ray of our own.
        num_cpus: For a Ray of our own.

    Attributes:
        ray: The library.
        serve: ``ray.serve``.

    Raises:
        MissingExtra: Ray Serve is not installed.
        ServingError: Ray cannot be started or reached.
    """

    _joined: ClassVar[Cluster | None] = None
    _joining = threading.Lock()

    def __init__(self, address: str | None, num_cpus: int | None) -> None:
        self.address = address
        self._num_users = 0
        self._uses: dict[str, Use] = {}
        self._seen: dict[str, Any] = {}
        self._looking = threading.Lock()
        self._ended = threading.Event()
        started: Future[None] = Future()
        # A Ray that is started here ends with the thread that started it: Linux tells its
        # processes of the end of their parent's thread, not of the whole parent.
        self._thread = threading.Thread(
            target=self._live, args=(num_cpus, started), name="ray-cluster", daemon=True
        )
        self._thread.start()
        started.result()

    @classmethod
    def joined(cls, address: str | None, num_cpus: int | None) -> Cluster:
        """The cluster, joined if it was not; ``leave`` it once for each call.

        Raises:
            MissingExtra: Ray Serve is not installed.
            ServingError: Ray cannot be started or reached, or is another one.
        """
        with cls._joining:
            if cls._joined is None:
                cls._joined = cls(address, num_cpus)
            if cls._joined.address != address:
                raise ServingError(
                    f"This gateway has joined the Ray at {cls._joined.address or 'this host'}, "
                    f"and cannot join the one at {address or 'this host'} too.",
                    "Give all models the same `address`.",
                )
            cls._joined._num_users += 1
            return cls._joined

    def leave(self) -> None:
        """A model is gone; the last one takes a Ray of our own along."""
        with self._joining:
            self._num_users -= 1
            if self._num_users == 0:
                type(self)._joined = None
                self._ended.set()
                self._thread.join(_END_TIMEOUT_S + _ASK_TIMEOUT_S)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Ask the actor that knows who uses what; see ``Applications``.

        Raises:
            ServingError: It does not answer.
        """
        try:
            asked = getattr(self._applications, method).remote(*arguments)
            return self.ray.get(asked, timeout=_ASK_TIMEOUT_S)
        except self.ray.exceptions.RayError as error:
            raise ServingError(f"Ray does not answer: {error}", _HINT) from error

    def use(self, use: Use) -> None:
        """Renew a lease from now on."""
        self._uses[use.user] = use

    def unuse(self, use: Use) -> None:
        """Renew it no more."""
        self._uses.pop(use.user, None)

    def status(self, name: str) -> Any | None:
        """What Ray Serve says of an application now; None if there is none.

        Raises:
            ServingError: It says nothing.
        """
        try:
            return self._look().get(name)
        except (self.ray.exceptions.RayError, self.serve.exceptions.RayServeException) as error:
            raise ServingError(f"Ray Serve does not answer: {error}", _HINT) from error

    def answers(self, name: str) -> bool:
        """Whether an application had a copy that runs, or can start one, when it was last seen.

        Copies answer also while Ray Serve is too busy to say so.
        """
        seen = self._seen.get(name)
        return seen is not None and _can_answer(seen)

    def meaning(self, error: Exception) -> PenstockError:
        """What a copy raised, as itself; what Ray raised, as what it means to a gateway."""
        ray, serve = self.ray.exceptions, self.serve.exceptions
        cause = error.cause if isinstance(error, ray.RayTaskError) else None
        if isinstance(cause, PenstockError):
            return cause
        if isinstance(error, serve.BackPressureError):
            return Overloaded("All replicas are busy.", "Try again.")
        lost = (ray.RayActorError, ray.NodeDiedError, ray.ObjectLostError, ray.WorkerCrashedError)
        if isinstance(error, (*lost, serve.ReplicaUnavailableError)):
            return ReplicaLost("The replica that computed this answer ended.", "Try again.")
        return ServingError("The model failed in its replica.")

    def _live(self, num_cpus: int | None, started: Future[None]) -> None:
        try:
            own = self._join(num_cpus)
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            self._watch()
            if own.is_own:
                self._let_copies_end()
        finally:
            own.stop()

    def _join(self, num_cpus: int | None) -> JoinedRay:
        # Read when Ray Serve is imported; what it says is in its own log files.
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
        own = JoinedRay(self.address, num_cpus, ServingError, _HINT)
        self.ray = own.ray
        try:
            self.serve = _ray_serve()
            self._start()
        except BaseException:
            own.stop()
            raise
        return own

    def _start(self) -> None:
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        # Nobody asks over HTTP: requests come from the gateway, through handles.
        self.serve.start(proxy_location="Disabled", logging_config=quiet)
        self._applications: Any = (
            self.ray.remote(ray_applications.Applications)
            .options(
                name=_ACTOR,
                namespace=_NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
            )
            .remote(ray_applications.LEASE_S)
        )

    def _let_copies_end(self) -> None:
        """A Ray that ends kills them; what they have started is theirs to end before."""
        deadline_s = time.monotonic() + _END_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if not any(map(ray_applications.is_ours, self.serve.status().applications)):
                return
            time.sleep(_LOOK_S / 4)

    def _watch(self) -> None:
        renew_at_s = 0.0
        broken = False
        while not self._ended.wait(_LOOK_S):
            try:
                self._look()
                if time.monotonic() >= renew_at_s:
                    self.ask("renew", {use.user: use.name for use in list(self._uses.values())})
                    renew_at_s = time.monotonic() + ray_applications.LEASE_S / 3
                broken = False
            except Exception as error:
                if not broken:
                    logger.warning("Ray cannot be watched; trying on: %s", error)
                broken = True

    def _look(self) -> dict[str, Any]:
        with self._looking:  # or what was seen first could be noted last
            seen: dict[str, Any] = self.serve.status().applications
            before, self._seen = self._seen, seen
        for use in list(self._uses.values()):
            if use.name in before and use.name not in seen:
                use.missing()
        return seen


def _can_answer(status: Any) -> bool:
    if status.status == "DELETING":
        return False
    copies = [one.replica_states for one in status.deployments.values()]
    return status.status == "RUNNING" or any(states.get("RUNNING", 0) for states in copies)


def _ray_serve() -> Any:
    try:
        return importlib.import_module("ray.serve")
    except ImportError:  # Ray is there, and what only its Serve needs is not
        raise MissingExtra("ray.serve", "ray") from None
