"""Exported files: nothing of a person's is overwritten, and drift is told."""

import pytest

from penstock.errors import PenstockError, StoreError
from penstock.exported import check_files, write_files

FILES = {"a.yaml": "one: 1\n", "deep/b.yaml": "two: 2\n"}
NEWER = {**FILES, "a.yaml": "one: 2\n"}


def test_what_is_there_already_is_not_written_again(tmp_path):
    assert sorted(write_files(tmp_path, FILES)) == [tmp_path / "a.yaml", tmp_path / "deep/b.yaml"]
    assert write_files(tmp_path, FILES) == []
    assert write_files(tmp_path, NEWER) == [tmp_path / "a.yaml"]


def test_a_file_changed_by_hand_stops_all_of_them_unless_forced(tmp_path):
    write_files(tmp_path, FILES)
    (tmp_path / "deep/b.yaml").write_text("mine: 1\n")
    with pytest.raises(PenstockError, match=r"Changed by hand: .*b\.yaml"):
        write_files(tmp_path, NEWER)
    assert (tmp_path / "a.yaml").read_text() == FILES["a.yaml"]
    write_files(tmp_path, NEWER, force=True)
    check_files(tmp_path, NEWER)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "a.yaml").unlink(), "There is no"),
        (lambda folder: (folder / "a.yaml").write_text("mine: 1\n"), "was changed by hand"),
        (lambda folder: None, "would be written otherwise"),
    ],
)
def test_a_check_says_how_a_file_differs_and_writes_nothing(tmp_path, change, says):
    write_files(tmp_path, FILES)
    change(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(PenstockError, match=says):
        check_files(tmp_path, NEWER)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        write_files(tmp_path / "file" / "out", FILES)
