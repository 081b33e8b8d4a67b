import json
import os
import subprocess
import sys

import pytest

from penstock.artifacts import MANIFEST, digest_of, fingerprint, store_errors, write_manifest
from penstock.errors import StoreError

# -- fingerprints -------------------------------------------------------------------


@pytest.mark.slow
def test_a_fingerprint_is_64_hex_digits_and_the_same_in_every_process():
    script = (
        "from penstock.artifacts import fingerprint;"
        "print(fingerprint('train', 1, {'seed': 17, 'text': 'naïve', 'a': [1.5, None]}, ['x']))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    answers.add(fingerprint("train", 1, {"a": [1.5, None], "text": "naïve", "seed": 17}, ["x"]))
    (answer,) = answers
    assert len(answer) == 64
    assert int(answer, 16) >= 0


def test_the_order_of_keys_does_not_count_at_any_depth():
    one = {"a": 1, "b": {"c": 2, "d": 3}}
    other = {"b": {"d": 3, "c": 2}, "a": 1}
    assert fingerprint("train", 1, one, []) == fingerprint("train", 1, other, [])


def test_each_ingredient_changes_the_fingerprint():
    settings = {"seed": 17, "steps": [1, 2]}
    prints = {
        fingerprint("train", 1, settings, ["a", "b"]),
        fingerprint("evaluate", 1, settings, ["a", "b"]),
        fingerprint("train", 2, settings, ["a", "b"]),
        fingerprint("train", 1, {**settings, "seed": 18}, ["a", "b"]),
        fingerprint("train", 1, {**settings, "seed": "17"}, ["a", "b"]),
        fingerprint("train", 1, {**settings, "seed": None}, ["a", "b"]),
        fingerprint("train", 1, {**settings, "steps": [2, 1]}, ["a", "b"]),
        fingerprint("train", 1, {"seed": 17}, ["a", "b"]),
        fingerprint("train", 1, settings, ["b", "a"]),
        fingerprint("train", 1, settings, ["a"]),
        fingerprint("train", 1, settings, ["ab"]),
    }
    assert len(prints) == 11


@pytest.mark.parametrize(
    "value",
    [{1, 2}, object(), b"bytes", 1 + 2j, float("nan"), float("inf")],
    ids=["set", "object", "bytes", "complex", "nan", "infinity"],
)
def test_what_has_no_stable_encoding_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        digest_of({"deep": [value]})


# -- manifests ----------------------------------------------------------------------


def test_a_file_called_like_the_manifest_further_down_is_protected_too(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / MANIFEST).write_text("{}")
    write_manifest(tmp_path)
    assert set(json.loads((tmp_path / MANIFEST).read_text())) == {f"model/{MANIFEST}"}


# -- refusals -----------------------------------------------------------------------


def test_a_folder_without_permission_is_said(tmp_path):
    with pytest.raises(StoreError, match="not writable") as error, store_errors(tmp_path):
        raise PermissionError(13, "Permission denied", str(tmp_path))
    assert error.value.hint


def test_any_other_error_passes_unchanged(tmp_path):
    error = ValueError("not the disk's")
    with pytest.raises(ValueError, match="not the disk's") as raised, store_errors(tmp_path):
        raise error
    assert raised.value is error
