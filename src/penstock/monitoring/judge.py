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

from penstock.day_tables import RESPONSE_ID
from penstock.errors import RecipeError
from penstock.judge_section import JudgeSection
from penstock.judged import MARK, PAIR
from penstock.ledger import Ledger
from penstock.ledger.judge_budget import JudgeBudget
from penstock.monitoring.judge_asking import Asking
from penstock.monitoring.judge_prompts import judge_digest
from penstock.monitoring.judge_questions import Candidate, answered, marks, pairs
from penstock.monitoring.judge_work import Known, Outcome, Work
from penstock.monitoring.logged_texts import SETTLE_MS
from penstock.recipe import Recipe
from penstock.serve_section import LogConfig
from penstock.serving.prices import to_nanousd
from penstock.stages.base import Progress, Silent
from penstock.store import Store
from penstock.traffic import Traffic

_DAY_MS = 86_400_000
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

    @cached_property
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
        with claim:
            candidates = self._candidates(in_pairs, now_s)
            known = self._known(PAIR if in_pairs else MARK) if candidates else {}
            work = Work(self.section, self.digest, self.traffic, log_config, asking, known)
            if candidates:
                with progress.track("judge", len(candidates)) as advance:
                    asyncio.run(work.go(candidates, advance))
        return work.outcome

    def rows(self, kind: str, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Rows of this judge and kind, with some columns, in no order."""
        for batch in self.traffic.judged.scan(columns=["kind", "judge", *columns]):
            for row in batch.to_pylist():
                if row["judge"] == self.digest and row["kind"] == kind:
                    yield row

    def span(self, now_s: float | None = None) -> tuple[int, int]:
        """What is looked at: its first millisecond, and the first one after it."""
        now_ms = int(1000 * (time.time() if now_s is None else now_s))
        return now_ms - self.section.days * _DAY_MS, now_ms - SETTLE_MS

    # -- inside --------------------------------------------------------------

    def _log_config(self) -> LogConfig:
        config = self.recipe.serve.log
        if config is None:
            raise RecipeError("Requests are not logged, so there is nothing to judge.",
                              "Set serve.log: {content: true}")  # fmt: skip
        if not config.content:
            raise RecipeError("The log holds no texts, so there is nothing to judge.",
                              "Set serve.log.content: true")  # fmt: skip
        return config

    def _candidates(self, in_pairs: bool, now_s: float | None) -> list[Candidate]:
        start_ms, end_ms = self.span(now_s)
        rows, shadows = answered(self.traffic.log, start_ms, end_ms, self.digests)
        if in_pairs:
            found = pairs(rows, shadows, self.section.sample)
        else:
            said = self.traffic.feedback.between(start_ms, end_ms, (RESPONSE_ID, "score"))
            labelled = {row[RESPONSE_ID] for row in said.to_pylist() if row["score"] is not None}
            found = marks(rows, labelled, self.section.sample)
        done = self._done(PAIR if in_pairs else MARK)
        orders = 2 if in_pairs else 1
        open_ = (replace(one, done=done.get(one.ids, frozenset())) for one in found)
        return [one for one in open_ if len(one.done) < orders]

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
