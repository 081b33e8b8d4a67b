"""What a stage is, and what it is given when it runs.

A stage decides what one named step produces. It writes files into the folder
it is given and rows into Delta tables, and returns a summary; finding, claiming,
committing and recording are the pipeline's work, the same for all stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from penstock.artifacts import Artifact
from penstock.ledger import Ledger, ModelVersion
from penstock.recipe import Recipe
from penstock.sources.base import Unit
from penstock.store import Store


class Advance(Protocol):
    """One piece of work under way."""

    def __call__(self, count: int) -> None:
        """So much more is done."""
        ...

    def expect(self, total: int) -> None:
        """Say how much there is, where that was not known at the start."""
        ...


class Progress(Protocol):
    """Where a stage tells how far it is."""

    def track(self, label: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Show one piece of work; the function given counts it up."""
        ...

    def say(self, text: str) -> None:
        """Show one line."""
        ...


class Silent:
    """Progress that shows nothing."""

    @contextmanager
    def track(self, label: str, total: int | None = None) -> Iterator[Advance]:
        """Count nothing."""
        yield self

    def __call__(self, count: int) -> None:
        """Count nothing."""

    def expect(self, total: int) -> None:
        """Expect nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class Base:
    """The model a training starts from.

    Attributes:
        label: What to call it: ``python-docs version 1``, or a folder or hub name.
        identity: Enters fingerprints: its digest, or name and commit.
        location: Where its files are: a folder, or a hub name.
        revision: The commit of a hub model.
        version: The registered version, if it is one.
        tables: The table versions it was trained on, if it is ours.
        registered: What it is registered as, if it is; its files may have to be fetched.
    """

    label: str
    identity: str
    location: str
    revision: str | None = None
    version: int | None = None
    tables: Mapping[str, int] = field(default_factory=dict)
    registered: ModelVersion | None = None


@dataclass(frozen=True)
class Pinned:
    """What a run has fixed before it starts: the outside world, as fingerprints see it.

    Attributes:
        units: Source name -> its snapshot.
        base: The model that training starts from; None is from scratch.
        tasks_digest: SHA-256 over the evaluation tasks' own files.
        decisions: The version of the decisions about rows in quarantine; -1 without any.
        released: Digest of the rows that people let through; empty without any.
        features: What the feature store held, as far as it can tell; empty without any.
    """

    units: Mapping[str, Sequence[Unit]] = field(default_factory=dict)
    base: Base | None = None
    tasks_digest: str = ""
    decisions: int = -1
    released: str = ""
    features: str = ""


@dataclass(frozen=True)
class Job:
    """Everything a stage may use while it runs.

    Attributes:
        recipe: The whole recipe.
        store: Where artifacts and tables are.
        ledger: For what earlier results say, and for the stages that register and deploy.
        run_id: The run this is part of.
        stage: The stage's name.
        fingerprint: Of the result being made.
        settings: What entered that fingerprint.
        inputs: Input name -> its committed artifact.
        pinned: What the run has fixed.
        folder: An empty folder; what is in it at the end is the result.
        progress: Where to tell how far it is.
    """

    recipe: Recipe
    store: Store
    ledger: Ledger
    run_id: str
    stage: str
    fingerprint: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    pinned: Pinned
    folder: Path
    progress: Progress

    def before(self) -> Mapping[str, Any]:
        """The summary of the newest other result of this stage; empty before the first.

        Increments are counted from here and not from the tables: an attempt that
        died may have written to those already, and its numbers must come out the same.
        """
        artifact = self.ledger.latest(self.recipe.name, self.stage, other_than=self.fingerprint)
        return {} if artifact is None else artifact.summary

    def input_folder(self, name: str) -> Path:
        """The folder of an input's artifact."""
        return self.store.folder(self.inputs[name])


@dataclass(frozen=True)
class Stage:
    """One named step.

    Attributes:
        name: As in the recipe and on the command line.
        revision: Bumped by hand when the stage's meaning changes, so that a
            refactor makes nobody's model train again.
        inputs: Names of the nodes whose results it reads.
        settings: What of the recipe and the pinned world it depends on.
        run: Makes the result in ``job.folder``; returns the summary. A summary
            may hold ``rows`` (in, removed, quarantined, out) and ``tables``
            (path below the store -> Delta version), and both are checked.
        reconcile: Makes the world agree with a result that is recorded; called
            after recording and on every hit, so it must be idempotent.
        writes_tables: It appends to the recipe's tables, so only one result of
            it may be made at a time, whatever its fingerprint.
    """

    name: str
    revision: int
    inputs: tuple[str, ...]
    settings: Callable[[Recipe, Pinned], dict[str, Any]]
    run: Callable[[Job], dict[str, Any]]
    reconcile: Callable[[Job], None] = lambda job: None
    writes_tables: bool = False
