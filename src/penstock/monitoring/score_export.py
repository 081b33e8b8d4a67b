"""Sends scores to where traces go, so that they stand beside the traces they are about.

Each source of scores is a table that grows. How far it was sent is noted in the ledger
after it was sent, so a process that ends anywhere sends some scores again and loses none;
a score has an id, and what is sent twice appears once. A score whose trace is not there
yet waits, in the ledger too, and is tried again for a day.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import groupby
from typing import Any

from penstock.day_tables import RESPONSE_ID, day_of, id_ms
from penstock.errors import LedgerError, RecipeError
from penstock.ledger import Ledger
from penstock.ledger.waiting_scores import WaitingScores
from penstock.monitoring.score_calls import NAMES, score_calls
from penstock.monitoring.score_targets import Problem, ScoreTarget, Traced, score_target
from penstock.monitoring.scores import Score, ScoreTable, feedback_scores, judges_scores
from penstock.monitoring.trace_targets import target
from penstock.monitoring.traces import MAX_CONTENT_CHARS, in_sample
from penstock.recipe import Recipe
from penstock.stages.base import Progress, Silent
from penstock.store import Store
from penstock.traces_section import Destination, TracesConfig
from penstock.traffic import Traffic

# Sent before it is noted how far it went.
_MOST_VERSIONS = 500
# A trace is sent within seconds of its response; one that is not there a day later will not be.
_PATIENCE_S = 24 * 3600.0
_NOT_LOGGED = "the log does not say which trace it belongs to"
_SILENT = Silent()


@dataclass
class ScoresSent:
    """What became of scores.

    Attributes:
        to: Who receives them.
        num_sent: They stand beside their traces now.
        num_untraced: Of responses that were not sampled, so there is no trace.
        num_waiting: Responses whose scores are tried again.
        given_up: Why scores are not tried again, and how many.
    """

    to: Destination
    num_sent: int = 0
    num_untraced: int = 0
    num_waiting: int = 0
    given_up: Counter[str] = field(default_factory=Counter)


def sources_of(traffic: Traffic) -> tuple[ScoreTable, ...]:
    """All that scores responses in a project; one more is one more here."""
    return feedback_scores(traffic), judges_scores(traffic)


class ScoreSender:
    """Sends the scores of a project.

    Args:
        recipe: Its ``serve.traces`` says to whom.
        store: Where the scores are.
        ledger: Where it is noted how far they were sent.
        environ: Where the keys are.
        sources: What scores responses; None is all there is.

    Raises:
        RecipeError: No traces are sent, or to nobody who has a place for scores.
        PenstockError: A key is missing.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        ledger: Ledger,
        environ: Mapping[str, str] = os.environ,
        sources: Sequence[ScoreTable] | None = None,
    ) -> None:
        config = recipe.serve.traces
        if config is None:
            raise RecipeError(
                "Scores are attached to traces, and serve.traces sends none.",
                "Set serve.traces.to to phoenix, langfuse or langsmith.",
            )
        self._config: TracesConfig = config
        self._target = target(config, environ)
        self._make = score_target(config.to, self._target, config.project)
        self._ledger = ledger
        self._traffic = Traffic.of(store)
        self._sources = sources_of(self._traffic) if sources is None else tuple(sources)
        place = f"{self._target.api} {config.project or ''}"
        self._receiver = f"{config.to}-{blake2b(place.encode(), digest_size=8).hexdigest()}"

    def send(self, progress: Progress = _SILENT) -> ScoresSent:
        """Send what is new, and try again what waits.

        Raises:
            ScoresNotSent: The receiver does not answer, or does not let us in. What was
                sent until then is noted.
            LedgerError: Another process sends them, or the ledger cannot be used.
        """
        report = ScoresSent(self._config.to)
        with self._claimed(), score_calls(self._config.to, self._target) as calls:
            receiver = self._make(calls)
            for source in self._sources:
                _Sending(self, source, receiver, report, progress).run()
        return report

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Alone: of two that send at once, one could send an older word last."""
        claim = self._ledger.try_claim(f"scores:{self._receiver}")
        if claim is None:
            raise LedgerError(
                "Another process is sending scores.", "Let it finish; it sends them all."
            )
        with claim:
            yield

    # -- what a source's sending needs -------------------------------------------

    def position(self, source: ScoreTable, table_id: str) -> int:
        """The version up to which a source was sent; -1 before the first, or of another table."""
        noted = self._ledger.watermark(f"scores:{source.name}:{self._receiver}") or {}
        return int(noted["version"]) if noted.get("table") == table_id else -1

    def move(self, source: ScoreTable, table_id: str, version: int) -> None:
        """Note how far a source was sent."""
        key = f"scores:{source.name}:{self._receiver}"
        self._ledger.set_watermark(key, {"table": table_id, "version": version})

    def waiting(self, source: ScoreTable) -> WaitingScores:
        """The responses of a source that wait."""
        return WaitingScores(self._ledger.database, self._receiver, source.name)

    def traced(self, scores: Sequence[Score]) -> tuple[list[Traced], list[Problem], int]:
        """Scores with traces, scores whose traces are not known yet, and how many have none."""
        found: list[Traced] = []
        unknown: list[Problem] = []
        num_untraced = 0
        logged = self._logged({score.response_id for score in scores})
        for score in scores:
            trace_id = self._trace_id(score.response_id, logged)
            if trace_id is None:
                unknown.append(Problem(score, _NOT_LOGGED))
            elif trace_id:
                found.append(Traced(score, trace_id))
            else:
                num_untraced += 1
        return found, unknown, num_untraced

    def _trace_id(self, response_id: str, logged: Mapping[str, Any]) -> str | None:
        """Of a response; empty if it has no trace, None if that is not known yet."""
        row = logged.get(response_id)
        if row is not None and row.get("trace_id"):
            return str(row["trace_id"])
        if self._config.trust_traceparent:
            # The trace may be a caller's, so only the log knows.
            return None if row is None else ""
        own = response_id[-32:]
        return own if in_sample(own, self._config.sample) else ""

    def _logged(self, response_ids: Iterable[str]) -> dict[str, Any]:
        by_day = groupby(sorted(response_ids, key=id_ms), key=lambda one: day_of(id_ms(one)))
        return {
            row[RESPONSE_ID]: row
            for day, names in by_day
            for row in self._traffic.log.find(list(names), day).to_pylist()
        }

    def cleaned(self, scores: Sequence[Traced]) -> list[Traced]:
        """Scores as they may be sent: texts only with content, and without personal data."""
        shown = [self._shown(one.score) for one in scores]
        texts = [text for score in shown for text in _texts(score)]
        clean = iter(_clean(texts, self._config.redact))
        return [
            Traced(_with_texts(score, clean), one.trace_id)
            for one, score in zip(scores, shown, strict=True)
        ]

    def _shown(self, score: Score) -> Score:
        if not self._config.content:
            return replace(score, comment=None, correction=None)
        cut = (score.correction or "")[:MAX_CONTENT_CHARS]
        return replace(score, correction=cut or None)


@dataclass
class _Sending:
    """One source, sent once."""

    sender: ScoreSender
    source: ScoreTable
    receiver: ScoreTarget
    report: ScoresSent
    progress: Progress

    def run(self) -> None:
        self._send_waiting()
        standing = self.source.standing()
        if standing is not None:
            self._send_new(*standing)
        self.report.num_waiting += len(self.sender.waiting(self.source).all())

    def _send_waiting(self) -> None:
        waiting = sorted(self.sender.waiting(self.source).all(), key=lambda one: (id_ms(one), one))
        for names, scores in self.source.last_words(waiting):
            self._attach(names, scores)

    def _send_new(self, table_id: str, last: int) -> None:
        after = self.sender.position(self.source, table_id)
        if after >= last:
            return
        with self.progress.track(f"scores: {self.source.name}", last - after) as advance:
            while after < last:
                upto = min(after + _MOST_VERSIONS, last)
                names = self.source.responses(after, upto)
                for some, scores in self.source.last_words(names, after):
                    self._attach(some, scores)
                self.sender.move(self.source, table_id, upto)
                advance(upto - after)
                after = upto

    def _attach(self, names: Sequence[str], scores: Sequence[Score]) -> None:
        """Send scores of some responses, and note which of them wait."""
        found, problems, num_untraced = self.sender.traced(scores)
        problems += self.receiver.send(self.sender.cleaned(found))
        waiting: dict[str, str] = {}
        for problem in problems:
            name = problem.score.response_id
            if problem.refused or time.time() - id_ms(name) / 1000 > _PATIENCE_S:
                self.report.given_up[problem.reason] += 1
            else:
                waiting[name] = problem.reason
        self.sender.waiting(self.source).settle(names, waiting)
        self.report.num_untraced += num_untraced
        self.report.num_sent += len(scores) - num_untraced - len(problems)


def summary(report: ScoresSent) -> dict[str, Any]:
    """For machines."""
    return {
        "to": report.to,
        "sent": report.num_sent,
        "waiting_responses": report.num_waiting,
        "untraced": report.num_untraced,
        "given_up": dict(report.given_up),
    }


def headline(report: ScoresSent) -> str:
    """For people, on one line."""
    parts = [f"{_are(report.num_sent)} attached to traces in {NAMES[report.to]}"]
    if report.num_waiting == 1:
        parts.append("1 response waits for its trace")
    elif report.num_waiting:
        parts.append(f"{report.num_waiting} responses wait for their traces")
    if report.num_untraced:
        parts.append(f"{_are(report.num_untraced)} of responses without a trace")
    for reason, count in report.given_up.items():
        parts.append(f"{_are(count)} given up: {reason}")
    return "; ".join(parts) + "."


def _are(num_scores: int) -> str:
    return "1 score is" if num_scores == 1 else f"{num_scores} scores are"


def _texts(score: Score) -> list[str]:
    """What somebody wrote; ``_with_texts`` puts it back in this order."""
    return [score.comment or "", score.correction or "", *(value for _, value in score.about)]


def _with_texts(score: Score, clean: Iterator[str]) -> Score:
    from penstock.monitoring.row_writer import pseudonym

    comment, correction = next(clean) or None, next(clean) or None
    about = tuple((name, pseudonym(value, next(clean))) for name, value in score.about)
    return replace(score, comment=comment, correction=correction, about=about)


def _clean(texts: list[str], redact: bool) -> list[str]:
    if not any(texts):
        return texts
    from penstock.monitoring.redaction import redacted_all, storable  # imports polars

    return redacted_all(texts) if redact else [storable(text) for text in texts]
