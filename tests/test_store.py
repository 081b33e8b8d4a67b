import json
import os
import subprocess
import time

import pytest

from penstock.artifacts import MANIFEST, Artifact, damaged_files, store_errors
from penstock.errors import StoreError
from penstock.store import Store

PRINT = "ab" * 32


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store").open()


def commit(store, stage="train", print_=PRINT, **files):
    staged = store.stage_folder(stage, print_)
    for name, text in (files or {"weights.bin": "0123456789"}).items():
        path = staged / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    path, digest = store.commit(staged, stage, print_)
    return Artifact(fingerprint=print_, stage=stage, path=path, digest=digest)


@pytest.fixture
def mounted(tmp_path):
    """``mounted(options)``: a file system of the test's own, gone at its end."""
    folders = []

    def mount(options):
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


# -- committing ---------------------------------------------------------------------


def test_a_committed_folder_is_complete_and_intact(store):
    artifact = commit(store, **{"weights.bin": "0123456789", "sub/config.json": "{}"})
    folder = store.folder(artifact)
    assert (folder / "weights.bin").read_text() == "0123456789"
    manifest = json.loads((folder / MANIFEST).read_text())
    assert set(manifest) == {"weights.bin", "sub/config.json"}
    assert manifest["weights.bin"]["size_bytes"] == 10
    assert store.is_intact(artifact)
    assert damaged_files(folder) == []
    assert list((store.root / "staging").iterdir()) == []


def test_an_artifact_without_files_is_intact(store):
    staged = store.stage_folder("gate", PRINT)
    path, digest = store.commit(staged, "gate", PRINT)
    assert store.is_intact(Artifact(PRINT, "gate", path, digest))


def test_the_same_content_has_the_same_digest_and_other_content_another(store):
    one, two = commit(store, a="1"), commit(store, print_="cd" * 32, a="1")
    assert one.digest == two.digest
    assert commit(store, print_="ef" * 32, a="2").digest != one.digest
    assert commit(store, print_="12" * 32, b="1").digest != one.digest


def test_a_result_that_came_out_otherwise_does_not_replace_the_first(store):
    first, second = commit(store, a="1"), commit(store, a="2")
    assert store.is_intact(first)
    assert store.is_intact(second)
    store.prune(second, registered=[f"{first.path}/model"])
    assert store.is_intact(first), "it holds a registered model"
    store.prune(second, registered=[])
    assert not store.is_intact(first)
    assert store.is_intact(second)


def test_pruning_leaves_other_results_alone(store):
    one, other = commit(store), commit(store, print_="cd" * 32)
    store.prune(one, registered=[])
    assert store.is_intact(other)
    assert store.is_intact(one)


def test_committing_the_same_again_replaces_what_an_unrecorded_attempt_left(store):
    first = commit(store, a="1")
    (store.folder(first) / "a").write_text("x")
    again = commit(store, a="1")
    assert again == first
    assert store.is_intact(again)
    assert damaged_files(store.folder(again)) == []


def test_nothing_appears_before_the_rename(store, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        commit(store)
    assert list((store.root / "artifacts").rglob("weights.bin")) == []
    monkeypatch.undo()
    assert store.is_intact(commit(store))
    assert list((store.root / "staging").iterdir()) == []


def _remove(folder):
    (folder / "weights.bin").unlink()


def _truncate(folder):
    (folder / "weights.bin").write_text("0123")


def _remove_manifest(folder):
    (folder / MANIFEST).unlink()


def _change_manifest(folder):
    path = folder / MANIFEST
    path.write_text(path.read_text().replace("10", "11"))


def _empty_manifest(folder):
    (folder / MANIFEST).write_text("null")


def _binary_manifest(folder):
    (folder / MANIFEST).write_bytes(b"\xff\xfe\0")


@pytest.mark.parametrize(
    "damage",
    [_remove, _truncate, _remove_manifest, _change_manifest, _empty_manifest, _binary_manifest],
)
def test_a_damaged_artifact_is_not_intact(store, damage):
    artifact = commit(store)
    damage(store.folder(artifact))
    assert not store.is_intact(artifact)


def test_a_missing_artifact_is_not_intact(store):
    assert not store.is_intact(Artifact(PRINT, "train", "artifacts/train/gone", "0" * 64))


def test_changed_bytes_of_the_same_length_are_found_by_reading_them(store):
    folder = store.folder(commit(store))
    (folder / "weights.bin").write_text("0123456780")
    assert damaged_files(folder) == ["weights.bin"]


# -- sweeping -----------------------------------------------------------------------


def test_a_staged_folder_is_empty_whatever_an_earlier_attempt_left(store):
    first = store.stage_folder("train", PRINT)
    (first / "half.bin").write_text("half")
    second = store.stage_folder("train", PRINT)
    assert list(second.iterdir()) == []
    assert not first.exists()


def test_an_attempt_that_lost_its_claim_cannot_write_into_its_successors_result(store):
    paused = store.stage_folder("train", PRINT)
    successor = store.stage_folder("train", PRINT)
    (successor / "weights.bin").write_text("right")
    with pytest.raises(FileNotFoundError):
        (paused / "weights.bin").write_text("wrong")
    path, _ = store.commit(successor, "train", PRINT)
    assert (store.root / path / "weights.bin").read_text() == "right"


def test_sweeping_removes_half_made_results_that_nobody_works_on(store):
    live, dead = store.stage_folder("train", PRINT), store.stage_folder("prepare", "cd" * 32)
    asked = []

    def is_live(name):
        asked.append(name)
        return name.startswith("train-")

    store.sweep(is_live, abandoned_s=3600)
    assert live.exists()
    assert not dead.exists()
    assert sorted(asked) == [f"prepare-{'cd' * 10}", f"train-{PRINT[:20]}"]


def test_checkpoints_are_given_up_only_when_they_are_old_and_nobody_continues_them(store):
    folders = {name: store.checkpoints(name * 32) for name in ("aa", "bb", "cc")}
    for folder in folders.values():
        folder.mkdir()
    for name in ("aa", "bb"):
        old_s = time.time() - 7200
        os.utime(folders[name], (old_s, old_s))
    store.sweep(lambda name: name.startswith("aa"), abandoned_s=3600)
    assert {name for name, folder in folders.items() if folder.exists()} == {"aa", "cc"}


def test_sweeping_leaves_artifacts_and_tables_alone(store):
    artifact = commit(store)
    folder = store.root / "tables" / "demo" / "raw"
    folder.mkdir(parents=True)
    store.sweep(lambda name: False, abandoned_s=0)
    assert store.is_intact(artifact)
    assert [table.name for table in store.tables("demo")] == ["raw"]


# -- when the disk refuses ------------------------------------------------------------


def test_a_full_disk_is_said_and_nothing_is_committed(mounted):
    store = Store(mounted("size=1m")).open()
    first = commit(store, a="1")
    staged = store.stage_folder("train", "cd" * 32)
    with pytest.raises(StoreError, match="The disk is full") as error, store_errors(staged):
        (staged / "weights.bin").write_bytes(b"x" * 2_000_000)
    assert "Free some space" in error.value.hint
    assert store.is_intact(first)
    # The manifest does not fit either.
    with pytest.raises(StoreError, match="The disk is full"):
        store.commit(staged, "train", "cd" * 32)
    assert [folder.name for folder in (store.root / "artifacts" / "train").iterdir()] == [
        store.folder(first).name
    ]
    store.sweep(lambda name: False, abandoned_s=0)
    assert store.is_intact(commit(store, print_="cd" * 32))


def test_a_full_disk_under_a_table_is_said_and_nothing_is_committed(mounted):
    import pyarrow as pa

    from penstock.tables import Position, Table, numbered

    schema = pa.schema([("x", pa.binary()), ("_version", pa.int64()), ("_row", pa.int64())])
    table = Table(mounted("size=1m") / "demo")

    def rows(num_bytes):
        batch = pa.RecordBatch.from_pydict({"x": [os.urandom(num_bytes)]})
        return lambda version: numbered([batch], version, schema)

    table.append_once(Position("a", 1), schema, rows(10))
    with pytest.raises(StoreError, match="The disk is full"):
        table.append_once(Position("a", 2), schema, rows(3_000_000))
    assert table.position("a") == 1
    assert table.sweep() == 1
    assert table.append_once(Position("a", 2), schema, rows(10)) is True
    assert table.count_rows() == 2


def test_a_read_only_file_system_is_said(mounted):
    folder = mounted("size=1m")
    store = Store(folder).open()
    remount(folder, "ro")
    for refused in (store.open, lambda: store.stage_folder("train", PRINT)):
        with pytest.raises(StoreError, match="read-only file system") as error:
            refused()
        assert "`store`" in error.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop root")
def test_a_folder_of_somebody_elses_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="not writable"):
        Store(tmp_path / "store").open()


@pytest.mark.parametrize("in_the_way", ["store", "store/tables", "store/staging"])
def test_a_file_in_the_way_is_said(tmp_path, in_the_way):
    path = tmp_path / in_the_way
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    with pytest.raises(StoreError, match="a file is in its way"):
        Store(tmp_path / "store").open()
    assert path.read_text() == "a file"
