"""Where a model that is named by its source comes from."""

import pytest

from hub_server import COMMIT
from penstock.errors import RecipeError
from penstock.serve_section import ModelConfig, Serve
from penstock.serving import loading

pytestmark = pytest.mark.slow


def load(tmp_path, **model):
    config = ModelConfig(task="embed", **model)
    return loading.Loader("vectors", config, Serve(), tmp_path / "cache", tmp_path).source()


def test_a_source_that_is_nowhere_is_refused_with_all_that_it_could_be(tmp_path):
    with pytest.raises(RecipeError, match=r"vectors\.source: 'team/base' is no folder") as refused:
        load(tmp_path, source="team/base")
    assert "packaged: all-MiniLM-L6-v2" in refused.value.message
    assert "serve.models.vectors.revision" in refused.value.hint


def test_a_hub_model_at_a_branch_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"vectors\.revision: 'main' is not a commit"):
        load(tmp_path, source="team/base", revision="main")


def test_a_hub_model_is_fetched_at_its_commit_and_loaded_from_its_folder(tmp_path, monkeypatch):
    from tiny_encoders import save_encoder

    save_encoder(tmp_path / "fetched")
    asked = []

    def fetch(*what):
        asked.append(what[:2])
        return tmp_path / "fetched"

    monkeypatch.setattr(loading, "fetch_apart", fetch)
    route = load(tmp_path, source="team/base", revision=COMMIT)
    assert asked == [("team/base", COMMIT)]
    assert route.served.folder == tmp_path / "fetched"
    route.backend.close()


def test_a_folder_beside_the_recipe_comes_before_the_hub(tmp_path, monkeypatch):
    from tiny_encoders import save_encoder

    save_encoder(tmp_path / "team" / "base")
    monkeypatch.setattr(loading, "fetch_apart", lambda *_: pytest.fail("asked the hub"))
    load(tmp_path, source="team/base", revision=COMMIT).backend.close()
