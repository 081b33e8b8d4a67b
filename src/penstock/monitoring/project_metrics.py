"""What a project's ledger tells Prometheus, through whichever of its gateways is asked.

Every gateway process shows the same; rules and dashboards take the maximum.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import sqlalchemy as sa
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from penstock.errors import PenstockError
from penstock.ledger import Ledger, schema
from penstock.ledger.accounts import Accounts
from penstock.ledger.alarms import KINDS, OPEN
from penstock.ledger.api_keys import ApiKeys
from penstock.ledger.drift_records import DriftRecords
from penstock.ledger.rollout_records import State

logger = logging.getLogger(__name__)

# Several scrapers, and reloads of a page, ask the ledger once.
_KEPT_S = 15.0
_NANO = 10**9
_ENDS = (State.PROMOTED.value, State.ROLLED_BACK.value)
# A project with more keys than this is watched by its ledger, not by series.
_MAX_KEYS = 1_000


class _Spent(NamedTuple):
    """What one tenant used of one model, since the ledger began."""

    model: str
    tenant: str
    usd: float


class ProjectMetrics:
    """A collector for a gateway's registry.

    Args:
        recipe: The recipe's name.
        model: The registered model that it trains.
        ledger: Asked at most every 15 s; while it does not answer there is nothing to show
            but that.
        alias: Of the version that serves.
    """

    def __init__(self, recipe: str, model: str, ledger: Ledger, alias: str = "production") -> None:
        self._recipe = recipe
        self._model, self._alias = model, alias
        self._ledger = ledger
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._kept_until_s = 0.0

    def collect(self) -> Iterator[Metric]:
        """All metrics, as the ledger has them now or had them a moment ago."""
        with self._lock:
            if time.monotonic() >= self._kept_until_s:
                self._kept = self._asked()
                self._kept_until_s = time.monotonic() + _KEPT_S
            yield from self._kept

    def describe(self) -> list[Metric]:
        """Nothing is known before the ledger is asked."""
        return []

    def _asked(self) -> list[Metric]:
        up = GaugeMetricFamily("penstock_ledger_up", "1 while the ledger can be read.")
        try:
            found = [*self._training(), *self._rollouts(), *self._budgets(), *self._costs()]
            found += [*self._alarms(), *self._drift()]
        except PenstockError as error:
            logger.warning("The ledger shows nothing to Prometheus: %s", error)
            found = []
        up.add_metric([], float(bool(found)))
        return [up, *found]

    def _training(self) -> Iterator[Metric]:
        """When a version was last made; a model that was never trained has no series."""
        table = schema.models
        query = sa.select(sa.func.max(table.c.created_s)).where(table.c.name == self._model)
        with self._ledger.database.read() as connection:
            trained_s = connection.scalar(query)
        gauge = GaugeMetricFamily(
            "penstock_last_training_timestamp_seconds",
            "When a version of the model was last registered.",
        )
        if trained_s is not None:
            gauge.add_metric([], trained_s)
        yield gauge

    def _rollouts(self) -> Iterator[Metric]:
        """Trials by how they ended; whichever process decided, the ledger knows."""
        table = schema.rollouts
        query = (
            sa.select(table.c.state, sa.func.count())
            .where(table.c.model == self._model, table.c.ended_s.is_not(None))
            .group_by(table.c.state)
        )
        with self._ledger.database.read() as connection:
            ended = {str(state): num for state, num in connection.execute(query)}
        counter = CounterMetricFamily(
            "penstock_rollouts_ended",
            "Trials of versions by how they ended.",
            labels=["model", "state"],
        )
        # A series that begins with its first event would not show it as an increase.
        for state in sorted({*ended, *_ENDS}):
            counter.add_metric([self._model, state], ended.get(state, 0))
        yield counter

    def _budgets(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily(
            "penstock_budget_spent_ratio",
            "Share of a key's budget of this period that is spent.",
            labels=["tenant", "key"],
        )
        now_s = time.time()
        keys = [
            one
            for one in ApiKeys(self._ledger.database).list()
            if one.has_budget and one.ended(now_s) is None
        ]
        if len(keys) > _MAX_KEYS:
            logger.warning("Prometheus is shown %d of %d budgets.", _MAX_KEYS, len(keys))
        balances = Accounts(self._ledger.database).balances(keys[:_MAX_KEYS])
        for key in keys[:_MAX_KEYS]:
            balance = balances[key.id]
            spent = [
                used / limit
                for used, limit in (
                    (balance.tokens_spent, key.budget_tokens),
                    (balance.nanousd_spent, key.budget_nanousd),
                )
                if limit
            ]
            gauge.add_metric([key.tenant, key.id], max(spent, default=1.0))
        yield gauge

    def _alarms(self) -> Iterator[Metric]:
        table = schema.alarms
        is_open = sa.case((table.c.state.in_([state.value for state in OPEN]), 1), else_=0)
        query = (
            sa.select(table.c.kind, sa.func.count(), sa.func.sum(is_open))
            .where(table.c.recipe == self._recipe)
            .group_by(table.c.kind)
        )
        with self._ledger.database.read() as connection:
            counted = {kind: (raised, still) for kind, raised, still in connection.execute(query)}
        raised = CounterMetricFamily(
            "penstock_alarms_raised", "Alarms since the ledger began.", labels=["kind"]
        )
        still = GaugeMetricFamily(
            "penstock_open_alarms", "Alarms that may still start a run.", labels=["kind"]
        )
        for kind in KINDS:
            all_of_it, open_of_it = counted.get(kind, (0, 0))
            raised.add_metric([kind], all_of_it)
            still.add_metric([kind], open_of_it)
        yield from (raised, still)

    def _drift(self) -> Iterator[Metric]:
        """From the ledger and not from who looks: one that never ran says nothing."""
        gauge = GaugeMetricFamily(
            "penstock_drift_looked_until_timestamp_seconds",
            "Until when traffic was looked at for drift; before the first look, since when it is "
            "there.",
        )
        moves = self._ledger.history(self._model, self._alias)
        if moves:
            until_ms = DriftRecords(self._ledger.database).looked_until_ms(self._recipe) or 0
            gauge.add_metric([], max(until_ms / 1000, moves[-1].at_s))
        yield gauge

    def _costs(self) -> Iterator[Metric]:
        counter = CounterMetricFamily(
            "penstock_spent_usd",
            "What answers cost at the recipe's prices, since the ledger began.",
            labels=["model", "tenant"],
        )
        for one in self._spent():
            counter.add_metric([one.model, one.tenant], one.usd)
        yield counter

    def _spent(self) -> list[_Spent]:
        spending, keys = schema.spending, schema.api_keys
        tenant = sa.func.coalesce(keys.c.tenant, "")
        query = (
            sa.select(spending.c.model, tenant, sa.cast(sa.func.sum(spending.c.nanousd), sa.Float))
            .select_from(spending.outerjoin(keys, keys.c.id == spending.c.key_id))
            .group_by(spending.c.model, tenant)
            .order_by(spending.c.model, tenant)
        )
        with self._ledger.database.read() as connection:
            rows = connection.execute(query).all()
        return [_Spent(model, of, nanousd / _NANO) for model, of, nanousd in rows]
