"""What the pages show and the forms do: the calls that the commands make, for one project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock import printing, quarantine
from penstock.artifacts import Artifact
from penstock.console.drift_desk import DriftDesk
from penstock.console.feedback_view import Review, review
from penstock.errors import LedgerError
from penstock.gates import Decision
from penstock.ledger import Ledger, ModelVersion, Move, Pointer, RunRecord
from penstock.ledger.accounts import Accounts, Dimension, Usage
from penstock.ledger.api_keys import ApiKeys
from penstock.ledger.rollout_records import Rollout
from penstock.ledger.rollouts import Rollouts
from penstock.lineage import Lineage, ancestry
from penstock.pipeline import NAMES, Pipeline
from penstock.promotion import Production, served_versions
from penstock.serving.prices import to_dollars
from penstock.traffic import Traffic
from penstock.typed_secrets import without_secrets

_NUM_OPINIONS = 50
_NUM_COSTS = 100
_DIMENSIONS: dict[str, Dimension] = {
    "model": "model",
    "version": "version",
    "run": "run_id",
    "tenant": "tenant",
    "key": "key_id",
    "day": "day",
}


@dataclass(frozen=True)
class StageView:
    """One stage of a run.

    Attributes:
        name: Of the stage.
        outcome: ``ran``, ``hit``, ``skipped`` or ``failed``; empty if it was not reached.
        note: Why.
        duration_s: Of this run's part in it.
        rows: Rows in, removed (or quarantined) and out, as text.
        result: What came of it, in one line.
        artifact: Its result, if there is one.
    """

    name: str
    outcome: str = ""
    note: str = ""
    duration_s: float = 0.0
    rows: tuple[str, str, str] = ("", "", "")
    result: str = ""
    artifact: Artifact | None = None


@dataclass(frozen=True)
class RunView:
    """A run with all stages of the loop, reached or not."""

    record: RunRecord
    stages: tuple[StageView, ...]


@dataclass(frozen=True)
class Serving:
    """What serves, and how it came to that.

    Attributes:
        name: The model.
        alias: Its alias.
        pointer: Where that points; None before the first promotion.
        moves: The audit log, newest first.
        previous: What a rollback would serve; None if there is nothing.
        trial: The rollout that is on.
    """

    name: str
    alias: str
    pointer: Pointer | None
    moves: list[Move]
    previous: int | None
    trial: Rollout | None

    @property
    def version(self) -> int | None:
        """The version that serves."""
        return None if self.pointer is None else self.pointer.version


@dataclass(frozen=True)
class Cost:
    """Use of one model, key or day."""

    name: str
    usage: Usage

    @property
    def dollars(self) -> str:
        """What it came to, in US dollars."""
        return f"{to_dollars(self.usage.nanousd):f}"


class Desk:
    """One project.

    Args:
        pipeline: The project.
        production: Opens the alias that its deploy stage moves.
    """

    def __init__(self, pipeline: Pipeline, production: Callable[[], Production]) -> None:
        self.pipeline = pipeline
        self.production = production
        self.drift = DriftDesk(pipeline)

    @property
    def ledger(self) -> Ledger:
        """The project's."""
        return self.pipeline.ledger

    @property
    def traffic(self) -> Traffic:
        """The project's log and feedback."""
        return Traffic.of(self.pipeline.store)

    @property
    def rollouts(self) -> Rollouts:
        """The project's."""
        return Rollouts(self.ledger.database)

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.pipeline.recipe.name

    # -- runs -----------------------------------------------------------------------

    def runs(self) -> list[RunRecord]:
        """Newest first."""
        return self.ledger.runs(self.name)

    def run(self, run_id: str) -> RunView:
        """One run.

        Raises:
            LedgerError: There is none of this recipe.
        """
        record = self.ledger.run(run_id)
        if record.recipe != self.name:
            raise LedgerError(f"Run {record.id} is of another recipe.")
        report = self.pipeline.report(record.id)
        known = {one.stage: one for one in report.stages}
        stages = []
        for name in NAMES:
            artifact, stage = report.artifacts.get(name), known.get(name)
            if stage is None:
                stages.append(StageView(name))
                continue
            rows = printing.row_counts(artifact)
            result = "" if artifact is None else printing.result(artifact)
            view = StageView(
                name, stage.outcome, stage.note, stage.duration_s, rows, result, artifact
            )
            stages.append(view)
        return RunView(without_secrets(record), tuple(stages))

    def last_run(self) -> RunView | None:
        """The newest run."""
        found = self.ledger.runs(self.name, 1)
        return self.run(found[0].id) if found else None

    # -- gates ----------------------------------------------------------------------

    def gates(self) -> list[Artifact]:
        """All decisions, newest first."""
        return self.ledger.results(self.name, "gate")[::-1]

    def gate(self, fingerprint: str) -> tuple[Artifact, Decision]:
        """One decision, with all that it rests on.

        Raises:
            LedgerError: There is none.
            StoreError: Its files are gone.
        """
        artifact = self._gate(fingerprint)
        path = self.pipeline.store.folder(artifact) / "decision.json"
        try:
            return artifact, Decision.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise LedgerError(f"The decision's files are gone: {error.strerror}.") from error

    def _gate(self, fingerprint: str) -> Artifact:
        artifact = self.ledger.find(fingerprint)
        if artifact is None or artifact.stage != "gate":
            raise LedgerError(f"There is no decision {fingerprint[:12]!r}.")
        return artifact

    # -- versions -------------------------------------------------------------------

    def models(self) -> list[ModelVersion]:
        """The recipe's model's versions, newest first."""
        return self.ledger.models(self.pipeline.recipe.model_name)[::-1]

    def model(self, version: int) -> ModelVersion:
        """One version."""
        return self.ledger.model(self.pipeline.recipe.model_name, version)

    def lineage(self, model: ModelVersion) -> Lineage | None:
        """What it was made of; None if no run of ours has made it."""
        try:
            return ancestry(model, self.ledger, self.pipeline.store)
        except LedgerError:
            return None

    def serving(self) -> Serving:
        """What serves, by the ledger."""
        recipe = self.pipeline.recipe
        name, alias = recipe.model_name, recipe.deploy.alias
        # Before its moves: one that comes in between then makes the page's forms stale.
        pointer = self.ledger.pointer(name, alias)
        moves = self.ledger.history(name, alias)
        served = served_versions(moves)
        return Serving(
            name=name,
            alias=alias,
            pointer=pointer,
            moves=moves[::-1],
            previous=served[-2] if len(served) > 1 else None,
            trial=self.rollouts.open(name, alias),
        )

    def rollout(self, rollout_id: str) -> Rollout:
        """One trial.

        Raises:
            LedgerError: There is none of the recipe's model.
        """
        found, recipe = self.rollouts.find(rollout_id), self.pipeline.recipe
        if (found.model, found.alias) != (recipe.model_name, recipe.deploy.alias):
            raise LedgerError(f"Rollout {found.id} is of another model.")
        return found

    # -- use and quality -------------------------------------------------------------

    def costs(self) -> Mapping[str, list[Cost]]:
        """Use by model, version, run, tenant, key and day; of runs and days the last ones."""
        accounts = Accounts(self.ledger.database)
        keys = {key.id: f"{key.name} ({key.id})" for key in ApiKeys(self.ledger.database).list()}
        names = {"key_id": {"": "no key", **keys}, "tenant": {"": "no tenant"}}
        names["run_id"] = {"": "no run"}
        return {
            title: [
                Cost(names.get(by, {}).get(name, name), usage)
                for name, usage in sorted(accounts.usage(by).items())[-_NUM_COSTS:]
            ]
            for title, by in _DIMENSIONS.items()
        }

    def held(self) -> list[quarantine.Held]:
        """Rows in quarantine, counted."""
        return quarantine.held(self.pipeline)

    def held_rows(self, source: str, rule: str, limit: int) -> list[quarantine.HeldRow]:
        """Rows in quarantine.

        Raises:
            StoreError: No row matches.
        """
        return quarantine.rows(self.pipeline, "", source, rule, limit)

    def review(self) -> Review:
        """What people said of answers, newest first, and what the next run makes of it."""
        return review(self.pipeline, _NUM_OPINIONS)
