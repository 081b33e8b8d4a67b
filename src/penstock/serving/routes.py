"""Which version of a model answers, and how that changes without dropping an answer.

A promotion moves one reference. Answers in flight keep the route they started
on; a route that was replaced closes its model when its last answer has ended.
During a rollout a second version, the challenger, answers a share of the requests.
Everything here happens on the gateway's event loop, so there are no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

from penstock.errors import NotReady
from penstock.serving.backends.base import Backend, ModelFiles
from penstock.serving.breaker import Breaker
from penstock.serving.model_text import ModelText
from penstock.serving.sticky import place

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedVersion:
    """What the production pointer names.

    Attributes:
        model: The model's name.
        version: Its version number.
        epoch: Goes up with every move of the pointer, also with a move back.
        folder: A transformers model folder; None for a model that lives elsewhere.
        digest: SHA-256 of the model artifact, 64 hex digits.
        run_id: The training run that made it.
        data_version: The data it was trained on.
        fetch: Brings the files to ``folder`` where they may be elsewhere; blocking.
    """

    model: str
    version: int
    epoch: int
    folder: Path | None
    digest: str
    run_id: str
    data_version: str
    fetch: Callable[[], object] | None = field(default=None, compare=False)

    @property
    def headers(self) -> dict[str, str]:
        """What every answer of this version says about its origin."""
        return {
            "x-penstock-model": self.model,
            "x-penstock-model-version": str(self.version),
            "x-penstock-run": self.run_id,
            "x-penstock-data-version": self.data_version,
        }

    @property
    def fingerprint(self) -> str:
        """OpenAI's ``system_fingerprint``: answers can only be repeated while it is the same."""
        return f"v{self.version}-{self.digest[:16]}"

    def same_model(self, other: ServedVersion) -> bool:
        """Whether both are the same weights under the same name and number."""
        return (self.version, self.digest, self.folder) == (
            other.version,
            other.digest,
            other.folder,
        )


Arm = Literal["champion", "challenger"]
ARMS: tuple[Arm, ...] = get_args(Arm)


@dataclass(frozen=True)
class Targets:
    """Which versions of one model should answer.

    Attributes:
        champion: The version that the alias names; None while it names none.
        challenger: The version on trial, if one is.
        share: Of the requests that the challenger answers, in [0, 1].
        rollout: Id of the trial.
        step: Index of its step.
    """

    champion: ServedVersion | None = None
    challenger: ServedVersion | None = None
    share: float = 0.0
    rollout: str = ""
    step: int = 0

    def of(self, arm: Arm) -> ServedVersion | None:
        """The version that should be in this place."""
        return self.champion if arm == "champion" else self.challenger


@dataclass
class Draw:
    """A request's lot in a trial: who was to answer it, by chance.

    Attributes:
        rollout: Id of the trial.
        step: Index of its step.
        share: The probability with which the challenger was drawn.
        arm: Who was drawn.
        conversation: Whose lot it is; it is drawn once.
        error: Why who was drawn did not answer, if so; another one may have.
        at_s: When, on the monotonic clock.
    """

    rollout: str
    step: int
    share: float
    arm: Arm
    conversation: str | None = None
    error: str | None = None
    at_s: float = field(default_factory=time.monotonic)


class Pointers(Protocol):
    """Where the gateway reads which versions to serve; the ledger implements it."""

    def targets(self, name: str) -> Targets:
        """What should serve behind a model's name. May block, may raise."""
        ...


class Route:
    """One loaded model version, and the answers that still need it."""

    def __init__(self, served: ServedVersion, files: ModelFiles, backend: Backend) -> None:
        self.served = served
        self.backend = backend
        self.breaker = Breaker()
        self._files = files
        self._num_in_flight = 0
        self._retired = False
        self._closed = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    @property
    def text(self) -> ModelText | None:
        """The version's tokenizer and limits; None for a model that reads text."""
        return self._files.text if self.backend.reads == "tokens" else None

    @property
    def num_in_flight(self) -> int:
        """Answers that are being computed."""
        return self._num_in_flight

    @contextlib.contextmanager
    def lease(self) -> Iterator[Route]:
        """Keep the model loaded for as long as one answer takes."""
        self._num_in_flight += 1
        try:
            yield self
        finally:
            self._num_in_flight -= 1
            self._close_if_idle()

    def retire(self) -> None:
        """Close the model as soon as nobody needs it."""
        self._retired = True
        self._close_if_idle()

    async def closed(self) -> None:
        """Wait until a retired route has closed its model."""
        await self._closed.wait()

    def _close_if_idle(self) -> None:
        if self._retired and self._num_in_flight == 0 and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        try:
            await asyncio.to_thread(self.backend.close)
        except Exception:
            logger.exception("Version %s did not close cleanly", self.served.version)
        finally:
            self._closed.set()


class RouteTable:
    """The references that promotions and rollouts move.

    Attributes:
        share: Of the requests that the challenger answers, in [0, 1].
        rollout: Id of the trial, if there is one.
        step: Index of its step.
    """

    def __init__(self) -> None:
        self._routes: dict[Arm, Route | None] = dict.fromkeys(ARMS)
        self._retired: set[Route] = set()
        self.share = 0.0
        self.rollout = ""
        self.step = 0

    @property
    def current(self) -> Route | None:
        """The champion's route."""
        return self._routes["champion"]

    @property
    def challenger(self) -> Route | None:
        """The challenger's route, while there is one."""
        return self._routes["challenger"]

    def route(
        self,
        conversation: str | None = None,
        again: bool = False,
        draws: list[Draw] | None = None,
    ) -> tuple[Route, Arm]:
        """The route that a new request takes.

        Args:
            conversation: Requests of one conversation stay with one version for as long
                as the share does not shrink; None is a conversation of its own.
            again: The request failed before: the champion gets it.
            draws: Gets the lot, if the request takes part in a trial.

        Raises:
            NotReady: No version is loaded, or the model does not answer.
        """
        if self.challenger is not None and not again:
            chosen = place(conversation, self.rollout) < self.share
            draw = Draw(
                self.rollout,
                self.step,
                self.share,
                "challenger" if chosen else "champion",
                conversation,
            )
            if draws is not None and self.share > 0:
                draws.append(draw)
            if chosen and self.challenger.breaker.admits():
                return self.challenger, "challenger"
            if chosen:
                draw.error = "not_ready"  # it was its turn, whoever answers instead
        if self.current is None:
            raise NotReady(
                "No model version is ready yet.",
                "Wait until /readyz answers 200; it says what is missing.",
            )
        if not self.current.breaker.admits():
            raise NotReady("This model does not answer at the moment.", "Try again.")
        return self.current, "champion"

    def swap(self, new: Route | None, arm: Arm = "champion") -> None:
        """Send new requests to ``new``; the old route ends with its last answer."""
        old, self._routes[arm] = self._routes[arm], new
        if old is not None:
            self._retired = {route for route in self._retired if not route._closed.is_set()}
            self._retired.add(old)
            old.retire()

    def promote(self, served: ServedVersion) -> None:
        """The challenger becomes the champion, without being loaded again.

        Args:
            served: The same version, as the moved pointer names it.
        """
        route, self._routes["challenger"] = self._routes["challenger"], None
        if route is not None:
            route.served = served
        self.swap(route)

    async def close(self) -> None:
        """Retire all routes and wait until their models are closed."""
        for arm in ARMS:
            self.swap(None, arm)
        await asyncio.gather(*(route.closed() for route in self._retired))
