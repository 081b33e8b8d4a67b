import contextlib
import os
import subprocess
import sys

import pytest

from penstock.errors import PenstockError, StoreError
from penstock.exported import MANIFEST, check_files, write_file, write_files


def test_files_are_written_once_and_then_left_alone(tmp_path):
    assert write_files(tmp_path / "out", {"a": "1", "b/c": "2"}) == [
        tmp_path / "out/a",
        tmp_path / "out/b/c",
    ]
    assert write_files(tmp_path / "out", {"a": "1", "b/c": "2"}) == []


def test_a_newer_export_replaces_an_older_one(tmp_path):
    write_files(tmp_path, {"a": "1"})
    assert write_files(tmp_path, {"a": "2"}) == [tmp_path / "a"]
    assert (tmp_path / "a").read_text() == "2"


@pytest.mark.parametrize("before", [{"a": "1"}, {}], ids=["edited", "never ours"])
def test_what_people_wrote_stays_and_nothing_else_is_written(tmp_path, before):
    write_files(tmp_path, before)
    (tmp_path / "a").write_text("mine")
    with pytest.raises(PenstockError, match="Changed by hand"):
        write_files(tmp_path, {"a": "2", "b": "3"})
    assert (tmp_path / "a").read_text() == "mine"
    assert not (tmp_path / "b").exists()
    write_files(tmp_path, {"a": "2"}, force=True)
    assert (tmp_path / "a").read_text() == "2"


def test_an_edit_to_what_would_be_written_anyway_is_none(tmp_path):
    write_files(tmp_path, {"a": "1"})
    (tmp_path / "a").write_text("2")
    assert write_files(tmp_path, {"a": "2"}) == []


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_list_is_named(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(PenstockError, match="damaged"):
        write_files(tmp_path, {"a": "1"})


def test_a_folder_that_is_none_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        write_files(tmp_path / "file" / "out", {"a": "1"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "a").unlink(), "There is no"),
        (lambda folder: (folder / "a").write_text("mine"), "was changed by hand"),
        (lambda folder: None, "would be written otherwise"),
    ],
)
def test_a_check_says_how_a_file_differs_and_writes_nothing(tmp_path, change, says):
    write_files(tmp_path, {"a": "1", "b/c": "2"})
    check_files(tmp_path, {"a": "1", "b/c": "2"})
    change(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(PenstockError, match=says):
        check_files(tmp_path, {"a": "2", "b/c": "2"})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("later", [{"a": "2", "b": "2"}, {"a": "3", "b": "3"}])
@pytest.mark.parametrize("at", range(4))
def test_a_killed_export_is_nobodys_edit(tmp_path, monkeypatch, at, later):
    write_files(tmp_path, {"a": "1", "b": "1"})
    replace, left = os.replace, [None] * at

    def killed(*paths):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        replace(*paths)

    monkeypatch.setattr(os, "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        write_files(tmp_path, {"a": "2", "b": "2"})
    monkeypatch.undo()
    write_files(tmp_path, later)
    check_files(tmp_path, later)
    assert {p.name: p.read_text() for p in tmp_path.glob("[!.]*")} == later
    (tmp_path / "a").write_text("mine")
    with pytest.raises(PenstockError, match="Changed by hand"):
        write_files(tmp_path, {"a": "2", "b": "2"})


@pytest.mark.slow
def test_two_exports_at_once_leave_a_whole_file(tmp_path):
    code = (
        "import sys; from pathlib import Path; from penstock.exported import write_file\n"
        "for n in range(200): write_file(Path(sys.argv[1]), f'{n}' * 100_000, force=True)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "a"]) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert (tmp_path / "a").read_text() == "199" * 100_000
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_folder_or_bytes_in_the_place_of_a_file_are_errors_in_words(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_bytes(b"\xff")
    for name in "ab":
        with pytest.raises(PenstockError, match=f"/{name} "):
            write_files(tmp_path, {name: "1"}, force=True)
        with pytest.raises(PenstockError, match=f"/{name} "):
            write_file(tmp_path / name, "1", force=True)
