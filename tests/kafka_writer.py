"""A process that ingests a topic until it is killed, beside others that do the same.

Started from a server that has imported everything and used none of it, so that a
process costs a fork, and 200 of them are cheap.
"""

import multiprocessing
import os
import time
from pathlib import Path

from penstock.errors import StoreError
from penstock.sources.kafka import KafkaOptions, KafkaSource
from penstock.stages.ingest import Ingester
from penstock.tables import Table

_PRELOAD = (
    "kafka_writer",
    "confluent_kafka.admin",
    "deltalake",
    "pandas",
    "pyarrow.parquet",
    "pyarrow.dataset",
)


def context():
    """Where writers are made."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(_PRELOAD))
    return made


def ingester(folder: Path, address: str, topic: str, part: int) -> Ingester:
    """Takes the topic into two tables that all writers share."""
    source = KafkaSource(KafkaOptions(topics=topic, bootstrap_servers=address), folder)
    spool = folder / f"spool-{os.getpid()}"
    return Ingester("orders", source, Table(folder / "raw"), Table(folder / "dead"), spool, part)


def write(folder: Path, address: str, topic: str, part: int) -> None:
    """Ingest for ever."""
    taking = ingester(folder, address, topic, part)
    while True:
        units = taking.source.snapshot()
        # Begin at another partition than the others, and meet them often all the same.
        turn = os.getpid() % len(units)
        for unit in (*units[turn:], *units[:turn]):
            try:
                while taking.take_part(unit):
                    pass
            except StoreError:  # the others kept getting in between
                time.sleep(0.01)
        time.sleep(0.01)
