"""Datasets in folders, by the real library, and on a hub that answers as the real one."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from penstock.errors import SourceError, SourceUnavailable
from penstock.sources.huggingface import HuggingFaceSource

COMMIT = "ab" * 20
ROWS = [{"instruction": f"q{i}", "response": f"a{i}"} for i in range(3)]


def source(folder, **options):
    return HuggingFaceSource(HuggingFaceSource.Options(**options), folder)


def rows_of(made):
    (unit,) = made.snapshot()
    return [row for batch in made.read(unit) for row in batch.to_pylist()]


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_a_folder_of_data_files_is_read_by_split(tmp_path):
    write(tmp_path / "data", "train.jsonl", ROWS)
    write(tmp_path / "data", "test.jsonl", ROWS[:1])
    found = rows_of(source(tmp_path, path="data"))
    assert [row["instruction"] for row in found] == ["q0", "q1", "q2"]
    assert found[1]["_origin"] == "data/train:1"
    assert len(rows_of(source(tmp_path, path="data", split="test"))) == 1


def test_what_save_to_disk_wrote_is_read_with_and_without_splits(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "all")
    assert len(rows_of(source(tmp_path, path="one"))) == 3
    assert len(rows_of(source(tmp_path, path="all", split="test"))) == 1
    with pytest.raises(SourceError, match=r"no split 'tset'.* Did you mean 'test'"):
        rows_of(source(tmp_path, path="all", split="tset"))


def test_a_changed_file_is_another_stream_and_no_longer_what_was_pinned(tmp_path):
    write(tmp_path / "data", "train.jsonl", ROWS)
    made = source(tmp_path, path="data")
    (before,) = made.snapshot()
    (tmp_path / "data").rename(tmp_path / "moved")
    assert source(tmp_path, path="moved").snapshot()[0].stream == before.stream
    write(tmp_path / "data", "train.jsonl", ROWS[:1])
    with pytest.raises(SourceError, match="has changed since it was pinned"):
        list(made.read(before))


def test_a_reserved_column_and_a_folder_without_data_are_refused(tmp_path):
    write(tmp_path / "data", "train.jsonl", [{"_row_id": "x"}])
    with pytest.raises(SourceError, match="'_row_id' is reserved"):
        rows_of(source(tmp_path, path="data"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no file"):
        source(tmp_path, path="empty").snapshot()
    with pytest.raises(SourceError, match="There is no folder"):
        source(tmp_path, path="nowhere").snapshot()
    write(tmp_path / "broken", "train.jsonl", ["not a row"])
    with pytest.raises(SourceError, match="broken/train cannot be read"):
        rows_of(source(tmp_path, path="broken"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs either name"),
        ({"name": "a/b", "path": "c"}, "needs either name"),
        ({"name": "a/b"}, "needs its commit"),
        ({"name": "a/b", "revision": "main"}, "may mean other rows tomorrow"),
    ],
)
def test_a_dataset_that_is_not_pinned_is_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        HuggingFaceSource.Options(**options)


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that fetching a pinned snapshot asks for."""

    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()

    def do_GET(self):
        if self.path.startswith(f"/api/datasets/org/data/tree/{COMMIT}?"):
            files = [
                {"type": "file", "path": name, "size": len(self.data), "oid": "0" * 40}
                for name in ("train.jsonl", "evil.py")
            ]
            self.answer(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        elif self.path == f"/datasets/org/data/resolve/{COMMIT}/train.jsonl":
            etag = hashlib.sha1(self.data).hexdigest()
            self.answer(200, self.data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            code = "RevisionNotFound" if "org/data" in self.path else "RepoNotFound"
            self.answer(404, b"{}", {"X-Error-Code": code})

    do_HEAD = do_GET

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_dataset_is_fetched_at_its_commit_without_its_code(hub, tmp_path):
    made = source(tmp_path, name="org/data", revision=COMMIT)
    assert [row["response"] for row in rows_of(made)] == ["a0", "a1", "a2"]
    assert not list((tmp_path / "cache").rglob("evil.py"))
    assert made.snapshot()[0].stream == f"huggingface:org/data@{COMMIT}//train"


def test_a_name_or_commit_that_the_hub_does_not_have_is_said(hub, tmp_path):
    with pytest.raises(SourceError, match="has no commit"):
        rows_of(source(tmp_path, name="org/data", revision="cd" * 20))
    with pytest.raises(SourceError, match="There is no dataset 'org/other'"):
        rows_of(source(tmp_path, name="org/other", revision=COMMIT))


def test_without_a_network_it_says_how_to_go_on(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceUnavailable, match="not in the cache") as error:
        rows_of(source(tmp_path, name="org/data", revision=COMMIT))
    assert "hf download" in error.value.hint
