"""What every feature store must do. To check another one, add it to ``STORES``.

The store knows what ``feast_repo.KNOWN`` says: a user's plan and tickets, over time.
"""

import os
import pickle

import pyarrow as pa
import pytest

import feast_repo
from feast_repo import day
from memory_store import MemoryStore
from penstock.errors import FeatureError
from penstock.features.base import TIME, FeatureOptions
from penstock.features.feast import FeastOptions, FeastStore

NAMES = ("profile:plan", "profile:tickets")
SETTINGS = {
    "names": NAMES,
    "entities": {"user_id": "user_id"},
    "timestamp": "asked_at",
    "template": "{plan} {tickets} {instruction}",
}


def memory(folder):
    yield MemoryStore()


def feast(folder):
    yield from _feast(folder, "{type: sqlite, path: online.db}")


def feast_on_redis(folder):
    if not feast_repo.has_redis():
        pytest.skip("redis-server is not installed; scripts/install-services.sh does that")
    with feast_repo.redis(folder) as online:
        yield from _feast(folder, online)


def _feast(folder, online):
    why_not = feast_repo.environment()
    if why_not:
        pytest.skip(f"Feast's environment cannot be made: {why_not}")
    feast_repo.write(folder / "repo", online)
    with feast_repo.serving(folder / "repo") as url:
        options = FeastOptions(
            **SETTINGS, repo="repo", python=str(feast_repo.PYTHON), url=url, timeout_s=10
        )
        yield FeastStore(options, folder)


STORES = [memory, *(pytest.param(one, marks=pytest.mark.slow) for one in (feast, feast_on_redis))]


@pytest.fixture(scope="module", params=STORES, ids=lambda store: store.__name__)
def store(request, tmp_path_factory):
    yield from request.param(tmp_path_factory.mktemp("store"))


def asked(*rows):
    schema = pa.schema([("user_id", pa.string()), (TIME, pa.timestamp("us", "UTC"))])
    return pa.Table.from_pylist(
        [{"user_id": user, TIME: day(text)} for user, text in rows], schema=schema
    )


def test_a_row_gets_the_values_of_its_own_time(store):
    found = store.at(asked(("a", "2026-02-01"), ("a", "2026-04-01"), ("b", "2026-04-01")), NAMES)
    assert found.to_pydict() == {
        "profile:plan": ["free", "pro", "free"],
        "profile:tickets": [1, 2, 3],
    }


def test_rows_keep_their_order_and_get_null_where_nothing_was_known(store):
    rows = [("b", "2026-02-01"), ("a", "2025-01-01"), ("nobody", "2026-02-01"), ("a", "2026-02-01")]
    found = store.at(asked(*rows), NAMES)
    assert found["profile:plan"].to_pylist() == ["free", None, None, "free"]


def test_the_same_row_may_come_twice(store):
    found = store.at(asked(("a", "2026-02-01"), ("a", "2026-02-01")), NAMES)
    assert found["profile:plan"].to_pylist() == ["free", "free"]


def test_only_what_is_asked_for_comes_back(store):
    found = store.at(asked(("a", "2026-02-01")), ("profile:tickets",))
    assert found.column_names == ["profile:tickets"]


def test_now_is_the_newest_value(store):
    assert store.now({"user_id": "a"}, NAMES) == {"profile:plan": "pro", "profile:tickets": 2}


def test_nobody_has_no_values_now(store):
    assert store.now({"user_id": "nobody"}, NAMES) == dict.fromkeys(NAMES)


@pytest.mark.parametrize("ask", ["at", "now"])
def test_an_unknown_feature_is_an_error(store, ask):
    what = asked(("a", "2026-02-01")) if ask == "at" else {"user_id": "a"}
    with pytest.raises(FeatureError):
        getattr(store, ask)(what, ("profile:nonsense",))
    assert store.now({"user_id": "b"}, ("profile:plan",)) == {"profile:plan": "free"}


def test_the_version_stays_while_nobody_writes(store):
    before = store.version()
    store.at(asked(("a", "2026-02-01")), NAMES)
    assert store.version() == before


def test_options_say_which_features(store):
    assert issubclass(store.Options, FeatureOptions)


def test_a_store_survives_pickling_before_it_is_used():
    options = FeastOptions(**SETTINGS)
    assert isinstance(pickle.loads(pickle.dumps(FeastStore(options, "here"))), FeastStore)


def test_a_python_that_is_not_there_is_named(tmp_path):
    store = FeastStore(FeastOptions(**SETTINGS, python="nowhere/python"), tmp_path)
    with pytest.raises(FeatureError, match=r"nowhere/python cannot be started"):
        store.at(asked(("a", "2026-02-01")), NAMES)


def test_a_python_without_feast_is_named(tmp_path):
    store = FeastStore(FeastOptions(**SETTINGS), tmp_path)
    with pytest.raises(FeatureError, match="No module named 'feast'"):
        store.at(asked(("a", "2026-02-01")), NAMES)


@pytest.fixture
def repo(tmp_path):
    """What a repository's version is made of; Feast itself is not asked."""
    folder = tmp_path / "feature_repo"
    (folder / "data").mkdir(parents=True)
    (folder / "feature_store.yaml").write_text("project: support\n")
    (folder / "definitions.py").write_text("view = 1\n")
    (folder / "data" / "profile.parquet").write_bytes(b"PAR1")
    return folder


def _write(path, content):
    path.write_bytes(content)
    os.utime(path, ns=(7, 7))  # later than the first, by whatever clock


@pytest.mark.parametrize("name", ["feature_store.yaml", "definitions.py", "data/profile.parquet"])
def test_feasts_version_changes_with_its_definitions_and_its_data(repo, name):
    store = FeastStore(FeastOptions(**SETTINGS), repo.parent)
    before = store.version()
    _write(repo / name, b"view = 2\n")
    assert store.version() != before


@pytest.mark.parametrize("name", ["registry.db", "online.db"])
def test_feasts_version_does_not_change_when_values_are_materialized(repo, name):
    store = FeastStore(FeastOptions(**SETTINGS), repo.parent)
    before = store.version()
    _write(repo / name, b"newer")
    assert store.version() == before


def test_a_repository_that_is_not_there_is_named(tmp_path):
    store = FeastStore(FeastOptions(**SETTINGS, repo="nowhere"), tmp_path)
    with pytest.raises(FeatureError, match=r"features\.repo: there is no folder .*nowhere"):
        store.version()


def test_a_feature_server_that_is_down_is_named(tmp_path):
    url = f"http://127.0.0.1:{feast_repo.free_port()}"
    store = FeastStore(FeastOptions(**SETTINGS, url=url), tmp_path)
    with pytest.raises(FeatureError, match=url):
        store.now({"user_id": "a"}, NAMES)
