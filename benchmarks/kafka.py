"""Events per second from a Kafka topic into a Delta table, beside dlt and a loop by hand.

``python -m benchmarks.kafka [--events 200000] [--rounds 5]`` fills a topic of four
partitions at librdkafka's mock broker (in a process of its own) and lets each
contestant ingest all of it, in turn, each time in a fresh process and into a fresh
table. The clock starts after the imports and stops when the last row is committed.

- penstock: ``run --until ingest``, ledger and row ids included. Exactly once.
- by hand: consume, ``json.loads``, ``write_deltalake`` every 100,000 rows, then commit
  the group's offsets. Doubles rows if it is killed between the two.
- dlt: a resource that yields lists of dicts, as dlt's own Kafka source does, into the
  filesystem destination as Delta. Doubles rows if it is killed after its commit.
- dlt, Arrow: the same, but the resource yields Arrow tables, which dlt passes through.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.machine import machine  # noqa: E402 - found through the path set above

PARTITIONS = 4
CHUNK = 100_000
_WORDS = ("row", "model", "data", "train", "serve", "gate", "merge", "batch", "token", "table")
_RECIPE = """\
name: bench
sources: {events: {type: kafka, topics: TOPIC, bootstrap_servers: "ADDRESS"}}
evaluate: {tasks: [held_out]}
gate: {max: {held_out: 8.0}}
"""


def events(count: int) -> Iterator[dict[str, object]]:
    """Rows of about 300 bytes."""
    draw = random.Random(count)
    for i in range(count):
        words = draw.choices(_WORDS, k=40)
        yield {
            "id": i,
            "instruction": f"Question {i}: what becomes of {' '.join(words[:10])}?",
            "response": f"Answer {i}: {' '.join(words[10:])}.",
            "score": (i % 1000) / 1000,
            "user": f"user-{i % 5000}",
        }


def by_penstock(address: str, topic: str, folder: Path) -> Callable[[], int]:
    """Our source, by the pipeline."""
    import confluent_kafka.admin  # noqa: F401 - what the source imports late
    import deltalake  # noqa: F401
    import pandas  # noqa: F401 - deltalake imports it late

    from penstock.pipeline import open_pipeline

    path = folder / "recipe.yaml"
    path.write_text(_RECIPE.replace("TOPIC", topic).replace("ADDRESS", address))
    pipeline = open_pipeline(path)

    def work() -> int:
        report = pipeline.run(until="ingest")
        return int(report.artifacts["ingest"].summary["rows"]["total"])

    return work


def _messages(address: str, topic: str) -> Iterator[list[bytes]]:
    """All messages of the topic, as a consumer written by hand would get them."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": f"bench-{os.getpid()}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(topic, i, OFFSET_BEGINNING) for i in range(PARTITIONS)])
    ended = 0
    while ended < PARTITIONS:
        found = consumer.consume(10_000, 0.1)
        ended += sum(message.error() is not None for message in found)
        yield [message.value() for message in found if message.error() is None]
    consumer.commit(asynchronous=False)
    consumer.close()


def by_hand(address: str, topic: str, folder: Path) -> Callable[[], int]:
    """What one writes on a Friday."""
    import pandas  # noqa: F401 - deltalake imports it late
    import pyarrow as pa
    from deltalake import DeltaTable, write_deltalake

    def work() -> int:
        rows: list[dict[str, object]] = []
        for values in _messages(address, topic):
            rows += map(json.loads, values)
            if len(rows) >= CHUNK:
                write_deltalake(folder / "table", pa.Table.from_pylist(rows), mode="append")
                rows = []
        if rows:
            write_deltalake(folder / "table", pa.Table.from_pylist(rows), mode="append")
        return int(DeltaTable(folder / "table").count())

    return work


def _by_dlt(address: str, topic: str, folder: Path, arrow: bool) -> Callable[[], int]:
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}
    import dlt
    import pandas  # noqa: F401
    import pyarrow as pa
    from deltalake import DeltaTable

    def pieces() -> Iterator[object]:
        for values in _messages(address, topic):
            rows = [json.loads(value) for value in values]
            if rows:
                yield pa.Table.from_pylist(rows) if arrow else rows

    pipeline = dlt.pipeline(
        "bench",
        pipelines_dir=str(folder / "pipelines"),
        destination=dlt.destinations.filesystem(bucket_url=str(folder / "bucket")),
        dataset_name="bench",
    )

    def work() -> int:
        pipeline.run(
            dlt.resource(pieces, name="events"), table_format="delta", write_disposition="append"
        )
        return int(DeltaTable(folder / "bucket" / "bench" / "events").count())

    return work


def by_dlt(address: str, topic: str, folder: Path) -> Callable[[], int]:
    """As dlt's own Kafka source does it."""
    return _by_dlt(address, topic, folder, arrow=False)


def by_dlt_arrow(address: str, topic: str, folder: Path) -> Callable[[], int]:
    """As dlt is fastest."""
    return _by_dlt(address, topic, folder, arrow=True)


CONTESTANTS = {
    "penstock": by_penstock,
    "by hand": by_hand,
    "dlt": by_dlt,
    "dlt, Arrow": by_dlt_arrow,
}


def one(name: str, address: str, topic: str) -> None:
    """Do it once in this process; print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        work = CONTESTANTS[name](address, topic, Path(folder))
        began = time.monotonic()
        rows = work()
        took_s = time.monotonic() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "took_s": took_s, "peak_mb": peak_mb}), flush=True)


def measure(name: str, address: str, topic: str, count: int) -> dict[str, float]:
    """Do it once in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--at", address, "--topic", topic]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if found["rows"] != count:
        raise SystemExit(f"{name} has {found['rows']} rows of {count}")
    return found


def main(count: int, rounds: int) -> None:
    """Fill the topic, let each contestant in turn ingest it, print the table."""
    import kafka_broker

    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    with kafka_broker.running() as broker:
        topic = broker.topic(PARTITIONS)
        made = list(events(count))
        for partition in range(PARTITIONS):
            broker.send(topic, made[partition::PARTITIONS], partition=partition)
        for _ in range(rounds):
            for name in CONTESTANTS:
                found[name].append(measure(name, broker.address, topic, count))
    print(f"{machine()}; {count:,} events, {PARTITIONS} partitions, {rounds} rounds\n")
    print("| | events/s, median | lowest to highest | median of ratios to by hand | peak MB |")
    print("|---|---|---|---|---|")
    for name, times in found.items():
        rates = [count / one["took_s"] for one in times]
        ratios = [
            theirs["took_s"] / ours["took_s"]
            for ours, theirs in zip(times, found["by hand"], strict=True)
        ]
        print(
            f"| {name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} "
            f"| {statistics.median(ratios):.2f} | {max(one['peak_mb'] for one in times):,.0f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    parser.add_argument("--topic", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.at, arguments.topic)
    else:
        main(arguments.events, arguments.rounds)
