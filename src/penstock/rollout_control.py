"""Who decides about rollouts: one controller for each that is on, wherever it runs.

Any number of processes may try; the one that has the claim in the ledger decides. It
reads the observations of all gateways in their one order, and each move is a
compare-and-set with the evidence beside it. Between any two writes the process may
die: the next controller begins at the last checkpoint and comes to the same decisions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator

from penstock.errors import LedgerError, MirrorBehind, PenstockError, StalePromotion, StoreError
from penstock.ledger import Ledger
from penstock.ledger.rollout_records import Action, Batch, Look, Rollout, State
from penstock.ledger.rollouts import Rollouts
from penstock.promotion import Production
from penstock.rollout import Finding, Opening, Terms, Turn, ended, next_turn, promoted_by_hand

logger = logging.getLogger(__name__)

POLL_S = 0.2
# While nothing is on, and while somebody else decides.
_IDLE_POLL_S = 1.0
# Short, because nobody takes a bad version back while a dead host's lease lasts.
_LEASE_S = 3.0
_CHECKPOINT_EVERY_S = 2.0
_MAX_BATCHES = 200  # taken in before the next look at what serves
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 30.0


# Called when a pointer is to be moved: MLflow's client takes seconds to import.
Promoters = Callable[[str, str], Production]
Told = Callable[[Rollout, Action], None]


def _nobody(rollout: Rollout, action: Action) -> None:
    pass


class Controller:
    """Decides about the open rollouts of some models, until it is stopped.

    Args:
        ledger: Holds rollouts, observations and claims.
        promoters: Model and alias -> what moves that pointer.
        models: Model and alias of the rollouts to look after; None is all.
        told: Called with each decision that was made here.
    """

    def __init__(
        self,
        ledger: Ledger,
        promoters: Promoters,
        models: Collection[tuple[str, str]] | None = None,
        told: Told = _nobody,
    ) -> None:
        self._ledger = ledger
        self._rollouts = Rollouts(ledger.database)
        self._promoters = promoters
        self._models = models
        self._told = told
        self._stopped = threading.Event()
        self._running: dict[str, threading.Thread] = {}

    def __enter__(self) -> Controller:
        self._thread = threading.Thread(target=self.run, name="rollouts", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        for thread in list(self._running.values()):
            thread.join()

    def run(self) -> None:
        """Look for rollouts, and decide about each in a thread of its own."""
        # Now, and not when there is traffic to be held up by an import.
        import penstock.rollout_evidence  # noqa: F401

        failed = False
        while not self._stopped.is_set():
            try:
                self._begin_new()
                failed = False
            except LedgerError as error:
                if not failed:
                    logger.warning("Rollouts cannot be read: %s", error)
                failed = True
            self._stopped.wait(_IDLE_POLL_S)

    def _begin_new(self) -> None:
        self._running = {key: one for key, one in self._running.items() if one.is_alive()}
        for rollout in self._rollouts.open_ones():
            mine = self._models is None or (rollout.model, rollout.alias) in self._models
            if mine and rollout.id not in self._running:
                thread = threading.Thread(
                    target=self._conduct, args=(rollout,), name=f"rollout {rollout.id}", daemon=True
                )
                self._running[rollout.id] = thread
                thread.start()

    def _conduct(self, rollout: Rollout) -> None:
        try:
            conduct(
                self._ledger,
                rollout,
                self._promoters,
                self._stopped,
                self._told,
            )
        except PenstockError as error:
            logger.warning("Rollout %s: %s; trying on", rollout.id, error)
        except Exception:
            logger.exception("Rollout %s failed; trying on", rollout.id)


def conduct(
    ledger: Ledger,
    rollout: Rollout,
    promoters: Promoters,
    stopped: threading.Event,
    told: Told = _nobody,
    poll_s: float = POLL_S,
) -> bool:
    """Decide about one rollout until it is closed, if nobody else does.

    Returns:
        Whether it was decided about here.

    Raises:
        PenstockError: The ledger or what moves the pointer does not work.
    """
    key = f"rollout/{rollout.id}"
    claim = ledger.try_claim(key, _LEASE_S)
    if claim is None:
        return False
    with claim:
        one = _Conducted(Rollouts(ledger.database), rollout, promoters, told)
        while one.tick() and not stopped.wait(poll_s):
            if ledger.holder(key) != claim.holder:
                break  # this process slept through its lease
    return True


class _Conducted:
    """One rollout while this process decides about it."""

    def __init__(
        self, rollouts: Rollouts, rollout: Rollout, promoters: Promoters, told: Told
    ) -> None:
        from penstock.rollout_evidence import Evidence

        self._rollouts = rollouts
        self._promoters = promoters
        self._told = told
        self._terms = Terms.from_dict(rollout.policy)
        saved = rollouts.checkpoint(rollout.id)
        self._evidence = Evidence.restored(self._terms, saved)
        self._evidence.remember(_read(rollouts, rollout.id, 0, self._evidence.batch))
        self._saved_at_s = time.monotonic()
        self._retry_at_s = 0.0
        self._delay_s = _FIRST_RETRY_S
        self._id = rollout.id

    def tick(self) -> bool:
        """Read what is new and decide; returns whether the rollout is still open."""
        look = self._rollouts.look(self._id)
        if not look.rollout.is_open:
            return False
        if self._decide(look):
            return True
        if look.rollout.state is not State.PROMOTING:
            self._save(look.rollout)
        elif self._promote(look.rollout):
            # At once: who sees that the version serves may end this process.
            self._decide(self._rollouts.look(self._id))
        return True

    def _decide(self, look: Look) -> bool:
        """Make the move that is due, if there is one."""
        turn = self._read_on(look) if look.rollout.is_open else None
        if turn is not None:
            self._move(look.rollout, turn)
        return turn is not None

    def _read_on(self, look: Look) -> Turn | None:
        """Take in new batches up to one after which something is due."""
        found = self._rollouts.batches(self._id, after=self._evidence.batch, limit=_MAX_BATCHES)
        turn = self._turn(look, caught_up=not found)
        for batch in found:
            if turn is not None:
                return turn
            self._evidence.take(batch)
            turn = self._turn(look, caught_up=batch is found[-1] and len(found) < _MAX_BATCHES)
        return turn

    def _turn(self, look: Look, caught_up: bool) -> Turn | None:
        finding = self._evidence.finding(look.rollout.step)
        return next_turn(look, finding, self._terms, caught_up)

    def _move(self, before: Rollout, turn: Turn) -> None:
        shown = self._evidence.shown()
        moved = self._rollouts.move(
            before, turn.after, turn.action, shown, self._evidence.checkpoint()
        )
        if moved is not None:
            logger.info(
                "Rollout %s of %s version %d: %s, %s",
                *(moved.id, moved.model, moved.challenger, turn.action, moved.reason),
            )
            self._told(moved, turn.action)

    def _save(self, rollout: Rollout) -> None:
        now_s = time.monotonic()
        new = self._evidence.batch > rollout.checkpoint_at
        if new and now_s - self._saved_at_s >= _CHECKPOINT_EVERY_S:
            self._rollouts.save(rollout, self._evidence.checkpoint())
            self._saved_at_s = now_s

    def _promote(self, rollout: Rollout) -> bool:
        """Move the pointer; returns whether the next look may see that it has moved."""
        if time.monotonic() < self._retry_at_s:
            return False
        try:
            production = self._promoters(rollout.model, rollout.alias)
            move_pointer(self._rollouts, rollout, production)
            return True
        except StoreError as error:
            if error.transient:
                self._wait(rollout, error)
                return False
            # Whatever the observations said, these are not the files that were registered.
            now_s = self._rollouts.look(self._id).now_s
            after = ended(rollout, State.STOPPED, error.message, now_s)
            self._move(rollout, Turn(Action.STOP, after))
        except PenstockError as error:
            self._wait(rollout, error)
        return False

    def _wait(self, rollout: Rollout, error: PenstockError) -> None:
        trouble = f"{error.message} {error.hint}".strip()
        if trouble != rollout.trouble:
            logger.warning("Rollout %s: the pointer cannot be moved: %s", rollout.id, trouble)
            self._rollouts.note_trouble(rollout.id, trouble)
        self._retry_at_s = time.monotonic() + self._delay_s
        self._delay_s = min(2 * self._delay_s, _LAST_RETRY_S)


def move_pointer(rollouts: Rollouts, rollout: Rollout, production: Production) -> None:
    """Make the challenger the champion; that MLflow has not followed yet is no failure.

    The pointer moves only while the rollout still says so: checking the files of a
    version takes minutes, in which a person may have stopped it.

    Raises:
        PenstockError: The pointer has not moved.
    """
    reason = f"rollout {rollout.id}: {rollout.reason}"
    condition = rollouts.still(rollout)
    try:
        production.promote(
            rollout.challenger,
            reason,
            rollout.champion,
            run_id=rollout.run_id,
            condition=condition,
        )
    except MirrorBehind as error:
        logger.warning("Rollout %s: %s", rollout.id, error)
    except StalePromotion:
        pass  # the next look sees what has moved


def start(rollouts: Rollouts, opening: Opening, production: Production) -> Rollout:
    """Put a version on trial.

    Args:
        rollouts: Where it is written down.
        opening: Which version, against which, on which terms.
        production: Says what serves.

    Raises:
        LedgerError: The version serves already, or is not registered.
        RolloutRunning: Another version is on trial.
        StalePromotion: Something else serves than the opening says.
        RecipeError: The steps are none.
    """
    serving = production.serving()
    if serving == opening.challenger:
        raise LedgerError(f"{opening.model} version {serving} serves already.")
    if serving != opening.champion:
        named = "nothing" if serving is None else f"version {serving}"
        raise StalePromotion(
            f"Version {opening.challenger} was compared with version {opening.champion}, but "
            f"{named} serves now.",
            "It has to be compared with what serves now.",
        )
    return rollouts.start(opening.rollout(), opening.terms.step_deadline_s)


def promote_now(
    rollouts: Rollouts, rollout: Rollout, production: Production, reason: str
) -> Rollout:
    """Promote the challenger without waiting for evidence; a person's decision.

    Raises:
        LedgerError: The rollout has ended, is no longer what it was, or is another model's.
        PenstockError: The pointer cannot be moved; a controller will try again.
    """
    refuse_another(rollout, production)
    rollout = settle(rollouts, rollout.id)
    # Also if it is being promoted: the log says that a person wants it, and why.
    rollout = _by_hand(rollouts, rollout, promoted_by_hand(rollout, reason))
    move_pointer(rollouts, rollout, production)
    return settle(rollouts, rollout.id)


def refuse_another(rollout: Rollout, production: Production) -> None:
    """Check that a rollout is about this model and alias.

    Raises:
        LedgerError: It is another model's.
    """
    if (rollout.model, rollout.alias) != (production.name, production.alias):
        raise LedgerError(
            f"Rollout {rollout.id} is of {rollout.model}@{rollout.alias}, not of "
            f"{production.name}@{production.alias}.",
            f"Say so: --model-name {rollout.model} --stage {rollout.alias}",
        )


def stop(rollouts: Rollouts, rollout: Rollout, reason: str) -> Rollout:
    """End a rollout; the champion answers everything again.

    Raises:
        LedgerError: It has ended already, or moved meanwhile.
    """
    after = ended(rollout, State.STOPPED, reason, rollouts.look(rollout.id).now_s)
    return _by_hand(rollouts, rollout, Turn(Action.STOP, after))


def settle(rollouts: Rollouts, rollout_id: str) -> Rollout:
    """Close a rollout whose pointer has moved, or leave it as it is."""
    look = rollouts.look(rollout_id)
    turn = next_turn(look, Finding(), Terms.from_dict(look.rollout.policy))
    if turn is not None and turn.action in (Action.PROMOTED, Action.STOP):
        rollouts.move(look.rollout, turn.after, turn.action, {})
    return rollouts.find(rollout_id)


def _by_hand(rollouts: Rollouts, rollout: Rollout, turn: Turn) -> Rollout:
    if not rollout.is_open:
        raise LedgerError(f"Rollout {rollout.id} has ended: {rollout.state}, {rollout.reason}.")
    moved = rollouts.move(rollout, turn.after, turn.action, {})
    if moved is None:
        raise LedgerError(
            f"Rollout {rollout.id} has moved at this moment; nothing was changed.",
            "Look at it and decide again: penstock rollout status",
        )
    return moved


def _read(rollouts: Rollouts, rollout_id: str, after: int, up_to: int) -> Iterator[Batch]:
    while after < up_to and (found := rollouts.batches(rollout_id, after, up_to)):
        yield from found
        after = found[-1].number
