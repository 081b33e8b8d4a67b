"""What a gateway tells the ledger about requests that take part in a trial.

The event loop only appends to a list. A thread looks at the answers' form, and writes
what has come in five times a second, so that one controller can decide over all
gateways. What cannot be written is kept for a while, and written later under the same
number: a batch is in the ledger once, whatever got lost on the way.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from penstock.answer_format import AnswerFormat
from penstock.errors import ContextExceeded, LedgerError
from penstock.ledger import this_process
from penstock.ledger.rollout_records import Observed
from penstock.ledger.rollouts import Rollouts
from penstock.monitoring.metrics import ServingMetrics
from penstock.serving.facts import Facts
from penstock.serving.routes import Draw

logger = logging.getLogger(__name__)

FLUSH_S = 0.2
CLIENT_LEFT = 499
# So many are kept while the ledger does not answer; then the oldest of all arms get lost.
_MAX_PENDING = 100_000
_MAX_BATCH = 5_000


@dataclass(frozen=True)
class _Pending:
    """One observation before it is written, and the answer whose form is still to be judged."""

    rollout: str
    observed: Observed
    model: str
    answer: str | None


@dataclass(frozen=True)
class _Batch:
    """What is written at once; keeps its number until it is in the ledger."""

    rollout: str
    sequence: int
    observed: list[Observed]


class Trials:
    """Observes trials for the ledger; use as a context manager.

    Args:
        rollouts: Where observations go.
        formats: Model -> the form that its answers must have.
        metrics: Told about what got lost.
        flush_s: Time between two writes.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        formats: Mapping[str, AnswerFormat],
        metrics: ServingMetrics,
        flush_s: float = FLUSH_S,
    ) -> None:
        self._rollouts = rollouts
        self._formats = formats
        self._metrics = metrics
        self._flush_s = flush_s
        self._worker = f"{this_process()}/{uuid.uuid4().hex[:8]}"
        self._sequence = 0
        self._pending: deque[_Pending] = deque()
        self._unwritten: list[_Batch] = []
        self._is_broken = False
        self._stopped = threading.Event()

    def __enter__(self) -> Trials:
        self._thread = threading.Thread(target=self._run, name="trials", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def observe(self, facts: Facts) -> None:
        """Note what a request says about the trials that it took part in.

        A shadow is none of them: no user waits for it, and it may be left out.
        """
        if facts.shadow:
            return
        for draw in facts.draws:
            is_last = draw is facts.draws[-1]
            seen = observed(draw, facts, is_last)
            answer = facts.answer if is_last and seen.answer_s is not None else None
            self._pending.append(_Pending(draw.rollout, seen, facts.model, answer))

    def flush(self) -> None:
        """Write what there is."""
        self._cut([self._pending.popleft() for _ in range(len(self._pending))])
        while self._unwritten:
            batch = self._unwritten[0]
            try:
                self._rollouts.observe(batch.rollout, self._worker, batch.sequence, batch.observed)
            except LedgerError as error:
                if not self._is_broken:
                    logger.warning("Observations of trials cannot be written: %s", error)
                self._is_broken = True
                self._forget_the_oldest()
                return
            self._is_broken = False
            self._unwritten.pop(0)

    def _run(self) -> None:
        while not self._stopped.wait(self._flush_s):
            self._flush_safely()
        self._flush_safely()

    def _flush_safely(self) -> None:
        try:
            self.flush()
        except Exception:
            logger.exception("Observations of trials could not be written; trying on")

    def _cut(self, pending: list[_Pending]) -> None:
        """Make numbered batches of what has come in, in its order."""
        by_rollout: dict[str, list[Observed]] = {}
        for one in pending:
            by_rollout.setdefault(one.rollout, []).append(self._judged(one))
        for rollout, all_observed in by_rollout.items():
            for start in range(0, len(all_observed), _MAX_BATCH):
                self._sequence += 1
                part = all_observed[start : start + _MAX_BATCH]
                self._unwritten.append(_Batch(rollout, self._sequence, part))

    def _judged(self, one: _Pending) -> Observed:
        form = self._formats.get(one.model)
        if form is None or one.answer is None:
            return one.observed
        return replace(one.observed, valid=form.holds(one.answer))

    def _forget_the_oldest(self) -> None:
        kept = sum(len(batch.observed) for batch in self._unwritten)
        # The first one may be in the ledger already: it is tried again with its number.
        while kept > _MAX_PENDING and len(self._unwritten) > 1:
            lost = self._unwritten.pop(1)
            kept -= len(lost.observed)
            self._metrics.observations_lost.inc(len(lost.observed))


def observed(draw: Draw, facts: Facts, is_last: bool) -> Observed:
    """What a request says about a trial, by what came of its lot.

    It counts for who was drawn, whoever answered in the end. An answer that a client did
    not wait for took at least so long.

    Args:
        draw: The lot.
        facts: Of the request, which has ended.
        is_last: Whether nobody else was asked by lot after it.
    """
    now_s = facts.ended_s or time.monotonic()
    own_fault = facts.status >= 500 or facts.error == ContextExceeded.code
    error = draw.error is not None or not is_last or own_fault
    seen = Observed(
        draw.arm,
        draw.share,
        draw.step,
        error=error,
        conversation=None if draw.conversation is None else conversation_digest(draw.conversation),
        response=None if facts.response_id is None else facts.unique,
    )
    if error or (facts.status >= 400 and facts.status != CLIENT_LEFT):
        return seen
    first_s = facts.first_token_s if facts.stream and facts.first_token_s else now_s
    return replace(
        seen,
        first_token_s=round(max(0.0, first_s - draw.at_s), 6),
        answer_s=round(max(0.0, now_s - draw.at_s), 6),
    )


def conversation_digest(conversation: str) -> str:
    """A conversation, without its name: that is nobody's business here."""
    return hashlib.blake2b(conversation.encode(), digest_size=8).hexdigest()
