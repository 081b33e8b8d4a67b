"""Drift: is what users ask, and what is answered, still what it was?

Requests are looked at in windows, once each. A window gets tests against what the serving
version was trained on and against the first windows since it serves: they say how it
differs. Live traffic always differs somehow, so they raise no alarm. The alarm comes from
the stream (``gates.stream_alarm``): each window is compared with those since the version
serves, over all signals at once, within the recipe's budget of false alarms.

Results are in the ledger, one for each window, whoever looked first; the stream's state is
computed from them. A promotion begins a new stream.
"""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

from penstock.artifacts import digest_of
from penstock.day_tables import day_of
from penstock.drift_section import Against, DriftSection, TextColumn
from penstock.errors import LedgerError
from penstock.gates.shifts import Shift, holm, length_shift, share_shift, share_shifts
from penstock.gates.stream_alarm import Budget, FloatArray, Moment, Seen, follow
from penstock.gates.two_sample import Vectors, compare, fourier_features
from penstock.ledger import Ledger, ModelVersion, Move
from penstock.ledger.alarms import Alarm, Alarms
from penstock.ledger.drift_records import DriftRecord, DriftRecords
from penstock.monitoring.logged_texts import (
    Logged,
    Window,
    choose,
    closed_windows,
    is_trained_here,
    texts_of,
    training_texts,
)
from penstock.monitoring.text_samples import (
    LASTING,
    Embedding,
    KeptSamples,
    Sample,
    measured,
    tells_languages,
)
from penstock.recipe import Recipe
from penstock.stages.base import Progress, Silent
from penstock.stages.prepare import text_columns
from penstock.store import Store
from penstock.traffic import Traffic

FOLDER = "drift"
# Bumped when what is found in a window means something else.
REVISION = 1
# Embeddings have length 1, and unrelated texts lie about 1.3 apart.
_STREAM_BANDWIDTH = 1.0
_STREAM_FREQUENCIES = 256
_CLAIM_PAUSE_S = 0.2
# Of so many windows since a promotion, the first rows are what later ones are compared with.
_FIRST_WINDOWS = 14
_SILENT = Silent()


@dataclass(frozen=True)
class Judged:
    """A window's result, and the stream after it.

    Attributes:
        record: What was found.
        moment: The stream; None where the window had too little to be judged.
    """

    record: DriftRecord
    moment: Moment | None

    @property
    def window(self) -> Window:
        """When."""
        return Window(self.record.start_ms, self.record.end_ms)

    @property
    def name(self) -> str:
        """When it begins, in UTC."""
        return self.window.name


@dataclass(frozen=True)
class Status:
    """All windows since a version serves.

    Attributes:
        recipe: Whose.
        version: Which version.
        since_s: When it began to serve, Unix seconds.
        threshold: The statistic at which there is an alarm.
        notes: What could not be looked at, and why.
        windows: Oldest first.
    """

    recipe: str
    version: int
    since_s: float
    threshold: float
    notes: tuple[str, ...]
    windows: tuple[Judged, ...]

    @property
    def alarms(self) -> list[Judged]:
        """The windows that raised one."""
        return [one for one in self.windows if one.moment is not None and one.moment.is_alarm]


class DriftWatch:
    """Looks at the traffic of the version that serves now.

    Args:
        recipe: With ``observe.drift``, or its defaults are taken.
        store: Holds the request log and the training rows.
        ledger: Says what serves, and keeps the results.
        embedding: Another embedding model than the recipe's.

    Raises:
        RecipeError: There is no such embedding model.
        LedgerError: Nothing serves.
    """

    def __init__(
        self, recipe: Recipe, store: Store, ledger: Ledger, embedding: Embedding | None = None
    ) -> None:
        self.section = recipe.observe.drift or DriftSection()
        self.recipe, self.store, self.ledger = recipe, store, ledger
        self.move, self.model = _serving(recipe, ledger)
        self.embedding = embedding or Embedding(self.section.embedding, recipe.folder)
        self.records = DriftRecords(ledger.database)
        self.log = Traffic.of(store).log
        folder = store.table_at(FOLDER).folder
        self._kept = KeptSamples(folder, self.embedding.digest)
        self._first: dict[TextColumn, Sample] = {}

    @cached_property
    def against(self) -> tuple[Against, ...]:
        """What windows can be compared with."""
        known = is_trained_here(self.ledger, self.model)
        return tuple(one for one in self.section.against if known or one != "training")

    @cached_property
    def stream(self) -> str:
        """Digest of all that makes windows comparable."""
        section = self.section
        return digest_of(
            [
                *(REVISION, self.recipe.model_name, self.recipe.deploy.alias, self.move.epoch),
                *(self.model.digest, self.embedding.digest, section.window_s, section.min_rows),
                *(section.max_rows, section.columns, self.against, tells_languages()),
            ]
        )

    def check(self, now_s: float | None = None, progress: Progress = _SILENT) -> Status:
        """Look at every window that is over and was not looked at, then at the stream.

        Args:
            now_s: Unix seconds; None is now.
            progress: Where to tell how many windows were looked at.

        Raises:
            LedgerError: The ledger cannot be written.
            StoreError: The store cannot be read.
            EvaluationError: The embedding model gives what is not a number.
        """
        now_ms = int(1000 * (time.time() if now_s is None else now_s))
        with self._claimed(progress):
            self._look(now_ms, progress)
            self._expire(now_ms)
        status = self.status()
        self._raise(status)
        return status

    def status(self) -> Status:
        """What was found so far, without looking further."""
        records = self.records.of(self.recipe.name, self.stream)
        judged = [one for one in records if one.found["signals"]]
        chosen = self.section.false_alarms
        budget = Budget(chosen.chance, chosen.windows)
        moments = follow([_seen(one) for one in judged], budget)
        after = {one.start_ms: moment for one, moment in zip(judged, moments, strict=True)}
        return Status(
            self.recipe.name,
            self.model.version,
            self.move.at_s,
            budget.threshold,
            tuple(self._notes(records)),
            tuple(Judged(one, after.get(one.start_ms)) for one in records),
        )

    def num_due(self, status: Status, now_s: float) -> int:
        """How many windows are over, and were not looked at yet."""
        known = {one.record.start_ms for one in status.windows}
        windows = self._windows(int(1000 * now_s))
        return sum(one.start_ms not in known for one in windows)

    def sample(
        self, window: Window, column: TextColumn, chosen: Logged | None = None
    ) -> Sample | None:
        """What is known of a window's texts; None if there are none, or no longer.

        Args:
            window: When.
            column: Which texts.
            chosen: Which responses, where that is known already.
        """
        key = digest_of([self.recipe.name, self.stream, window.start_ms, column])[:40]
        day = day_of(window.start_ms).isoformat()
        kept = self._kept.get(day, key)
        if kept is not None:
            return kept
        texts = texts_of(self.log, (chosen or self._chosen(window)).ids, column)
        if not texts:
            return None
        sample = measured(list(texts), list(texts.values()), self.embedding)
        self._kept.put(day, key, sample)
        return sample

    def reference(self, against: Against, column: TextColumn, window: Window) -> Sample | None:
        """What a window is compared with; None if there is nothing yet."""
        if against == "training":
            return self._training[column]
        if column in self._first:
            return self._first[column]
        samples: list[Sample] = []
        for record in self.records.of(self.recipe.name, self.stream, upto=_FIRST_WINDOWS):
            if record.start_ms < window.start_ms and record.found["signals"]:
                found = self.sample(Window(record.start_ms, record.end_ms), column)
                samples += [] if found is None else [found]
        if not samples:
            return None
        joined = Sample.joined(samples).first(self.section.max_rows)
        if len(joined) == self.section.max_rows:
            self._first[column] = joined
        return joined

    def training_column(self, column: TextColumn) -> str:
        """The column of the training rows that a text corresponds to; an output may be a label."""
        classifier = self.recipe.train.classifier
        if classifier is not None:
            return classifier.text if column == "input" else classifier.label
        columns = text_columns(self.recipe)
        return columns[0] if column == "input" else columns[-1]

    # -- inside --------------------------------------------------------------

    def _raise(self, status: Status) -> None:
        """Raise what the stream says; what was raised before stays one alarm."""
        alarms = Alarms(self.ledger)
        for one in status.alarms:
            key = f"version {status.version}, move {self.move.epoch}, window {one.name}"
            evidence = alarm_evidence(one, status)
            alarms.raise_(Alarm(status.recipe, "drift", key, time.time(), evidence=evidence))

    def _windows(self, now_ms: int) -> list[Window]:
        log = self.recipe.serve.log
        days = None if log is None else log.retention_days
        oldest_ms = 0 if days is None else now_ms - days * 86_400_000
        since_ms = max(int(self.move.at_s * 1000) + 1, oldest_ms)
        return closed_windows(since_ms, now_ms, self.section.window_s)

    def _look(self, now_ms: int, progress: Progress) -> None:
        known = {one.start_ms for one in self.records.of(self.recipe.name, self.stream)}
        fresh = [one for one in self._windows(now_ms) if one.start_ms not in known]
        if not fresh:
            return
        with progress.track("look at windows", len(fresh)) as advance:
            for window in fresh:
                self.records.add(self._record(window))
                advance(1)

    def _record(self, window: Window) -> DriftRecord:
        return DriftRecord(
            self.recipe.name,
            self.stream,
            window.start_ms,
            window.end_ms,
            self.model.version,
            self._found(window),
        )

    def _found(self, window: Window) -> dict[str, Any]:
        chosen = self._chosen(window)
        found: dict[str, Any] = {
            "num_requests": chosen.num_requests,
            "num_conversations": chosen.num_conversations,
            "note": "",
            "columns": {},
            "signals": {},
        }
        if len(chosen.ids) < self.section.min_rows:
            needed = f"{self.section.min_rows:,} needed"
            return found | {"note": f"{chosen.num_conversations:,} conversations, {needed}"}
        samples: dict[TextColumn, Sample] = {}
        for column in self.section.columns:
            sample = self.sample(window, column, chosen)
            num_texts = 0 if sample is None else len(sample)
            if sample is None or num_texts < self.section.min_rows:
                return found | {"note": _too_few_texts(column, num_texts, self.section.min_rows)}
            samples[column] = sample
        found["columns"] = {
            name: self._compared(window, name, one) for name, one in samples.items()
        }
        found["signals"] = {
            signal: _encoded(seen)
            for name, one in samples.items()
            for signal, seen in self._signals(name, one).items()
        }
        return found

    def _compared(self, window: Window, column: TextColumn, sample: Sample) -> dict[str, Any]:
        out: dict[str, Any] = {"num_texts": len(sample)}
        for against in self.against:
            reference = self.reference(against, column, window)
            if reference is None:
                out[against] = None
                continue
            alpha, seed = self.section.alpha, window.start_ms
            tests = compare(reference.vectors, sample.vectors, alpha, seed)
            shifts = [asdict(one) for one in _shifts(column, reference, sample, alpha)]
            out[against] = asdict(tests) | {"differs": tests.differs, "shifts": shifts}
        return out

    def _signals(self, column: TextColumn, sample: Sample) -> dict[str, tuple[FloatArray, bool]]:
        """What the stream is told: of each window from as many rows, so that all are alike."""
        some = sample.first(self.section.min_rows)
        place = _place(some.vectors)
        signals: dict[str, tuple[FloatArray, bool]] = {}
        if "training" in self.against:
            step = place - _place(self._training[column].vectors)
            signals[f"{column} against training"] = (np.array([step @ step]), True)
        if "since_promotion" in self.against:
            signals[f"{column} since promotion"] = (place, False)
        signals[f"{column} length"] = (np.array([np.log1p(some.lengths).mean()]), False)
        if tells_languages():
            signals[f"{column} language"] = (_language_shares(some.languages), False)
        if column == "output":
            signals["output refusals"] = (np.array([some.refuses.mean()]), False)
        return signals

    def _chosen(self, window: Window) -> Logged:
        return choose(self.log, window, self.model.digest, self.section.max_rows)

    @cached_property
    def _training(self) -> dict[TextColumn, Sample]:
        return {column: self._training_sample(column) for column in self.section.columns}

    def _training_sample(self, column: TextColumn) -> Sample:
        name, at_most = self.training_column(column), self.section.max_rows
        key = digest_of([self.model.train_fingerprint, self.model.digest, name, at_most])[:40]
        kept = self._kept.get(LASTING, key)
        if kept is not None:
            return kept
        texts = training_texts(self.store, self.ledger, self.model, name, at_most)
        sample = measured(list(texts), list(texts.values()), self.embedding)
        self._kept.put(LASTING, key, sample)
        return sample

    def _notes(self, records: Sequence[DriftRecord]) -> Iterator[str]:
        log = self.recipe.serve.log
        if log is None:
            yield "Requests are not logged: set serve.log."
        elif not log.content:
            yield "The log holds no texts: set serve.log.content to true."
        if "training" in self.section.against and "training" not in self.against:
            version = f"{self.model.name} version {self.model.version}"
            yield f"None of our runs made {version}: it is not compared with training rows."
        if not records:
            since = f"since version {self.model.version} serves"
            yield f"No window of {self.section.window_s:g} s has ended {since}."

    def _expire(self, now_ms: int) -> None:
        log = self.recipe.serve.log
        if log is not None and log.retention_days is not None:
            self._kept.expire(day_of(now_ms) - timedelta(days=log.retention_days))

    @contextmanager
    def _claimed(self, progress: Progress) -> Iterator[None]:
        """One looks at a time: others would embed the same texts beside."""
        key = f"drift/{self.stream[:40]}"
        claim = self.ledger.try_claim(key)
        if claim is None:
            progress.say("Another process looks at these windows; waiting until it has.")
        while claim is None:
            time.sleep(_CLAIM_PAUSE_S)
            claim = self.ledger.try_claim(key)
        with claim:
            yield


def alarm_evidence(one: Judged, status: Status) -> dict[str, Any]:
    """What an alarm rests on, as JSON values; no texts."""
    assert one.moment is not None
    signals = sorted(one.moment.by_signal.items(), key=lambda item: -item[1])
    return {
        "window": one.name,
        "version": status.version,
        "statistic": one.moment.statistic,
        "threshold": status.threshold,
        "num_windows": one.moment.num_windows,
        "signals": dict(signals),
    }


def _serving(recipe: Recipe, ledger: Ledger) -> tuple[Move, ModelVersion]:
    name, alias = recipe.model_name, recipe.deploy.alias
    moves = ledger.history(name, alias)
    if not moves:
        raise LedgerError(
            f"Nothing serves as {name}@{alias}, so no traffic can have drifted.",
            "Promote a version first: penstock run",
        )
    return moves[-1], ledger.model(name, moves[-1].to_version)


def _too_few_texts(column: str, num_texts: int, needed: int) -> str:
    if num_texts == 0:
        why = "serve.log.content was off, or requests classified several texts at once"
        return f"no {column} texts are in the log: {why}"
    return f"{num_texts:,} {column} texts, {needed:,} needed"


def _place(vectors: Vectors) -> FloatArray:
    """Where texts lie: the mean of their features, whose distances are kernel distances."""
    # The older generator's stream never changes, and places of years must fit together.
    random = np.random.RandomState(REVISION)
    frequencies = random.standard_normal((vectors.shape[1], _STREAM_FREQUENCIES))
    features = fourier_features(vectors, (frequencies / _STREAM_BANDWIDTH).astype(np.float32))
    place: FloatArray = features.mean(axis=0, dtype=np.float64)
    return place


def _language_shares(languages: Sequence[str]) -> FloatArray:
    """The share of every language there is, in a fixed order."""
    from penstock.transforms.language import known_languages

    counts = Counter(languages)
    return np.array([counts[name] for name in known_languages()]) / max(len(languages), 1)


def _shifts(column: str, before: Sample, after: Sample, alpha: float) -> list[Shift]:
    """All that needs no embedding, corrected for how much that is."""
    shifts = [length_shift(f"{column} characters", before.lengths, after.lengths)]
    spoken = [Counter(filter(None, side.languages)) for side in (before, after)]
    shifts += share_shifts(f"{column} in", spoken[0], spoken[1], alpha)
    if column == "output":
        refused = [(int(side.refuses.sum()), len(side)) for side in (before, after)]
        shifts.append(share_shift("output refuses", refused[0], refused[1], alpha))
    return holm(shifts, alpha)


def _encoded(signal: tuple[FloatArray, bool]) -> dict[str, Any]:
    vector, fixed = signal
    text = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return {"vector": text, "fixed": fixed}


def _seen(record: DriftRecord) -> dict[str, Seen]:
    """A window's signals as the stream takes them."""
    return {name: _decoded(record, name, told) for name, told in record.found["signals"].items()}


def _decoded(record: DriftRecord, name: str, told: Mapping[str, Any]) -> Seen:
    vector = np.frombuffer(base64.b64decode(told["vector"]), "<f4").astype(np.float64)
    return Seen(vector, _lot(record.stream, record.start_ms, name), told["fixed"])


def _lot(stream: str, start_ms: int, name: str) -> float:
    """What breaks a tie: by chance, but always the same for one window and signal."""
    drawn = blake2b(f"{stream}/{start_ms}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn) / 2**64
