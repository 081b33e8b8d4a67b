"""Downloads from a real MLflow server: whole, verified, or not at all."""

import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile

import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import RecipeError, RegistryError, StoreError
from penstock.model_files import content_digest, download
from penstock.model_registry import ModelRegistry

pytestmark = pytest.mark.slow


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def nothing_came(folder):
    return not folder.exists() and list(folder.parent.glob(".*.part")) == []


def penstock(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_classic_command_line_downloads_a_version_by_its_three_level_name(
    mlflow, name, make_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.uri)
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        mlflow.register(name, make_model(seed)[0])
    came = penstock(
        "model", "download", "--model-name", name, "--version", 2, "--output-dir", "./model"
    )
    assert came.exit_code == 0, came.output
    assert files(tmp_path / "model") == files(tmp_path / "made-2")
    assert "version 2 is in model" in came.output


def test_what_is_there_already_is_left_and_the_digest_is_printed(
    mlflow, name, make_model, tmp_path
):
    folder, _ = make_model(3)
    mlflow.register(name, folder)
    arguments = ("model", "download", "--model-name", name, "--version", 1, "--json",
                 "--tracking", mlflow.uri, "--output-dir", tmp_path / "out")  # fmt: skip
    first = penstock(*arguments)
    before = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    again = penstock(*arguments)
    assert first.exit_code == again.exit_code == 0, again.output
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert json.loads(first.stdout)["digest"] == content_digest(folder)
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("tagged", [True, False])
def test_a_folder_with_other_files_is_not_touched(mlflow, name, make_model, tmp_path, tagged):
    folder, digest = make_model(4, manifest=True)
    version = mlflow.register(name, folder, {"penstock.digest": digest} if tagged else None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(RecipeError, match="holds other files"):
        download(ModelRegistry(mlflow.uri), name, version, tmp_path / "out")
    assert files(tmp_path / "out") == {"mine.txt": b"precious"}


def test_files_are_held_to_the_manifest_they_came_with(mlflow, name, make_model, tmp_path):
    folder, digest = make_model(5, manifest=True)
    version = mlflow.register(name, folder, {"penstock.digest": digest})
    came = download(ModelRegistry(mlflow.uri), name, version, tmp_path / "good")
    assert (came.verified, came.digest, came.num_files) == (True, digest, 3)
    assert not (tmp_path / "good" / "manifest.json").exists()
    assert content_digest(tmp_path / "good") == digest
    weights = mlflow.files_of(name, version) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(StoreError, match=r"damaged: model\.safetensors"):
        download(ModelRegistry(mlflow.uri), name, version, tmp_path / "bad")
    assert nothing_came(tmp_path / "bad")


def test_a_file_that_was_added_after_registration_is_noticed(mlflow, name, make_model, tmp_path):
    folder, digest = make_model(6, manifest=True)
    version = mlflow.register(name, folder, {"penstock.digest": digest})
    (mlflow.files_of(name, version) / "modeling_evil.py").write_text("import os")
    with pytest.raises(StoreError, match="not those of digest"):
        download(ModelRegistry(mlflow.uri), name, version, tmp_path / "out")
    assert nothing_came(tmp_path / "out")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/penstock-was-here",)


def _torch_archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("python_model.pkl", b"harmless"),
        ("weights.PTH", b"harmless"),
        ("pytorch_model.bin", _torch_archive()),
        ("training_args.bin", pickle.dumps(Bomb())),
        ("readme.txt", pickle.dumps(Bomb(), protocol=2)),
    ],
)
def test_pickled_files_are_refused_whatever_they_are_called(
    mlflow, name, make_model, tmp_path, file, content
):
    folder, _ = make_model(7)
    (folder / file).write_bytes(content)
    version = mlflow.register(name, folder)
    with pytest.raises(RegistryError, match="is pickled") as refused:
        download(ModelRegistry(mlflow.uri), name, version, tmp_path / "out")
    assert file in refused.value.message
    assert "safetensors" in refused.value.hint
    assert nothing_came(tmp_path / "out")


def test_a_binary_file_that_is_no_pickle_comes_through(mlflow, name, make_model, tmp_path):
    folder, _ = make_model(8)
    (folder / "model.bin").write_bytes(bytes(range(256)))
    version = mlflow.register(name, folder)
    came = download(ModelRegistry(mlflow.uri), name, version, tmp_path / "out")
    assert (came.verified, came.num_files) == (False, 4)


def test_an_unknown_version_or_model_is_told_with_those_there_are(
    mlflow, name, make_model, tmp_path
):
    mlflow.register(name, make_model(9)[0])
    registry = ModelRegistry(mlflow.uri)
    with pytest.raises(RegistryError, match=r"no version 7 of model .* It has: 1\."):
        download(registry, name, 7, tmp_path / "out")
    with pytest.raises(RegistryError, match=f"Did you mean '{name}'"):
        download(registry, name[:-1], 1, tmp_path / "out")


def test_a_server_that_is_down_is_named_without_its_password(tmp_path):
    with pytest.raises(RegistryError, match="does not answer") as refused:
        download(ModelRegistry("http://user:secret@127.0.0.1:9"), "m", 1, tmp_path / "out")
    assert "secret" not in str(refused.value)
    assert refused.value.transient
    assert "127.0.0.1:9" in refused.value.message


class _Forbidding(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated.")

    def log_message(self, *_):
        pass


def test_credentials_that_are_refused_are_told_with_what_to_set(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Forbidding)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(RegistryError, match="refused the credentials") as refused:
            download(ModelRegistry(uri), "m", 1, tmp_path / "out")
    finally:
        server.shutdown()
        server.server_close()
    assert "MLFLOW_TRACKING_TOKEN" in refused.value.hint


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    mlflow, name, make_model, tmp_path, monkeypatch
):
    version = mlflow.register(name, make_model(10)[0])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 500})())
    with pytest.raises(StoreError, match="has room for"):
        download(ModelRegistry(mlflow.uri), name, version, tmp_path / "out")
    assert nothing_came(tmp_path / "out")


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(mlflow, name, make_model, tmp_path):
    folder, _ = make_model(11)
    (folder / "large.bin").write_bytes(os.urandom(3_000_000))
    version = mlflow.register(name, folder)
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("penstock.model_files._check_room", lambda *_: None)
            with pytest.raises(StoreError, match="disk is full"):
                download(ModelRegistry(mlflow.uri), name, version, place / "out")
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_what_a_killed_download_left_is_swept_by_the_next(mlflow, name, make_model, tmp_path):
    version = mlflow.register(name, make_model(12)[0])
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    left = tmp_path / f".out.{dead.stdout.strip()}.part"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"x")
    download(ModelRegistry(mlflow.uri), name, version, tmp_path / "out")
    assert list(tmp_path.glob(".*.part")) == []
    assert "half.safetensors" not in files(tmp_path / "out")


def test_without_a_server_or_a_recipe_the_command_says_what_to_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = penstock("model", "download", "--model-name", "m", "--version", 1, "--output-dir", "x")
    assert isinstance(done.exception, RecipeError)
    assert "MLFLOW_TRACKING_URI" in done.exception.hint
