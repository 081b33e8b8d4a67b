"""The judge: a model that says how good logged answers are, and which of two is better.

Every verdict is a row of a table (``penstock.judged``), and the table is the cache: what it
holds is not asked again. One process asks at a time, by a claim in the ledger, and the
budget of the day is taken from the ledger before each question. What came back is written
before the next questions are sent, so that a kill loses those that were under way and no
others.

Scores count nowhere until the judge agrees with people (``monitoring.judge_standing``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Decimal
from functools import cached_property
from typing import Any

import pyarrow.compute as pc

from penstock.day_tables import RESPONSE_ID
from penstock.errors import RecipeError
from penstock.judge_section import JudgeSection
from penstock.judged import MARK, PAIR
from penstock.ledger import Ledger
from penstock.ledger.judge_budget import JudgeBudget
from penstock.monitoring.judge_asking import Asking
from penstock.monitoring.judge_prompts import judge_digest
from penstock.monitoring.judge_questions import (
    DAY_MS,
    Candidate,
    answered,
    by_turns,
    labelled,
    pairs,
    sampled,
)
from penstock.monitoring.judge_work import Known, Outcome, Work
from penstock.monitoring.logged_texts import SETTLE_MS
from penstock.recipe import Recipe
from penstock.serve_section import LogConfig
from penstock.serving.prices import to_nanousd
from penstock.stages.base import Progress, Silent
from penstock.store import Store
from penstock.traffic import Traffic

# Rows that a gateway could not write in time come so late, seldom later.
_LATE_MS = 3_600_000
_SILENT = Silent()


class Judge:
    """The judge of a recipe's model.

    Args:
        recipe: With ``observe.judge``.
        store: Holds the log.
        ledger: Keeps the budget, and knows the model's versions.

    Raises:
        RecipeError: There is no such section.
    """

    def __init__(self, recipe: Recipe, store: Store, ledger: Ledger) -> None:
        self.section = _section(recipe)
        self.recipe, self.ledger = recipe, ledger
        self.traffic = Traffic.of(store)
        self.digest = judge_digest(self.section)

    @cached_property
    def budget(self) -> JudgeBudget:
        """What may be asked in a day."""
        usd = self.section.usd_per_day
        return JudgeBudget(
            self.ledger.database,
            self.recipe.name,
            self.section.max_questions_per_day,
            None if usd is None else to_nanousd(Decimal(str(usd))),
        )

    @property
    def digests(self) -> frozenset[str]:
        """Of all versions of the model."""
        return frozenset(one.digest for one in self.ledger.models(self.recipe.model_name))

    def run(
        self, in_pairs: bool = False, now_s: float | None = None, progress: Progress = _SILENT
    ) -> Outcome:
        """Ask about what was sampled and not judged yet.

        Args:
            in_pairs: About answers and those of a shadow to the same request, in place of marks.
            now_s: Unix seconds; None is now.
            progress: Where to tell how far it is.

        Raises:
            RecipeError: The log holds no texts, or the environment lacks the server's key.
            EvaluationError: The judge's server is away, or refuses; what it said before is kept.
            LedgerError: The ledger cannot be written.
            StoreError: The store cannot be read or written.
        """
        log_config, asking = self._log_config(), Asking(self.section, self.budget)
        claim = self.ledger.try_claim(f"judge/{self.digest}")
        if claim is None:
            return Outcome(busy=True)
        work = Work(self.section, self.digest, self.traffic, log_config, asking)
        with claim:
            return self._judged(work, PAIR if in_pairs else MARK, self.span(now_s), progress)

    def rows(self, kind: str, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Rows of this judge and kind, with some columns, in no order."""
        for batch in self.traffic.judged.scan(columns=["kind", "judge", *columns]):
            kept = pc.and_(pc.equal(batch["judge"], self.digest), pc.equal(batch["kind"], kind))
            yield from batch.filter(kept).to_pylist()

    def span(self, now_s: float | None = None) -> tuple[int, int]:
        """What is looked at: its first millisecond, and the first one after it."""
        now_ms = int(1000 * (time.time() if now_s is None else now_s))
        return now_ms - self.section.days * DAY_MS, now_ms - SETTLE_MS

    # -- inside --------------------------------------------------------------

    def _log_config(self) -> LogConfig:
        config = self.recipe.serve.log
        if config is None or not config.content:
            what = "Requests are not logged" if config is None else "The log holds no texts"
            raise RecipeError(f"{what}, so nothing can be judged.", "Set serve.log.content: true")
        return config

    def _judged(self, work: Work, kind: str, span: tuple[int, int], progress: Progress) -> Outcome:
        # A larger sample has answers that a smaller one has passed by, and so have more days.
        chosen = f"{kind}/{self.section.sample:g}/{self.section.days}"
        place = f"judge-upto/{self.recipe.name}/{self.digest}/{chosen}"
        candidates = self._candidates(kind, span, self.ledger.watermark(place))
        if candidates:
            work.known.update(self._known(kind))
            with progress.track("judge", len(candidates)) as advance:
                asyncio.run(work.go(candidates, advance))
        if not work.outcome.left and not work.outcome.failed:
            self.ledger.set_watermark(place, span[1])
        return work.outcome

    def _candidates(self, kind: str, span: tuple[int, int], upto_ms: int | None) -> list[Candidate]:
        """What is still to be asked; the log before the last complete run is not read again."""
        start_ms, end_ms = span
        since_ms = start_ms if upto_ms is None else max(start_ms, upto_ms - _LATE_MS)
        share, log = self.section.sample, self.traffic.log
        found: list[Candidate] = []
        for rows, shadows in answered(log, since_ms, end_ms, self.digests):
            found += pairs(rows, shadows, share) if kind == PAIR else sampled(rows, share)
        done = self._done(kind)
        if kind == MARK:
            said = self.traffic.feedback.between(start_ms, end_ms, (RESPONSE_ID, "score"))
            names = {row[RESPONSE_ID] for row in said.to_pylist() if row["score"] is not None}
            fresh = {name for name in names if (name,) not in done}
            others = [one for one in found if one.row[RESPONSE_ID] not in fresh]
            found = by_turns(labelled(log, fresh, self.digests, share), others)
        orders = 2 if kind == PAIR else 1
        still = (replace(one, done=done.get(one.ids, frozenset())) for one in found)
        return [one for one in still if len(one.done) < orders]

    def _done(self, kind: str) -> dict[tuple[str, ...], frozenset[bool]]:
        """In which orders candidates were asked about, by the ids of their answers."""
        done: dict[tuple[str, ...], frozenset[bool]] = {}
        for row in self.rows(kind, (RESPONSE_ID, "other_id", "swapped")):
            ids = (row[RESPONSE_ID],) if kind == MARK else (row[RESPONSE_ID], row["other_id"])
            done[ids] = done.get(ids, frozenset()) | {row["swapped"]}
        return done

    def _known(self, kind: str) -> dict[str, Known]:
        columns = ("key", "swapped", *Known._fields)
        return {row["key"]: Known.of(row) for row in self.rows(kind, columns)}


def _section(recipe: Recipe) -> JudgeSection:
    if recipe.observe.judge is None:
        raise RecipeError(
            "The recipe names no judge.", "Set observe.judge: model, base_url and criteria."
        )
    return recipe.observe.judge
