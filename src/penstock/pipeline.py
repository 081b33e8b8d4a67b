"""The loop on one page: plan a recipe, run what is missing, skip what is not due.

What happens to each node is in ``walk.py``; what each stage produces, in ``stages/``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penstock.conversions import conversions, sweep_conversions
from penstock.errors import PenstockError, RecipeError, StalePromotion
from penstock.ledger import Ledger, RunRecord
from penstock.ledger.rollouts import Rollouts
from penstock.nodes import NAMES, NODES, Due, Node, Planned, Report
from penstock.project import open_project
from penstock.promotion import served_versions
from penstock.recipe import Recipe
from penstock.registry import did_you_mean
from penstock.sources.base import Unit
from penstock.stages import decisions, evaluate, ingest, prepare
from penstock.stages.base import Pinned, Progress, Silent
from penstock.stages.validate import valid_tables
from penstock.store import Store
from penstock.walk import Walk

__all__ = ["NAMES", "NODES", "Due", "Node", "Pipeline", "Planned", "Report", "open_pipeline"]

# Checkpoints that nobody has continued for this long are given up.
ABANDONED_S = 7 * 24 * 3600.0

# What is repeated when the served version moved after it was compared with.
_COMPARISON = ("baseline", "gate", "register")


def open_pipeline(
    path: Path | str,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Pipeline:
    """Load a recipe and open its store and ledger.

    Raises:
        RecipeError: The recipe is wrong.
        StoreError: The store cannot be written.
        LedgerError: The ledger cannot be opened.
    """
    shown = progress or Silent()
    recipe, store, ledger = open_project(path, overrides, shown.track)
    return Pipeline(recipe, store, ledger, shown, Path(path), dict(overrides or {}))


class Pipeline:
    """A recipe with the store and the ledger it works on."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        ledger: Ledger,
        progress: Progress,
        path: Path,
        overrides: Mapping[str, Any],
    ) -> None:
        self.recipe = recipe
        self.store = store
        self.ledger = ledger
        self.progress = progress
        self.path = path
        self.overrides = overrides

    def plan(self) -> list[Planned]:
        """What a run would do now, without doing any of it."""
        walk = Walk(self, _Snapshot(self).take())
        return [walk.plan(node) for node in NODES]

    def run(
        self,
        until: str | None = None,
        start: str | None = None,
        force: Sequence[str] = (),
        pinned: Pinned | None = None,
    ) -> Report:
        """Run the loop once.

        Args:
            until: Stop after this stage.
            start: Take everything before this stage as the ledger has it.
            force: Stages to run again although their results exist.
            pinned: What to take of the outside world, instead of asking every source.

        Raises:
            PenstockError: A stage failed; the run is recorded as failed.
        """
        for name in (until, start, *force):
            _check_name(name)
        record = self.start(attended=True)
        last = NAMES.index(until) if until else len(NODES) - 1
        first = NAMES.index(start) if start else 0
        with _recorded_failure(self, record):
            self._sweep()
            snapshot = pinned
            if start not in (None, "ingest"):
                snapshot = _Snapshot(self).latest()
            walk = Walk(self, snapshot or _Snapshot(self).take(record.id), record.id, force=force)
            for position, node in enumerate(NODES[: last + 1]):
                self._step_again_if_stale(walk, node, must_hit=position < first)
            return walk.finish(record, complete=last == len(NODES) - 1)

    def start(self, attended: bool = False, key: str | None = None) -> RunRecord:
        """Open a run, for ``step`` to fill.

        Args:
            attended: This process stays with the run: when it dies, so has the run.
            key: What an orchestrator calls the run. It is opened once; who comes later joins it.
        """
        recipe = self.recipe
        return self.ledger.start_run(
            recipe.name, recipe.written, str(recipe.folder), self.overrides, attended, key
        )

    def run_named(self, key: str) -> Report:
        """Run the loop once under a name: begin that run, go on with it, or say how it ended.

        Raises:
            PenstockError: A stage failed; the run is recorded as failed.
        """
        record = self.start(key=key)
        if record.status not in ("RUNNING", "FAILED", "INTERRUPTED"):
            return self.report(record.id)
        with _recorded_failure(self, record):
            self._sweep()
        for node in NODES:
            report = self.step(node.name, record.id)
        return report

    def step(self, name: str, run_id: str) -> Report:
        """Run one stage of an open run, as an orchestrator's task does.

        Everything it needs of earlier steps is in the ledger, so each step can
        be another process on another host. The last step closes the run. In a
        run that has ended, a step that was done is not done again.

        Returns:
            The run so far; its last stage is this one.

        Raises:
            LedgerError: An earlier stage of this run has not been run.
        """
        _check_name(name)
        if self._is_over(run_id, name):
            return self.report(run_id)
        record = self.ledger.reopen_run(run_id)
        position = NAMES.index(name)
        with _recorded_failure(self, record):
            walk = Walk(self, _Snapshot(self).take(record.id), record.id)
            for node in NODES[:position]:
                found = walk.resolve(node)
                if found is None and node.name in _COMPARISON and node.name in walk.prints:
                    walk.step(node)  # the served version moved since: compare again
            self._step_again_if_stale(walk, NODES[position], must_hit=False)
            if position == len(NODES) - 1:
                return walk.finish(record, complete=True)
            return self.report(record.id)

    def due(self, run_id: str) -> Due:
        """Whether the stages after validate are due; a run in which they are not is closed.

        Raises:
            LedgerError: The data of this run have not been validated.
        """
        record = self.ledger.run(run_id)
        outcomes = {one.stage: one for one in self.ledger.stages(record.id)}
        if "prepare" in outcomes:
            skipped = outcomes["prepare"].outcome == "skipped"
            return Due(not skipped, outcomes["prepare"].note if skipped else "")
        if "validate" not in outcomes and record.status == "FAILED":
            return Due(False, record.message)
        walk = Walk(self, _Snapshot(self).take(record.id), record.id)
        reason = walk.too_few()
        if reason:
            for node in NODES[2:]:
                walk.step(node)
            walk.finish(record, complete=True)
        return Due(not reason, reason)

    def _is_over(self, run_id: str, name: str) -> bool:
        """Whether a run has come to its end, and did this stage on the way."""
        record = self.ledger.run(run_id)
        if record.status in ("RUNNING", "FAILED", "INTERRUPTED"):
            return False
        return any(one.stage == name for one in self.ledger.stages(record.id))

    def pinned(self, units: Mapping[str, Sequence[Unit]]) -> Pinned:
        """What a run pins that takes these units."""
        tasks_digest = evaluate.tasks_digest(self.recipe)
        return Pinned(
            units={name: tuple(some) for name, some in units.items()}, tasks_digest=tasks_digest
        )

    def pin_again(self, run_id: str | None) -> Pinned:
        """Pin anew for a run that was overtaken: see ``ingest.is_overtaken``."""
        return _Snapshot(self).take_again(run_id)

    def report(self, run_id: str) -> Report:
        """What a run came to, as the ledger has it.

        Raises:
            LedgerError: There is no such run.
        """
        record = self.ledger.run(run_id)
        stages = tuple(self.ledger.stages(record.id))
        found = {
            one.stage: self.ledger.find(one.fingerprint or "")
            for one in stages
            if one.outcome != "skipped"
        }
        return Report(
            run_id=record.id,
            status=record.status,
            message=record.message,
            stages=stages,
            artifacts={name: artifact for name, artifact in found.items() if artifact},
            duration_s=(record.ended_s or time.time()) - record.started_s,
        )

    def _step_again_if_stale(self, walk: Walk, node: Node, must_hit: bool) -> None:
        """Run a node; when the served version moved meanwhile, compare again first."""
        for _ in range(3):
            try:
                walk.step(node, must_hit)
                return
            except StalePromotion as stale:
                self.progress.say(f"{stale.message} {stale.hint}")
                for earlier in NODES[NAMES.index("baseline") : NAMES.index(node.name)]:
                    walk.step(earlier)
        walk.step(node, must_hit)

    def _sweep(self) -> None:
        def is_live(name: str) -> bool:
            # Asked after the folder was found: who made it has had the claim before that.
            keys = self.ledger.live_claims()
            stage, _, print_ = name.rpartition("-")
            return any(key.startswith(print_) or key.endswith(f"/{stage}") for key in keys)

        self.store.sweep(is_live, ABANDONED_S)
        sweep_conversions(conversions(self.store), set(self._digests_in_use()))

    def _digests_in_use(self) -> Iterator[str]:
        """Of the versions that serve or are on trial, and of those that a rollback would serve."""
        for name, alias in self.ledger.aliases():
            numbers = served_versions(self.ledger.history(name, alias))[-2:]
            trial = Rollouts(self.ledger.database).open(name, alias)
            numbers += [trial.challenger] if trial is not None else []
            yield from (one.digest for one in self.ledger.models(name) if one.version in numbers)


class _Snapshot:
    """Pins the outside world for a run."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def take(self, run_id: str | None = None) -> Pinned:
        """Ask every source what there is; a run asks once and remembers."""
        *_, world = [None, *self._worlds(run_id)] if run_id else [None]
        if world is None:
            return self.take_again(run_id)
        return _pinned(world)

    def take_again(self, run_id: str | None) -> Pinned:
        """Ask every source, whatever the run has pinned before, and remember that instead."""
        world: Any = {
            "units": self._units(),
            "tasks": evaluate.tasks_digest(self.pipeline.recipe),
            "features": prepare.features_version(self.pipeline.recipe),
            **self._decisions(),
        }
        if run_id:
            number = len(list(self._worlds(run_id)))
            world = self.pipeline.ledger.pin(_world_key(run_id, number), world)
        return _pinned(world)

    def _worlds(self, run_id: str) -> Iterator[Any]:
        """What a run has pinned, oldest first; the last one counts."""
        for number in itertools.count():
            world = self.pipeline.ledger.pinned(_world_key(run_id, number))
            if world is None:
                return
            yield world

    def latest(self) -> Pinned | None:
        """What the newest ingest saw."""
        recipe = self.pipeline.recipe
        artifact = self.pipeline.ledger.latest(recipe.name, "ingest")
        if artifact is None:
            return None
        world = {
            "units": artifact.summary["units"],
            "tasks": evaluate.tasks_digest(recipe),
            "features": prepare.features_version(recipe),
            **self._decisions(),
        }
        return _pinned(world)

    def _decisions(self) -> dict[str, Any]:
        """How far people have decided about rows in quarantine."""
        recipe = self.pipeline.recipe
        table = decisions.table(self.pipeline.store, recipe)
        version = table.version()
        decided = decisions.standing(table, list(valid_tables(recipe).values()), version)
        return {"decisions": version, "released": decisions.digest(decided)}

    def _units(self) -> dict[str, list[dict[str, Any]]]:
        recipe, store = self.pipeline.recipe, self.pipeline.store
        seen = self.pipeline.ledger.latest(recipe.name, "ingest")
        return {
            name: [asdict(unit) for unit in ingest.snapshot(recipe, store, name, source, seen)]
            for name, source in ingest.sources(recipe).items()
        }


def _world_key(run_id: str, number: int) -> str:
    return f"{run_id}/world/{number}" if number else f"{run_id}/world"


def _pinned(world: Mapping[str, Any]) -> Pinned:
    return Pinned(
        units={name: tuple(Unit(**unit) for unit in some) for name, some in world["units"].items()},
        tasks_digest=world["tasks"],
        decisions=world.get("decisions", -1),
        released=world.get("released", ""),
        features=world.get("features", ""),
    )


def _check_name(name: str | None) -> None:
    if name is not None and name not in NAMES:
        raise RecipeError(f"There is no stage {name!r}.{did_you_mean(name, NAMES)}")


@contextmanager
def _recorded_failure(pipeline: Pipeline, record: RunRecord) -> Iterator[None]:
    """Record why a run ended early, whatever the reason."""
    try:
        yield
    except KeyboardInterrupt:
        message = "stopped from the keyboard; the next run continues it"
        pipeline.ledger.end_run(record.id, "INTERRUPTED", message)
        raise
    except PenstockError as error:
        pipeline.ledger.end_run(record.id, "FAILED", error.message)
        raise
    except Exception as error:
        pipeline.ledger.end_run(record.id, "FAILED", f"{type(error).__name__}: {error}")
        raise
