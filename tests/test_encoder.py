import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "serving"))

from tiny_encoders import save_cross_encoder, save_encoder

from penstock.encoder import (
    Encoder,
    is_cross_encoder,
    max_tokens,
    model_files,
    packaged_folder,
)
from penstock.errors import RecipeError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    save_encoder(folder)
    return folder


@pytest.mark.parametrize("which", ["plain", "packaged"])
def test_the_limit_that_files_tell_is_the_loaded_models(plain, which):
    folder = plain if which == "plain" else packaged_folder("all-MiniLM-L6-v2")
    assert max_tokens(folder) == Encoder.load(folder).limit == {"plain": 64, "packaged": 256}[which]


def test_a_version_takes_over_all_that_is_loaded_and_nothing_that_runs(plain, tmp_path):
    folder = packaged_folder("all-MiniLM-L6-v2")
    files = {path.as_posix() for path in model_files(folder)}
    assert {"model.safetensors", "1_Pooling/config.json", "tokenizer.json", "vocab.txt"} <= files
    (plain / "evil.py").write_text("")
    (plain / "pytorch_model.bin").write_bytes(b"")
    assert not {Path("evil.py"), Path("pytorch_model.bin")} & set(model_files(plain))
    with pytest.raises(RecipeError, match="holds no encoder"):
        model_files(tmp_path)


def test_cross_encoders_are_known_by_their_settings(plain, tmp_path):
    save_cross_encoder(tmp_path)
    assert is_cross_encoder(tmp_path)
    assert not is_cross_encoder(plain)
    (tmp_path / "config_sentence_transformers.json").write_text(
        '{"model_type": "SentenceTransformer"}'
    )
    assert not is_cross_encoder(tmp_path), "what it was saved as comes first"
