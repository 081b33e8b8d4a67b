"""Runs steps on Spark, in Spark's own environment; started by ``spark.py``.

``python -m penstock.engines.spark_worker SCRATCH`` reads one JSON request a line
from standard input, ``{"files": [...], "work": FILE, "made": FOLDER}``, and answers
each with ``{"error": null}`` or ``{"error": TEXT}``; the first answer says whether
the session is up.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pyarrow as pa

from penstock.engines.parcels import PARCELS, Work

_SCHEMA = "bucket long, place long, kind string, rows binary"
_PLAIN = pa.schema(
    [("bucket", "int64"), ("place", "int64"), ("kind", "string"), ("rows", "binary")]
)

# Java's second compiler works for tens of seconds on code that here moves bytes for a few.
_QUICK_JAVA = "-XX:TieredStopAtLevel=1"

_Batches: TypeAlias = Iterator[pa.RecordBatch]


def main(scratch: str) -> None:
    """Answer until standard input ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what Spark prints must not look like an answer
        sessions: list[Any] = []

        def answer(work: Callable[[], None]) -> None:
            try:
                work()
                said = None
            except Exception as failure:
                said = _in_one_line(failure)
            answers.write(json.dumps({"error": said}) + "\n")
            answers.flush()

        answer(lambda: sessions.append(_session(scratch)))
        for line in sys.stdin:
            request = json.loads(line)
            answer(lambda request=request: _run(sessions[0], **request))  # type: ignore[misc]
        for session in sessions:
            session.stop()


def _session(scratch: str) -> Any:
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LAUNCHER_OPTS", _QUICK_JAVA)
    builder = SparkSession.builder.appName("penstock")
    if not os.environ.get("SPARK_REMOTE"):
        builder = builder.master(os.environ.get("PENSTOCK_SPARK_MASTER", "local[*]"))
        for key, value in {
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.local.dir": f"{scratch}/spark",
            "spark.sql.warehouse.dir": f"{scratch}/spark-warehouse",
            # Before spark.driver.extraJavaOptions, which are the user's.
            "spark.driver.defaultJavaOptions": _QUICK_JAVA,
            "spark.driver.memory": os.environ.get("PENSTOCK_SPARK_MEMORY", "2g"),
        }.items():
            builder = builder.config(key, value)
    session = builder.getOrCreate()
    # A row is a parcel of some MiB here, so a batch is one row and a split one file.
    session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "1")
    session.conf.set("spark.sql.files.maxPartitionBytes", str(16 << 20))
    session.conf.set("spark.sql.files.openCostInBytes", str(1 << 20))
    session.conf.set("spark.sql.parquet.compression.codec", "uncompressed")
    session.range(1).count()  # starts it, or says that it cannot be
    return session


def _run(session: Any, files: list[str], work: str, made: str) -> None:
    with open(work, "rb") as file:
        first, then = pickle.load(file)  # noqa: S301  # what spark.py has written
    data = session.read.schema(_SCHEMA).parquet(*files).mapInArrow(_by_parcel(first), _SCHEMA)
    if then is not None:
        session.conf.set("spark.sql.shuffle.partitions", str(first.num_buckets))
        data = data.groupBy("bucket").applyInArrow(_by_bucket(then), _SCHEMA)
    data.write.parquet(made)


def _by_parcel(work: Work) -> Callable[[_Batches], _Batches]:
    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield from _batches(work(pa.Table.from_batches([batch]).cast(PARCELS)))

    return run


def _by_bucket(work: Work) -> Callable[[_Batches], _Batches]:
    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from _batches(work(pa.Table.from_batches(batches).cast(PARCELS)))

    return run


def _batches(parcels: pa.Table) -> _Batches:
    """One parcel in each: Spark's plain binary holds 2 GiB of a column in one batch."""
    for start in range(parcels.num_rows):
        yield from parcels.slice(start, 1).cast(_PLAIN).combine_chunks().to_batches()


def _in_one_line(failure: Exception) -> str:
    """The last line of the innermost error: a worker's traceback is in the text of Spark's."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (told[-1:] or lines or [type(failure).__name__])[0][:500]


if __name__ == "__main__":
    main(sys.argv[1])
