"""A store under an S3 URL: on a server that speaks its protocol (moto's), by the real clients."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter

import pyarrow as pa
import pytest

import s3_server
from penstock import object_store
from penstock.artifacts import MANIFEST, Artifact, damaged_files
from penstock.errors import RecipeError, StoreError
from penstock.folders import ObjectFolder
from penstock.object_store import ObjectStore
from penstock.recipe_file import load_recipe
from penstock.tables import Position, Table, numbered

PRINT = "ab" * 32
URL = "s3://lake/team a/store#1"
SCHEMA = pa.schema([("x", pa.int64()), ("_version", pa.int64()), ("_row", pa.int64())])


@pytest.fixture(scope="module")
def server():
    with s3_server.running() as url:
        yield url


@pytest.fixture
def bucket(server):
    import boto3  # takes a second

    client = boto3.client("s3")
    made = boto3.resource("s3").create_bucket(Bucket="lake")
    yield client
    made.objects.all().delete()
    made.delete()


@pytest.fixture
def store(bucket, tmp_path):
    return ObjectStore(tmp_path / "here", URL).open()


@pytest.fixture
def elsewhere(store, tmp_path):
    """The same store, as another host sees it."""
    return ObjectStore(tmp_path / "elsewhere", URL).open()


def commit(store, print_=PRINT, **files):
    staged = store.stage_folder("train", print_)
    for name, text in (files or {"weights.bin": "0123456789", "model/config.json": "{}"}).items():
        path = staged / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    path, digest = store.commit(staged, "train", print_)
    return Artifact(fingerprint=print_, stage="train", path=path, digest=digest)


def keys(bucket, prefix=""):
    return sorted(
        one["Key"].removeprefix("team a/store#1/")
        for page in bucket.get_paginator("list_objects_v2").paginate(Bucket="lake", Prefix=prefix)
        for one in page.get("Contents", ())
    )


def put(bucket, artifact, name, body):
    bucket.put_object(Bucket="lake", Key=f"team a/store#1/{artifact.path}/{name}", Body=body)


def remove(bucket, artifact, name):
    bucket.delete_object(Bucket="lake", Key=f"team a/store#1/{artifact.path}/{name}")


# -- artifacts ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_committed_result_is_read_on_another_host(store, elsewhere):
    artifact = commit(store)
    assert elsewhere.is_intact(artifact)
    folder = elsewhere.folder(artifact)
    assert (folder / "weights.bin").read_text() == "0123456789"
    assert (folder / "model" / "config.json").read_text() == "{}"
    assert damaged_files(folder) == []
    assert elsewhere.damaged(artifact.path, artifact.digest) == []


def test_the_manifest_is_uploaded_last(store, elsewhere, monkeypatch):
    sent = []
    put_really = ObjectFolder.put

    def put(self, name, content):
        sent.append(name)
        put_really(self, name, content)

    monkeypatch.setattr(ObjectFolder, "put", put)
    commit(store)
    assert sent[-1] == MANIFEST
    assert len(sent) == 3


def test_an_upload_that_was_cut_short_is_not_there_and_is_made_again(
    store, elsewhere, bucket, monkeypatch
):
    put_really = ObjectFolder.put

    def put(self, name, content):
        if name == MANIFEST:
            raise KeyboardInterrupt
        put_really(self, name, content)

    monkeypatch.setattr(ObjectFolder, "put", put)
    with pytest.raises(KeyboardInterrupt):
        commit(store)
    monkeypatch.undo()
    (name,) = os.listdir(store.root / "artifacts" / "train")
    artifact = Artifact(PRINT, "train", f"artifacts/train/{name}", "0" * 64)
    assert not store.is_intact(artifact)
    assert not elsewhere.is_intact(artifact)
    again = commit(store)
    assert elsewhere.is_intact(again)


def test_what_a_killed_attempt_left_is_removed_when_another_is_recorded(store, bucket):
    first, second = commit(store, a="1"), commit(store, a="2")
    assert store.has_earlier_attempts(second)
    store.prune(second, registered=[f"{first.path}/model"])
    assert store.is_intact(first), "it holds a registered model"
    store.prune(second, registered=[])
    assert not store.is_intact(first)
    assert not store.has_earlier_attempts(second)
    assert keys(bucket) == [f"{second.path}/a", f"{second.path}/{MANIFEST}", "penstock.json"]


def test_a_working_folder_may_be_deleted_at_any_time(store):
    artifact = commit(store)
    shutil.rmtree(store.root)
    store.open()
    assert store.is_intact(artifact)
    assert (store.folder(artifact) / "weights.bin").read_text() == "0123456789"


def test_only_a_model_can_be_fetched_of_a_result(store, elsewhere):
    from penstock.artifacts import write_manifest

    staged = store.stage_folder("train", PRINT)
    (staged / "model").mkdir()
    (staged / "model" / "weights.bin").write_text("right")
    (staged / "history.json").write_text("[]")
    digest = write_manifest(staged / "model")
    path, _ = store.commit(staged, "train", PRINT)
    folder = elsewhere.fetch(f"{path}/model", digest)
    assert (folder / "weights.bin").read_text() == "right"
    assert not (folder.parent / "history.json").exists()


def test_a_fetch_that_was_cut_short_goes_on_where_it_was(store, elsewhere, monkeypatch):
    artifact = commit(store, a="1", b="2", c="3")
    get_really, asked = ObjectFolder.get, []

    def get(self, name):
        asked.append(name)
        if asked.count("b") == 1 and name == "b":
            raise KeyboardInterrupt
        return get_really(self, name)

    monkeypatch.setattr(ObjectFolder, "get", get)
    with pytest.raises(KeyboardInterrupt):
        elsewhere.folder(artifact)
    assert not (elsewhere.root / artifact.path / MANIFEST).exists()
    folder = elsewhere.folder(artifact)
    assert damaged_files(folder) == []
    assert asked.count("a") == 1
    assert sorted(os.listdir(folder)) == ["a", "b", "c", MANIFEST]
    elsewhere.folder(artifact)
    assert asked.count("b") == 2, "what is here is not fetched again"


def test_changed_bytes_are_never_read_as_the_recorded_ones(store, elsewhere, bucket):
    artifact = commit(store)
    put(bucket, artifact, "weights.bin", b"0123456780")
    with pytest.raises(StoreError, match=r"weights\.bin is damaged") as error:
        elsewhere.folder(artifact)
    assert "--force" in error.value.hint
    assert not (elsewhere.root / artifact.path / "weights.bin").exists()
    assert store.damaged(artifact.path, artifact.digest) == ["weights.bin"]
    assert elsewhere.damaged(artifact.path, artifact.digest) == ["weights.bin"]


@pytest.mark.parametrize("name", ["weights.bin", MANIFEST])
def test_an_object_that_is_gone_is_noticed(store, elsewhere, bucket, name):
    artifact = commit(store)
    remove(bucket, artifact, name)
    assert not store.is_intact(artifact)
    assert not elsewhere.is_intact(artifact)
    assert store.damaged(artifact.path, artifact.digest) == [name]
    assert elsewhere.damaged(artifact.path, artifact.digest) == [name]
    with pytest.raises(StoreError, match="gone from the object store"):
        elsewhere.folder(artifact)


def test_a_rewritten_manifest_is_noticed(store, elsewhere, bucket):
    artifact = commit(store)
    put(bucket, artifact, MANIFEST, b"{}")
    for host in (store, elsewhere):
        assert not host.is_intact(artifact)
        assert host.damaged(artifact.path, artifact.digest) == [MANIFEST]


def test_long_transfers_are_shown(bucket, tmp_path, monkeypatch):
    from contextlib import contextmanager

    shown = []

    @contextmanager
    def track(label, total):
        shown.append((label.split()[0], total))
        yield lambda count: shown.append(count)

    monkeypatch.setattr(object_store, "_BAR_BYTES", 10)
    artifact = commit(ObjectStore(tmp_path / "one", URL, track).open(), a="0123456789ab")
    ObjectStore(tmp_path / "two", URL, track).open().folder(artifact)
    assert ("upload", 12) in shown
    assert ("download", 12) in shown
    assert shown.count(12) == 2


# -- tables -------------------------------------------------------------------------


def batches_of(values, version):
    batch = pa.RecordBatch.from_pydict({"x": values})
    return numbered([batch], version, SCHEMA)


def append(table, stream, position, values):
    return table.append_once(
        Position(stream, position), SCHEMA, lambda version: batches_of(values, version)
    )


def values(table, **bounds):
    return [x for batch in table.scan(**bounds) for x in batch["x"].to_pylist()]


@pytest.mark.slow
def test_a_table_takes_each_position_once_whoever_asks(store, elsewhere):
    here, there = store.table("demo", "raw-a#b"), elsewhere.table("demo", "raw-a#b")
    assert here.version() == -1
    assert append(here, "a", 1, [1, 2])
    assert not append(there, "a", 1, [1, 2])
    assert append(there, "a", 2, [3])
    assert values(here) == [1, 2, 3]
    assert values(here, after=here.version() - 1) == [3]
    assert [table.name for table in elsewhere.tables("demo")] == ["raw-a#b"]
    assert elsewhere.table_at(here.key).position("a") == 2


@pytest.mark.slow
def test_sweeping_removes_what_no_version_names(store, bucket):
    table = store.table("demo", "raw")
    append(table, "a", 1, [1])
    bucket.put_object(
        Bucket="lake", Key=f"team a/store#1/{table.key}/part-left.parquet", Body=b"half"
    )
    assert table.sweep() == 1
    assert values(table) == [1]


def _writer(seed, folder, num):
    rng, table = random.Random(seed), Table(ObjectFolder(folder), "raced")
    for position in range(1, num + 1):
        while table.position("a") < position:
            try:
                append(table, "a", position, [position])
            except StoreError:
                time.sleep(rng.random() / 50)


@pytest.mark.slow
def test_writers_that_race_and_are_killed_lose_and_double_nothing(store):
    folder, num = f"{URL}/tables/demo/raced", 10
    context = multiprocessing.get_context("spawn")
    rng, kills = random.Random(5), 0
    writers = [context.Process(target=_writer, args=(i, folder, num)) for i in range(2)]
    for one in writers:
        one.start()
    table = store.table("demo", "raced")
    while any(one.is_alive() for one in writers):
        time.sleep(0.2 + rng.random() / 3)
        if kills < 3 and table.version() >= 0:
            place = rng.randrange(len(writers))
            if writers[place].is_alive():
                os.kill(writers[place].pid, signal.SIGKILL)
                writers[place].join()
                kills += 1
                writers[place] = context.Process(target=_writer, args=(kills, folder, num))
                writers[place].start()
    assert kills > 0
    assert Counter(values(table)) == Counter(range(1, num + 1))


# -- refusals -----------------------------------------------------------------------


def test_a_store_that_is_not_there_is_said(bucket, tmp_path):
    with pytest.raises(StoreError, match=r"s3://none/x: there is no such bucket"):
        ObjectStore(tmp_path, "s3://none/x").open()


@pytest.mark.slow
def test_an_object_store_that_does_not_answer_is_said_and_may_be_tried_again(
    store, tmp_path, monkeypatch
):
    artifact, table = commit(store), store.table("demo", "raw")
    append(table, "a", 1, [1])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    away = ObjectStore(tmp_path / "away", URL)
    for asked in (
        away.open,
        lambda: away.is_intact(artifact),
        lambda: away.folder(artifact),
        lambda: away.damaged(artifact.path, artifact.digest),
        lambda: away.table("demo", "raw").version(),
        lambda: append(away.table("demo", "raw"), "a", 2, [2]),
        lambda: away.tables("demo"),
    ):
        with pytest.raises(StoreError, match="does not answer") as error:
            asked()
        assert error.value.transient
        assert "hush-hush" not in f"{error.value.message}{error.value.hint}"
    monkeypatch.undo()
    assert values(table) == [1]


def test_an_object_store_that_cannot_keep_writers_apart_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(ObjectFolder, "create_once", lambda *_: True)
    with pytest.raises(StoreError, match="If-None-Match"):
        ObjectStore(tmp_path / "other", URL).open()


RECIPE = {
    "name": "demo",
    "store": "s3://lake/x",
    "ledger": "sqlite:///ledger.db",
    "tracking": "sqlite:///mlflow.db",
    "sources": {"rows": {"type": "files", "paths": ["*.jsonl"]}},
    "evaluate": {"tasks": ["held_out"]},
    "prepare": {"transforms": [{"split": {"validation": 0.1}}]},
    "gate": {"max": {"held_out": 8.0}},
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ledger": None}, "set ledger"),
        ({"ledger": None, "tracking": None}, "set ledger and tracking"),
        ({"store": "s4://lake/x"}, "neither a folder nor a URL"),
        ({"store": "s3://"}, "neither a folder nor a URL"),
        ({"store": "s3://key:secret@lake/x"}, "a URL with credentials in it"),
    ],
)
def test_a_recipe_with_half_an_object_store_is_refused(tmp_path, changed, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**RECIPE, **changed}))
    with pytest.raises(RecipeError, match=said) as error:
        load_recipe(path)
    assert "key:secret" not in error.value.message


def test_a_recipe_with_an_object_store_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(RECIPE))
    assert load_recipe(path).store == "s3://lake/x"
