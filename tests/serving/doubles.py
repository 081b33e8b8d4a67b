"""What the serving tests put in place of a ledger and a model."""

import socket
import time
from pathlib import Path

from penstock.serve_section import BackendConfig, ModelConfig
from penstock.serving.routes import ServedVersion, Targets

FAKE = "fake_backend:FakeBackend"


class Pointer:
    """A production pointer in memory."""

    def __init__(self, version=None):
        self.version = version
        self.challenger, self.share, self.rollout = None, 0.0, ""
        self.error = None

    def targets(self, name):
        if self.error is not None:
            raise self.error
        return Targets(self.version, self.challenger, self.share, self.rollout)


def model(backend=FAKE, options=None, **settings):
    """What a recipe says about one model."""
    settings.setdefault("registered", None if "source" in settings else "penny")
    return ModelConfig(backend=BackendConfig(type=backend, **(options or {})), **settings)


def served(folder, number, epoch=None, digest=None):
    return ServedVersion(
        model="penny",
        version=number,
        epoch=number if epoch is None else epoch,
        folder=Path(folder),
        digest=digest or f"{number:02x}" * 32,
        run_id=f"run-{number}",
        data_version=f"data-{number}",
    )


def wait_until(condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]
