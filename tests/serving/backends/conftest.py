import pytest
from fake_upstream import NAMED, FakeUpstream

from penstock.serving.backends.base import ModelFiles
from penstock.serving.backends.openai import OpenAIBackend


@pytest.fixture
def upstream():
    with FakeUpstream() as server:
        yield server


@pytest.fixture
def elsewhere(upstream, tmp_path):
    """Makes backends in front of ``upstream``."""
    made = []

    def make(options=None, **more):
        settings = {"url": upstream.url, **(options or {})}
        files = ModelFiles(None, tmp_path, settings, **{"source": NAMED, **more})
        backend = OpenAIBackend(files)
        made.append(backend)
        backend.load()
        return backend

    yield make
    for backend in made:
        backend.close()
