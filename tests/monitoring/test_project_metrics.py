import shutil
import subprocess

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from penstock.errors import LedgerError
from penstock.ledger import Ledger, ModelVersion
from penstock.ledger.accounts import Accounts, Batch, Usage, UsageId, Wish, new_holder
from penstock.ledger.alarms import Alarm, Alarms, AlarmState
from penstock.ledger.amounts import Amounts
from penstock.ledger.api_keys import ApiKey, ApiKeys
from penstock.ledger.drift_records import DriftRecord, DriftRecords
from penstock.ledger.rollout_records import State
from penstock.monitoring import project_metrics
from penstock.monitoring.project_metrics import ProjectMetrics


@pytest.fixture
def ledger(tmp_path):
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.fixture
def shown(ledger, monkeypatch):
    monkeypatch.setattr(project_metrics, "_KEPT_S", 0.0)
    registry = CollectorRegistry()
    registry.register(ProjectMetrics("demo", "penny", ledger))

    def value(name, **labels):
        return registry.get_sample_value(name, labels)

    return value


def test_a_new_project_shows_that_nothing_was_trained_or_spent(shown):
    assert shown("penstock_ledger_up") == 1
    assert shown("penstock_last_training_timestamp_seconds") is None
    ended = shown("penstock_rollouts_ended_total", model="penny", state=State.ROLLED_BACK)
    assert ended == 0


def test_the_last_training_is_that_of_the_newest_version(ledger, shown):
    for number in (1, 2):
        ledger.add_model(ModelVersion("penny", number, "f", f"{number}", "p", "run", "data"))
    first = shown("penstock_last_training_timestamp_seconds")
    ledger.add_model(ModelVersion("other", 1, "f", "x", "p", "run", "data"))
    assert shown("penstock_last_training_timestamp_seconds") == first > 1e9


def test_budgets_show_what_is_spent_of_them_by_key(ledger, shown):
    keys, accounts = ApiKeys(ledger.database), Accounts(ledger.database)
    key, _ = keys.create(ApiKey("", "app", "acme", budget_tokens=100, budget_nanousd=1000))
    keys.create(ApiKey("", "free", "acme"))
    holder = new_holder()
    (grant,) = accounts.visit(
        holder, None, [Wish(key.id, (Amounts(tokens=50, nanousd=900),))]
    ).values()
    spent = {(key.id, grant.start_s): Amounts(tokens=10, nanousd=900)}
    usage = {UsageId("2026-11-27", key.id, "penny"): Usage(1, 5, 5, 2_000_000_000)}
    accounts.visit(holder, Batch(1, usage, spent))
    assert shown("penstock_budget_spent_ratio", tenant="acme", key=key.id) == 0.9
    assert shown("penstock_spent_usd_total", model="penny", tenant="acme") == 2
    keys.revoke(key.id)
    assert shown("penstock_budget_spent_ratio", tenant="acme", key=key.id) is None


def test_drift_was_looked_for_until_the_last_window_or_since_the_promotion(ledger, shown):
    name = "penstock_drift_looked_until_timestamp_seconds"
    assert shown(name) is None
    for number in (1, 2):
        ledger.add_model(ModelVersion("penny", number, "f", f"{number}", "p", "run", "data"))
        ledger.move_pointer(
            "penny", "production", number, ledger.pointer("penny"), "promote", "test"
        )
        assert shown(name) == ledger.history("penny")[-1].at_s
    end_ms = int(ledger.history("penny")[-1].at_s * 1000) + 60_000
    for recipe, later_ms in (("demo", 0), ("demo", -9_000), ("other", 9_000)):
        windows = DriftRecords(ledger.database)
        windows.add(DriftRecord(recipe, "s", end_ms + later_ms - 1, end_ms + later_ms, 2, {}))
    assert shown(name) == end_ms / 1000


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
def test_promtool_has_nothing_to_say(ledger):
    registry = CollectorRegistry()
    registry.register(ProjectMetrics("demo", "penny", ledger))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(registry), capture_output=True
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout + checked.stderr == b""


def test_alarms_are_counted_by_kind_and_those_that_are_over_are_not_open(ledger, shown):
    first = Alarms(ledger).raise_(Alarm("demo", "drift", "a", 1.0))
    Alarms(ledger).raise_(Alarm("demo", "drift", "b", 1.0))
    Alarms(ledger).raise_(Alarm("other", "drift", "c", 1.0))
    Alarms(ledger).decide(first.number, AlarmState.CLOSED, "it was nothing")
    assert shown("penstock_alarms_raised_total", kind="drift") == 2
    assert shown("penstock_open_alarms", kind="drift") == 1
    assert shown("penstock_open_alarms", kind="quality") == 0


def test_a_ledger_that_is_away_is_said_and_breaks_nothing(ledger, shown, monkeypatch):
    def away():
        raise LedgerError("It is away.")

    monkeypatch.setattr(ledger.database, "read", away)
    assert shown("penstock_ledger_up") == 0
    assert shown("penstock_last_training_timestamp_seconds") is None
