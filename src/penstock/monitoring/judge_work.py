"""One run of a judge: questions out, rows in, until all is asked or nothing more may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from penstock.day_tables import DAY, ID_MS, RESPONSE_ID, DayTable, day_of, id_ms
from penstock.errors import EvaluationError
from penstock.judge_section import JudgeSection
from penstock.judged import JUDGED_SCHEMA
from penstock.monitoring.judge_asking import Asking, BudgetSpent, Reply
from penstock.monitoring.judge_questions import Candidate, Question, questions
from penstock.monitoring.row_writer import RowWriter
from penstock.registry import require
from penstock.serve_section import LogConfig
from penstock.traffic import Traffic

# Texts of so many answers are in memory at once.
_AT_ONCE = 64
# A server that has failed so many questions in a row is not asked the next one.
_FAILURES = 3


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        judged: Questions with a verdict, from the judge or from the cache.
        cached: Of these, those that had been asked before.
        no_verdict: Questions to which the judge said nothing that is a verdict.
        failed: Questions that its server did not answer; they are asked again next time.
        too_long: Answers that are longer than the recipe allows.
        no_text: Answers whose words the log does not hold.
        left: Answers for which the day's budget does not reach.
        counted: Scores that entered an open rollout.
        trouble: The last failure, in words.
        busy: Another process is judging; nothing was done here.
    """

    judged: int = 0
    cached: int = 0
    no_verdict: int = 0
    failed: int = 0
    too_long: int = 0
    no_text: int = 0
    left: int = 0
    counted: int = 0
    trouble: str = ""
    busy: bool = False


class Known(NamedTuple):
    """The verdict on a question; without a score, that there is none.

    Attributes:
        score: Of the answer that was shown first.
        reason: Why, in the judge's words.
        note: Why there is no verdict.
    """

    score: float | None
    reason: str | None
    note: str | None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Known:
        """From a row of the judged table."""
        return cls(_flipped(row["score"], row["swapped"]), row["reason"], row["note"])


@dataclass
class Work:
    """Asks a judge about candidates, in order.

    Attributes:
        section: The judge.
        digest: Its digest.
        traffic: Where texts are, and where verdicts go.
        log_config: Whether texts are redacted, and how long rows are kept.
        asking: Asks.
        known: Verdicts by the key of their question.
        outcome: What it came to.
    """

    section: JudgeSection
    digest: str
    traffic: Traffic
    log_config: LogConfig
    asking: Asking
    known: dict[str, Known] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)
    _num_drawn: int = 0
    _failed_in_a_row: int = 0
    _last: EvaluationError | None = None
    _fatal: BaseException | None = None

    async def go(self, candidates: Sequence[Candidate], advance: Callable[[int], object]) -> None:
        """Ask, and write what comes back before more is asked.

        Raises:
            EvaluationError: The server is away, or refuses.
        """
        aiohttp = require("aiohttp", "evaluate")
        days = self.log_config.retention_days
        writer = RowWriter(self.traffic.judged, JUDGED_SCHEMA, days)
        waiting = self._waiting(candidates, advance)
        timeout = aiohttp.ClientTimeout(total=self.section.timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            goes_on = True
            while goes_on and (some := list(islice(waiting, self.section.num_concurrent))):
                rows, goes_on = await self._ask(session, some)
                if rows:
                    writer.append(writer.begin(), rows)
                if self._fatal is not None:
                    raise self._fatal
        writer.tidy_if_due()
        if not goes_on:
            self.outcome.left += len(candidates) - self._num_drawn
        if self._last is not None and (not goes_on or not self.outcome.judged):
            self._complain(self._last)

    def _waiting(
        self, candidates: Sequence[Candidate], advance: Callable[[int], object]
    ) -> Iterator[Question]:
        log: DayTable = self.traffic.log
        for start in range(0, len(candidates), _AT_ONCE):
            some = candidates[start : start + _AT_ONCE]
            for asked in questions(log, some, self.digest, self.section.max_characters):
                self._num_drawn += 1
                self.outcome.too_long += asked is None
                self.outcome.no_text += asked == []
                yield from asked or ()
                advance(1)

    async def _ask(
        self, session: Any, some: Sequence[Question]
    ) -> tuple[list[dict[str, Any]], bool]:
        """Rows of some questions, and whether to go on."""
        fresh = {one.key: one for one in some if one.key not in self.known}
        asked = (self.asking.ask(session, one.turns, one.answers) for one in fresh.values())
        replies = await asyncio.gather(*asked, return_exceptions=True)
        answered = dict(zip(fresh, replies, strict=True))
        taken = [self._take(key, reply) for key, reply in answered.items()]
        self._clean(answered)
        rows = []
        for one in some:
            if one.key in self.known:
                reply = answered.pop(one.key, None)  # the first of the same question has paid
                rows.append(self._row(one, reply if isinstance(reply, Reply) else None))
            elif isinstance(answered[one.key], BudgetSpent):
                self.outcome.left += 1
        return rows, all(taken) and self._failed_in_a_row < _FAILURES

    def _take(self, key: str, reply: Reply | BaseException) -> bool:
        """Take note of what became of a question; whether another may be asked."""
        if isinstance(reply, Reply):
            self._failed_in_a_row = 0
            found = reply.verdict
            self.known[key] = (
                Known(None, None, reply.note)
                if found is None
                else Known(found.score, found.reason, None)
            )
        elif isinstance(reply, EvaluationError):
            self._failed_in_a_row += 1
            self.outcome.failed += 1
            self._last, self.outcome.trouble = reply, reply.message
        else:
            if not isinstance(reply, BudgetSpent):
                self._fatal = reply
            return False
        return True

    def _row(self, one: Question, reply: Reply | None) -> dict[str, Any]:
        known, at_ms = self.known[one.key], id_ms(one.row[RESPONSE_ID])
        self.outcome.judged += known.score is not None
        self.outcome.no_verdict += known.score is None
        self.outcome.cached += reply is None and known.score is not None
        return {
            **one.row,
            DAY: day_of(at_ms),
            ID_MS: at_ms,
            "key": one.key,
            "judge": self.digest,
            "judge_model": self.section.model,
            "score": _flipped(known.score, one.row["swapped"]),
            "reason": known.reason,
            "note": known.note,
            "cached": reply is None,
            "num_asked": reply.num_asked if reply else 0,
            "prompt_tokens": reply.prompt_tokens if reply else 0,
            "completion_tokens": reply.completion_tokens if reply else 0,
            "nanousd": reply.nanousd if reply else 0,
            "judged_at": datetime.now(UTC),
        }

    def _clean(self, keys: Iterable[str]) -> None:
        """Take personal data out of reasons, which may quote what they are about."""
        from penstock.monitoring.redaction import redacted_all, storable  # imports polars

        told = [key for key in keys if key in self.known and self.known[key].reason]
        reasons = [self.known[key].reason or "" for key in told]
        clean = redacted_all(reasons) if self.log_config.redact else map(storable, reasons)
        for key, reason in zip(told, clean, strict=True):
            self.known[key] = self.known[key]._replace(reason=reason)

    def _complain(self, error: EvaluationError) -> None:
        kept = f"{self.outcome.judged:,} verdicts of this run are kept; run again to go on."
        raise EvaluationError(f"The judge does not answer: {error.message}", f"{error.hint} {kept}")


def _flipped(score: float | None, swapped: bool) -> float | None:
    return 1 - score if swapped and score is not None else score
