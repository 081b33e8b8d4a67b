import contextlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_backend
from doubles import Pointer, model, served
from tiny_llama import save_tokenizer

from penstock.serve_section import Serve
from penstock.serving.gateway import Surroundings
from penstock.serving.server import BackgroundServer


@pytest.fixture(scope="session")
def fake_folders(tmp_path_factory):
    """Folders v1, v2 and v3 that the fake backend can load; context length 64."""
    root = tmp_path_factory.mktemp("fake")
    for number in (1, 2, 3):
        folder = root / f"v{number}"
        save_tokenizer(folder)
        (folder / "config.json").write_text('{"max_position_embeddings": 64}')
    return {number: root / f"v{number}" for number in (1, 2, 3)}


@pytest.fixture
def pointer(fake_folders):
    return Pointer(served(fake_folders[1], 1))


@pytest.fixture
def gateway(fake_folders, pointer, tmp_path):
    """Starts gateways in front of the fake backend; stops them after the test."""
    with contextlib.ExitStack() as stack:

        def start(ready=True, **settings):
            fake_backend.EVENTS.clear()
            models = {
                "penny": model(),
                "vectors": model(task="embed", source=str(fake_folders[3])),
            }
            around = Surroundings(
                settings.pop("pointer", pointer),
                tmp_path / "cache",
                features=settings.pop("features", None),
                observers=settings.pop("observers", ()),
                keys=settings.pop("api_keys", None),
                accounts=settings.pop("accounts", None),
                feedback=settings.pop("feedback", None),
                alerts=settings.pop("alerts", None),
            )
            config = Serve(
                **{
                    "port": 0,
                    "metrics_port": 0,
                    "models": models | settings.pop("more", {}),
                    "poll_interval_s": 0.02,
                    **settings,
                }
            )
            server = stack.enter_context(BackgroundServer(config, around))
            if ready:
                server.wait_ready(30)
            return server

        yield start


@pytest.fixture
def events():
    return fake_backend.EVENTS
