"""Promotion without a recipe: our ledger and a real MLflow server, both over PostgreSQL."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import mlflow_server
from penstock import model_files
from penstock.cli import app
from penstock.errors import (
    LedgerError,
    MirrorBehind,
    PenstockError,
    RecipeError,
    RegistryError,
    StalePromotion,
)
from penstock.gates import GatePolicy, gate_results
from penstock.ledger import Ledger, Pointer
from penstock.model_registry import ModelRegistry
from penstock.promotion import Production
from penstock.store import Store
from penstock.tracking import Tracker

pytestmark = pytest.mark.slow
RESULTS = Path(__file__).parents[1] / "gates" / "lm_eval_output"


@pytest.fixture
def production(ledger, mlflow, name):
    return Production(ledger, ModelRegistry(mlflow.uri), name, "production", admits=True)


@pytest.fixture
def versions(mlflow, name, make_model):
    """Registers models as any training script would; versions count from 1."""
    return [mlflow.register(name, make_model(seed)[0]) for seed in (1, 2, 3)]


def alias(production):
    return production.registry.alias(production.name, production.alias)


def moves(production):
    history = production.ledger.history(production.name, production.alias)
    return [(move.action, move.from_version, move.to_version) for move in history]


def penstock(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_classic_command_line_promotes_without_a_recipe(
    mlflow, name, versions, tmp_path, monkeypatch, ledger_url
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.uri)
    monkeypatch.setenv("PENSTOCK_LEDGER", ledger_url)
    monkeypatch.chdir(tmp_path)
    for version in (1, 3):
        done = penstock(
            "promote", "--model-name", name, "--version", version, "--stage", "Production"
        )
        assert done.exit_code == 0, done.output
    assert "production is version 3 now (epoch 2)" in done.output
    assert mlflow.client().get_model_version_by_alias(name, "production").version == "3"
    assert penstock("model", "serving", "--model-name", name).stdout == "3\n"
    history = penstock("model", "history", "--model-name", name, "--json")
    assert [move["to_version"] for move in json.loads(history.stdout)] == [1, 3]
    back = penstock("model", "rollback", "--model-name", name)
    assert "production is version 1 now (epoch 3)" in back.output
    assert mlflow.client().get_model_version_by_alias(name, "production").version == "1"


def test_a_folder_serves_as_ledger_when_there_is_no_database(mlflow, name, versions, tmp_path):
    done = penstock("promote", "--model-name", name, "--version", 2, "--store", tmp_path / "state",
                    "--tracking", mlflow.uri)  # fmt: skip
    assert done.exit_code == 0, done.output
    ledger = Ledger(f"sqlite:///{tmp_path / 'state' / 'ledger.db'}")
    assert ledger.pointer(name) == Pointer(2, 1)
    # Nobody had recorded what is in it, so its files were read.
    assert ledger.model(name, 2).digest == model_files.content_digest(tmp_path / "made-2")
    ledger.close()


def test_without_a_ledger_nothing_is_promoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = penstock("promote", "--model-name", "m", "--version", 1, "--tracking", "http://x")
    assert isinstance(done.exception, RecipeError)
    assert "PENSTOCK_LEDGER" in done.exception.hint


@pytest.mark.parametrize("stage", ["v7", "latest", "pro duction", ""])
def test_a_stage_that_mlflow_would_not_take_is_refused(stage, tmp_path):
    done = penstock("promote", "--model-name", "m", "--version", 1, "--stage", stage,
                    "--store", tmp_path, "--tracking", "http://x")  # fmt: skip
    assert isinstance(done.exception, RecipeError)
    assert repr(stage) in done.exception.message


def test_only_what_was_tested_is_promoted(production, versions, tmp_path):
    other = tmp_path / "made-2"
    production.promote(1, "test", tested=tmp_path / "made-1")
    assert production.ledger.model(production.name, 1).digest == model_files.content_digest(
        tmp_path / "made-1"
    )
    production.promote(2, "test", tested=other)
    with pytest.raises(LedgerError, match="made-2 holds other files"):
        production.promote(1, "test", tested=other)
    assert production.ledger.pointer(production.name) == Pointer(2, 2)


def test_the_digest_of_registration_holds_also_on_first_use(
    production, mlflow, name, make_model, tmp_path
):
    folder, digest = make_model(4, manifest=True)
    version = mlflow.register(name, folder, {"penstock.digest": digest})
    (folder / "config.json").write_text("{}")
    with pytest.raises(LedgerError, match="holds other files"):
        production.promote(version, "test", tested=folder)
    assert production.ledger.models(name) == []
    production.promote(version, "test")
    assert production.ledger.model(name, version).digest == digest


def test_the_same_files_under_a_new_number_are_not_promoted(production, mlflow, tmp_path, versions):
    production.promote(1, "test")
    again = mlflow.register(production.name, tmp_path / "made-1")
    with pytest.raises(LedgerError, match=f"version {again} has the same files as version 1"):
        production.promote(again, "test")


def test_a_version_that_the_server_does_not_have_is_not_promoted(production, versions):
    with pytest.raises(RegistryError, match="It has: 1, 2, 3"):
        production.promote(9, "test")
    assert moves(production) == []


@pytest.mark.parametrize("expected", [2, None])
def test_a_promotion_after_another_comparison_than_with_what_serves_is_stale(
    production, versions, expected
):
    production.promote(1, "test", expected=None)
    with pytest.raises(StalePromotion, match="but version 1 serves now"):
        production.promote(3, "test", expected=expected)
    assert production.promote(3, "test", expected=1) == Pointer(3, 2)


def test_an_alias_from_before_the_ledger_is_taken_over_and_audited(production, versions):
    production.registry.set_alias(production.name, "production", 2)
    assert production.serving() == 2
    with pytest.raises(StalePromotion):
        production.promote(3, "better", expected=None)
    production.promote(3, "better", expected=2)
    assert moves(production) == [("adopt", None, 2), ("promote", 2, 3)]
    assert alias(production) == 3


def test_promoting_what_the_alias_names_already_takes_it_over(production, versions):
    production.registry.set_alias(production.name, "production", 2)
    assert production.promote(2, "test") == Pointer(2, 1)
    assert moves(production) == [("adopt", None, 2)]
    with pytest.raises(LedgerError, match="is version 2 already"):
        production.promote(2, "test")


@pytest.mark.parametrize("by_hand", [1, None])
def test_an_alias_moved_by_hand_is_noticed_and_nothing_moves(production, versions, by_hand):
    production.promote(1, "test")
    production.promote(2, "test")
    client = production.registry.client
    if by_hand is None:
        client.delete_registered_model_alias(production.name, "production")
    else:
        production.registry.set_alias(production.name, "production", by_hand)
    for attempt in (
        lambda: production.promote(3, "test"),
        lambda: production.rollback("test"),
        lambda: production.reconcile(),
        lambda: production.serving(),
    ):
        with pytest.raises(LedgerError, match="was moved by hand") as refused:
            attempt()
        assert "penstock model settle" in refused.value.hint
    assert production.ledger.pointer(production.name) == Pointer(2, 2)
    assert alias(production) == by_hand


def test_a_disagreement_is_settled_either_way(production, versions, mlflow, ledger_url):
    production.promote(1, "test")
    production.promote(2, "test")
    options = ("--model-name", production.name, "--ledger", ledger_url, "--tracking", mlflow.uri)
    production.registry.set_alias(production.name, "production", 1)
    assert penstock("model", "settle", "--take", "ledger", *options).exit_code == 0
    assert (alias(production), production.serving()) == (2, 2)
    production.registry.set_alias(production.name, "production", 1)
    assert penstock("model", "settle", "--take", "alias", *options).exit_code == 0
    assert (alias(production), production.serving()) == (1, 1)
    assert moves(production)[-1] == ("adopt", 2, 1)
    wrong = penstock("model", "settle", "--take", "both", *options)
    assert isinstance(wrong.exception, RecipeError)


class Failing:
    """A registry that stops answering when the alias is to be moved."""

    def __init__(self, registry, after):
        self._registry = registry
        self._after = after

    def __getattr__(self, attribute):
        return getattr(self._registry, attribute)

    def set_alias(self, *arguments):
        if self._after:
            self._registry.set_alias(*arguments)
        raise RegistryError("MLflow does not answer.")


@pytest.mark.parametrize("after", [False, True], ids=["before the alias", "after the alias"])
def test_an_mlflow_that_goes_down_in_mid_promotion_is_mended_by_the_next_call(
    production, versions, after
):
    production.promote(1, "test")
    lost = Production(
        production.ledger, Failing(production.registry, after), production.name, "production", True
    )
    with pytest.raises(MirrorBehind, match=r"is version 2 now \(epoch 2\), but MLflow's alias"):
        lost.promote(2, "test")
    assert production.ledger.pointer(production.name) == Pointer(2, 2)
    # The same command again, which a CI system would give: it ends well.
    assert production.promote(2, "test") == Pointer(2, 2)
    assert alias(production) == 2
    with pytest.raises(LedgerError, match="is version 2 already"):
        production.promote(2, "test")
    assert len(moves(production)) == 2


def test_a_later_promotion_mends_the_mirror_as_well(production, versions):
    lost = Production(
        production.ledger, Failing(production.registry, False), production.name, "production", True
    )
    for version in (1, 2):
        with pytest.raises(MirrorBehind):
            lost.promote(version, "test")
    assert alias(production) is None
    production.promote(3, "test")
    assert alias(production) == 3
    assert [to for _, _, to in moves(production)] == [1, 2, 3]


def test_a_server_that_is_down_from_the_start_moves_nothing(tmp_path, name, ledger, make_model):
    server = mlflow_server.Server(tmp_path / "own", f"sqlite:///{tmp_path / 'own.db'}").start()
    try:
        for seed in (1, 2):
            server.register(name, make_model(seed)[0])
        production = Production(ledger, ModelRegistry(server.uri), name, "production", admits=True)
        production.promote(1, "test")
        server.stop()
        with pytest.raises(RegistryError, match="does not answer"):
            production.promote(2, "test")
        assert ledger.pointer(name) == Pointer(1, 1)
        server.start()
        assert production.promote(2, "test") == Pointer(2, 2)
        assert alias(production) == 2
    finally:
        server.stop()


def _race(url, tracking, name, expected, barrier, version):
    ledger = Ledger(url)
    production = Production(ledger, ModelRegistry(tracking), name, "production", admits=True)
    barrier.wait()
    try:
        production.promote(version, f"racer {version}", expected=expected)
        return "won"
    except StalePromotion:
        return "stale"
    except PenstockError as error:
        return f"{type(error).__name__}: {error.message}"
    finally:
        ledger.close()


@pytest.fixture
def racers(mlflow, name, make_model):
    """Sixteen versions: that many racers can want something else."""
    return [mlflow.register(name, make_model(seed)[0]) for seed in range(1, 17)]


def test_of_64_racing_promoters_one_wins_each_step_and_the_audit_is_complete(
    ledger, ledger_url, mlflow, name, racers
):
    production = Production(ledger, ModelRegistry(mlflow.uri), name, "production", admits=True)
    for version in racers:
        production._know(version, None)  # reading files is not what is raced for
    expected, winners = None, []
    for _ in range(3):
        free = [version for version in racers if version != expected]
        barrier = threading.Barrier(64)
        race = partial(_race, ledger_url, mlflow.uri, name, expected, barrier)
        with ThreadPoolExecutor(64) as pool:
            outcomes = list(pool.map(race, (free[i % len(free)] for i in range(64))))
        counts = Counter(outcomes)
        already = sum(n for outcome, n in counts.items() if "already" in outcome)
        assert counts["won"] == 1, counts
        assert counts["won"] + counts["stale"] + already == 64, counts
        expected = ledger.pointer(name).version
        winners.append(expected)
        assert production.registry.alias(name, "production") == expected
    assert [move.to_version for move in ledger.history(name)] == winners
    assert [move.epoch for move in ledger.history(name)] == [1, 2, 3]
    assert [move.reason for move in ledger.history(name)] == [f"racer {v}" for v in winners]


def test_a_gates_decision_is_the_reason_and_only_pass_promotes(
    production, versions, mlflow, ledger_url, tmp_path
):
    options = ("--model-name", production.name, "--ledger", ledger_url, "--tracking", mlflow.uri)
    for floor, verdict in (("0.999", "BLOCK"), ("0.01", "PASS")):
        decision = tmp_path / f"{verdict}.json"
        policy = GatePolicy(min={"car": float(floor)})
        decision.write_text(gate_results(RESULTS / "candidate", None, policy).to_json())
        done = penstock("promote", "--version", 1, "--decision", decision, *options)
        if verdict == "BLOCK":
            assert isinstance(done.exception, LedgerError)
            assert "The gate said BLOCK" in done.exception.message
            assert moves(production) == []
    assert done.exit_code == 0, done.output
    (move,) = production.ledger.history(production.name)
    assert move.reason.startswith("gate PASS: 1 floor checked")


@pytest.mark.parametrize("content", [None, "not json", '{"verdict": "PASS"}'])
def test_a_decision_that_cannot_be_read_promotes_nothing(tmp_path, content):
    path = tmp_path / "decision.json"
    if content is not None:
        path.write_text(content)
    done = penstock("promote", "--model-name", "m", "--version", 1, "--decision", path,
                    "--store", tmp_path, "--tracking", "http://x")  # fmt: skip
    assert isinstance(done.exception, PenstockError)
    assert "decision" in done.exception.message


def test_a_recipes_registration_reaches_a_server_with_its_files(mlflow, name, make_model, tmp_path):
    folder, digest = make_model(1, manifest=True)
    recipe = SimpleNamespace(tracking=mlflow.uri, name="recipe", database=lambda url: url)
    tracker = Tracker(recipe, Store(tmp_path / "store"))
    run_id = tracker.log_run("f" * 64, {}, [], {"loss": 1.0})
    version = tracker.register(name, digest, folder, folder.as_uri(), run_id, {})
    assert tracker.register(name, digest, folder, folder.as_uri(), run_id, {}) == version
    came = model_files.download(tracker.registry, name, version, tmp_path / "out")
    assert (came.digest, came.verified) == (digest, True)
