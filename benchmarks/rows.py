"""Rows per second and peak memory of ingest, validate and prepare.

``python -m benchmarks.rows [SIZES]`` writes JSON Lines of each size, runs
``penstock run --until prepare`` on them in a process of its own, and prints a
Markdown table. Time should grow with the rows, memory should not.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine

_RECIPE = """\
name: rows
sources: {rows: {type: files, paths: [rows.jsonl]}}
prepare:
  transforms: [normalise, {filter: {}}, dedupe, {split: {validation: 0.01}}]
  max_length: 512
evaluate: {tasks: [held_out]}
gate: {max: {held_out: 8.0}}
"""
_WORDS = ("row", "model", "data", "train", "serve", "gate", "merge", "batch", "token", "table")


def write_rows(path: Path, count: int) -> None:
    """Write ``count`` rows of about 300 bytes, one in fifty a duplicate."""
    draw = random.Random(count)
    line = ""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            if i % 50 != 1:
                words = draw.choices(_WORDS, k=30)
                row = {
                    "instruction": f"Question {i}: what becomes of {' '.join(words[:8])}?",
                    "response": f"Answer {i}: {' '.join(words)}.",
                    "quality_score": 0.6 + (i % 40) / 100,
                }
                line = json.dumps(row) + "\n"
            file.write(line)


def measure(count: int) -> dict[str, object]:
    """Run once; returns seconds by stage and in all, and peak resident memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", count)
        (folder / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
        command = [sys.executable, "-m", "penstock.cli", "run", "--until", "prepare", "--json"]
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began
        if status:
            raise SystemExit(f"the run failed with status {status}")
    stages = {one["stage"]: one["duration_s"] for one in json.loads(output)["stages"]}
    return {"rows": count, "wall_s": wall_s, "peak_mb": usage.ru_maxrss / 1024, **stages}


def main(sizes: list[int]) -> None:
    """Measure each size and print the table."""
    print(f"{machine()}\n")
    print("| rows | ingest s | validate s | prepare s | whole process s | rows/s | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for size in sizes:
        found = measure(size)
        print(
            f"| {size:,} | {found['ingest']:.1f} | {found['validate']:.1f} "
            f"| {found['prepare']:.1f} | {found['wall_s']:.1f} "
            f"| {size / float(str(found['wall_s'])):,.0f} | {found['peak_mb']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main([int(arg) for arg in sys.argv[1:]] or [100_000, 300_000, 1_000_000])
