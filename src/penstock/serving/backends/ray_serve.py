"""Ray Serve: as many copies of a model as its load needs, on one host or on a cluster.

One application for each model version. An application is never changed: another version, or
other settings, is another application, which answers before the gateway moves the
route to it; the old one goes when the last gateway has done with it. So a gateway that
starts anew finds what runs, and two with different settings do not disturb each other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import threading
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

import penstock
from penstock.artifacts import digest_of
from penstock.errors import PenstockError, RecipeError, ServingError
from penstock.ledger import this_process
from penstock.registry import resolve
from penstock.section import Plugin, Section, ShortStep, known, named_step
from penstock.serve_section import DEFAULT_BACKENDS
from penstock.serving.backends.base import (
    Backend,
    Capability,
    Chunk,
    Floats,
    Generation,
    ModelFiles,
)
from penstock.serving.backends.ray_applications import PREFIX
from penstock.serving.backends.ray_cluster import Cluster, Use
from penstock.serving.backends.ray_replica import Order, Replica

_DEPLOYMENT = "model"
_LOOK_S = 0.25
_RETRY_S = 5.0
_HEALTH_CHECK_S = 2.0
# The last line of a traceback: an exception's class and what it says.
_ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|MissingExtra|Interrupt)\b.*:")

logger = logging.getLogger(__name__)

# Ray notes in one global of the process what it pickles by value, for each description.
_DESCRIBING = threading.Lock()


class InsideConfig(Plugin):
    """The backend that computes in each copy."""

    type: Annotated[str, AfterValidator(known("backends"))] = Field(
        description="What computes in each copy."
    )


class RayServeOptions(Section):
    """What a recipe may set."""

    inside: (
        Annotated[
            InsideConfig,
            BeforeValidator(named_step, json_schema_input_type=InsideConfig | str | ShortStep),
        ]
        | None
    ) = Field(
        None,
        description="The backend that computes in each copy, with its own options. Null: as "
        "without `ray_serve`.",
    )
    address: str | None = Field(
        None,
        description="Of a running cluster that this host is part of: `auto` or HOST:PORT. Null is "
        "`RAY_ADDRESS`, or a Ray of its own, which ends with the gateway.",
    )
    num_cpus: int | None = Field(
        None, ge=1, description="Cores for a Ray of its own; null takes all."
    )
    upscale_delay_s: float = Field(
        10.0, ge=0, description="More copies come when they were wanted this long."
    )
    downscale_delay_s: float = Field(
        300.0, ge=0, description="Copies go when they were not wanted this long."
    )
    max_ongoing_requests: int | None = Field(
        None, ge=1, description="In one copy at once; null is the model's `max_concurrency`."
    )
    deploy_timeout_s: float = Field(
        900.0, gt=0, description="For all copies that must be there to have loaded the model."
    )
    drain_timeout_s: float | None = Field(
        None,
        ge=0,
        description="For answers in flight in a copy that goes; null is `serve.request_timeout_s`.",
    )

    @field_validator("address")
    @classmethod
    def _streams(cls, address: str | None) -> str | None:
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                "answers do not stream through Ray's client: run the gateway on a host of the "
                "cluster, and say auto or HOST:PORT"
            )
        return address

    @model_validator(mode="after")
    def _options_inside(self) -> RayServeOptions:
        # One of "module:Object" is found when it is used.
        if self.inside is not None and ":" not in self.inside.type:
            _resolved(self.inside.type).Options.model_validate(self.inside.extra)
        return self


class RayServeBackend(Backend):
    """Copies of a model in Ray Serve, which come and go with the load; another backend computes."""

    Options = RayServeOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {"generate", "embed", "rerank", "classify"}
    )
    elsewhere = True

    def __init__(self, files: ModelFiles) -> None:
        self._options = RayServeOptions.model_validate(files.options)
        self._files = files
        inside = self._options.inside
        name = inside.type if inside else DEFAULT_BACKENDS[files.task]
        _check(name, _resolved(name, files.recipe_folder), files.task)
        # Made anew: one whose tokenizer is loaded would carry it along.
        self._order = Order(name, replace(files, options=inside.extra if inside else {}))
        self._name = f"{PREFIX}{files.label}-{self._digest()[:8]}"
        self._use = Use(f"{this_process()}-{uuid.uuid4().hex[:8]}", self._name, self._come_back)
        self._deploying = threading.Lock()
        self._closed = False
        drain_s = self._options.drain_timeout_s
        self._drain_timeout_s = files.longest_answer_s if drain_s is None else drain_s
        self._labels = files.labels
        self._cluster: Cluster | None = None
        self._handle: Any = None

    def load(self) -> None:
        """Have the application run, and wait until all copies that must be there are.

        Raises:
            ServingError: It does not come up; the reason is what Ray Serve says.
            MissingExtra: Ray Serve is not installed.
        """
        self._warn_of_copies_nobody_fills()
        options = self._options
        self._cluster = Cluster.joined(options.address, options.num_cpus)
        try:
            self._cluster.use(self._use)
            with self._deploying:
                self._deploy(self._cluster)
            self._hold(self._cluster)
        except BaseException:
            self.close()
            raise

    @property
    def labels(self) -> tuple[str, ...]:
        """What a classifier tells apart, as the copies say."""
        return self._labels

    async def generate(self, request: Generation) -> AsyncGenerator[Chunk, None]:
        """Stream one answer from one copy; closing the iterator ends it there."""
        answer = self._stream.remote(request)
        try:
            async for chunk in answer:
                yield chunk
        except Exception as error:
            raise self._plain(error) from error
        finally:
            answer.cancel()

    async def embed(self, texts: list[str]) -> tuple[Floats, int]:
        """Embed texts in one copy."""
        vectors: tuple[Floats, int] = await self._asked("embed", texts)
        return vectors

    async def rerank(self, query: str, documents: list[str]) -> tuple[Floats, int]:
        """Score documents in one copy."""
        scores: tuple[Floats, int] = await self._asked("rerank", query, documents)
        return scores

    async def classify(self, texts: list[str]) -> tuple[Floats, int]:
        """Classify texts in one copy."""
        scores: tuple[Floats, int] = await self._asked("classify", texts)
        return scores

    async def healthy(self) -> bool:
        """Whether a copy runs, as Ray Serve said within half a second or so."""
        return self._cluster is not None and self._cluster.answers(self._name)

    def close(self) -> None:
        """Use the application no more; it goes if nobody else does."""
        cluster, self._cluster, self._closed = self._cluster, None, True
        if cluster is None:
            return
        cluster.unuse(self._use)
        if self._handle is not None:
            self._handle.shutdown()
        try:
            cluster.ask("end", self._use.user, self._name)
        except ServingError as error:
            logger.warning("The lease of %s is left to end by itself: %s", self._name, error)
        finally:
            cluster.leave()

    # -- deploying -----------------------------------------------------------------

    def _digest(self) -> str:
        """Of all that makes an application another one."""
        order = asdict(self._order) | {"version": penstock.__version__}
        order |= self._options.model_dump(exclude={"inside", "address", "num_cpus"})
        return digest_of(json.loads(json.dumps(order, default=str)))

    def _deploy(self, cluster: Cluster) -> None:
        deadline_s = time.monotonic() + self._options.deploy_timeout_s
        # One gateway deploys; the others find what it has deployed.
        while not cluster.ask("begin", self._use.user, self._name):
            self._wait(deadline_s, "another gateway deploys or deletes it")
        try:
            while said := self._not_yet(cluster):
                self._wait(deadline_s, said)
        finally:
            cluster.ask("deployed", self._use.user, self._name)

    def _wait(self, deadline_s: float, said: str) -> None:
        if time.monotonic() > deadline_s:
            raise ServingError(
                f"{self._name} did not come up in Ray Serve within "
                f"{self._options.deploy_timeout_s:g} s: {said}",
                "Give the cluster room for a second set of copies, or ask for less: "
                "`resources`, `replicas.min`.",
            )
        time.sleep(_LOOK_S)

    def _not_yet(self, cluster: Cluster) -> str:
        """Why the application does not answer yet; empty when it does. Deploys what is not there.

        Raises:
            ServingError: It never will.
        """
        status = cluster.status(self._name)
        if status is None:
            self._run(cluster)
            return "it was not there"
        if status.status == "DEPLOY_FAILED":
            raise ServingError(f"{self._name} failed in Ray Serve: {_reason(status)}")
        return "" if status.status == "RUNNING" else f"{status.status.value} {_reason(status)}"

    def _run(self, cluster: Cluster) -> None:
        with _DESCRIBING:
            self._run_alone(cluster)

    def _run_alone(self, cluster: Cluster) -> None:
        scaling, options = self._files.scaling, self._options
        most = options.max_ongoing_requests or self._files.max_concurrency
        deployment = cluster.serve.deployment(Replica).options(
            name=_DEPLOYMENT,
            ray_actor_options={"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
            autoscaling_config={
                "min_replicas": scaling.min_replicas,
                "max_replicas": scaling.max_replicas,
                "target_ongoing_requests": scaling.target_ongoing_requests,
                "upscale_delay_s": options.upscale_delay_s,
                "downscale_delay_s": options.downscale_delay_s,
                # Ray Serve looks back over 30 s that come in every 10: too long for a short delay.
                "look_back_period_s": min(30.0, max(2.0, options.upscale_delay_s)),
                "metrics_interval_s": 1.0,
            },
            max_ongoing_requests=max(most, math.ceil(scaling.target_ongoing_requests)),
            # The gateway's own queue is the one that refuses.
            max_queued_requests=self._files.max_concurrency,
            graceful_shutdown_timeout_s=self._drain_timeout_s,
            graceful_shutdown_wait_loop_s=0.2,
            health_check_period_s=_HEALTH_CHECK_S,
            max_constructor_retry_count=2,
        )
        target = cluster.serve.RunTarget(
            target=deployment.bind(self._order),
            name=self._name,
            route_prefix=None,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        cluster.serve.run_many([target], wait_for_applications_running=False)

    def _hold(self, cluster: Cluster) -> None:
        """Keep handles: each new one costs a look at the cluster."""
        # One of our own: those that Ray Serve hands out are shared, and stay shut once shut.
        handle = cluster.serve.handle.DeploymentHandle(_DEPLOYMENT, self._name)
        self._handle = handle
        self._stream = handle.options(method_name="generate", stream=True)
        self._handles = {
            name: handle.options(method_name=name) for name in ("embed", "rerank", "classify")
        }
        if self._files.task == "classify":
            asked = handle.options(method_name="labels").remote()
            self._labels = asked.result(timeout_s=self._options.deploy_timeout_s)

    def _come_back(self) -> None:
        """Somebody deleted the application: deploy it again, beside whoever watches."""
        if not self._deploying.locked():
            threading.Thread(target=self._restore, name="ray-restore", daemon=True).start()

    def _restore(self) -> None:
        with self._deploying:
            while (cluster := self._cluster) is not None and not self._closed:
                logger.warning("%s is gone from Ray Serve; deploying it again", self._name)
                try:
                    self._deploy(cluster)
                except Exception as error:
                    logger.error("%s cannot be deployed again: %s", self._name, error)
                    time.sleep(_RETRY_S)
                else:
                    return

    def _warn_of_copies_nobody_fills(self) -> None:
        scaling, most = self._files.scaling, self._files.max_concurrency
        num_useful = math.ceil(most / scaling.target_ongoing_requests)
        if num_useful < scaling.max_replicas:
            logger.warning(
                "%s: one gateway sends %d requests at once (max_concurrency), which is work for "
                "%d replicas of %g; there may be %d",
                self._name,
                most,
                num_useful,
                scaling.target_ongoing_requests,
                scaling.max_replicas,
            )

    # -- asking --------------------------------------------------------------------

    async def _asked(self, method: str, *arguments: Any) -> Any:
        answer = self._handles[method].remote(*arguments)
        try:
            return await answer
        except asyncio.CancelledError:
            answer.cancel()
            raise
        except Exception as error:
            raise self._plain(error) from error

    def _plain(self, error: Exception) -> PenstockError:
        return self._cluster.meaning(error) if self._cluster else ServingError(str(error))


def _resolved(name: str, folder: Path | None = None) -> type[Backend]:
    found: type[Backend] = resolve("backends", name, folder)
    return found


def _check(name: str, inside: type[Backend], task: Capability) -> None:
    """Refuse what cannot compute in a copy.

    Raises:
        RecipeError: It cannot.
    """
    if task not in inside.capabilities:
        raise RecipeError(
            f"ray_serve: inside: {name} cannot {task}; it can "
            f"{', '.join(sorted(inside.capabilities))}."
        )
    if inside.reads == "text" or issubclass(inside, RayServeBackend):
        raise RecipeError(
            f"ray_serve: inside: {name} has no model to make copies of.",
            f"Set backend: {name} without ray_serve.",
        )


def _reason(status: Any) -> str:
    """What Ray Serve says, shortened to the sentence that tells why."""
    said = [status.message, *(one.message for one in status.deployments.values())]
    lines = [line.strip() for text in said for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return errors[-1] if errors else " ".join(lines)[-500:]
