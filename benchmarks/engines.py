"""Engines against each other, and preparation against datatrove.

``python -m benchmarks.engines [SIZES] [--rounds N] [--documents N]`` prints two tables:

1. The same steps on the same rows by every engine in turn, for so many rounds. Spark
   is in an environment of its own (scripts/make-env.sh spark). The rows that come out
   are compared: they must be equal. Memory is that of all processes of the run.
2. Documents per second of processor time for cleaning, a length filter and
   near-dedupe, by the local engine and by datatrove in an environment of its own
   (scripts/make-env.sh datatrove), on the same documents with the same n-grams.
   Both use one thread. The sets they keep are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa

from benchmarks.machine import machine
from penstock import registry
from penstock.engines.base import StreamedRows, run_transforms
from penstock.errors import PenstockError
from penstock.transforms.clean import Normalise
from penstock.transforms.dedupe import ExactDedupe
from penstock.transforms.filter import Filter
from penstock.transforms.near_dedupe import NearDedupe

HOME = Path(__file__).parents[1]
ENGINES = ("local", "ray", "spark")
MIN_CHARACTERS = 200
NGRAM = 5
THRESHOLD = 0.75  # where datatrove's 14 bands of 8 find three pairs in four


def words(draw: random.Random, vocabulary: list[str], count: int) -> list[str]:
    """Words of which some are frequent and most are rare, as in a language."""
    return [vocabulary[int(len(vocabulary) * draw.random() ** 3)] for _ in range(count)]


def documents(count: int, num_words: int) -> Iterator[str]:
    """Documents, of which one in fifty repeats the one before with three words changed."""
    draw = random.Random(count)
    vocabulary = [
        "".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(20_000)
    ]
    last: list[str] = []
    for i in range(count):
        if i % 50 == 1:
            for _ in range(3):
                last[draw.randrange(len(last))] = "changed"
        else:
            last = words(draw, vocabulary, 20 if i % 40 == 3 else num_words)
        yield " ".join(last)


def rows_of(count: int) -> StreamedRows:
    """Rows of instruction and response, about 350 bytes each, made anew for each reading."""
    schema = pa.schema([("_row_id", "string"), ("instruction", "string"), ("response", "string")])

    def read() -> Iterator[pa.Table]:
        texts = documents(count, 60)
        for start in range(0, count, 20_000):
            some = [next(texts) for _ in range(min(20_000, count - start))]
            ids = [f"{start + i:032x}" for i in range(len(some))]
            yield pa.table(
                [ids, [text[:80] for text in some], [text[80:] for text in some]], schema
            )

    return StreamedRows(schema, read)


def run_engine(name: str, count: int) -> None:
    """In a process of its own: start, prepare, and print what it took."""
    rows = rows_of(count)
    steps = [
        Normalise(Normalise.Options()),
        Filter(Filter.Options()),
        ExactDedupe(ExactDedupe.Options()),
        NearDedupe(NearDedupe.Options()),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        engine = registry.resolve("engines", name)(Path(scratch))
        started = time.monotonic()
        prepared = run_transforms(engine, rows, steps)
        ended = time.monotonic()
        digest = blake2b()
        for tables in (prepared.kept.batches(), prepared.removed_batches()):
            for table in tables:
                digest.update("".join(table["_row_id"].to_pylist()).encode())
        engine.close()
    out = {
        "start_s": started - began,
        "wall_s": ended - started,
        "removed": sum(prepared.counts.values()),
        "digest": digest.hexdigest(),
    }
    print(json.dumps(out))


def compare_engines(sizes: list[int], rounds: int) -> None:
    """Print the first table."""
    subprocess.run([HOME / "scripts" / "make-env.sh", "spark"], check=True)
    print("| rows | engine | start s | prepare s | beside local | rows/s | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for size in sizes:
        found = [{name: measured(name, size) for name in ENGINES} for _ in range(rounds)]
        if len({one["digest"] for each in found for one in each.values()}) > 1:
            raise SystemExit("the engines do not agree on which rows are kept and removed")
        for name in ENGINES:
            start_s = median(each[name]["start_s"] for each in found)
            wall_s = median(each[name]["wall_s"] for each in found)
            ratio = median(each[name]["wall_s"] / each["local"]["wall_s"] for each in found)
            peak_mb = max(each[name]["peak_mb"] for each in found)
            print(
                f"| {size:,} | {name} | {start_s:.1f} | {wall_s:.1f} | {ratio:.2f} "
                f"| {size / wall_s:,.0f} | {peak_mb:,.0f} |",
                flush=True,
            )
    print("\nAll engines kept and removed the same rows.\n")


def measured(name: str, size: int) -> dict[str, Any]:
    """Prepare by one engine in a process of its own; its numbers, with the tree's memory."""
    command = [sys.executable, "-m", "benchmarks.engines", "--engine", name, str(size)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak_bytes = 0
    while run.poll() is None:
        peak_bytes = max(peak_bytes, tree_bytes(psutil.Process(run.pid)))
        time.sleep(0.25)
    printed = run.stdout.read() if run.stdout else ""
    if run.returncode:
        raise SystemExit(f"{name} failed: {' '.join(command)}")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return {**found, "peak_mb": peak_bytes / 1e6}


def tree_bytes(process: psutil.Process) -> int:
    """Memory of a process and all below it; pages they share are counted once (PSS)."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total


# -- datatrove ---------------------------------------------------------------------


def run_local(path: Path) -> None:
    """In a process of its own: our steps on the documents of a file."""
    schema = pa.schema([("_row_id", "string"), ("text", "string")])

    def read() -> Iterator[pa.Table]:
        with path.open(encoding="utf-8") as file:
            while some := [json.loads(line) for line in _some(file, 5_000)]:
                columns = [[d["id"] for d in some], [d["text"] for d in some]]
                yield pa.table(columns, schema=schema)

    columns = ("text",)
    steps = [
        Normalise(Normalise.Options(columns=columns)),
        Filter(Filter.Options(columns=columns, min_characters={"text": MIN_CHARACTERS})),
        NearDedupe(NearDedupe.Options(columns=columns, ngram=NGRAM, threshold=THRESHOLD)),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        engine = registry.resolve("engines", "local")(Path(scratch))
        prepared = run_transforms(engine, StreamedRows(schema, read), steps)
        kept = [i for table in prepared.kept.batches() for i in table["_row_id"].to_pylist()]
    print(json.dumps(kept))


def _some(file, count: int) -> Iterator[str]:
    for _, line in zip(range(count), file, strict=False):
        yield line


def timed(command: list[str]) -> tuple[list[str], float, float]:
    """Ids that were kept, seconds of the clock, seconds of processor time."""
    threads = dict.fromkeys(("POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    before, began = os.times(), time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **threads}
    )
    after, ended = os.times(), time.monotonic()
    if done.returncode:
        raise PenstockError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    processor_s = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return json.loads(done.stdout.splitlines()[-1]), ended - began, processor_s


def compare_with_datatrove(count: int) -> None:
    """Print the second table."""
    made = subprocess.run(
        [HOME / "scripts" / "make-env.sh", "datatrove"], capture_output=True, text=True, check=False
    )
    if made.returncode:
        last = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"datatrove cannot be installed here, so there is nothing to compare: {last}")
        return
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "documents.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for i, text in enumerate(documents(count, 500)):
                file.write(json.dumps({"id": f"{i:032x}", "text": text}) + "\n")
        size = path.stat().st_size / count
        ours = timed([sys.executable, "-m", "benchmarks.engines", "--documents-of", str(path)])
        python = str(HOME / ".venvs" / "datatrove" / "bin" / "python")
        script = str(HOME / "benchmarks" / "datatrove_steps.py")
        peer = [python, script, str(path), str(folder / "work"), str(MIN_CHARACTERS), str(NGRAM)]
        theirs = timed(peer)
    except PenstockError as error:
        print(f"One of the two failed, so there is nothing to compare: {error}")
        return
    finally:
        shutil.rmtree(folder)
    print(f"{count:,} documents of {size:,.0f} bytes; start-up of both included\n")
    print("| | clock s | processor s | documents/s and core | kept |")
    print("|---|---|---|---|---|")
    for name, (kept, clock_s, processor_s) in (("penstock", ours), ("datatrove", theirs)):
        rate = count / processor_s
        print(f"| {name} | {clock_s:.1f} | {processor_s:.1f} | {rate:,.0f} | {len(kept):,} |")
    a, b = set(ours[0]), set(theirs[0])
    print(
        f"\nKept by both {len(a & b):,}, by Penstock alone {len(a - b):,}, "
        f"by datatrove alone {len(b - a):,}."
    )


def main() -> None:
    """Measure and print both tables, or one measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--documents-of", type=Path)
    options = parser.parse_args()
    if options.engine:
        run_engine(options.engine, options.sizes[0])
    elif options.documents_of:
        run_local(options.documents_of)
    else:
        print(f"{machine()}\n")
        compare_engines(options.sizes, options.rounds)
        compare_with_datatrove(options.documents)


if __name__ == "__main__":
    main()
