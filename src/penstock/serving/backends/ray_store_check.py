"""The application by which KubeRay sees that a Ray cluster can hold Penstock's models.

A RayService is ready when an application of its own runs. The models are none of those:
gateways start one for each version, and the pointer says which.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import penstock
from penstock.errors import ServingError
from penstock.registry import require


class StoreCheckArgs(BaseModel, extra="forbid"):
    """What the RayService's manifest says.

    Attributes:
        store: A folder that every host must see; empty where models are packaged.
    """

    store: str = ""


class StoreCheck:
    """Answers with what it is while the store is there.

    Args:
        store: The folder; empty looks at none.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self.check_health()

    def check_health(self) -> None:
        """Asked by Ray Serve.

        Raises:
            ServingError: This host does not see the store.
        """
        if self._store and not Path(self._store).is_dir():
            raise ServingError(
                f"{self._store} is not there on {socket.gethostname()}.",
                "Mount the store's volume in all pods of the Ray cluster.",
            )

    async def __call__(self, request: Any) -> dict[str, str]:
        """Answer any request."""
        return {"penstock": penstock.__version__, "store": self._store}


def application(args: dict[str, Any]) -> Any:
    """The application, as ``serveConfigV2`` names it.

    Args:
        args: See ``StoreCheckArgs``.

    Raises:
        MissingExtra: Ray Serve is not installed.
    """
    checked = StoreCheckArgs.model_validate(args)
    serve = require("ray.serve", "ray")
    deployment = serve.deployment(
        StoreCheck, name="store-check", ray_actor_options={"num_cpus": 0}, health_check_period_s=10
    )
    return deployment.bind(checked.store)
