"""Models of the hub: at a commit, safetensors only, and from a process that is offline itself."""

import os

import pytest

from hub_server import COMMIT, hub_server
from penstock import hub
from penstock.errors import RecipeError, ServingError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A hub that has a model of two folders, and a cache of its own."""
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "modules.json", "1_Pooling/config.json"):
        (model / name).write_text("{}")
    for name in ("model.safetensors", "pytorch_model.bin", "evil.py"):
        (model / name).write_bytes(b"weights")
    with hub_server(model) as (url, asked):
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(hub, "_was_offline", True)
        yield model, asked


@pytest.mark.slow
def test_a_model_is_fetched_at_its_commit_by_a_process_that_went_offline_itself(place):
    _, asked = place
    hub.go_offline()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    folder = hub.fetch_apart("team/base", COMMIT, ServingError)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert names == {"config.json", "modules.json", "1_Pooling/config.json", "model.safetensors"}
    assert all(COMMIT in path for path in asked), "nothing that is not pinned"


@pytest.mark.slow
def test_a_user_who_is_offline_stays_so_and_is_served_from_the_cache(place, monkeypatch):
    _, asked = place
    fetched = hub.fetch_apart("team/base", COMMIT, ServingError)
    asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.go_offline()
    assert hub.fetch_apart("team/base", COMMIT, ServingError) == fetched
    assert asked == []


@pytest.mark.slow
def test_a_model_without_safetensors_is_refused(place):
    model, _ = place
    (model / "model.safetensors").unlink()
    with pytest.raises(ServingError, match="no safetensors weights") as refused:
        hub.fetch_apart("team/base", COMMIT, ServingError)
    assert "run code" in refused.value.hint


@pytest.mark.slow
def test_a_name_that_the_hub_does_not_have_is_said(place):
    with pytest.raises(ServingError, match=r"'team/other' at .* cannot be fetched from the hub"):
        hub.fetch_apart("team/other", COMMIT, ServingError)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12], COMMIT.upper()])
def test_only_a_whole_commit_pins_a_model(revision):
    with pytest.raises(RecipeError, match="commit"):
        hub.require_commit("team/base", revision, "train.base", "train.base_revision")
    assert hub.require_commit("team/base", COMMIT, "x", "y") == COMMIT
