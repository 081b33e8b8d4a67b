"""Which version an alias names: the ledger's pointer decides, MLflow's alias mirrors it.

Every move is a compare-and-set in the ledger with a line in the audit log. The
mirror follows under a claim, so that of two promotions the later one has the last
word in MLflow too, and the ledger notes which move it has followed. That note
tells a mirror that is late, which the next call mends, from an alias that somebody
moved by hand, which nobody but a person can settle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penstock.artifacts import digest_of
from penstock.errors import (
    LedgerError,
    MirrorBehind,
    PenstockError,
    RegistryError,
    StalePromotion,
    StoreError,
)
from penstock.ledger import Ledger, ModelVersion, Move, Pointer
from penstock.model_files import content_digest, digest_in_registry
from penstock.model_registry import ModelRegistry, version_uri

# Looks into the ledger's database, in the transaction that moves the pointer.
Condition = Callable[[Any], bool]
_WAIT_S = 60.0  # for other promoters that write the mirror at this moment
_LOOKS = 50  # at ledger and mirror, until neither moves between two looks
_AT_NIGHT = (
    "Nothing moved. Another version: penstock promote --version N. If it cannot wait: penstock "
    "model rollback --unchecked, which asks MLflow nothing and reads no files; a gateway that "
    "cannot load the version keeps the one it has."
)
_AGAIN = "Run the same command again once MLflow answers; nothing else is to be done."
# The same command would go back by one more.
_SETTLE = "Once MLflow answers: penstock model settle --take ledger. Do not roll back again."


@dataclass(frozen=True)
class Production:
    """One alias of one model.

    Attributes:
        ledger: Holds the pointer, which is the truth.
        registry: Holds the alias that mirrors it.
        name: The model.
        alias: Such as ``production``.
        admits: Whether a version that only the registry knows may be promoted.
            Without a recipe no stage registers versions in the ledger.
        check_files: Reads a version's files and raises StoreError if they are not
            what was registered; None where they are nowhere at hand.
    """

    ledger: Ledger
    registry: ModelRegistry
    name: str
    alias: str
    admits: bool = False
    check_files: Callable[[ModelVersion], object] | None = None

    def serving(self) -> int | None:
        """The version that serves: the pointer's, or before its first move the alias's."""
        pointer = self.ledger.pointer(self.name, self.alias)
        if pointer is None and self.admits:
            return self.registry.alias(self.name, self.alias)
        self.check_alias()
        return None if pointer is None else pointer.version

    def promote(
        self,
        version: int,
        reason: str,
        expected: int | Literal["anything"] | None = "anything",
        tested: Path | None = None,
        run_id: str | None = None,
        condition: Condition | None = None,
    ) -> Pointer:
        """Point the alias at a version.

        Args:
            version: Which.
            reason: For the audit log.
            expected: What must serve now, None for nothing; the version that the
                candidate was compared with.
            tested: The folder of files that were evaluated: they must be the version's.
            run_id: The run behind it, if one is.
            condition: What else must hold in the ledger in the moment in which it moves.

        Raises:
            LedgerError: There is no such version, it serves already, it has other files
                than were tested, or MLflow's alias was moved by hand. Nothing moved.
            StalePromotion: Something else serves than was expected. Nothing moved.
            StoreError: Its files are not what was registered. Nothing moved.
            MirrorBehind: The pointer moved, but MLflow's alias did not follow.
            RegistryError: MLflow cannot be asked. Nothing moved.
        """
        known = self._know(version, tested)
        taken = self._take_over()
        if taken is None:
            self.check_alias()
        pointer = taken or self.ledger.pointer(self.name, self.alias)
        serves = None if pointer is None else pointer.version
        if pointer is not None and serves == version:
            if self._follow(pointer) or taken:
                return pointer
            raise LedgerError(f"{self._label} is version {version} already.")
        if expected != "anything" and serves != expected:
            raise StalePromotion(
                f"Version {version} was compared with {_named(expected)}, "
                f"but {_named(serves)} serves now.",
                "It has to be compared with what serves now.",
            )
        self._check_files(known)
        return self._move(version, pointer, "promote", reason, run_id, condition)

    def rollback(self, reason: str, unchecked: bool = False, epoch: int | None = None) -> Pointer:
        """Point the alias back at what it named before its last promotion.

        Rolling back twice goes two promotions back, not forward again.

        Args:
            reason: For the audit log.
            unchecked: Neither ask MLflow nor read the version's files first: what a
                person at night decides while a bad version serves.
            epoch: The move that is to be taken back; None takes back whichever is the last.

        Raises:
            StalePromotion: Another move has come since. Nothing moved.
            LedgerError: There is nothing to go back to, or MLflow's alias was moved by hand.
            StoreError: The version's files are not what was registered. Nothing moved.
            RegistryError: MLflow cannot be asked. Nothing moved.
            MirrorBehind: The pointer moved, but MLflow's alias did not follow.
        """
        pointer = self.ledger.pointer(self.name, self.alias)
        served = served_versions(self.ledger.history(self.name, self.alias))
        if pointer is None or len(served) < 2:
            serving = "nothing" if pointer is None else f"version {pointer.version}"
            raise LedgerError(
                f"{self._label} is {serving}, and nothing served before it.",
                "See: penstock model history",
            )
        if epoch is not None and pointer.epoch != epoch:
            raise StalePromotion(
                f"{self._label} has moved since: it is version {pointer.version} now.",
                "Look at what serves now before you roll back.",
            )
        if not unchecked:
            self._check_the_way_back(served[-2])
        return self._move(served[-2], pointer, "rollback", reason)

    def _check_the_way_back(self, version: int) -> None:
        try:
            self.check_alias()
            self._check_files(self.ledger.model(self.name, version))
        except (RegistryError, StoreError) as error:
            error.hint = _AT_NIGHT
            raise

    def _check_files(self, model: ModelVersion) -> None:
        if self.check_files is not None:
            self.check_files(model)

    def reconcile(self) -> None:
        """Let MLflow's alias say what the pointer says.

        Raises:
            LedgerError: The alias was moved by hand.
            MirrorBehind: The pointer has moved, and MLflow does not answer.
            RegistryError: MLflow does not answer, and the alias had followed before.
        """
        pointer, mirrored = self._state()
        if pointer is None:
            return
        try:
            self.check_alias()
        except RegistryError as error:
            if mirrored >= pointer.epoch:
                raise
            raise self._behind(pointer, error, _AGAIN) from error
        self._follow(pointer)

    def settle(self, take: Literal["ledger", "alias"], reason: str) -> Pointer:
        """End a disagreement: the pointer goes where the alias is, or the other way round.

        Raises:
            LedgerError: There is nothing to take over.
        """
        pointer = self.ledger.pointer(self.name, self.alias)
        if take == "ledger":
            if pointer is None:
                raise LedgerError(f"{self._label} has no pointer in the ledger yet.")
            with self._mirroring():
                self._write_mirror(pointer)
            return pointer
        there = self.registry.alias(self.name, self.alias)
        if there is None:
            raise LedgerError(f"{self._label} is no alias in MLflow.", "Use --take ledger.")
        if pointer is not None and there == pointer.version:
            self._follow(pointer)
            return pointer
        self._know(there, None)
        return self._move(there, pointer, "adopt", reason)

    def check_alias(self) -> None:
        """Look whether MLflow's alias is where a move of the pointer has put it.

        Raises:
            LedgerError: It was moved, set or removed by hand.
        """
        for _ in range(_LOOKS):
            pointer, mirrored = self._state()
            there = self.registry.alias(self.name, self.alias)
            if self._state() == (pointer, mirrored):
                break
        else:
            raise StalePromotion(f"{self._label} keeps moving.", "Try again.")
        if pointer is None or there in self._written_since(mirrored):
            return
        raise LedgerError(
            f"MLflow's alias {self._label} was moved by hand: it is {_named(there)}, and the "
            f"ledger says version {pointer.version}.",
            "Decide which is right: penstock model settle --take ledger, or --take alias.",
        )

    def _state(self) -> tuple[Pointer | None, int]:
        pointer = self.ledger.pointer(self.name, self.alias)
        return pointer, self.ledger.watermark(self._key) or 0

    def _written_since(self, mirrored: int) -> set[int | None]:
        """Where the alias may be: at the last move it has followed, or on its way."""
        moves = self.ledger.history(self.name, self.alias)
        written: set[int | None] = {move.to_version for move in moves if move.epoch >= mirrored}
        return written | {None} if mirrored == 0 else written

    def _take_over(self) -> Pointer | None:
        """On first use, the pointer goes to what the alias has named until now."""
        if not self.admits or self.ledger.pointer(self.name, self.alias) is not None:
            return None
        there = self.registry.alias(self.name, self.alias)
        if there is None:
            return None
        self._know(there, None)
        reason = "MLflow's alias was there before the ledger knew the model"
        return self._move(there, None, "adopt", reason)

    def _move(
        self,
        version: int,
        pointer: Pointer | None,
        action: str,
        reason: str,
        run_id: str | None = None,
        condition: Condition | None = None,
    ) -> Pointer:
        moved = self.ledger.move_pointer(
            self.name, self.alias, version, pointer, action, reason, run_id, condition
        )
        self._follow(moved, _SETTLE if action == "rollback" else _AGAIN)
        return moved

    def _know(self, version: int, tested: Path | None) -> ModelVersion:
        """The version as the ledger has it, recorded now if only the registry did."""
        digest = None if tested is None else content_digest(tested)
        known = {model.version: model for model in self.ledger.models(self.name)}.get(version)
        if known is None and not self.admits:
            return self.ledger.model(self.name, version)  # which says what there is
        found = self.registry.version(self.name, version)
        right = known.digest if known is not None else found.digest
        if digest is not None and right is not None and digest != right:
            raise LedgerError(
                f"{tested} holds other files (digest {digest[:12]}) than {self.name} version "
                f"{version} (digest {right[:12]}).",
                "Download that version and evaluate it.",
            )
        if known is not None:
            return known
        added = self.ledger.add_model(
            ModelVersion(
                name=self.name,
                version=version,
                train_fingerprint="",
                digest=right or digest or digest_in_registry(self.registry, found),
                path=version_uri(self.name, version),
                run_id=found.run_id,
                data_version="",
            )
        )
        if added.version != version:
            raise LedgerError(
                f"{self.name} version {version} has the same files as version {added.version}.",
                f"Promote version {added.version}.",
            )
        return added

    def _follow(self, pointer: Pointer, hint: str = _AGAIN) -> bool:
        """Let the alias follow the pointer, unless it has; returns whether it was behind."""
        try:
            with self._mirroring():
                now, mirrored = self._state()
                if now is None or mirrored >= now.epoch:
                    return False
                self._write_mirror(now)
                return True
        except MirrorBehind:
            raise
        except PenstockError as error:
            raise self._behind(pointer, error, hint) from error

    def _behind(self, pointer: Pointer, error: PenstockError, hint: str) -> MirrorBehind:
        return MirrorBehind(
            f"{self._label} is version {pointer.version} now (epoch {pointer.epoch}), but "
            f"MLflow's alias has not followed: {error.message}",
            hint,
        )

    def _write_mirror(self, pointer: Pointer) -> None:
        self.registry.set_alias(self.name, self.alias, pointer.version)
        self.ledger.set_watermark(self._key, pointer.epoch)

    @contextmanager
    def _mirroring(self) -> Iterator[None]:
        """The right to write the mirror; waits for whoever has it."""
        end = time.monotonic() + _WAIT_S
        claim = self.ledger.try_claim(self._key)
        while claim is None:
            if time.monotonic() > end:
                raise MirrorBehind(
                    f"Somebody else has been writing MLflow's alias {self._label} for "
                    f"{_WAIT_S:.0f} s.",
                    "The pointer is where it should be; run the command again later.",
                )
            time.sleep(0.05)
            claim = self.ledger.try_claim(self._key)
        with claim:
            yield

    @property
    def _key(self) -> str:
        """Names the mirror in the ledger; short, whatever the model is called."""
        return f"mirror/{digest_of([self.registry.identity, self.name, self.alias])[:40]}"

    @property
    def _label(self) -> str:
        return f"{self.name}@{self.alias}"


def served_versions(moves: Iterable[Move]) -> list[int]:
    """What rollbacks would go back through, oldest first; the last one serves."""
    served: list[int] = []
    for move in moves:
        if move.action == "rollback":
            served.pop()
        else:
            served.append(move.to_version)
    return served


def _named(version: int | str | None) -> str:
    return "nothing" if version is None else f"version {version}"
