"""All reading and writing of records, each change one transaction."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from penstock.artifacts import Artifact
from penstock.errors import ClaimLost, LedgerError, StalePromotion
from penstock.ledger import schema
from penstock.ledger.claims import FORGOTTEN_AFTER_S, LEASE_S, Claim, holder_of
from penstock.ledger.database import Database, clock
from penstock.ledger.pointers import compare_and_set
from penstock.ledger.processes import actor, is_dead, process_of, this_process
from penstock.ledger.records import (
    ModelVersion,
    Move,
    Pointer,
    RunRecord,
    StageRecord,
    read_artifact,
    read_run,
)
from penstock.ledger.run_keys import take_key


class Ledger:
    """All reading and writing of records.

    Args:
        url: A SQLAlchemy URL: ``sqlite:///path`` or ``postgresql://...``.

    Raises:
        LedgerError: The database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    def close(self) -> None:
        """Give back every connection."""
        self._database.close()

    @property
    def database(self) -> Database:
        """Its database, for what keeps tables of its own there: API keys and accounts."""
        return self._database

    # -- artifacts ---------------------------------------------------------

    def find(self, fingerprint: str) -> Artifact | None:
        """The recorded result with this fingerprint."""
        query = sa.select(schema.artifacts).where(schema.artifacts.c.fingerprint == fingerprint)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else read_artifact(row)

    def latest(self, recipe: str, stage: str, other_than: str = "") -> Artifact | None:
        """A recipe's newest result of a stage, leaving out one fingerprint."""
        query = (
            sa.select(schema.artifacts)
            .where(
                schema.artifacts.c.recipe == recipe,
                schema.artifacts.c.stage == stage,
                schema.artifacts.c.fingerprint != other_than,
            )
            .order_by(schema.artifacts.c.created_s.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else read_artifact(row)

    def results(self, recipe: str, stage: str) -> list[Artifact]:
        """All recorded results of a recipe's stage, oldest first."""
        query = (
            sa.select(schema.artifacts)
            .where(schema.artifacts.c.recipe == recipe, schema.artifacts.c.stage == stage)
            .order_by(schema.artifacts.c.created_s)
        )
        with self._database.read() as connection:
            return [read_artifact(row) for row in connection.execute(query).mappings()]

    def record(self, artifact: Artifact, recipe: str, claim: Claim) -> None:
        """Write a result's record, if the claim on it still holds.

        Raises:
            ClaimLost: Another worker took over; its record stands.
        """
        values = {
            "fingerprint": artifact.fingerprint,
            "stage": artifact.stage,
            "recipe": recipe,
            "path": artifact.path,
            "digest": artifact.digest,
            "summary": json.dumps(artifact.summary, sort_keys=True),
            "settings": json.dumps(artifact.settings, sort_keys=True),
            "inputs": json.dumps(artifact.inputs, sort_keys=True),
            "input_contents": json.dumps(artifact.input_contents, sort_keys=True),
            "run_id": artifact.run_id,
            "duration_s": artifact.duration_s,
        }
        with self._database.write() as connection:
            if holder_of(connection, claim.key, lock=True) != claim.holder:
                raise ClaimLost(f"Another worker has taken over {claim.key}.")
            connection.execute(
                sa.delete(schema.artifacts).where(
                    schema.artifacts.c.fingerprint == artifact.fingerprint
                )
            )
            connection.execute(sa.insert(schema.artifacts).values(**values, created_s=time.time()))

    def forget(self, fingerprint: str) -> None:
        """Drop the record of a result whose files are gone or that is to be made again."""
        with self._database.write() as connection:
            connection.execute(
                sa.delete(schema.artifacts).where(schema.artifacts.c.fingerprint == fingerprint)
            )

    # -- claims ------------------------------------------------------------

    def try_claim(self, key: str, lease_s: float = LEASE_S) -> Claim | None:
        """Claim a key, unless a living holder has it."""
        me = f"{this_process()}/{uuid.uuid4().hex[:8]}"
        with self._database.write() as connection:
            now = clock(connection)
            row = connection.execute(
                sa.select(schema.claims).where(schema.claims.c.key == key).with_for_update()
            ).first()
            if row is not None:
                if row.until_s > now and not is_dead(process_of(row.holder)):
                    return None
                connection.execute(sa.delete(schema.claims).where(schema.claims.c.key == key))
            try:
                with connection.begin_nested():
                    connection.execute(
                        sa.insert(schema.claims).values(key=key, holder=me, until_s=now + lease_s)
                    )
            except IntegrityError:
                return None
        return Claim(self._database, key, me, lease_s)

    def holder(self, key: str) -> str | None:
        """Who has a claim, dead or alive."""
        with self._database.read() as connection:
            return holder_of(connection, key)

    def live_claims(self) -> list[str]:
        """The keys that somebody alive is working on."""
        with self._database.read() as connection:
            now = clock(connection)
            rows = connection.execute(sa.select(schema.claims)).all()
        return [
            row.key for row in rows if row.until_s > now and not is_dead(process_of(row.holder))
        ]

    # -- pins and watermarks -------------------------------------------------

    def pin(self, key: str, value: Any) -> Any:
        """Remember a choice: the first value given for a key is the answer ever after."""
        with self._database.write() as connection:
            row = connection.execute(
                sa.select(schema.pins.c.value).where(schema.pins.c.key == key)
            ).first()
            if row is None:
                try:
                    with connection.begin_nested():
                        connection.execute(
                            sa.insert(schema.pins).values(key=key, value=json.dumps(value))
                        )
                    return value
                except IntegrityError:
                    row = connection.execute(
                        sa.select(schema.pins.c.value).where(schema.pins.c.key == key)
                    ).one()
        return json.loads(row.value)

    def pinned(self, key: str) -> Any:
        """The remembered choice, or None."""
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(schema.pins.c.value).where(schema.pins.c.key == key)
            ).first()
        return None if row is None else json.loads(row.value)

    def watermark(self, key: str) -> Any:
        """How far the last finished run had come, or None before the first."""
        query = sa.select(schema.watermarks.c.value).where(schema.watermarks.c.key == key)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else json.loads(row.value)

    def set_watermark(self, key: str, value: Any) -> None:
        """Note how far something has come; the last word counts."""
        with self._database.write() as connection:
            _set_watermark(connection, key, value)

    # -- runs --------------------------------------------------------------

    def start_run(
        self,
        recipe: str,
        written: str,
        folder: str,
        overrides: Mapping[str, Any],
        attended: bool = True,
        key: str | None = None,
    ) -> RunRecord:
        """Open a run; an earlier one whose process died is marked as interrupted.

        A run that is not attended is filled by processes that come and go. With a
        ``key``, the run of that name is returned if there is one: it is opened once.
        """
        self._bury_dead_runs(recipe)
        self._bury_dead_claims()
        # Time-ordered, readable, and unique between hosts.
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        run_id = f"{stamp}-{uuid.uuid4().hex[:6]}"
        values = {
            "id": run_id,
            "recipe": recipe,
            "written": written,
            "folder": folder,
            "overrides": json.dumps(dict(overrides)),
            "status": "RUNNING",
            "message": "",
            "holder": this_process() if attended else "",
            "started_s": time.time(),
        }
        with self._database.write() as connection:
            taken = run_id if key is None else take_key(connection, recipe, key, run_id)
            if taken == run_id:
                connection.execute(sa.insert(schema.runs).values(**values))
        return self.run(taken)

    def reopen_run(self, run_id: str) -> RunRecord:
        """Take up a run again, also one whose last step failed.

        Raises:
            LedgerError: There is no such run.
        """
        record = self.run(run_id)
        with self._database.write() as connection:
            connection.execute(
                sa.update(schema.runs)
                .where(schema.runs.c.id == record.id)
                .values(status="RUNNING", message="", ended_s=None)
            )
        return self.run(record.id)

    def end_run(
        self, run_id: str, status: str, message: str, watermark: tuple[str, Any] | None = None
    ) -> None:
        """Close a run and move its watermark, in one transaction."""
        with self._database.write() as connection:
            connection.execute(
                sa.update(schema.runs)
                .where(schema.runs.c.id == run_id)
                .values(status=status, message=message, ended_s=time.time())
            )
            if watermark is not None:
                _set_watermark(connection, *watermark)

    def record_stage(self, run_id: str, record: StageRecord) -> None:
        """Note what a stage came to in a run; a later note replaces an earlier one."""
        with self._database.write() as connection:
            connection.execute(
                sa.delete(schema.run_stages).where(
                    schema.run_stages.c.run_id == run_id, schema.run_stages.c.stage == record.stage
                )
            )
            connection.execute(sa.insert(schema.run_stages).values(run_id=run_id, **vars(record)))

    def run(self, run_id: str) -> RunRecord:
        """One run by its id, or by the start of it when that is unambiguous.

        Raises:
            LedgerError: There is no such run, or more than one.
        """
        query = (
            sa.select(schema.runs)
            .where(schema.runs.c.id.startswith(run_id, autoescape=True))
            .limit(2)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        if len(rows) != 1 or not run_id:
            problem = "There is no run" if not rows else "More than one run starts with"
            raise LedgerError(f"{problem} {run_id!r}.", "List them with: penstock runs")
        return read_run(rows[0])

    def runs(self, recipe: str | None = None, limit: int = 50) -> list[RunRecord]:
        """Runs, newest first."""
        query = sa.select(schema.runs).order_by(schema.runs.c.started_s.desc()).limit(limit)
        if recipe is not None:
            query = query.where(schema.runs.c.recipe == recipe)
        with self._database.read() as connection:
            return [read_run(row) for row in connection.execute(query).mappings()]

    def stages(self, run_id: str) -> list[StageRecord]:
        """What each stage of a run came to, in order."""
        query = (
            sa.select(schema.run_stages)
            .where(schema.run_stages.c.run_id == run_id)
            .order_by(schema.run_stages.c.position)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [StageRecord(**{k: v for k, v in row.items() if k != "run_id"}) for row in rows]

    # -- models and pointers -------------------------------------------------

    def add_model(self, model: ModelVersion) -> ModelVersion:
        """Record a version; the same training is never recorded twice under a name."""
        with self._database.write() as connection:
            try:
                with connection.begin_nested():
                    connection.execute(
                        sa.insert(schema.models).values(**{**vars(model), "created_s": time.time()})
                    )
            except IntegrityError:
                pass
        found = self.model_with_digest(model.name, model.digest)
        if found is None:
            raise LedgerError(f"{model.name} version {model.version} already has other content.")
        return found

    def model(self, name: str, version: int) -> ModelVersion:
        """One version.

        Raises:
            LedgerError: There is no such model or version; the message lists what there is.
        """
        versions = self.models(name)
        for model in versions:
            if model.version == version:
                return model
        have = ", ".join(str(model.version) for model in versions)
        what = f"It has: {have}." if have else f"Known models: {', '.join(self.model_names())}."
        raise LedgerError(f"There is no version {version} of model {name!r}. {what}")

    def models(self, name: str | None = None) -> list[ModelVersion]:
        """All versions, of one model or of all, in order."""
        query = sa.select(schema.models).order_by(schema.models.c.name, schema.models.c.version)
        if name is not None:
            query = query.where(schema.models.c.name == name)
        with self._database.read() as connection:
            return [ModelVersion(**row) for row in connection.execute(query).mappings()]

    def model_names(self) -> list[str]:
        """The names of all registered models."""
        return sorted({model.name for model in self.models()})

    def model_with_digest(self, name: str, digest: str) -> ModelVersion | None:
        """The version that has exactly these files, if they were registered."""
        models = self.models(name)
        return next((m for m in models if m.digest == digest), None)

    def models_by_digest(self, prefix: str) -> list[ModelVersion]:
        """Versions whose digest starts with ``prefix`` (hex): how a response is resolved."""
        query = sa.select(schema.models).where(
            schema.models.c.digest.startswith(prefix, autoescape=True)
        )
        with self._database.read() as connection:
            return [ModelVersion(**row) for row in connection.execute(query).mappings()]

    def pointer(self, name: str, alias: str = "production") -> Pointer | None:
        """What an alias points at now."""
        query = sa.select(schema.pointers.c.version, schema.pointers.c.epoch).where(
            schema.pointers.c.name == name, schema.pointers.c.alias == alias
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else Pointer(row.version, row.epoch)

    def aliases(self) -> list[tuple[str, str]]:
        """Name and alias of every pointer there is."""
        query = sa.select(schema.pointers.c.name, schema.pointers.c.alias)
        with self._database.read() as connection:
            return sorted((row.name, row.alias) for row in connection.execute(query))

    def move_pointer(
        self,
        name: str,
        alias: str,
        to_version: int,
        expected: Pointer | None,
        action: str,
        reason: str,
        run_id: str | None = None,
        condition: Callable[[sa.Connection], bool] | None = None,
    ) -> Pointer:
        """Point an alias at a version by compare-and-set, and append to the audit log.

        Args:
            name: The model.
            alias: Such as ``production``.
            to_version: Must be registered.
            expected: What the alias must point at for this to happen.
            action: ``promote`` or ``rollback``.
            reason: For the audit log.
            run_id: The run behind it, if one is.
            condition: What else must hold in the moment in which it moves.

        Raises:
            StalePromotion: The alias points elsewhere by now; nothing was changed.
            LedgerError: The version does not exist.
        """
        self.model(name, to_version)
        epoch = 1 if expected is None else expected.epoch + 1
        with self._database.write() as connection:
            holds = condition is None or condition(connection)
            if not (
                holds and compare_and_set(connection, name, alias, to_version, expected, epoch)
            ):
                raise StalePromotion(
                    f"{name}@{alias} is no longer what version {to_version} was compared with.",
                    "Run again: the comparison is repeated against what serves now.",
                )
            connection.execute(
                sa.insert(schema.audit).values(
                    name=name,
                    alias=alias,
                    epoch=epoch,
                    from_version=None if expected is None else expected.version,
                    to_version=to_version,
                    action=action,
                    reason=reason,
                    actor=actor(),
                    run_id=run_id,
                    at_s=time.time(),
                )
            )
        return Pointer(to_version, epoch)

    def history(self, name: str, alias: str = "production") -> list[Move]:
        """Every move of an alias, oldest first."""
        query = (
            sa.select(schema.audit)
            .where(schema.audit.c.name == name, schema.audit.c.alias == alias)
            .order_by(schema.audit.c.epoch)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            Move(**{k: v for k, v in row.items() if k not in {"name", "alias"}}) for row in rows
        ]

    # -- inside --------------------------------------------------------------

    def _bury_dead_runs(self, recipe: str) -> None:
        message = "its process ended; the next run continues it"
        for run in self.runs(recipe):
            if run.status == "RUNNING" and run.holder and is_dead(run.holder):
                with self._database.write() as connection:
                    # It may have ended well between the look at it and now.
                    connection.execute(
                        sa.update(schema.runs)
                        .where(schema.runs.c.id == run.id, schema.runs.c.status == "RUNNING")
                        .values(status="INTERRUPTED", message=message, ended_s=time.time())
                    )

    def _bury_dead_claims(self) -> None:
        """Drop what nobody will give back, or every kill would leave a line for ever."""
        with self._database.write() as connection:
            forgotten_s = clock(connection) - FORGOTTEN_AFTER_S
            for row in connection.execute(sa.select(schema.claims)).all():
                if row.until_s < forgotten_s or is_dead(process_of(row.holder)):
                    connection.execute(
                        sa.delete(schema.claims).where(
                            schema.claims.c.key == row.key,
                            schema.claims.c.holder == row.holder,
                            # Not if it was renewed since it was read.
                            schema.claims.c.until_s == row.until_s,
                        )
                    )


def _set_watermark(connection: sa.Connection, key: str, value: Any) -> None:
    connection.execute(sa.delete(schema.watermarks).where(schema.watermarks.c.key == key))
    connection.execute(
        sa.insert(schema.watermarks).values(key=key, value=json.dumps(value, sort_keys=True))
    )
