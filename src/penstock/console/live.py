"""What came in over the last minutes, by the request log: no more than these minutes are read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from penstock.traffic import Traffic

NUM_BUCKETS = 30
_READ = (
    *("received_at", "model", "version", "shadow", "status", "error"),
    *("prompt_tokens", "completion_tokens", "duration_s", "ttft_s"),
)
_NO_VERSION = -1


@dataclass(frozen=True)
class ModelTraffic:
    """One model version over some minutes; copies that no client saw are left out.

    Attributes:
        model: Its name.
        version: None where it has none.
        num_requests: All of them.
        num_failed: Those that the server could not answer, or not to the end.
        num_refused: Those that it would not answer, and those whose client left.
        p50_s: Of answers, from the first byte to the last; None without any.
        p99_s: The same.
        ttft_s: Median time to the first token; None where nothing was streamed.
        prompt_tokens: Read.
        completion_tokens: Written.
    """

    model: str
    version: int | None
    num_requests: int
    num_failed: int
    num_refused: int
    p50_s: float | None
    p99_s: float | None
    ttft_s: float | None
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Bucket:
    """Requests that came within one part of the span.

    Attributes:
        at: When the part begins.
        num_answered: With an answer.
        num_other: Without one, or with half of one.
    """

    at: datetime
    num_answered: int
    num_other: int


@dataclass(frozen=True)
class Live:
    """The last minutes.

    Attributes:
        now: When they end.
        span_s: How long they are.
        models: Those with most requests first.
        buckets: Parts of the span, oldest first.
        last: When the newest request came that was written down; None if there is none.
    """

    now: datetime
    span_s: float
    models: tuple[ModelTraffic, ...]
    buckets: tuple[Bucket, ...]
    last: datetime | None


def live(traffic: Traffic, now: datetime, span_s: float) -> Live:
    """Sum the last minutes up.

    Args:
        traffic: The log.
        now: When the span ends, with a time zone.
        span_s: How long it is.
    """
    start = now - timedelta(seconds=span_s)
    rows = traffic.log.since(start, "received_at", _READ)
    if not rows.num_rows:
        return Live(now, span_s, (), (), None)
    frame = _judged(rows)
    last = frame["received_at"].max()
    return Live(now, span_s, _models(frame), _buckets(frame, start, span_s), last)


def _judged(rows: Any) -> Any:
    """The rows with what became of each."""
    import polars as pl

    frame = pl.DataFrame(rows).filter(~pl.col("shadow").fill_null(value=False))
    broke_off = (pl.col("status") == 200) & pl.col("error").is_not_null()
    failed = (pl.col("status") >= 500) | broke_off
    return frame.with_columns(
        failed=failed.fill_null(value=False),
        answered=((pl.col("status") < 400) & ~broke_off).fill_null(value=False),
        model=pl.col("model").fill_null("unknown"),
        version=pl.col("version").fill_null(_NO_VERSION),
    )


def _models(frame: Any) -> tuple[ModelTraffic, ...]:
    import polars as pl

    took_s = pl.col("duration_s").filter(pl.col("answered"))
    summed = frame.group_by("model", "version").agg(
        num_requests=pl.len(),
        num_failed=pl.col("failed").sum(),
        num_refused=(~pl.col("failed") & ~pl.col("answered")).sum(),
        p50_s=took_s.quantile(0.5, "nearest"),
        p99_s=took_s.quantile(0.99, "nearest"),
        ttft_s=pl.col("ttft_s").quantile(0.5, "nearest"),
        prompt_tokens=pl.col("prompt_tokens").sum(),
        completion_tokens=pl.col("completion_tokens").sum(),
    )
    ordered = summed.sort("num_requests", "model", "version", descending=[True, False, True])
    return tuple(
        ModelTraffic(**{**row, "version": None if row["version"] < 0 else row["version"]})
        for row in ordered.to_dicts()
    )


def _buckets(frame: Any, start: datetime, span_s: float) -> tuple[Bucket, ...]:
    import polars as pl

    width_s = span_s / NUM_BUCKETS
    since_s = (pl.col("received_at") - start).dt.total_microseconds() / 1e6
    placed = frame.with_columns(
        place=(since_s / width_s).floor().clip(0, NUM_BUCKETS - 1).cast(pl.Int64)
    )
    counted = placed.group_by("place").agg(
        answered=pl.col("answered").sum(), other=(~pl.col("answered")).sum()
    )
    counts = {row["place"]: (row["answered"], row["other"]) for row in counted.to_dicts()}
    return tuple(
        Bucket(start + timedelta(seconds=i * width_s), *counts.get(i, (0, 0)))
        for i in range(NUM_BUCKETS)
    )
