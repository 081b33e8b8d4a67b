import os

from penstock.conversions import conversion, conversions, sweep_conversions
from penstock.store import Store

DAY_S = 24 * 3600


def write(place, digest, age_s, now_s):
    folder = conversion(place, digest)
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"weights")
    os.utime(folder, (now_s - age_s, now_s - age_s))


def test_old_conversions_go_but_for_those_that_are_wanted(tmp_path, monkeypatch):
    place = conversions(Store(tmp_path))
    now_s = 10 * DAY_S
    monkeypatch.setattr("time.time", lambda: now_s)
    for digest, age_s in (("old", 2 * DAY_S), ("serves", 2 * DAY_S), ("new", DAY_S - 1)):
        write(place, digest, age_s, now_s)
    sweep_conversions(place, {"serves"})
    assert sorted(folder.name for folder in place.iterdir()) == ["new", "serves"]


def test_a_store_without_conversions_has_nothing_to_sweep(tmp_path):
    sweep_conversions(conversions(Store(tmp_path)), set())
    assert not list(tmp_path.iterdir())
