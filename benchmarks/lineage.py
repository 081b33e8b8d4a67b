"""How long `penstock lineage RESPONSE_ID` takes with many requests logged.

``python -m benchmarks.lineage [REQUESTS]`` trains a tiny model, logs that many requests
(100,000 by default) as two workers would that write 100 rows at a time, with feedback on
one in a hundred, and looks responses up: by the library, and by the command with its
start. Before and after the files of each day were made few. Prints medians and the
slowest as Markdown.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deltalake import DeltaTable

from benchmarks.machine import machine
from penstock.day_tables import day_of, id_ms
from penstock.lineage import trace
from penstock.pipeline import Pipeline, open_pipeline

# The tests' smallest project and rows as the gateway writes them.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_project
from traffic_rows import Writers, asked, opinion, response_id

_ROWS_PER_FILE = 100
_NUM_DAYS = 3
_LOOKUPS = 50


def main() -> None:
    """Measure and print."""
    num_requests = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as scratch:
        pipeline = _trained(Path(scratch) / "project")
        names = _logged(pipeline, num_requests)
        print(f"\n{machine()}. {num_requests:,} requests over {_NUM_DAYS} days.\n")
        print("| files | by | median s | slowest s |\n|---|---|---|---|")
        _report(pipeline, names)
        tables = Writers(pipeline.store.root).traffic
        for day in {day_of(id_ms(name)) for name in names}:
            tables.log.compact(day)
            tables.feedback.compact(day)
        _report(pipeline, names)


def _trained(folder: Path) -> Pipeline:
    pipeline = open_pipeline(tiny_project.write_project(folder))
    pipeline.run()
    return pipeline


def _logged(pipeline: Pipeline, num_requests: int) -> list[str]:
    """Write the log; returns the ids of all responses."""
    digest = pipeline.ledger.model(pipeline.recipe.model_name, 1).digest
    workers = [Writers(pipeline.store.root) for _ in range(2)]
    names: list[str] = []
    for number in range(num_requests // _ROWS_PER_FILE):
        day = number % _NUM_DAYS
        some = [_with(response_id(day, number * 1_000 + i), digest) for i in range(_ROWS_PER_FILE)]
        writer = workers[number % len(workers)]
        writer.log(*map(asked, some))
        if number % 10 == 0:
            writer.say(*map(opinion, some[::10]))
        names += some
    return names


def _with(name: str, digest: str) -> str:
    kind, _, unique = name.split("-")
    return f"{kind}-{digest[:16]}-{unique}"


def _report(pipeline: Pipeline, names: list[str]) -> None:
    files = len(DeltaTable(Writers(pipeline.store.root).traffic.log.folder.url).file_uris())

    def in_process(name: str) -> None:
        found = trace(name, pipeline.ledger, pipeline.store)
        assert found.request is not None
        assert found.sources

    def by_command(name: str) -> None:
        command = [sys.executable, "-m", "penstock.cli", "lineage", name, "-r", str(pipeline.path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    for by, look_up, times in (("library", in_process, _LOOKUPS), ("command", by_command, 10)):
        took = [_timed(look_up, random.choice(names)) for _ in range(times)]
        print(f"| {files:,} | {by} | {statistics.median(took):.3f} | {max(took):.3f} |", flush=True)


def _timed(look_up: Callable[[str], None], name: str) -> float:
    started_s = time.perf_counter()
    look_up(name)
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main()
