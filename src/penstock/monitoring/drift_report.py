"""What was found about drift, for people and for machines: windows, and topics that moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from penstock.drift_section import Against, TextColumn
from penstock.errors import RecipeError
from penstock.gates.moved_clusters import moved_clusters
from penstock.gates.shifts import Shift
from penstock.monitoring.drift import DriftWatch, Judged, Status
from penstock.monitoring.logged_texts import texts_of, training_texts
from penstock.monitoring.redaction import redacted_all
from penstock.monitoring.text_samples import Sample

_EXAMPLE_CHARACTERS = 200
AGAINST = {"training": "training rows", "since_promotion": "the first windows"}


@dataclass(frozen=True)
class Topic:
    """A cluster of texts, and how its share has changed.

    Attributes:
        share: Of the reference and of the window.
        before: Texts of the reference nearest to its middle, redacted and cut short.
        after: Texts of the window likewise.
    """

    share: Shift
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Topics:
    """What moved between a reference and a window.

    Attributes:
        column: Which texts.
        against: Which reference.
        topics: Those that moved most first.
    """

    column: TextColumn
    against: Against
    topics: tuple[Topic, ...]


def chosen_window(status: Status, name: str | None) -> Judged | None:
    """The window of that name; else the last one with an alarm, else the last one judged.

    Raises:
        RecipeError: No window has that name.
    """
    if name is not None:
        found = [one for one in status.windows if one.name == name]
        if not found:
            some = ", ".join(one.name for one in status.windows[-3:]) or "none"
            raise RecipeError(f"--window {name!r} is no window.", f"The last ones: {some}.")
        return found[0]
    judged = [one for one in status.windows if one.moment is not None]
    return next(iter([*reversed(status.alarms), *reversed(judged)]), None)


def topics_of(watch: DriftWatch, one: Judged) -> list[Topics]:
    """Which topics moved in a window, against each reference; what is gone is left out."""
    found = []
    for column in watch.section.columns:
        after = watch.sample(one.window, column)
        for against in watch.against:
            before = watch.reference(against, column, one.window)
            if before is not None and after is not None:
                topics = _topics(watch, against, column, before, after)
                found.append(Topics(column, against, topics))
    return found


def _topics(
    watch: DriftWatch, against: Against, column: TextColumn, before: Sample, after: Sample
) -> tuple[Topic, ...]:
    clusters = moved_clusters(before.vectors, after.vectors, watch.section.alpha)
    names = [
        ([before.ids[i] for i in cluster.before], [after.ids[i] for i in cluster.after])
        for cluster in clusters
    ]
    every = [name for sides in names for side in sides for name in side]
    texts = _texts(watch, against, column, every)
    return tuple(
        Topic(
            cluster.share, tuple(map(texts.__getitem__, olds)), tuple(map(texts.__getitem__, news))
        )
        for cluster, (olds, news) in zip(clusters, names, strict=True)
    )


def _texts(
    watch: DriftWatch, against: Against, column: TextColumn, ids: Sequence[str]
) -> dict[str, str]:
    """Readable texts by id, without personal data."""
    found: dict[str, str] = {}
    if against == "training":
        name, at_most = watch.training_column(column), watch.section.max_rows
        found |= training_texts(watch.store, watch.ledger, watch.model, name, at_most)
    logged = [name for name in ids if name not in found]
    found |= texts_of(watch.log, logged, column)
    clean = redacted_all([found.get(name, "(no longer in the log)") for name in ids])
    return {name: _short(text) for name, text in zip(ids, clean, strict=True)}


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _EXAMPLE_CHARACTERS else f"{flat[:_EXAMPLE_CHARACTERS]}…"


def summary(status: Status) -> dict[str, Any]:
    """All of it as JSON values, without what only the stream needs."""
    return {
        "recipe": status.recipe,
        "version": status.version,
        "since": datetime.fromtimestamp(status.since_s, UTC).isoformat(timespec="seconds"),
        "threshold": status.threshold,
        "notes": list(status.notes),
        "alarms": [one.name for one in status.alarms],
        "windows": [_window(one) for one in status.windows],
    }


def _window(one: Judged) -> dict[str, Any]:
    told = {key: value for key, value in one.record.found.items() if key != "signals"}
    stream = None if one.moment is None else vars(one.moment)
    return {"window": one.name, **told, "stream": stream}


HEADERS = ("window", "conversations", "differs in", "least p", "statistic", "")


def rows(status: Status) -> list[tuple[str, ...]]:
    """One row for each window."""
    return [_row(one) for one in status.windows]


def _row(one: Judged) -> tuple[str, ...]:
    found = one.record.found
    tests = list(_tests(found))
    differs = ", ".join(
        f"{column} from {AGAINST[against]}" for column, against, test in tests if test["differs"]
    )
    p = [test[name] for _, _, test in tests for name in ("kernel_p", "classifier_p")]
    known = [value for value in p if value is not None]
    moment = one.moment
    return (
        one.name,
        f"{found['num_conversations']:,}",
        differs,
        f"{min(known):.3f}" if known else "",
        "" if moment is None else f"{moment.statistic:.3g}",
        "ALARM" if moment is not None and moment.is_alarm else found["note"],
    )


def _tests(found: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [
        (column, against, compared[against])
        for column, compared in found["columns"].items()
        for against in AGAINST
        if compared.get(against) is not None
    ]


def headline(status: Status) -> str:
    """What there is to say, in one line."""
    serves = f"{status.recipe} version {status.version}"
    judged = sum(one.moment is not None for one in status.windows)
    if status.alarms:
        names = ", ".join(one.name for one in status.alarms)
        return f"{serves}: traffic has changed; alarm in window {names}."
    return f"{serves}: no alarm in {judged:,} windows."
