"""Drift and quality as the pages show them: what was found, without looking further.

Nothing is embedded here. What `penstock drift` measured is in the ledger and the store; what
follows from it is worked out once for each window, and kept by this process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from penstock.drift_section import DriftSection
from penstock.errors import RecipeError, StoreError
from penstock.gates.two_sample import Vectors
from penstock.monitoring import judge_report
from penstock.monitoring.drift import DriftWatch, Judged, Status
from penstock.monitoring.drift_report import Topics, chosen_window, topics_of
from penstock.monitoring.judge import Judge
from penstock.monitoring.text_samples import Embedding
from penstock.monitoring.version_scores import Scores, version_scores
from penstock.pipeline import Pipeline
from penstock.traffic import Traffic

# The work of following a stream grows with the square of its windows: 1,000 take two seconds.
MAX_WINDOWS = 1_000
_MAX_OPINIONS = 2_000
# As the `requests` source has it, where the recipe has no such source.
_MIN_SCORE = 0.75
_KEPT_TOPICS = 8
_SCORES_FOR_S = 60.0


@dataclass(frozen=True)
class Drift:
    """What was found.

    Attributes:
        status: All windows since the version serves.
        chosen: The one that is shown in detail: the last with an alarm, or the last judged.
        num_due: Windows that are over, and that nobody has looked at.
    """

    status: Status
    chosen: Judged | None
    num_due: int


@dataclass(frozen=True)
class JudgedView:
    """What a judge has found: a row for each version, and what there is to say of it."""

    rows: Sequence[tuple[str, ...]]
    sentences: tuple[str, ...]


class _Measured(Embedding):
    """Knows which model measured, and does not measure."""

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Refuse.

        Raises:
            StoreError: Always.
        """
        raise StoreError(
            "This window's texts were not measured in this store.", "Run: penstock drift"
        )


class DriftDesk:
    """What was found about one project's traffic.

    Args:
        pipeline: The project.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        # So that work is done once, whoever asks meanwhile.
        self._following, self._telling = threading.Lock(), threading.Lock()
        self._scoring, self._judging = threading.Lock(), threading.Lock()
        self._judged: tuple[object, JudgedView] | None = None
        self._scores: tuple[object, tuple[Scores, float]] | None = None
        self._status: tuple[object, Status] | None = None
        self._topics: dict[tuple[str, int], list[Topics]] = {}

    def drift(self, window: str | None = None) -> Drift:
        """What was found, and one window in detail.

        Args:
            window: Its name; None is the last with an alarm, or the last judged.

        Raises:
            LedgerError: Nothing serves.
            RecipeError: There is no such window, or too many to follow on a page.
        """
        watch, status = self._followed()
        return Drift(status, chosen_window(status, window), watch.num_due(status, time.time()))

    def topics(self, window: str | None) -> tuple[Judged | None, list[Topics]]:
        """Which topics moved in a window, with examples.

        Raises:
            PenstockError: As for ``drift``; or its texts were not measured here.
        """
        watch, status = self._followed()
        one = chosen_window(status, window)
        if one is None:
            return None, []
        key = watch.stream, one.record.start_ms
        with self._telling:
            if key not in self._topics:
                self._topics[key] = topics_of(watch, one)
            while len(self._topics) > _KEPT_TOPICS:
                self._topics.pop(next(iter(self._topics)))
            return one, self._topics[key]

    def scores(self) -> tuple[Scores, float]:
        """What people made of each version, and from which score an answer is good.

        It is summed up when somebody has said something, and else once a minute, for the log
        may come later than the word about it.
        """
        traffic = Traffic.of(self._pipeline.store)
        state = traffic.feedback.standing(), int(time.time() / _SCORES_FOR_S)
        with self._scoring:
            if self._scores is None or self._scores[0] != state:
                self._scores = state, self._summed(traffic)
            return self._scores[1]

    def judged(self) -> JudgedView:
        """What the recipe's judge makes of each version; all its verdicts are read, once.

        Raises:
            RecipeError: The recipe names none.
        """
        pipeline = self._pipeline
        judge = Judge(pipeline.recipe, pipeline.store, pipeline.ledger)
        traffic = judge.traffic
        state = judge.digest, traffic.judged.standing(), traffic.feedback.standing()
        with self._judging:
            if self._judged is None or self._judged[0] != state:
                status = judge_report.status_of(judge)
                rows = judge_report.version_rows(status)
                told = tuple(judge_report.sentences(judge, status))
                self._judged = state, JudgedView(rows, told)
            return self._judged[1]

    def _summed(self, traffic: Traffic) -> tuple[Scores, float]:
        recipe = self._pipeline.recipe
        options: list[Any] = [
            recipe.plugin("sources", one)[1]
            for one in recipe.sources.values()
            if one.type == "requests"
        ]
        models = self._pipeline.ledger.models(recipe.model_name)
        min_score = float(options[0].min_score) if options else _MIN_SCORE
        reviewers = {name for one in options for name in one.reviewers}
        return version_scores(traffic, models, _MAX_OPINIONS, min_score, reviewers), min_score

    @cached_property
    def _embedding(self) -> Embedding:
        recipe = self._pipeline.recipe
        section = recipe.observe.drift or DriftSection()
        return _Measured(section.embedding, recipe.folder)

    def _followed(self) -> tuple[DriftWatch, Status]:
        pipeline = self._pipeline
        watch = DriftWatch(pipeline.recipe, pipeline.store, pipeline.ledger, self._embedding)
        count, last_ms = watch.records.standing(pipeline.recipe.name, watch.stream)
        if count > MAX_WINDOWS:
            raise RecipeError(
                f"{count:,} windows are too many to follow on a page.",
                "See them with: penstock drift --report drift.html",
            )
        state = watch.stream, count, last_ms
        with self._following:
            if self._status is None or self._status[0] != state:
                self._status = state, watch.status()
            return watch, self._status[1]
